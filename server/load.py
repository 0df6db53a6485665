"""What steps and pictures cost, and what follows: when to start a step, how many to give, how many frames, whom to let
in.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from statistics import median
from threading import Lock
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

_SAMPLES = 40
_LEAST_S = 1e-4
_LATE_QUANTILE = 0.9
"""Of the recent durations, the one by which a step is started before its deadline."""

_FEWER_STEPS_ABOVE = 0.85
_MORE_STEPS_BELOW = 0.65
_CALM_S = 5.0
_RATE_CALM_S = 2.0
_FULL_LOAD = 0.9

_RATE_CHANGE = 0.1

_WINDOW_BLOCKS = 20
_WINDOWS = 7
_PAUSE_S = 1.0


class EncoderPool(ThreadPoolExecutor):
    """Threads that know how much processor time their work has taken, `cpu_s`."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads, "encoder")
        self.cpu_s = 0.0
        self._lock = Lock()

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        def measured() -> _T:
            start_s = time.thread_time()
            try:
                return fn(*args, **kwargs)
            finally:
                with self._lock:
                    self.cpu_s += time.thread_time() - start_s

        return super().submit(measured)


class ShowingCosts:
    """What showing a block costs this process: encoding it for its viewers and sending it, in processor seconds.

    spent_s: processor time that the process has spent so far on all that it does for its viewers.
    """

    def __init__(self, spent_s: Callable[[], float]) -> None:
        self._spent_s = spent_s
        self._blocks = 0
        self._began_s = 0.0
        self._last_s = float("-inf")
        self._windows: deque[float] = deque(maxlen=_WINDOWS)

    def count(self) -> None:
        """One more block was handed over, of whatever stream."""
        spent_s, now_s = self._spent_s(), time.monotonic()
        paused, self._last_s = now_s - self._last_s > _PAUSE_S, now_s
        if paused:
            # What was done since the last block was not done for this one.
            self._blocks, self._began_s = 0, spent_s
            return
        self._blocks += 1
        if self._blocks == _WINDOW_BLOCKS:
            self._windows.append((spent_s - self._began_s) / _WINDOW_BLOCKS)
            self._blocks, self._began_s = 0, spent_s

    @property
    def likely_s(self) -> float:
        """For one block; the median, since now and then a connection is set up, which costs more than many blocks."""
        return median(self._windows) if self._windows else 0.0


class StepCosts:
    """How long steps take, in seconds.

    measured_s: by step count, all taken under the same conditions. What is measured later updates one factor for all of
    them, so that the cost of a step count that has not been used for a while is known too.
    """

    def __init__(self, measured_s: Mapping[int, float]) -> None:
        self._measured_s = {steps: max(cost_s, _LEAST_S) for steps, cost_s in measured_s.items()}
        self._slowness: deque[float] = deque([1.0], maxlen=_SAMPLES)

    def add(self, steps: int, cost_s: float) -> None:
        self._slowness.append(cost_s / self._measured_s[steps])

    def quick_s(self, steps: int) -> float:
        """What one step in four stays below: its own cost, where others were held up by more work on the machine."""
        return self._quantile(steps, 0.25)

    def likely_s(self, steps: int) -> float:
        """The median."""
        return self._quantile(steps, 0.5)

    def safe_s(self, steps: int) -> float:
        """What nine steps in ten stay below."""
        return self._quantile(steps, _LATE_QUANTILE)

    def _quantile(self, steps: int, q: float) -> float:
        ordered = sorted(self._slowness)
        return self._measured_s[steps] * ordered[math.ceil(q * len(ordered)) - 1]


class Governor:
    """Chooses step count and frame rate and admits streams, from costs and the blocks a second that are asked for.

    rows: streams that one step can serve. The load is the share of a second that steps take in a second. Under load
    there are fewer steps first; where even those are too many there are fewer frames. `rate` is the share of the
    student's frames a second that can be kept up. most_load: up to which another stream is admitted.
    """

    def __init__(
        self,
        costs: StepCosts,
        showing: ShowingCosts,
        counts: Iterable[int],
        full: int,
        rows: int,
        most_load: float,
    ) -> None:
        self.costs, self.showing, self.most_load = costs, showing, most_load
        self._counts = sorted(count for count in counts if count <= full)
        self._rows = rows
        self.steps = full
        self.rate = 1.0
        self._calm_since_s: float | None = None
        self._slow_since_s: float | None = None

    def load(self, fps: float, streams: int, steps: int) -> float:
        """Of `streams` streams that want `fps` blocks a second together."""
        return fps * self.costs.likely_s(steps) / max(1, min(self._rows, streams))

    def update(self, fps: float, streams: int, now_s: float) -> None:
        """Look at the load: less work at once, more only after it has been low for a while."""
        self._choose_steps(fps, streams, now_s)
        self._choose_rate(fps, streams, now_s)

    def _choose_steps(self, fps: float, streams: int, now_s: float) -> None:
        place = self._counts.index(self.steps)
        if place > 0 and self.load(fps, streams, self.steps) > _FEWER_STEPS_ABOVE:
            self.steps = self._counts[place - 1]
            self._calm_since_s = None
        elif place + 1 < len(self._counts) and self.load(fps, streams, self._counts[place + 1]) < _MORE_STEPS_BELOW:
            if self._calm_since_s is None:
                self._calm_since_s = now_s
            elif now_s - self._calm_since_s >= _CALM_S:
                self.steps = self._counts[place + 1]
                self._calm_since_s = None
        else:
            self._calm_since_s = None

    def _choose_rate(self, fps: float, streams: int, now_s: float) -> None:
        load = self.load(fps, streams, self.steps)
        possible = min(1.0, _FULL_LOAD / load) if load > 0 and self.steps == self._counts[0] else 1.0
        if possible < self.rate * (1 - _RATE_CHANGE):
            self.rate, self._slow_since_s = possible, None
        elif possible <= self.rate or (possible < 1 and possible < self.rate * (1 + _RATE_CHANGE)):
            self._slow_since_s = None
        elif self._slow_since_s is None:
            self._slow_since_s = now_s
        elif now_s - self._slow_since_s >= _RATE_CALM_S:
            self.rate, self._slow_since_s = possible, None

    def least_load(self, fps: float, streams: int) -> float:
        """The load at the fewest steps, with what it takes to show the blocks.

        A step's own cost counts: that a viewer's browser on this machine gets in the way now and then is no reason to
        refuse the next one. What this process does for every block counts in full, because a step on all cores waits
        for the core that was busy with it: measured on two cores, where three streams ran at their rate as JPEG, and at
        three quarters of it as VP8.
        """
        rows = max(1, min(self._rows, streams))
        return fps * (self.costs.quick_s(self._counts[0]) / rows + self.showing.likely_s)

    def admits(self, fps: float, streams: int, extra_fps: float, others: float = 0.0) -> bool:
        """Whether one more stream fits at the fewest steps, beside `others`, the load of other models on this machine,
        so that those that run keep their rate.

        The first of all does always: slow is better than nothing.
        """
        first = streams == 0 and others == 0
        return first or others + self.least_load(fps + extra_fps, streams + 1) <= self.most_load
