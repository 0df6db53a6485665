"""ONNX Runtime: batches over a cache that the graph writes into, on CPUs, and on GPUs where it has providers for them
(not yet run on a GPU).

Graphs are exported for a number of rows, which takes PyTorch, and kept: later starts need none.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engines.batches import SINK_ROTATION, Batches, Frame, Made
from engines.exports import exported
from engines.protocol import EngineError
from engines.store import ArtefactStore
from streamgen.cache import in_place_cache_shapes
from streamgen.student import DECODE_GRAPH, PASS_GRAPH, SINKS_GRAPH, SPEECH_GRAPH, Student

_CPU = "CPUExecutionProvider"
_PROVIDERS = "TensorrtExecutionProvider", "CUDAExecutionProvider", _CPU
"""The best first."""
_KINDS = {"fp32": np.float32, "fp16": np.float16}
"""Of the cache's numbers. NumPy has no bf16."""
_ERRORS = 3
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_QUANTISED_AS_IT_STANDS = "session.disable_quant_qdq"
_NEW = "new_"


class OnnxRuntimeEngine(Batches):
    """Batches of `rows` streams."""

    name = "onnxruntime"

    def __init__(
        self,
        student: Student,
        streams: int = 16,
        threads: int | None = None,
        rows: int | None = None,
        precision: str | None = None,
        store: ArtefactStore | None = None,
    ) -> None:
        """threads: None takes all cores. rows: None takes `streams`, and one on a CPU, where more cost as much each.
        precision: fp32 or fp16; None takes what is fast.
        """
        available = ort.get_available_providers()
        providers = [provider for provider in _PROVIDERS if provider in available]
        on_cpu = providers[0] == _CPU
        self.device = platform.processor() or platform.machine() if on_cpu else providers[0]
        self.precision = precision = precision or ("fp32" if on_cpu else "fp16")
        if precision not in _KINDS:
            raise EngineError(f"precision {precision!r}: engine onnxruntime has {' and '.join(_KINDS)}")
        rows = rows or (1 if on_cpu else streams)
        graphs = exported(student, rows, precision, store or ArtefactStore())
        runner = OnnxRunner(student, graphs, rows, precision, providers, "cpu" if on_cpu else "cuda", threads)
        super().__init__(student, runner, streams)


class OnnxRunner:
    """Runs a student's graphs for batches of `rows` rows, as `engines.batches.Runner`; on the CPU, if not told else."""

    def __init__(
        self,
        student: Student,
        graphs: dict[str, bytes],
        rows: int,
        precision: str,
        providers: Sequence[str] = (_CPU,),
        memory: str = "cpu",
        threads: int | None = None,
    ) -> None:
        self.rows = rows
        self._student = student
        self._memory = memory
        self._kind = _KINDS[precision]
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(student.path))
        # Quantised graphs run as they stand: what it makes of them for CPUs has other types, and it refuses them then.
        options.add_session_config_entry(_QUANTISED_AS_IT_STANDS, "1")
        if threads is not None:
            options.intra_op_num_threads = threads
        self._sessions = {name: ort.InferenceSession(graph, options, list(providers)) for name, graph in graphs.items()}
        self._caches: dict[int, list[ort.OrtValue]] = {}

    def start(self, batch: int, frame: Frame) -> Callable[[], Made]:
        made = self._play(batch, frame)
        return lambda: made

    def commit(self, batch: int, frame: Frame) -> None:
        self._passes(batch, frame, {name: self._value(array) for name, array in frame.given.items()})

    def clear(self, batch: int, row: int) -> None:
        """What an earlier stream left there is not attended to; but what is no number would be multiplied by zero."""
        for value in self._cache(batch):
            array = value.numpy().copy()
            array[row] = 0
            value.update_inplace(array)

    def _play(self, batch: int, frame: Frame) -> Made:
        given = {name: self._value(array) for name, array in frame.given.items()}
        if frame.mel is not None and frame.hears is not None:
            heard = {"mel": self._value(frame.mel), "hears": self._value(frame.hears), "actions": given["actions"]}
            (given["actions"],) = self.run(SPEECH_GRAPH, heard)
        latents = self._passes(batch, frame, given)
        (frames,) = self.run(DECODE_GRAPH, given | {"latents": latents})
        # Copies: what `numpy` gives does not keep the memory alive that it shows.
        return Made(*(value.numpy().copy() for value in (frames, latents, given["actions"])))

    def _passes(self, batch: int, frame: Frame, given: dict[str, ort.OrtValue]) -> ort.OrtValue:
        """The latents that the last pass committed."""
        cache = self._cache(batch)
        if SINK_ROTATION in given:
            self.run(SINKS_GRAPH, {"rotation": given.pop(SINK_ROTATION)}, cache)
        x = self._value(frame.noise[0])
        for of_pass in frame.passes():
            own = {name: self._value(array) for name, array in of_pass.items()}
            (x,) = self.run(PASS_GRAPH, given | own | {"x": x}, cache)
        return x

    def run(
        self, graph: str, given: dict[str, ort.OrtValue], cache: list[ort.OrtValue] | None = None
    ) -> list[ort.OrtValue]:
        """Outputs but the cache's, which stay where they are."""
        session, asked = self._sessions[graph], self.inputs(graph, given, cache)
        binding = session.io_binding()
        for name, value in asked.items():
            binding.bind_ortvalue_input(name, value)
        for each in session.get_outputs():
            if each.name.startswith(_NEW):
                binding.bind_ortvalue_output(each.name, asked[each.name.removeprefix(_NEW)])
            else:
                binding.bind_output(each.name, self._memory)
        session.run_with_iobinding(binding)
        made = zip(session.get_outputs(), binding.get_outputs(), strict=True)
        return [value for output, value in made if not output.name.startswith(_NEW)]

    def inputs(
        self, graph: str, given: dict[str, ort.OrtValue], cache: list[ort.OrtValue] | None
    ) -> dict[str, ort.OrtValue]:
        """What a graph takes of all this, by name."""
        known = given | {f"cache_{k}": value for k, value in enumerate(cache or ())}
        return {each.name: known[each.name] for each in self._sessions[graph].get_inputs()}

    def _value(self, array: NDArray[np.generic]) -> ort.OrtValue:
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self._memory, 0)

    def _cache(self, batch: int) -> list[ort.OrtValue]:
        if batch not in self._caches:
            shapes = in_place_cache_shapes(self._student.config, self.rows)
            self._caches[batch] = [self._value(np.zeros(shape, self._kind)) for shape in shapes]
        return self._caches[batch]
