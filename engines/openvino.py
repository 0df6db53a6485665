"""The CPU engine: a student's exported graphs in OpenVINO, no torch anywhere.

OpenVINO has no scatter into a cache, so a graph returns the new block's keys and values and the host writes them into
the slots of the buffer that the next request reads: a few tens of kB a layer, in place.

A block's graph is cut in three: while one half of the cores makes the frames of new latents, the other makes their keys
and values. That keeps two cores busy with little to wait for, where one graph on both has each wait for the other after
every node, the longer the more else goes on. A student without commits has its keys and values already.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13

import engines.parts
import engines.quantize
from engines.parts import cut
from engines.protocol import Capacity, EngineError, StepRequest, StepResult
from engines.quantize import quantise, watch, widened
from engines.store import ArtefactStore
from engines.streams import StreamTable, check_request, heard, step_noise
from streamgen.cache import block_rotation, replay, slot_of, visible_slots
from streamgen.state import StreamState
from streamgen.student import COMMIT_GRAPH, RANGES, SPEECH_GRAPH, Ranges, Student, StudentError, step_graph

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""What an engine calculates in, and OpenVINO's name for it; `int8` is fp32 but for wide layers."""

_PROBE_SIZE, _PROBE_S = 512, 0.1
_PROBE_CHANNELS, _PROBE_SIDE = 192, 16
_WORTH_IT = 1.5
"""Fewer bits cost precision and conversions: they must be this much faster."""

_MEASURED_FRAMES = 6
"""From each start, for the ranges of what goes into layers."""

_PARTS = 3
"""Of a block's graph."""

_CODE = hashlib.sha256(
    b"".join(Path(file).read_bytes() for file in (__file__, engines.parts.__file__, engines.quantize.__file__))
).hexdigest()
"""What was compiled by other code than this is compiled again."""


def gemm_gflops(core: ov.Core, precision: str, size: int, seconds: float) -> float:
    """The machine's rate for square matrix products in `precision`, in GFLOP/s."""
    a, b = (opset13.parameter([size, size], np.float32) for _ in range(2))
    model = ov.Model([opset13.matmul(a, b, False, False)], [a, b])
    return 2 * size**3 * _calls_a_second(core, model, precision, seconds) / 1e9


def _convolutions_a_second(core: ov.Core, precision: str) -> float:
    """How often a middling 3x3 convolution is done in `precision`."""
    rng = np.random.default_rng(0)
    x = opset13.parameter([1, _PROBE_CHANNELS, _PROBE_SIDE, _PROBE_SIDE], np.float32)
    weights = opset13.constant(rng.standard_normal((_PROBE_CHANNELS, _PROBE_CHANNELS, 3, 3), np.float32))
    weights.set_friendly_name("weights")
    model = ov.Model([opset13.convolution(x, weights, [1, 1], [1, 1], [1, 1], [1, 1])], [x])
    if precision == "int8":
        quantise(model, {"weights": (-4.0, 4.0)})
    return _calls_a_second(core, model, precision, _PROBE_S)


def _calls_a_second(core: ov.Core, model: ov.Model, precision: str, seconds: float) -> float:
    request = core.compile_model(model, "CPU", _settings(precision)).create_infer_request()
    rng = np.random.default_rng(0)
    for index, given in enumerate(model.inputs):
        request.set_input_tensor(index, ov.Tensor(rng.standard_normal(list(given.shape), np.float32)))
    request.infer()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        request.infer()
        count += 1
    return count / (time.perf_counter() - start)


