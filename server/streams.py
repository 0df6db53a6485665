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
from server.voice import Slice, Voice
from streamgen.actions import action_vector
from streamgen.session_log import SessionLog
from streamgen.state import StreamState
from streamgen.student import Reference, Student
from streamgen.talk import Performer, loudness

FPS_OVER_S = 3.0
_MOST_FAILURES = 3
_SOON_FRAMES = 250
"""Whoever runs away so soon, time and again, is not worth another beginning."""


class StreamListener(Protocol):
    """Whoever shows the stream."""

    def block_ready(self, frames: Sequence[Frame], shown: Sequence[Event], period_s: float) -> None:
        """Frames to hand over, one now and one every period_s; `shown` are the inputs that the first of them shows."""
        ...

    def epoch_opened(self, epoch: Epoch) -> None: ...

    def stream_ran_away(self) -> None:
        """Its latents are no numbers any more, nor would any be that follow: it is to be reset."""
        ...

    def stream_ended(self, code: ErrorCode, message: str) -> None:
        """The stream cannot go on."""
        ...


@dataclass(frozen=True, slots=True)
class _Pending:
    """A block that was asked for. It is kept until its result arrives, so that another worker can be asked the same.

    slices: what the stream's voice has for its frames, none without a voice. utterance: of that voice.
    """

    intake: Intake
    keys: tuple[str, ...]
    actions: NDArray[np.float32]
    steps: int
    slices: tuple[Slice, ...]
    utterance: int

    @property
    def mel(self) -> NDArray[np.float32] | None:
        return np.stack([each.mel for each in self.slices]) if self.slices else None


class Stream:
    """One stream. Not a task: the scheduler drives it.

    opened_in: number of the worker process that holds its cache; None when none does.
    alone: step it in a batch of its own, because a batch that it was part of failed.
    log: what determines its frames, for a replay. identity: who it is, of those that the student can be; None: the
    first. reference: of whom it is to be instead. voice: what a student that speech drives says and is driven by.
    """

    def __init__(
        self,
        stream_id: str,
        student: Student,
        seed: int,
        listener: StreamListener,
        identity: str | None = None,
        reference: Reference | None = None,
    ) -> None:
        """Raises StudentError for an identity that the student does not have."""
        self.id = stream_id
        self.student = student
        self.identity, self.reference = identity, reference
        self.listener = listener
        self.state = self._start(seed)
        self._first = self.state.frame
        self.voice = Voice(student.config) if student.config.speech else None
        self.utterance = 0
        self._performer = self._perform(seed)
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
        self.log.begin(self.generation, seed, self.state.frame, identity=identity, reference=reference)
        self._pending: _Pending | None = None
        self._in_flight: list[int] | None = None
        self._recached = False
        self._failures = self._ran_away_soon = 0
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
            if self.voice is not None:
                self.voice.listen_anew()
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
        self.state = self._start(seed)
        self._performer = self._perform(seed)
        self.interrupt()
        self.generation += 1
        self.log.begin(self.generation, seed, self.state.frame, identity=self.identity, reference=self.reference)
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
        self._performer = self._perform(state.seed)
        self.clock.go_on(elapsed_us, now_s)
        self.log = SessionLog()
        self.log.begin(generation, state.seed, state.frame, state.to_bytes(), self.identity, self.reference)

    def request(self, steps: int, worker: int) -> StepRequest:
        """Ask this worker for the next block: inputs are read now, unless the same block was asked for before."""
        if self._pending is None:
            self._pending = self._next(steps)
        self._recached, self.opened_in = self.opened_in != worker, worker
        frame = self.state.frame
        self._in_flight = [self.clock.stamp(frame + i) for i in range(self.block_size)]
        return StepRequest(self.id, self._pending.actions, self._pending.steps, self._pending.mel)

    def _next(self, steps: int) -> _Pending:
        steps = self.student.config.steps_of((self.state.frame - self._first) // self.block_size, steps)
        intake = self.inputs.take()
        keys = tuple(code for code in self.student.config.keys if code in intake.held)
        if self.voice is None or self._performer is None:
            vector = action_vector(keys, self.student.config.keys)
            return _Pending(intake, keys, np.tile(vector, (self.block_size, 1)), steps, (), self.utterance)
        slices = tuple(self.voice.cut(self.clock.period_s) for _ in range(self.block_size))
        frame = self.state.frame
        actions = [self._performer.actions(frame + i, loudness(each.mel)) for i, each in enumerate(slices)]
        return _Pending(intake, keys, np.stack(actions), steps, slices, self.utterance)

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
        if not np.isfinite(result.latents).all():
            self._ran_away()
            return False
        sounds: list[NDArray[np.int16] | None] = [each.sound for each in pending.slices]
        sounds = sounds or [None] * len(stamps)
        frames = [
            Frame(self.generation, result.frame + i, pts, rgb, making, sound, pending.utterance)
            for i, (pts, rgb, sound) in enumerate(zip(stamps, result.frames, sounds, strict=True))
        ]
        for event in pending.intake.events:
            self.log.input(result.frame, event)
        driven = result.actions if self.voice is not None else None
        self.log.block(result.frame, pending.keys, pending.steps, self._recached, checksum, driven)
        self.state = self.state.extended(self.student.config, result.latents, result.actions)
        self._pending = self._in_flight = None
        self._failures, self.alone = 0, False
        self.steps, self.step_s = pending.steps, making.step_s
        self._handed_s.extend([making.made_s] * len(frames))
        self.listener.block_ready(frames, pending.intake.events, self.clock.period_s)
        return True

    def interrupt(self) -> None:
        """The voice falls silent at once; what it was saying is not shown any more either."""
        if self.voice is not None:
            self.voice.interrupt()
            self.utterance += 1

    @property
    def moment(self) -> tuple[int, int]:
        """Changes with every reset and every interruption."""
        return self.generation, self.utterance

    def shows(self, frame: Frame) -> bool:
        """Whether the frame may still leave the server."""
        return (frame.generation, frame.utterance) == self.moment

    def _perform(self, seed: int) -> Performer | None:
        config = self.student.config
        return Performer(config, self._start(seed)) if config.speech else None

    def _start(self, seed: int) -> StreamState:
        return self.student.start(seed, self.identity, self.reference)

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

    def _ran_away(self) -> None:
        """A student fed on its own errors until they were all there was. Nothing of it is worth going on from."""
        soon = self.state.frame - self._first < _SOON_FRAMES
        self._ran_away_soon = self._ran_away_soon + 1 if soon else 0
        if self._ran_away_soon < _MOST_FAILURES:
            self.listener.stream_ran_away()
        else:
            self.end("stream_failed", f"the picture came apart {_MOST_FAILURES} times, soon after it began")

    def end(self, code: ErrorCode, message: str) -> None:
        """The stream is over."""
        if not self.ended:
            self.ended, self.playing = True, False
            self.listener.stream_ended(code, message)
