"""Keys of one client: which are held, and which inputs the server has not acknowledged yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

from streamgen_client.frames import Frame
from streamgen_client.links import Message


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """Which frame is the first to show an input.

    frame, pts_us: its number and presentation time. server_ms: from the input's receipt to that frame's hand-over.
    """

    frame: int
    pts_us: int
    server_ms: float

    def shown_by(self, frame: Frame) -> bool:
        """Whether the frame is that one, or a later one."""
        return frame.pts_us >= self.pts_us


@dataclass(frozen=True, eq=False, slots=True)
class Pending:
    """An input under way. sent_s: monotonic clock. answer: raises what ended the stream instead."""

    seq: int
    message: Message
    sent_s: float
    answer: asyncio.Future[Acknowledgement]


class Inputs:
    """Writes the messages about keys and matches their answers."""

    def __init__(self) -> None:
        self.held: frozenset[str] = frozenset()
        self._seq = 0
        self._pending: dict[int, Pending] = {}

    def edge(self, code: str, down: bool, held: Iterable[str]) -> Pending:
        """A key moves, and these are held from now on: others move with it."""
        self.held = frozenset(held)
        answer: asyncio.Future[Acknowledgement] = asyncio.get_running_loop().create_future()
        message = self._input(code, down)
        pending = Pending(self._seq, message, time.monotonic(), answer)
        self._pending[self._seq] = pending
        return pending

    def forget(self, pending: Pending) -> None:
        """Nobody waits for the answer any more."""
        self._pending.pop(pending.seq, None)

    def ping(self) -> Message:
        """The heartbeat."""
        return {"type": "ping", "seq": self._seq, "t": _now_ms(), "held": sorted(self.held)}

    def assertion(self) -> Message:
        """Says which keys are held in a way that the server acknowledges; moves none."""
        if self.held:
            return self._input(min(self.held), True)
        self._seq += 1
        return {"type": "release", "seq": self._seq, "t": _now_ms()}

    def next_unanswered(self, after: int) -> Pending | None:
        """The first input after this sequence number that was not answered."""
        return next((pending for seq, pending in self._pending.items() if seq > after), None)

    def acknowledged(self, ack: Message) -> list[tuple[Acknowledgement, float]]:
        """Give those who wait their answer; returns each with the time at which its input was sent.

        The server answers in order, and leaves answers out when too many wait: this one speaks for those before it.
        """
        answer = Acknowledgement(ack["frame"], ack["pts_us"], ack["server_ms"])
        answered = [self._pending.pop(seq) for seq in list(self._pending) if seq <= ack["seq"]]
        for pending in answered:
            if not pending.answer.done():
                pending.answer.set_result(answer)
        return [(answer, pending.sent_s) for pending in answered]

    def fail(self, error: Exception) -> None:
        """No answer will come."""
        for pending in self._pending.values():
            if not pending.answer.done():
                pending.answer.set_exception(error)
        self._pending.clear()

    def _input(self, code: str, down: bool) -> Message:
        self._seq += 1
        held = sorted(self.held)
        return {"type": "input", "seq": self._seq, "t": _now_ms(), "code": code, "down": down, "held": held}


def _now_ms() -> float:
    return time.monotonic() * 1e3