def preferred_precision(core: ov.Core, store: ArtefactStore) -> str:
    """bf16 where this CPU multiplies matrices clearly faster in it than in fp32, else int8 where it does convolutions
    clearly faster, else fp32.

    That a CPU has the instructions does not say so: without AMX some run bf16 no faster. Measured once a machine and
    kept.
    """
    key = ("fastest", f"openvino {ov.__version__}", _CODE, core.get_property("CPU", "FULL_DEVICE_NAME"))
    kept = store.get(*key)
    if kept is not None:
        return kept.decode()
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    choice, gain = "fp32", 1.0
    if "BF16" in able:
        bf16, fp32 = (gemm_gflops(core, precision, _PROBE_SIZE, _PROBE_S) for precision in ("bf16", "fp32"))
        if bf16 > _WORTH_IT * fp32:
            choice, gain = "bf16", bf16 / fp32
    if choice == "fp32" and "INT8" in able:
        int8, fp32 = (_convolutions_a_second(core, precision) for precision in ("int8", "fp32"))
        if int8 > _WORTH_IT * fp32:
            choice, gain = "int8", int8 / fp32
    log.info("precision %s: %.1f times as fast as fp32 in what it does", choice, gain)
    store.put(choice.encode(), *key)
    return choice


def _settings(precision: str) -> dict[str, str]:
    # A pinned thread waits for whoever else is on its core, while another is free.
    return {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": "NO",
    }


class _Block:
    """The requests that make a block together."""

    def __init__(self, latents: ov.InferRequest, frames: ov.InferRequest, cache: ov.InferRequest) -> None:
        self.requests = latents, frames, cache
        self.latents, self.frames, self.cache = latents, frames, cache
        given = set().union(*map(_inputs, self.requests[1:]))
        for output in latents.model_outputs:
            for name in output.get_names() & given:
                tensor = ov.Tensor(output.get_element_type(), output.get_shape())
                for request in self.requests:
                    if request is latents or name in _inputs(request):
                        request.set_tensor(name, tensor)

    def infer(self) -> None:
        self.latents.infer()
        self.frames.start_async()
        try:
            self.cache.infer()
        finally:
            self.frames.wait()  # a request that still ran would refuse the next stream


