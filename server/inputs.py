"""Keys of a stream's viewers: an event log read by cursor.

Every edge counts. A key that went down and up between two frames counts as held for the frame that follows. Every
message also carries the set of keys that are held, so a lost key-up or key-down is healed by the next message,
heartbeats included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

LOG_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class Event:
    """One entry. seq is None where no message asked for an acknowledgement; code is None where no key moved.

    t: the client's milliseconds. received_s: when the server read the message, monotonic clock.
    """

    viewer: str
    seq: int | None
    t: float
    received_s: float
    code: str | None
    down: bool


@dataclass(frozen=True, slots=True)
class Intake:
    """What a frame is generated under. start: log position of the first event in it, for `InputLog.restore`."""

    held: frozenset[str]
    events: tuple[Event, ...]
    start: int


@dataclass(slots=True)
class _Keys:
    """Of one viewer. seq: the last one seen."""

    held: set[str]
    seq: int = 0


class InputLog:
    """The log of one stream. At most LOG_LENGTH events are kept."""

    def __init__(self) -> None:
        self._lost = 0
        self._events: deque[Event] = deque()
        self._first = 0
        self._cursor = 0
        self._viewers: dict[str, _Keys] = {}

    @property
    def held(self) -> frozenset[str]:
        """Keys that some viewer holds now."""
        return frozenset().union(*(keys.held for keys in self._viewers.values()))

    def edge(self, viewer: str, seq: int, t: float, code: str, down: bool, held: Iterable[str], now_s: float) -> None:
        """A key moved; `held` is the set after it. A seq that was seen before is a repetition and changes nothing."""
        keys = self._keys(viewer)
        if seq <= keys.seq:
            return
        keys.seq = seq
        after = set(held) | {code} if down else set(held) - {code}
        self._append(Event(viewer, seq, t, now_s, code, down))
        self._heal(viewer, keys, after, now_s, known=code)

    def heartbeat(self, viewer: str, seq: int, held: Iterable[str], now_s: float) -> None:
        """The set of keys held, as of message `seq`; one older than the last edge says nothing new."""
        keys = self._keys(viewer)
        if seq >= keys.seq:
            self._heal(viewer, keys, set(held), now_s)

    def release(self, viewer: str, seq: int, t: float, now_s: float) -> None:
        """The viewer's page lost the focus: all its keys are up."""
        keys = self._keys(viewer)
        if seq <= keys.seq:
            return
        keys.seq = seq
        self._append(Event(viewer, seq, t, now_s, None, False))
        self._heal(viewer, keys, set(), now_s)

    def silence(self, viewer: str, now_s: float) -> None:
        """Nothing is heard of the viewer: all its keys are up."""
        if keys := self._viewers.get(viewer):
            self._heal(viewer, keys, set(), now_s)

    def forget(self, viewer: str, now_s: float) -> None:
        """The viewer has gone."""
        self.silence(viewer, now_s)
        self._viewers.pop(viewer, None)

    def take(self) -> Intake:
        """Read up to now: the keys that are held, and those that went down since the last reading."""
        start = max(self._cursor, self._first)
        events = tuple(event for i, event in enumerate(self._events, self._first) if i >= start)
        self._cursor = self._first + len(self._events)
        tapped = {event.code for event in events if event.down and event.code}
        return Intake(self.held | tapped, events, start)

    def restore(self, intake: Intake) -> None:
        """Unread an intake whose frame was thrown away: its taps and acknowledgements go to the next frame."""
        self._cursor = min(self._cursor, intake.start)

    def settle(self) -> None:
        """Forget unread taps, so that those made while nothing was generated are not played later.

        They are acknowledged all the same.
        """
        start = max(self._cursor, self._first) - self._first
        for i in range(start, len(self._events)):
            event = self._events[i]
            self._events[i] = Event(event.viewer, event.seq, event.t, event.received_s, None, False)

    def take_lost(self) -> int:
        """How many events left the log unread since the last call."""
        lost, self._lost = self._lost, 0
        return lost

    def _keys(self, viewer: str) -> _Keys:
        return self._viewers.setdefault(viewer, _Keys(set()))

    def _heal(self, viewer: str, keys: _Keys, held: set[str], now_s: float, known: str | None = None) -> None:
        for code in sorted(held ^ keys.held):
            if code != known:
                self._append(Event(viewer, None, 0.0, now_s, code, code in held))
        keys.held = held

    def _append(self, event: Event) -> None:
        if len(self._events) == LOG_LENGTH:
            self._events.popleft()
            self._lost += self._first >= self._cursor
            self._first += 1
        self._events.append(event)
