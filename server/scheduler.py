"""Earliest deadline first over the streams of one worker, each step started just in time.

A step starts at its due time minus its measured cost, and the inputs are read at that moment, so that a key shows in
the very next frame. One Step is under way at a time. On an engine of one row, streams are spread over the frame time;
where rows can be batched, they are brought into phase instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from engines.protocol import StepResult
from server.load import Governor, ShowingCosts, StepCosts
from server.mailbox import Making
from server.metrics import Metrics, StudentMetrics
from server.streams import Stream
from server.supervisor import StepReply, WorkerState, WorkerSupervisor
from server.worker import BuildEngine, Step, WorkerReady
from streamgen.student import Student

log = logging.getLogger("streamgen.server.scheduler")

WAKE_MARGIN_S = 0.002
"""How late the event loop may wake up, and what a Step costs beside the engine's work."""

CATCH_UP_PERIODS = 2.0
"""A stream that is later than this opens a new epoch instead of sending a burst."""

_OPEN_SAMPLE_WEIGHT = 0.3
_STUMBLE_S = 0.1


@dataclass(frozen=True, slots=True)
class _InFlight:
    """The Step under way. opens: some of its streams were opened with it, so that it took longer."""

    call: int
    streams: tuple[Stream, ...]
    steps: int
    opens: bool
    began_s: float


