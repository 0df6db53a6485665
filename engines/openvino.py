"""The CPU engine: a student's exported graphs in OpenVINO, no torch anywhere.

OpenVINO has no scatter into a cache, so a graph returns the new block's keys and values and the host writes them into
the slots of the buffer that the next request reads: a few tens of kB a layer, in place.

A block's graph is cut in three: while one half of the cores makes the frames of new latents, the other makes their keys
and values. That keeps two cores busy with little to wait for, where one graph on both has each wait for the other after
every node, the longer the more else goes on. A student without commits has its keys and values already.

Eight bits of a place are not enough to move it, so in bf16 what moves a pose and sees from it is cut off, and stays in
fp32; int8 leaves it so anyway.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13

import engines.parts
import engines.quantize
import engines.rewrites
from engines.parts import cut, in_turns
from engines.protocol import Capacity, EngineError, StepRequest, StepResult
from engines.quantize import Measured, note, quantise, ranges_of, watch
from engines.rewrites import MADE, halve, names_of, spell_attention_out, widen_tables
from engines.store import ArtefactStore
from engines.streams import StreamTable, check_request, heard, step_noise
from streamgen.cache import block_rotation, replay, slot_of, visible_slots
from streamgen.state import StreamState
from streamgen.student import COMMIT_GRAPH, PICTURE, RANGES, SPEECH_GRAPH, Ranges, Student, StudentError, step_graph

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""What an engine calculates in, and OpenVINO's name for it; `int8` is fp32 but for wide layers."""

_PROBE_SIZE, _PROBE_S = 512, 0.1
_PROBE_CHANNELS, _PROBE_SIDE = 192, 16
_WORTH_IT = 1.5
"""Fewer bits cost precision and conversions: they must be this much faster."""

_MEASURED_FRAMES = 6
"""From each start, for the ranges of what goes into layers."""