def _cores() -> int:
    """Those that this process may use, where the system says so."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _inputs(request: ov.InferRequest) -> set[str]:
    return {taken.get_any_name() for taken in request.model_inputs}


@dataclass
class _Stream:
    """frame: the next one; first: the oldest one in the ring; previous: the last clean latent [C, h, w]; reference:
    the first one, and what drove it [A].
    """

    seed: int
    frame: int
    first: int
    previous: NDArray[np.float32]
    reference: tuple[NDArray[np.float32], NDArray[np.float32]]
    cache_k: NDArray[np.float32]
    cache_v: NDArray[np.float32]


class OpenVINOEngine:
    """One stream at a time: on a CPU a half-empty batch costs as much as a full one."""

    name = "openvino"

    def __init__(
        self,
        student: Student,
        streams: int = 16,
        precision: str | None = None,
        threads: int | None = None,
        store: ArtefactStore | None = None,
    ) -> None:
        """precision: 'fp32', 'bf16' or 'int8'; None takes what the CPU is fast in.

        threads: all together; of a student that commits half of them, and at least one, for each of the two requests
        that run at a time. None takes all cores.
        """
        self.student = student
        self.capacity = Capacity(streams, (1,))
        self._core = ov.Core()
        self._store = store or ArtefactStore()
        self.precision = precision or preferred_precision(self._core, self._store)
        if self.precision not in PRECISIONS:
            raise EngineError(f"precision {self.precision!r}: the openvino engine takes {', '.join(PRECISIONS)}")
        if self.precision == "bf16" and student.config.transformer.pose_scale:
            # Eight bits of a place are not enough to move it; int8 leaves all of that in fp32.
            if precision is not None:
                raise EngineError(
                    f"student {student.config.name} knows where it is, which bf16 rounds: take fp32 or int8"
                )
            self.precision = "int8"
        self.device: str = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        # Without a commit there is nothing to be made beside the frames.
        at_a_time = 1 if student.config.transformer.history_level else 2
        each = max(1, (threads or _cores()) // at_a_time)
        self._settings = _settings(self.precision) | {"INFERENCE_NUM_THREADS": str(each)}
        if self.precision == "int8" and not student.ranges:
            if precision is not None:
                raise EngineError(f"student {student.config.name} has no {RANGES}, which int8 needs; export it again")
            self.precision = "fp32"
        (self._commit,) = self._requests(COMMIT_GRAPH)
        self._blocks = {count: _Block(*self._requests(step_graph(count))) for count in student.config.step_plans}
        self._speech = self._requests(SPEECH_GRAPH)[0] if student.config.speech else None
        self._streams: StreamTable[_Stream] = StreamTable(self.capacity)

    def open(self, stream_id: str, state: StreamState) -> None:
        self._streams.check_room(stream_id)
        config = self.student.config.transformer
        shape = (config.num_layers, 1, config.num_heads, config.slots * config.tokens, config.head_dim)
        nothing = np.zeros(self.student.config.latent_shape, np.float32)
        reference = nothing, np.zeros(self.student.config.action_dim, np.float32)
        if len(state.sink):
            reference = state.sink[0].astype(np.float32), state.sink_actions[0].astype(np.float32)
        caches = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        stream = _Stream(state.seed, 0, 0, nothing, reference, *caches)
        for block in replay(state, config, self.student.config.steps):
            stream.frame, stream.first = block.frame, block.first
            stream.previous = block.previous.astype(np.float32)
            given = self._inputs(stream, block.actions, latents=block.given[None])
            _set((self._commit,), given)
            self._commit.infer()
            self._write(self._commit, stream, block.latents.astype(np.float32))
        stream.frame = state.frame
        self._streams[stream_id] = stream

    def step(self, requests: Sequence[StepRequest]) -> list[StepResult]:
        return [self._one(request) for request in requests]

    def close(self, stream_id: str) -> None:
        self._streams.pop(stream_id, None)

    def _one(self, request: StepRequest) -> StepResult:
        config = self.student.config
        check_request(request, config)
        stream = self._streams[request.stream_id]
        block = self._blocks[request.steps]
        frame, actions = stream.frame, request.actions
        if request.mel is not None and self._speech is not None:
            heard_now = {"mel": np.ascontiguousarray(request.mel[None])}
            _set((self._speech,), heard_now)
            self._speech.infer()
            actions = heard(self._speech.get_tensor("curves").data[0], actions)
        noise = step_noise(stream.seed, frame, request.steps, config)
        given = self._inputs(stream, actions, noise=noise[:, None])
        _set(block.requests, given)
        block.infer()
        frames = np.array(block.frames.get_tensor("frames").data[0])
        latents = block.latents.get_tensor("latents").data[0].astype(np.float16)
        self._write(block.cache, stream, latents.astype(np.float32))
        return StepResult(request.stream_id, frame, frames, latents, actions)

    def _inputs(
        self, stream: _Stream, actions: NDArray[np.float32], **more: NDArray[np.float32]
    ) -> dict[str, NDArray[np.float32]]:
        config = self.student.config.transformer
        inputs = more | {
            "previous": stream.previous[None],
            "actions": actions[None].astype(np.float32),
            "rotation": block_rotation(stream.frame, config)[None],
            "visible": visible_slots(stream.frame, config, stream.first)[None],
            "cache_k": stream.cache_k,
            "cache_v": stream.cache_v,
        }
        if config.face_dim:
            inputs |= {"reference": stream.reference[0][None], "reference_actions": stream.reference[1][None]}
        return {name: np.ascontiguousarray(array) for name, array in inputs.items()}

    def _write(self, infer: ov.InferRequest, stream: _Stream, latents: NDArray[np.float32]) -> None:
        """Put the block that `infer` has just computed into its slots, and go on to the next block."""
        config = self.student.config.transformer
        k, raw_k, v = (infer.get_tensor(name).data for name in ("new_k", "new_raw_k", "new_v"))
        n = config.tokens
        for i in range(config.block_size):
            slot = slot_of(stream.frame + i, config)
            keys = raw_k if stream.frame + i < config.sink else k
            stream.cache_k[:, :, :, slot * n : (slot + 1) * n] = keys[:, :, :, i * n : (i + 1) * n]
            stream.cache_v[:, :, :, slot * n : (slot + 1) * n] = v[:, :, :, i * n : (i + 1) * n]
        stream.previous = latents[-1]
        stream.frame += config.block_size

    def _requests(self, graph: str) -> list[ov.InferRequest]:
        """Of the parts of a graph; all but a block's have one."""
        path = self.student.file(graph)
        count = 1 if graph in (COMMIT_GRAPH, SPEECH_GRAPH) else _PARTS
        about = f"openvino {ov.__version__}", _CODE, self.precision, f"{platform.machine()} {self.device}"
        keys = [(self.student.hash, f"{path.name} {number + 1}/{count}", *about) for number in range(count)]
        compiled = [part for key in keys if (part := self._kept(*key)) is not None]
        if len(compiled) < count:
            start = time.perf_counter()
            try:
                compiled = [self._core.compile_model(part, "CPU", self._settings) for part in self._parts(path, count)]
            except RuntimeError as error:
                raise StudentError(f"{path}: OpenVINO cannot compile it or the weights beside it: {error}") from error
            log.info("compiled %s for %s in %.1f s", path.name, self.precision, time.perf_counter() - start)
            for key, part in zip(keys, compiled, strict=True):
                self._store.put(part.export_model().getvalue(), *key)
        return [part.create_infer_request() for part in compiled]

    def _kept(self, *key: str) -> ov.CompiledModel | None:
        blob = self._store.get(*key)
        try:
            return None if blob is None else self._core.import_model(io.BytesIO(blob), "CPU", self._settings)
        except RuntimeError as error:
            log.warning("compiled %s cannot be read back (%s); compiling it again", key[1], error)
            return None

    def _parts(self, path: Path, count: int) -> Sequence[ov.Model]:
        model = self._core.read_model(str(path))
        _spell_attention_out(model)
        parts = (model,) if count == 1 else cut(model)
        if self.precision == "int8":
            for part in parts:
                quantise(part, self.student.ranges)
        return parts