class Scheduler:
    """Owns the worker and gives it work. All methods run on the event loop."""

    def __init__(
        self,
        student: Student,
        build_engine: BuildEngine,
        metrics: Metrics,
        *,
        slots: int,
        hang_after_s: float,
        ready_within_s: float,
        showing: ShowingCosts,
        most_load: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.student = student
        self.info: WorkerReady | None = None
        self.governor: Governor | None = None
        self._metrics = StudentMetrics(metrics, student.config.name)
        self._slots = slots
        self._showing, self._most_load = showing, most_load
        self._clock = clock
        self._streams: dict[str, Stream] = {}
        self._wake = asyncio.Event()
        self._in_flight: _InFlight | None = None
        self._calls = 0
        self._open_s = 0.0
        self.worker = WorkerSupervisor(
            build_engine,
            student.config,
            student.start(0),
            self,
            slots=slots,
            hang_after_s=hang_after_s,
            ready_within_s=ready_within_s,
        )

    @property
    def ready(self) -> bool:
        return self.worker.state is WorkerState.READY

    @property
    def steps(self) -> int:
        """Steps that a block gets now."""
        return self.governor.steps if self.governor else self.student.config.steps

    @property
    def empty(self) -> bool:
        """Whether no stream has a right to play here."""
        return not self._streams

    @property
    def starved(self) -> bool:
        """Whether its streams get fewer frames than they should, and nobody wanted that."""
        playing = any(stream.playing for stream in self._streams.values())
        return self.governor is not None and self.governor.rate < 1 and playing and self._most_load <= 1

    @property
    def load(self) -> float:
        """The share of a second that its streams' steps take in a second, at the fewest steps."""
        count = len(self._streams)
        return self.governor.least_load(count * self._block_rate, count) if self.governor else 0.0

    def admits_another(self, others: float = 0.0) -> bool:
        """Whether one more stream fits: in the engine, and by the measured cost of all that have a right to play.

        others: load of other workers on the same cores.
        """
        if self.info is None or self.governor is None:
            return False
        count = len(self._streams)
        if count >= self.info.capacity.streams or self.starved:
            return False
        return self.governor.admits(count * self._block_rate, count, self._block_rate, others)

    def add(self, stream: Stream) -> None:
        self._streams[stream.id] = stream

    def remove(self, stream: Stream) -> None:
        """Forget the stream; its row in the engine is free again."""
        if self._streams.pop(stream.id, None) is None:
            return
        if self.ready:
            # Also one that would have to be opened again: the worker may still hold its row.
            self.worker.close_stream(stream.id)
        stream.ended, stream.playing = True, False
        self.wake()

    def wake(self) -> None:
        """Something changed: look again."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        self.worker.start()
        while True:
            self._wake.clear()
            try:
                delay_s = self._turn(self._clock())
            except Exception:
                # Whatever it was: everybody's stream hangs on this loop.
                log.exception("the scheduler stumbled")
                delay_s = _STUMBLE_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._wake.wait()

    async def close(self) -> None:
        await self.worker.close()

    # What the worker reports.

    def worker_ready(self, info: WorkerReady) -> None:
        log.info(
            "engine %s (%s), %d streams, rows %s, ready",
            info.engine,
            info.precision,
            info.capacity.streams,
            info.capacity.rows,
        )
        self._metrics.artefacts_refused.inc(info.refused)
        config = self.student.config
        for engine in info.fallbacks:
            self._metrics.engine_fallbacks.labels(config.name, engine).inc()
        if self.governor is None:
            self.info = info
            self.governor = Governor(
                StepCosts(info.cost_s), self._showing, config.step_plans, config.steps, self._rows[-1], self._most_load
            )
        self.wake()

    def worker_lost(self, reason: str) -> None:
        self._metrics.worker_restarts.inc()
        in_flight, self._in_flight = self._in_flight, None
        suspects = [stream for stream in in_flight.streams if stream.waiting] if in_flight is not None else []
        for stream in self._streams.values():
            stream.interrupted()
        for stream in suspects:
            # A stream whose block takes the worker down every time must not take the others' down for ever.
            stream.alone = True
            stream.failed(reason)

    def worker_replied(self, reply: StepReply) -> None:
        flight = self._in_flight
        if flight is None or flight.call != reply.call:
            return
        self._in_flight = None
        now_s = self._clock()
        self._open_s += _OPEN_SAMPLE_WEIGHT * (reply.open_s - self._open_s) if flight.opens else 0.0
        if self.governor is not None and any(isinstance(result, StepResult) for result in reply.results):
            self.governor.costs.add(flight.steps, now_s - flight.began_s - reply.open_s)
        self._metrics.step_seconds.observe(reply.step_s)
        for stream, result, checksum in zip(flight.streams, reply.results, reply.checksums, strict=True):
            if stream.ended or not stream.waiting:
                continue
            if isinstance(result, StepResult):
                late = stream.clock.epoch is not None and now_s > stream.due_s + WAKE_MARGIN_S
                making = Making(
                    stream.id,
                    self.worker.spawned,
                    len(flight.streams),
                    flight.steps,
                    flight.began_s,
                    now_s,
                    reply.open_s,
                    reply.step_s,
                )
                if stream.accept(result, checksum, making):
                    self._metrics.frames_generated.inc(len(result.frames))
                    self._metrics.deadline_misses.inc(late)
                    self._showing.count()
            elif result.alone:
                log.warning("stream %s: %s", stream.id, result.message)
                self._metrics.stream_errors.inc()
                stream.failed(result.message)
            else:
                # One of a batch raised: try each alone to learn which.
                stream.alone = True
                stream.interrupted()
        self.wake()

    # The schedule.

    def _turn(self, now_s: float) -> float | None:
        """Start a step if it is time. Returns the seconds until it is, or None: wait to be woken."""
        playing = [stream for stream in self._streams.values() if stream.playing]
        if not playing or not self.ready or self.governor is None or self._in_flight is not None:
            return None
        self.governor.update(len(playing) * self._block_rate, len(playing), now_s)
        fps = self.student.config.fps * self.governor.rate
        for stream in playing:
            earliest_s = now_s + self._lead_s(stream)
            if stream.clock.epoch is None:
                t0_s = self._phase_s(stream, earliest_s, playing)
            elif earliest_s - stream.due_s > CATCH_UP_PERIODS * stream.clock.period_s or stream.clock.fps != fps:
                t0_s = max(earliest_s, stream.due_s, stream.handed_s + stream.clock.period_s)
            else:
                continue
            stream.open_epoch(t0_s, fps)
            self._metrics.epochs_opened.inc()
        playing.sort(key=lambda stream: stream.due_s)
        start_s = self._latest_start_s(playing)
        if start_s > now_s:
            return start_s - now_s
        self._start(self._batch(playing), now_s)
        return None

    def _lead_s(self, stream: Stream) -> float:
        """How long before its deadline the stream's step must start."""
        assert self.governor is not None
        opening = stream.opened_in != self.worker.spawned
        return self.governor.costs.safe_s(self.governor.steps) + WAKE_MARGIN_S + (self._open_s if opening else 0.0)

    def _latest_start_s(self, by_deadline: list[Stream]) -> float:
        """When the first step must start so that it and all behind it, one after another, meet their deadlines."""
        start_s = math.inf
        rows = self._rows[-1]
        for first in range((len(by_deadline) - 1) // rows * rows, -1, -rows):
            chunk = by_deadline[first : first + rows]
            start_s = min(chunk[0].due_s, start_s) - max(map(self._lead_s, chunk))
        return start_s

    def _batch(self, by_deadline: list[Stream]) -> list[Stream]:
        """The most urgent stream, and those that are due with it as far as the engine has rows for them."""
        first = by_deadline[0]
        if first.alone:
            return [first]
        until_s = first.due_s + first.clock.period_s / 2
        due = [stream for stream in by_deadline if stream.due_s <= until_s and not stream.alone]
        return due[: max((rows for rows in self._rows if rows <= len(due)), default=1)]

    def _start(self, batch: list[Stream], now_s: float) -> None:
        assert self.governor is not None
        steps = self.governor.steps
        opens = tuple((stream.id, stream.state) for stream in batch if stream.opened_in != self.worker.spawned)
        # A block that was asked for before keeps the steps that it had then.
        requests = tuple(stream.request(steps, self.worker.spawned) for stream in batch)
        self._calls += 1
        most = max(request.steps for request in requests)
        self._in_flight = _InFlight(self._calls, tuple(batch), most, bool(opens), now_s)
        self.worker.step(Step(self._calls, opens, requests))

    def _phase_s(self, stream: Stream, earliest_s: float, playing: list[Stream]) -> float:
        """When a new epoch starts, within a block's time from earliest_s, as suits the streams that run already."""
        others = [other for other in playing if other is not stream and other.clock.epoch is not None]
        if not others:
            return earliest_s
        period_s = stream.clock.period_s * stream.block_size
        phases_s = sorted((other.due_s - earliest_s) % period_s for other in others)
        if self._rows[-1] > 1:
            return earliest_s + phases_s[0]
        gaps = zip(phases_s, [*phases_s[1:], phases_s[0] + period_s], strict=True)
        begin_s, end_s = max(gaps, key=lambda gap: gap[1] - gap[0])
        return earliest_s + (begin_s + end_s) / 2 % period_s

    @property
    def _rows(self) -> tuple[int, ...]:
        """Batch sizes that both the engine and the shared memory have room for, rising."""
        rows = self.info.capacity.rows if self.info else (1,)
        return tuple(sorted(r for r in rows if r <= self._slots)) or (1,)

    @property
    def _block_rate(self) -> float:
        config = self.student.config
        return config.fps / config.transformer.block_size
