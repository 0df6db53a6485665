"""ONNX Runtime: rows of a batch over a cache that the graph writes into, on CPUs, and on GPUs where it has providers
for them (not yet run on a GPU).

Graphs are exported for a number of rows, which takes PyTorch, and kept: later starts need none.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

import streamgen
from engines.protocol import Capacity, EngineError, StepRequest, StepResult
from engines.store import ArtefactStore
from engines.streams import StreamTable, check_request, heard, step_noise
from streamgen.cache import block_rotation, in_place_cache_shapes, in_place_slots, replay
from streamgen.state import StreamState
from streamgen.student import COMMIT_GRAPH, SPEECH_GRAPH, Student, step_graph

_PROVIDERS = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
"""The best first."""
_ERRORS = 3
_MODELS = Path(streamgen.__file__).parent / "models"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass
class _Stream:
    """batch and row: its place. frame: the next one; first: the oldest one in the ring; previous: the last clean latent
    [C, h, w]; reference: the first one, and what drove it [A].
    """

    batch: int
    row: int
    seed: int
    frame: int
    first: int
    previous: NDArray[np.float32]
    reference: tuple[NDArray[np.float32], NDArray[np.float32]]


class OnnxRuntimeEngine:
    """Batches of `rows` streams. A row that is not asked for is calculated with its batch: what it writes lands where
    its own next block will, which nobody reads before that block has been there.
    """

    name = "onnxruntime"
    precision = "fp32"

    def __init__(
        self,
        student: Student,
        streams: int = 16,
        threads: int | None = None,
        rows: int | None = None,
        store: ArtefactStore | None = None,
    ) -> None:
        """threads: None takes all cores. rows: None takes `streams`, and one on a CPU, where more cost as much each."""
        self.student = student
        available = ort.get_available_providers()
        self._providers = [provider for provider in _PROVIDERS if provider in available]
        on_cpu = self._providers[0] == "CPUExecutionProvider"
        self._memory = "cpu" if on_cpu else "cuda"
        self.device = platform.processor() or platform.machine() if on_cpu else self._providers[0]
        self._rows_each = rows or (1 if on_cpu else streams)
        self.capacity = Capacity(streams, tuple(range(1, self._rows_each + 1)))
        self._store = store or ArtefactStore()
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS  # it warns of every copy of a cache between the passes of a graph
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(student.path))
        if threads is not None:
            options.intra_op_num_threads = threads
        self._sessions = {
            name: ort.InferenceSession(graph, options, self._providers) for name, graph in self._graphs().items()
        }
        self._caches: dict[int, list[ort.OrtValue]] = {}
        self._streams: StreamTable[_Stream] = StreamTable(self.capacity)

    def open(self, stream_id: str, state: StreamState) -> None:
        self._streams.check_room(stream_id)
        config = self.student.config
        taken = {(stream.batch, stream.row) for name, stream in self._streams.items() if name != stream_id}
        places = (divmod(place, self._rows_each) for place in range(self.capacity.streams))
        batch, row = next(place for place in places if place not in taken)
        nothing = np.zeros(config.latent_shape, np.float32)
        reference = nothing, np.zeros(config.action_dim, np.float32)
        if len(state.sink):
            reference = state.sink[0].astype(np.float32), state.sink_actions[0].astype(np.float32)
        self._clear(batch, row)
        stream = self._streams[stream_id] = _Stream(batch, row, state.seed, 0, 0, nothing, reference)
        for block in replay(state, config.transformer):
            stream.frame, stream.first = block.frame, block.first
            stream.previous = block.previous.astype(np.float32)
            latents = self._rows({row: block.latents.astype(np.float32)}, block.latents.shape)
            self._run(COMMIT_GRAPH, batch, {"latents": latents}, {row: block.actions})
            self._advance(stream, block.latents)
        stream.frame = state.frame

    def step(self, requests: Sequence[StepRequest]) -> list[StepResult]:
        for request in requests:
            check_request(request, self.student.config)
            self._streams[request.stream_id]  # raises before anything has moved
        results: dict[str, StepResult] = {}
        together: dict[tuple[int, int], list[StepRequest]] = {}
        for request in requests:
            together.setdefault((self._streams[request.stream_id].batch, request.steps), []).append(request)
        for (batch, steps), those in together.items():
            results |= self._batch(batch, those, steps)
        return [results[request.stream_id] for request in requests]

    def close(self, stream_id: str) -> None:
        self._streams.pop(stream_id, None)

    def _batch(self, batch: int, requests: list[StepRequest], steps: int) -> dict[str, StepResult]:
        config = self.student.config
        streams = {request.stream_id: self._streams[request.stream_id] for request in requests}
        actions = {streams[request.stream_id].row: request.actions.astype(np.float32) for request in requests}
        mel = {streams[r.stream_id].row: r.mel for r in requests if r.mel is not None}
        if mel:
            heard_at = self._sessions[SPEECH_GRAPH].run(None, {"mel": self._rows(mel, next(iter(mel.values())).shape)})
            actions |= {row: heard(heard_at[0][row], actions[row]) for row in mel}
        shape = (config.transformer.block_size, *config.latent_shape)
        noise = np.zeros((steps, self._rows_each, *shape), np.float32)
        for stream in streams.values():
            noise[:, stream.row] = step_noise(stream.seed, stream.frame, steps, config)
        frames, latents = self._run(step_graph(steps), batch, {"noise": noise}, actions)
        results = {}
        for name, stream in streams.items():
            kept = latents[stream.row].astype(np.float16)
            results[name] = StepResult(name, stream.frame, frames[stream.row].copy(), kept, actions[stream.row])
            self._advance(stream, kept)
        return results

    def _run(
        self,
        graph: str,
        batch: int,
        given: dict[str, NDArray[np.float32]],
        actions: dict[int, NDArray[np.float32]],
    ) -> list[NDArray[np.generic]]:
        """All outputs but the cache's, which stays where it is."""
        config = self.student.config.transformer
        session = self._sessions[graph]
        streams = [stream for stream in self._streams.values() if stream.batch == batch]
        slots = {stream.row: in_place_slots(stream.frame, config, stream.first) for stream in streams}
        unused = in_place_slots(0, config)
        everywhere = [slots.get(row, unused) for row in range(self._rows_each)]
        rotation = {stream.row: block_rotation(stream.frame, config) for stream in streams}
        inputs: dict[str, NDArray[np.generic]] = dict(given)
        inputs |= {
            "previous": self._rows({s.row: s.previous for s in streams}, self.student.config.latent_shape),
            "actions": self._rows(actions, next(iter(actions.values())).shape),
            "rotation": self._rows(rotation, next(iter(rotation.values())).shape),
            "visible": np.stack([seen for _, seen in everywhere]),
            "write": np.array([where for where, _ in everywhere], np.int64),
        }
        if config.face_dim:
            for k, name in enumerate(("reference", "reference_actions")):
                known = {s.row: s.reference[k] for s in streams}
                inputs[name] = self._rows(known, next(iter(known.values())).shape)
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        cache = self._cache(batch)
        for k, value in enumerate(cache):
            binding.bind_ortvalue_input(f"cache_{k}", value)
        for output in session.get_outputs():
            if output.name.startswith("new_cache_"):
                binding.bind_ortvalue_output(output.name, cache[int(output.name.rpartition("_")[2])])
            else:
                binding.bind_output(output.name, "cpu")
        session.run_with_iobinding(binding)
        names = [output.name for output in session.get_outputs()]
        made = zip(names, binding.get_outputs(), strict=True)
        return [value.numpy() for name, value in made if not name.startswith("new_cache_")]

    def _cache(self, batch: int) -> list[ort.OrtValue]:
        if batch not in self._caches:
            shapes = in_place_cache_shapes(self.student.config.transformer, self._rows_each)
            self._caches[batch] = [
                ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32), self._memory, 0) for shape in shapes
            ]
        return self._caches[batch]

    def _clear(self, batch: int, row: int) -> None:
        """What an earlier stream left there is hidden by a mask, which does not hide what is no number."""
        for value in self._cache(batch):
            array = value.numpy().copy()
            array[row] = 0
            value.update_inplace(array)

    def _rows(self, values: dict[int, NDArray[np.float32]], shape: Iterable[int]) -> NDArray[np.float32]:
        """An array of a batch's rows; zero where there is no value."""
        out = np.zeros((self._rows_each, *shape), np.float32)
        for row, value in values.items():
            out[row] = value
        return out

    def _advance(self, stream: _Stream, latents: NDArray[np.float16]) -> None:
        stream.previous = latents[-1].astype(np.float32)
        stream.frame += self.student.config.transformer.block_size

    def _graphs(self) -> dict[str, bytes]:
        config = self.student.config
        names = [COMMIT_GRAPH, *map(step_graph, config.step_plans), *([SPEECH_GRAPH] if config.speech else [])]
        code = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(_MODELS.glob("*.py")))).hexdigest()
        keys = {name: (self.student.hash, f"{name}, {self._rows_each} rows in place", code) for name in names}
        kept = {name: self._store.get(*key) for name, key in keys.items()}
        graphs = {name: graph for name, graph in kept.items() if graph is not None}
        if len(graphs) < len(names):
            if find_spec("torch") is None or find_spec("onnxscript") is None:
                raise EngineError(
                    "engine onnxruntime exports a student the first time, which takes PyTorch: install streamgen with "
                    "the extra `train`, or use engine openvino"
                )
            from streamgen.models.export import in_place_graphs

            graphs = in_place_graphs(self.student, self._rows_each)
            for name, graph in graphs.items():
                self._store.put(graph, *keys[name])
        return graphs
