"""What steps cost, and what follows: when to start one, how many steps to give, how many frames, whom to let in."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping

_SAMPLES = 40
_LEAST_S = 1e-4
_LATE_QUANTILE = 0.9
"""Of the recent durations, the one by which a step is started before its deadline."""

_FEWER_STEPS_ABOVE = 0.85
_MORE_STEPS_BELOW = 0.65
_CALM_S = 5.0
FULL_LOAD = 0.9
_RATE_CHANGE = 0.1


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
    student's frames a second that can be kept up.
    """

    def __init__(self, costs: StepCosts, counts: Iterable[int], full: int, rows: int) -> None:
        self.costs = costs
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
        possible = min(1.0, FULL_LOAD / load) if load > 0 and self.steps == self._counts[0] else 1.0
        if possible < self.rate * (1 - _RATE_CHANGE):
            self.rate, self._slow_since_s = possible, None
        elif possible <= self.rate or (possible < 1 and possible < self.rate * (1 + _RATE_CHANGE)):
            self._slow_since_s = None
        elif self._slow_since_s is None:
            self._slow_since_s = now_s
        elif now_s - self._slow_since_s >= _CALM_S:
            self.rate, self._slow_since_s = possible, None

    def least_load(self, fps: float, streams: int) -> float:
        """The load at the fewest steps.

        A step's own cost counts: that a viewer's browser on this machine gets in the way now and then is no reason to
        refuse the next one.
        """
        return fps * self.costs.quick_s(self._counts[0]) / max(1, min(self._rows, streams))

    def admits(self, fps: float, streams: int, extra_fps: float, others: float = 0.0) -> bool:
        """Whether one more stream fits at the fewest steps, beside `others`, the load of other models on this machine.

        The first of all does always: slow is better than nothing.
        """
        first = streams == 0 and others == 0
        return first or others + self.least_load(fps + extra_fps, streams + 1) <= FULL_LOAD
