"""A viewer: one transport attached to a session, with its mailbox, its acknowledgements and its manners."""

from __future__ import annotations

import secrets
from collections import deque
from typing import Protocol

from server import tracing
from server.clock import rtp_ticks
from server.inputs import Event
from server.limits import TokenBucket
from server.mailbox import SOUND_FRAMES, Frame, Mailbox, Making
from server.metrics import Metrics
from server.protocol import Ack, Error, ServerMessage
from server.settings import Settings

MOST_OFFENCES = 200
_PENDING_ACKS = 1024
_COMPLAIN_EVERY_S = 1.0

CLOSE_NORMAL = 1000
CLOSE_POLICY = 1008
CLOSE_RESTART = 1012
CLOSE_TRY_LATER = 1013


class Transport(Protocol):
    """How a viewer is reached. kind: `webrtc` or `websocket`."""

    @property
    def kind(self) -> str: ...

    @property
    def rtp_origin(self) -> int | None:
        """What the wire adds to a frame's 90 kHz time; None: not known yet, or this transport has no RTP."""
        ...

    @property
    def has_rtp(self) -> bool: ...

    @property
    def present(self) -> bool:
        """Whether the connection itself says that somebody watches, heartbeat or not."""
        ...

    def send(self, text: str, important: bool) -> bool:
        """Send a control message, or drop it and return False when too many wait; important ones are let past."""
        ...

    def close(self, code: int, reason: str) -> None:
        """End the connection soon; code is a WebSocket close code."""
        ...


class Viewer:
    """Bookkeeping of one transport; the session feeds `mailbox`, the transport takes from it.

    sounds: the same frames for those who take what is heard with them; None: nobody does.
    """

    def __init__(self, transport: Transport, settings: Settings, metrics: Metrics, now_s: float) -> None:
        """Away, until its first message is heard."""
        self.id = secrets.token_urlsafe(9)
        self.transport = transport
        self.mailbox = Mailbox()
        self.sounds: Mailbox | None = None
        self.last_heard_s = float("-inf")
        self.away = True
        self.bucket = TokenBucket(settings.messages_per_s, settings.message_burst, now_s)
        self._metrics = metrics
        self._expected: deque[tuple[Event, Making, tuple[int, int]]] = deque(maxlen=_PENDING_ACKS)
        self._nameless: list[tuple[Event, Frame, float]] = []
        self._leaving: list[tuple[Event, Making, float]] = []
        self._offences = 0
        self._complained_s: dict[str, float] = {}

    def send(self, message: ServerMessage) -> None:
        """Send a control message; one that finds no room is counted."""
        if not self.transport.send(message.model_dump_json(), isinstance(message, Error)):
            self._metrics.messages_dropped.labels("slow_viewer").inc()

    def feed(self, frame: Frame) -> None:
        """Leave a frame for the transport."""
        if self.mailbox.put(frame):
            self._metrics.frames_dropped.labels(self.transport.kind, "slow_viewer").inc()
        if self.sounds is not None and frame.sound is not None and self.sounds.put(frame):
            self._metrics.sounds_dropped.labels(self.transport.kind).inc()

    def listen(self) -> Mailbox:
        """From now on frames are left in `sounds` too."""
        self.sounds = self.sounds or Mailbox(SOUND_FRAMES)
        return self.sounds

    def forget(self) -> None:
        """What waits for the transport is not to be shown any more."""
        self.mailbox.clear()
        if self.sounds is not None:
            self.sounds.clear()

    def close(self) -> None:
        """The viewer has gone."""
        self.mailbox.close()
        if self.sounds is not None:
            self.sounds.close()

    def expect(self, event: Event, frame: Frame) -> None:
        """The input is shown by this frame: acknowledge it when that one, or a later one, is taken."""
        self._expected.append((event, frame.making, (frame.generation, frame.index)))

    def taken(self, frame: Frame, now_s: float) -> None:
        """The transport hands the frame over now: acknowledge what it is the first to show."""
        self._leaving.clear()
        while self._expected and self._expected[0][2] <= (frame.generation, frame.index):
            event, making, _ = self._expected.popleft()
            self._metrics.input_to_frame.observe(now_s - event.received_s)
            self._nameless.append((event, frame, now_s))
            self._leaving.append((event, making, now_s))
        self.acknowledge()

    def sent(self, frame: Frame, encoded_s: float, now_s: float) -> None:
        """The frame that was taken last has left for the network; it was encoded by encoded_s."""
        for event, making, taken_s in self._leaving:
            tracing.input_shown(event, making, frame, self.transport.kind, taken_s, encoded_s, now_s)

    def acknowledge(self) -> None:
        """Send what was taken, as soon as the frames' RTP timestamps are known."""
        origin = self.transport.rtp_origin
        if self.transport.has_rtp and origin is None:
            return
        for event, frame, now_s in self._nameless:
            assert event.seq is not None
            rtp = None if origin is None else (rtp_ticks(frame.pts_us) + origin) % 2**32
            server_ms = round((now_s - event.received_s) * 1e3, 3)
            self.send(
                Ack(seq=event.seq, t=event.t, frame=frame.index, pts_us=frame.pts_us, rtp=rtp, server_ms=server_ms)
            )
        self._nameless.clear()

    def offend(self, error: Error, now_s: float) -> None:
        """The client did something it must not: tell it, not more than once a second, and end it if it goes on."""
        self._offences += 1
        self._metrics.messages_dropped.labels(error.code).inc()
        if self._offences > MOST_OFFENCES:
            self.transport.close(CLOSE_POLICY, error.code)
        elif now_s - self._complained_s.get(error.code, float("-inf")) >= _COMPLAIN_EVERY_S:
            self._complained_s[error.code] = now_s
            self.send(error)