def _set(requests: Iterable[ov.InferRequest], values: dict[str, NDArray[np.float32]]) -> None:
    """Let requests read the contiguous arrays that they have inputs for, which must live until they are done."""
    for request in requests:
        for name in _inputs(request) & values.keys():
            request.set_tensor(name, ov.Tensor(values[name], shared_memory=True))


def _spell_attention_out(model: ov.Model) -> None:
    """Put the products, the sum and the softmax in the place of attentions: OpenVINO 2026.4 does so too, but turns the
    keys in memory first, which costs a third of the attention's time.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention":
            continue
        q, k, v, bias = (node.input_value(index) for index in range(4))
        scale = opset13.constant(np.float32(q.get_shape()[-1] ** -0.5))
        scores = opset13.matmul(opset13.multiply(q, scale), k, False, True)
        weights = opset13.softmax(opset13.add(scores, bias), -1)
        node.output(0).replace(opset13.matmul(weights, v, False, False).output(0))


def measured_ranges(student: Student) -> Ranges:
    """What goes into a student's layers when it plays on from its starts in fp32, driven by what drove them."""
    config = student.config
    engine = OpenVINOEngine(student, 1, "fp32")
    parts = engine._parts(student.file(step_graph(config.steps)), _PARTS)
    own = [len(part.outputs) for part in parts]
    names = [watch(part) for part in parts]
    block = _Block(
        *(engine._core.compile_model(part, "CPU", engine._settings).create_infer_request() for part in parts)
    )
    engine._blocks[config.steps] = block
    ranges: Ranges = {}
    for state in student.starts():
        engine.open("measured", state)
        for actions in state.actions[:: max(1, len(state.actions) // _MEASURED_FRAMES)]:
            driven = np.tile(actions, (config.transformer.block_size, 1))
            engine.step([StepRequest("measured", driven, config.steps)])
            for request, first, watched in zip(block.requests, own, names, strict=True):
                seen = [float(request.get_output_tensor(first + k).data) for k in range(2 * len(watched))]
                ranges = widened(ranges, watched, seen)
    return ranges