_CODE = hashlib.sha256(
    b"".join(
        Path(file).read_bytes()
        for file in (__file__, engines.parts.__file__, engines.quantize.__file__, engines.rewrites.__file__)
    )
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
    """At best: what else the machine did is kept in no choice."""
    request = core.compile_model(model, "CPU", settings_for(precision)).create_infer_request()
    rng = np.random.default_rng(0)
    for index, given in enumerate(model.inputs):
        request.set_input_tensor(index, ov.Tensor(rng.standard_normal(list(given.shape), np.float32)))
    request.infer()
    best_s, end_s = math.inf, time.perf_counter() + seconds
    while (start_s := time.perf_counter()) < end_s:
        request.infer()
        best_s = min(best_s, time.perf_counter() - start_s)
    return 1 / best_s


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


def settings_for(precision: str) -> dict[str, str]:
    # A pinned thread waits for whoever else is on its core, while another is free.
    return {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": "NO",
    }


Numbers = NDArray[np.float32] | NDArray[np.uint16]
"""Some in bf16, which NumPy does not have: as bits."""
Given = Numbers | NDArray[np.uint8]
"""A picture among them."""


class _Graph:
    """The requests that calculate a graph, one after another. What one makes, those after it take."""

    def __init__(self, requests: Sequence[ov.InferRequest]) -> None:
        self.requests = requests
        self._takes = [names_of(request.model_inputs) for request in requests]
        self._makes: dict[str, ov.InferRequest] = {}
        for number, request in enumerate(requests):
            for output in request.model_outputs:
                names = output.get_names()
                self._makes |= dict.fromkeys(names, request)
                tensor = ov.Tensor(output.get_element_type(), output.get_shape())
                for later in range(number + 1, len(requests)):
                    for name in self._takes[later] & names:
                        request.set_tensor(name, tensor)
                        requests[later].set_tensor(name, tensor)

    def give(self, values: Mapping[str, Given]) -> None:
        """Let it read the contiguous arrays that it has inputs for, which must live until it is done."""
        for name, array in values.items():
            half = array.dtype == np.uint16
            tensor = ov.Tensor(array, array.shape, ov.Type.bf16) if half else ov.Tensor(array, shared_memory=True)
            for request, takes in zip(self.requests, self._takes, strict=True):
                if name in takes:
                    request.set_tensor(name, tensor)

    def infer(self) -> None:
        for request in self.requests:
            request.infer()

    def made(self, name: str) -> Numbers:
        """An output, until the next call."""
        tensor = self._makes[name].get_tensor(name)
        half = tensor.get_element_type() == ov.Type.bf16
        array: Numbers = tensor.data.view(np.uint16) if half else tensor.data
        return array


class _Block(_Graph):
    """A block's: the last two do not need each other."""

    def infer(self) -> None:
        *latents, frames, cache = self.requests
        for request in latents:
            request.infer()
        frames.start_async()
        try:
            cache.infer()
        finally:
            frames.wait()  # a request that still ran would refuse the next stream


def _cores() -> int:
    """Those that this process may use, where the system says so, and OMP_NUM_THREADS, as it tells PyTorch."""
    there = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    told = os.environ.get("OMP_NUM_THREADS", "")
    return min(there, int(told)) if told.isdecimal() and int(told) else there


@dataclass
class _Stream:
    """frame: the next one; first: the oldest one in the ring; previous: the last clean latent [C, h, w]; reference:
    the first one, and what drove it [A]; picture: as the state has it.
    """

    seed: int
    frame: int
    first: int
    previous: NDArray[np.float32]
    reference: tuple[NDArray[np.float32], NDArray[np.float32]]
    picture: NDArray[np.uint8]
    cache_k: Numbers
    cache_v: Numbers


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
        that run at a time. None takes all cores, or as many as OMP_NUM_THREADS says.
        """
        self.student = student
        self.capacity = Capacity(streams, (1,))
        self._core = ov.Core()
        self._store = store or ArtefactStore()
        self.precision = precision or preferred_precision(self._core, self._store)
        if self.precision not in PRECISIONS:
            raise EngineError(f"precision {self.precision!r}: the openvino engine takes {', '.join(PRECISIONS)}")
        self.device: str = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        # Without a commit there is nothing to be made beside the frames.
        at_a_time = 1 if student.config.transformer.history_level else 2
        each = max(1, (threads or _cores()) // at_a_time)
        self._threads = {"INFERENCE_NUM_THREADS": str(each)}
        if self.precision == "int8" and not student.ranges:
            if precision is not None:
                raise EngineError(f"student {student.config.name} has no {RANGES}, which int8 needs; export it again")
            self.precision = "fp32"
        self._commit = _Graph(self._requests(COMMIT_GRAPH))
        # The others are compiled when they are first asked for; whether they are there shows now.
        for count in student.config.step_plans:
            student.file(step_graph(count))
        self._blocks = {count: self._block(count) for count in student.config.served}
        self._speech = _Graph(self._requests(SPEECH_GRAPH)) if student.config.speech else None
        self._streams: StreamTable[_Stream] = StreamTable(self.capacity)

    def open(self, stream_id: str, state: StreamState) -> None:
        self._streams.check_room(stream_id)
        config = self.student.config.transformer
        shape = (config.num_layers, 1, config.num_heads, config.slots * config.tokens, config.head_dim)
        nothing = np.zeros(self.student.config.latent_shape, np.float32)
        reference = nothing, np.zeros(self.student.config.action_dim, np.float32)
        if len(state.sink):
            reference = state.sink[0].astype(np.float32), state.sink_actions[0].astype(np.float32)
        kind = np.uint16 if self.precision == "bf16" else np.float32
        caches = np.zeros(shape, kind), np.zeros(shape, kind)
        stream = _Stream(state.seed, 0, 0, nothing, reference, state.picture, *caches)
        for block in replay(state, config, self.student.config.steps):
            stream.frame, stream.first = block.frame, block.first
            stream.previous = block.previous.astype(np.float32)
            given = self._inputs(stream, block.actions, latents=block.given[None])
            self._commit.give(given)
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
        if request.steps not in self._blocks:
            self._blocks[request.steps] = self._block(request.steps)
        block = self._blocks[request.steps]
        frame, actions = stream.frame, request.actions
        if request.mel is not None and self._speech is not None:
            heard_now = np.ascontiguousarray(request.mel[None])
            self._speech.give({"mel": heard_now})
            self._speech.infer()
            actions = heard(self._speech.made("curves")[0], actions)
        noise = step_noise(stream.seed, frame, request.steps, config)
        given = self._inputs(stream, actions, noise=noise[:, None])
        block.give(given | {PICTURE: stream.picture[None]})
        block.infer()
        frames = np.array(block.made("frames")[0])
        latents = block.made("latents")[0].astype(np.float16)
        self._write(block, stream, latents.astype(np.float32))
        return StepResult(request.stream_id, frame, frames, latents, actions)

    def _block(self, steps: int) -> _Block:
        return _Block(self._requests(step_graph(steps), steps))

    def _inputs(self, stream: _Stream, actions: NDArray[np.float32], **more: NDArray[np.float32]) -> dict[str, Numbers]:
        config = self.student.config.transformer
        inputs = more | {
            "previous": stream.previous[None],
            "actions": actions[None].astype(np.float32),
            "rotation": block_rotation(stream.frame, config)[None],
            "visible": visible_slots(stream.frame, config, stream.first)[None],
        }
        if config.face_dim:
            inputs |= {"reference": stream.reference[0][None], "reference_actions": stream.reference[1][None]}
        cache: dict[str, Numbers] = {"cache_k": stream.cache_k, "cache_v": stream.cache_v}
        return cache | {name: np.ascontiguousarray(array) for name, array in inputs.items()}

    def _write(self, graph: _Graph, stream: _Stream, latents: NDArray[np.float32]) -> None:
        """Put the block that `graph` has just computed into its slots, and go on to the next block."""
        config = self.student.config.transformer
        k, raw_k, v = map(graph.made, MADE)
        n = config.tokens
        for i in range(config.block_size):
            slot = slot_of(stream.frame + i, config)
            keys = raw_k if stream.frame + i < config.sink else k
            stream.cache_k[:, :, :, slot * n : (slot + 1) * n] = keys[:, :, :, i * n : (i + 1) * n]
            stream.cache_v[:, :, :, slot * n : (slot + 1) * n] = v[:, :, :, i * n : (i + 1) * n]
        stream.previous = latents[-1]
        stream.frame += config.block_size

    def _requests(self, graph: str, passes: int = 0) -> list[ov.InferRequest]:
        """Of the parts of a graph, which is a block's in so many passes, or makes no latents."""
        path, precisions = self.student.file(graph), self._precisions(graph, passes)
        about = f"openvino {ov.__version__}", _CODE, f"{platform.machine()} {self.device}"
        keys = [
            (self.student.hash, f"{path.name} {number}/{len(precisions)} {self.precision}", *about)
            for number in range(1, len(precisions) + 1)
        ]
        compiled = [
            part for key, precision in zip(keys, precisions, strict=True) if (part := self._kept(precision, *key))
        ]
        if len(compiled) < len(precisions):
            start = time.perf_counter()
            try:
                compiled = [
                    self._core.compile_model(part, "CPU", settings_for(precision) | self._threads)
                    for part, precision in zip(self._parts(path, passes), precisions, strict=True)
                ]
            except RuntimeError as error:
                raise StudentError(f"{path}: OpenVINO cannot compile it or the weights beside it: {error}") from error
            log.info("compiled %s for %s in %.1f s", path.name, self.precision, time.perf_counter() - start)
            for key, part in zip(keys, compiled, strict=True):
                self._store.put(part.export_model().getvalue(), *key)
        return [part.create_infer_request() for part in compiled]

    def _in_turns(self, graph: str) -> bool:
        return self.precision == "bf16" and graph != SPEECH_GRAPH and bool(self.student.config.transformer.pose_scale)

    def _precisions(self, graph: str, passes: int) -> list[str]:
        """Of the parts of a graph, as `_parts` makes them."""
        latents = [self.precision]
        if self._in_turns(graph):
            latents = ["fp32", "bf16"] * max(1, passes) + ["fp32"] * (passes > 0)
        return latents + [self.precision] * 2 * (passes > 0)

    def _kept(self, precision: str, *key: str) -> ov.CompiledModel | None:
        blob = self._store.get(*key)
        try:
            settings = settings_for(precision) | self._threads
            return None if blob is None else self._core.import_model(io.BytesIO(blob), "CPU", settings)
        except RuntimeError as error:
            log.warning("compiled %s cannot be read back (%s); compiling it again", key[1], error)
            return None

    def _parts(self, path: Path, passes: int) -> list[ov.Model]:
        model = self._core.read_model(str(path))
        spell_attention_out(model)
        widen_tables(model)
        latents, *others = cut(model) if passes else (model,)
        parts = [*(in_turns(latents) if self._in_turns(path.name) else [latents]), *others]
        if self.precision == "int8":
            for part in parts:
                quantise(part, self.student.ranges)
        if self.precision == "bf16":
            halve(list(zip(parts, self._precisions(path.name, passes), strict=True)))
        return parts


def measured_ranges(student: Student) -> Ranges:
    """What goes into those of a student's layers that eight bits suit, when it plays on from its starts in fp32, driven
    by what drove them.
    """
    config = student.config
    engine = OpenVINOEngine(student, 1, "fp32")
    parts = engine._parts(student.file(step_graph(config.steps)), config.steps)
    own = [len(part.outputs) for part in parts]
    names = [watch(part) for part in parts]
    settings = settings_for(engine.precision) | engine._threads
    block = _Block([engine._core.compile_model(part, "CPU", settings).create_infer_request() for part in parts])
    engine._blocks[config.steps] = block
    measured: dict[str, Measured] = {}
    for state in student.starts():
        engine.open("measured", state)
        for actions in state.actions[:: max(1, len(state.actions) // _MEASURED_FRAMES)]:
            driven = np.tile(actions, (config.transformer.block_size, 1))
            engine.step([StepRequest("measured", driven, config.steps)])
            for request, first, watched in zip(block.requests, own, names, strict=True):
                seen = [float(request.get_output_tensor(first + k).data) for k in range(3 * len(watched))]
                note(measured, watched, seen)
    return ranges_of(measured)
