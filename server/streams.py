"""A stream as the server sees it: its state after every block, its inputs, its clock.

The worker holds only its cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines.protocol import StepRequest, StepResult
from server.clock import Epoch, MediaClock
from server.codes import ErrorCode
from server.inputs import Event, InputLog, Intake
from server.mailbox import Frame, Making
from streamgen.actions import action_vector
from streamgen.session_log import SessionLog
from streamgen.state import StreamState
from streamgen.student import Student

FPS_OVER_S = 3.0
_MOST_FAILURES = 3


class StreamListener(Protocol):
    """Whoever shows the stream."""

    def block_ready(self, frames: Sequence[Frame], shown: Sequence[Event], period_s: float) -> None:
        """Frames to hand over, one now and one every period_s; `shown` are the inputs that the first of them shows."""
        ...

    def epoch_opened(self, epoch: Epoch) -> None: ...

    def stream_ended(self, code: ErrorCode, message: str) -> None:
        """The stream cannot go on."""
        ...


@dataclass(frozen=True, slots=True)
class _Pending:
    """A block that was asked for. It is kept until its result arrives, so that another worker can be asked the same."""

    intake: Intake
    keys: tuple[str, ...]
    actions: NDArray[np.float32]
    steps: int


class Stream:
    """One stream. Not a task: the scheduler drives it.

    opened_in: number of the worker process that holds its cache; None when none does.
    alone: step it in a batch of its own, because a batch that it was part of failed.
    log: what determines its frames, for a replay.
    """

    def __init__(self, stream_id: str, student: Student, seed: int, listener: StreamListener) -> None:
        self.id = stream_id
        self.student = student
        self.listener = listener
        self.state = student.start(seed)
        self.clock = MediaClock(student.config.fps)
        self.inputs = InputLog()
        self.generation = 0
        self.playing = False
        self.ended = False
        self.opened_in: int | None = None
        self.alone = False
        self.steps = student.config.steps
        self.step_s = 0.0
        self.log = SessionLog()
        self.log.begin(self.generation, seed, self.state.frame)
        self._pending: _Pending | None = None
        self._in_flight: list[int] | None = None
        self._recached = False
        self._failures = 0
        self._handed_s: deque[float] = deque(maxlen=256)

    @property
    def block_size(self) -> int:
        return self.student.config.transformer.block_size

    @property
    def due_s(self) -> float:
        """When the next block's first frame is due; needs an epoch."""
        return self.clock.due_s(self.state.frame)

    @property
    def waiting(self) -> bool:
        """A block of the present generation is under way."""
        return self._in_flight is not None

    @property
    def handed_s(self) -> float:
        """When the last block was handed over."""
        return self._handed_s[-1] if self._handed_s else float("-inf")

    def measured_fps(self, now_s: float) -> float:
        """Frames handed over in the last seconds, per second."""
        recent = [t for t in self._handed_s if t > now_s - FPS_OVER_S]
        if len(recent) < 2:
            return 0.0
        return (len(recent) - 1) / (recent[-1] - recent[0]) if recent[-1] > recent[0] else 0.0

    def play(self) -> None:
        """Generate, from an epoch that the scheduler opens."""
        if not self.playing:
            self.playing = True
            self.clock.close()
            self.inputs.settle()

    def stop(self) -> None:
        """Generate nothing more; a block that is under way is still handed over."""
        self.playing = False

    def open_epoch(self, t0_s: float, fps: float) -> None:
        """The next frame is due at t0_s, and `fps` a second from there on."""
        self.listener.epoch_opened(self.clock.open(self.state.frame, t0_s, fps))

    def reset(self, seed: int) -> None:
        """Begin anew: what is under way is thrown away, inputs that it would have shown go to the new first frame."""
        self.state = self.student.start(seed)
        self.generation += 1
        self.log.begin(self.generation, seed, self.state.frame)
        self._failures, self.alone = 0, False
        self.opened_in = None
        self._in_flight = None
        if self._pending is not None:
            self.inputs.restore(self._pending.intake)
            self._pending = None
        self.clock.close()

    def go_on(self, state: StreamState, generation: int, elapsed_us: int, now_s: float) -> None:
        """Continue, before anything was generated, a stream of another server process."""
        self.state, self.generation = state, generation
        self.clock.go_on(elapsed_us, now_s)
        self.log = SessionLog()
        self.log.begin(generation, state.seed, state.frame, state.to_bytes())

    def request(self, steps: int, worker: int) -> StepRequest:
        """Ask this worker for the next block: inputs are read now, unless the same block was asked for before."""
        if self._pending is None:
            intake = self.inputs.take()
            keys = tuple(code for code in self.student.config.keys if code in intake.held)
            vector = action_vector(keys, self.student.config.keys)
            self._pending = _Pending(intake, keys, np.tile(vector, (self.block_size, 1)), steps)
        self._recached, self.opened_in = self.opened_in != worker, worker
        frame = self.state.frame
        self._in_flight = [self.clock.stamp(frame + i) for i in range(self.block_size)]
        return StepRequest(self.id, self._pending.actions, self._pending.steps)

    def accept(self, result: StepResult, checksum: int, making: Making) -> bool:
        """Take the block that was asked for and hand it over. False: it is not the expected one.

        checksum: CRC-32 of its frames, for the log.
        """
        if self._in_flight is None or self._pending is None:
            return False
        pending, stamps = self._pending, self._in_flight
        if result.frame != self.state.frame:
            self.failed(f"the engine generated frame {result.frame}, frame {self.state.frame} was due")
            return False
        frames = [
            Frame(self.generation, result.frame + i, pts, rgb, making)
            for i, (pts, rgb) in enumerate(zip(stamps, result.frames, strict=True))
        ]
        for event in pending.intake.events:
            self.log.input(result.frame, event)
        self.log.block(result.frame, pending.keys, pending.steps, self._recached, checksum)
        self.state = self.state.extended(self.student.config, result.latents, pending.actions)
        self._pending = self._in_flight = None
        self._failures, self.alone = 0, False
        self.steps, self.step_s = pending.steps, making.step_s
        self._handed_s.extend([making.made_s] * len(frames))
        self.listener.block_ready(frames, pending.intake.events, self.clock.period_s)
        return True

    def interrupted(self) -> None:
        """The worker was lost with the block under way: it is asked for again, from the state before it."""
        self.opened_in = None
        self._in_flight = None

    def failed(self, reason: str) -> None:
        """The engine refused the block: reopen and try again, a few times."""
        self.interrupted()
        self._failures += 1
        if self._failures >= _MOST_FAILURES:
            self.end("stream_failed", f"the stream cannot be continued: {reason}")

    def end(self, code: ErrorCode, message: str) -> None:
        """The stream is over."""
        if not self.ended:
            self.ended, self.playing = True, False
            self.listener.stream_ended(code, message)
