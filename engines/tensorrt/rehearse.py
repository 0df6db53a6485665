"""A student plays on from its own starts, in ONNX Runtime on the CPU, driven by what drove them: what its graphs are
given then, and how far the frames of quantised graphs are from its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engines.batches import Arrays, Batches, Frame, Made, Runner
from engines.onnxruntime import OnnxRunner
from engines.protocol import StepRequest
from engines.tensorrt.build import Cost
from streamgen.state import StreamState
from streamgen.student import DECODE_GRAPH, PASS_GRAPH, Student

_MEASURED_FRAMES = 48
_HEARD_OF_START = 4
"""Frames of each start that calibration hears."""
_MOST_DB = 99.0
"""Frames that are equal would be infinitely good, which JSON cannot say."""


def heard(student: Student, graphs: dict[str, bytes]) -> dict[str, list[Arrays]]:
    """What the pass and the decoder are given in fp16, by graph: inputs of one row by name. Of the starts that
    `measured` does not take, if there are any.
    """
    runner = _Listener(student, graphs, 1, "fp16")
    starts = list(student.starts())
    for state in starts[_measured_starts(starts) :] or starts:
        _play(student, runner, state, state.actions[:: max(1, len(state.actions) // _HEARD_OF_START)])
    return runner.heard


def measured(student: Student, graphs: dict[str, bytes], quantised: dict[str, bytes]) -> Cost:
    """The cost of quantised graphs for one row, in fp16."""
    both = _Both(OnnxRunner(student, graphs, 1, "fp16"), OnnxRunner(student, quantised, 1, "fp16"))
    starts = list(student.starts())
    for state in starts[: _measured_starts(starts)]:
        _play(student, both, state, state.actions)
    errors = np.array(both.errors)
    return Cost(len(errors), _decibels(errors.mean()), _decibels(errors.max()))


def _measured_starts(starts: list[StreamState]) -> int:
    """How many of the first ones: enough for the frames."""
    lengths = np.cumsum([len(state.actions) for state in starts])
    return min(len(starts), 1 + int(np.searchsorted(lengths, _MEASURED_FRAMES)))


def _play(student: Student, runner: Runner, state: StreamState, actions: NDArray[np.float32]) -> None:
    """A block for each of the actions [T, A], with as many steps as there are plans for in turn."""
    config, engine, name = student.config, Batches(student, runner, 1), "rehearsal"
    plans = sorted(config.step_plans)
    engine.open(name, state)
    for at, driven in enumerate(actions.astype(np.float32)):
        block = np.tile(driven, (config.transformer.block_size, 1))
        engine.step([StepRequest(name, block, plans[at % len(plans)])])


def _decibels(error: float) -> float:
    return min(_MOST_DB, float(10 * np.log10(255**2 / max(error, 1e-9))))


class _Listener(OnnxRunner):
    """Keeps what the graphs of a frame are given, but not what history is committed with."""

    def __init__(self, student: Student, graphs: dict[str, bytes], rows: int, precision: str) -> None:
        super().__init__(student, graphs, rows, precision)
        self.heard: dict[str, list[Arrays]] = {PASS_GRAPH: [], DECODE_GRAPH: []}
        self._listens = False

    def start(self, batch: int, frame: Frame) -> Callable[[], Made]:
        self._listens = True
        try:
            return super().start(batch, frame)
        finally:
            self._listens = False

    def run(
        self, graph: str, given: dict[str, ort.OrtValue], cache: list[ort.OrtValue] | None = None
    ) -> list[ort.OrtValue]:
        if self._listens and graph in self.heard:
            asked = self.inputs(graph, given, cache)
            self.heard[graph].append({name: value.numpy().copy() for name, value in asked.items()})
        return super().run(graph, given, cache)


class _Both:
    """A runner that makes each frame by two others. The next frame sees the first one's latents in both their caches,
    each with the keys and values that it makes of them itself.
    """

    rows = 1

    def __init__(self, plain: OnnxRunner, quantised: OnnxRunner) -> None:
        self._plain, self._quantised = plain, quantised
        self.errors: list[float] = []
        """Mean squared error of each frame."""

    def start(self, batch: int, frame: Frame) -> Callable[[], Made]:
        made, other = (runner.start(batch, frame)() for runner in (self._plain, self._quantised))
        differences = made.frames.astype(np.float64) - other.frames
        self.errors += np.square(differences).mean((0, 2, 3, 4)).tolist()
        if len(frame.levels) > len(frame.noise):
            latents = made.latents.astype(np.float16).astype(np.float32)
            # The last pass is the commit.
            places = frame.write[-1:], frame.length[-1:]
            self._quantised.commit(batch, Frame(latents[None], np.zeros_like(frame.levels[:1]), *places, frame.given))
        return lambda: made

    def commit(self, batch: int, frame: Frame) -> None:
        for runner in (self._plain, self._quantised):
            runner.commit(batch, frame)

    def clear(self, batch: int, row: int) -> None:
        for runner in (self._plain, self._quantised):
            runner.clear(batch, row)
