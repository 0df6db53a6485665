"""Compiled engines on a GPU: caches and buffers that stay there, a frame's whole plan recorded as one CUDA graph, the
decoder beside the commit. Not yet run on a GPU; `tests/engines/test_tensorrt.py` runs its plan on a device made up of
host memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.batches import SINK_ROTATION, Batches, Frame, Made
from engines.protocol import EngineError
from engines.store import ArtefactStore
from engines.tensorrt.build import PRECISIONS, RTX, Build, built, load_module, logger
from engines.tensorrt.cuda import Bytes, CudaDevice, Device
from streamgen.audio import MEL_BINS
from streamgen.cache import in_place_cache_shapes
from streamgen.config import StudentConfig
from streamgen.student import DECODE_GRAPH, PASS_GRAPH, PICTURE, SINKS_GRAPH, SPEECH_GRAPH, Student

log = logging.getLogger(__name__)

_ROWS = 4
_ALIGNED = 256
"""Bytes: TensorRT takes addresses that are multiples of it."""
_NEW = "new_"
_OF_PASS = "level", "write", "length"
"""What each pass of a frame is given of its own, beside its noise."""

Shapes = dict[str, tuple[tuple[int, ...], type[np.generic]]]


class Executable(Protocol):
    """A compiled graph. inputs, outputs: names of its tensors."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def recordable(self) -> bool:
        """Whether its work may be recorded, now that it has run."""
        ...

    def run(self, addresses: dict[str, int], stream: int) -> None:
        """Ask the stream for a run over memory at these addresses, one for each tensor."""
        ...


class TensorRTEngine(Batches):
    """Batches of `rows` streams on the first GPU."""

    name = "tensorrt"

    def __init__(
        self,
        student: Student,
        streams: int = 16,
        rows: int | None = None,
        precision: str | None = None,
        store: ArtefactStore | None = None,
    ) -> None:
        """rows: None takes four, or `streams` if there are fewer. precision: bf16, fp16, which None takes, or a mode of
        `streamgen build --quantize`. Raises EngineError without a GPU, or where no engine can be built for it.
        """
        device, store = CudaDevice(), store or ArtefactStore()
        self.device, self.precision = device.name, precision or "fp16"
        numbers, quantize = (self.precision, None) if self.precision in PRECISIONS else ("fp16", self.precision)
        rows = rows or min(_ROWS, streams)
        build = built(student, device.capability, rows, numbers, store, quantize)
        graphs, keep = load(build, student, device, store)
        runner = GraphRunner(student.config, build.rows, graphs, device)
        runner.warm_up()
        keep()
        super().__init__(student, runner, streams)


class GraphRunner:
    """Runs compiled graphs: each frame is one upload, one recorded sequence of work and one wait."""

    def __init__(self, config: StudentConfig, rows: int, graphs: dict[str, Executable], device: Device) -> None:
        self.rows = rows
        self._config = config
        self._graphs = graphs
        self._device = device
        self._main, self._beside = device.stream(), device.stream()
        self._batches: dict[int, _Batch] = {}
        self._plans: dict[tuple[int, int, bool], Callable[[], None] | None] = {}

    def warm_up(self) -> None:
        """Run every plan and record it, before anybody waits for a frame."""
        of = self._config.transformer
        for at in range(max(self._config.step_plans) + 1):
            self._batch(0).given.view(f"length {at}")[...] = of.block_size * of.tokens
        for steps in (0, *self._config.step_plans):
            for hears in (False, *([True] if steps and SPEECH_GRAPH in self._graphs else [])):
                for _ in range(2):
                    self._do(0, steps, hears)
        self._device.wait(self._main)

    def start(self, batch: int, frame: Frame) -> Callable[[], Made]:
        buffers = self._fill(batch, frame)
        self._do(batch, len(frame.noise), frame.mel is not None)
        return lambda: self._finish(buffers, frame)

    def commit(self, batch: int, frame: Frame) -> None:
        self._fill(batch, frame)
        self._do(batch, 0, False)
        self._device.wait(self._main)

    def clear(self, batch: int, row: int) -> None:
        for address, size in self._batch(batch).cache.values():
            self._device.zero(address + row * size // self.rows, size // self.rows)

    def _finish(self, buffers: _Batch, frame: Frame) -> Made:
        self._device.wait(self._main)
        made = buffers.made
        actions = made.view("heard_actions") if frame.mel is not None else frame.given["actions"]
        return Made(made.view("frames"), made.view("latents"), actions.astype(np.float32))

    def _do(self, batch: int, steps: int, hears: bool) -> None:
        """A frame of so many steps; none: the commit alone. The first time as it is, then recorded: a runtime may not
        be recorded before it has run.
        """
        key = batch, steps, hears

        def work() -> None:
            self._frame(self._batch(batch), steps, hears)

        if key not in self._plans:
            work()
            self._plans[key] = None
            return
        recorded = self._plans[key]
        if recorded is None:
            unused = {*(() if hears else (SPEECH_GRAPH,)), *(() if steps else (DECODE_GRAPH,))}
            if all(graph.recordable for name, graph in self._graphs.items() if name not in unused):
                recorded = self._device.record(self._main, work)
            else:
                log.warning("TensorRT lets a frame of %d steps not be recorded: kernels are started one by one", steps)
                recorded = work
            self._plans[key] = recorded
        recorded()

    def _frame(self, batch: _Batch, steps: int, hears: bool) -> None:
        """Ask the streams for everything that a frame is."""
        device, given, cache = self._device, batch.given, {name: at for name, (at, _) in batch.cache.items()}
        cache |= {_NEW + name: at for name, at in cache.items()}
        device.upload(given.device, given.host, self._main)
        known = {name: given.at(name) for name in given.names} | cache
        if hears:
            known["heard_actions"] = batch.made.at("heard_actions")
            self._run(SPEECH_GRAPH, known, self._main)
            known["actions"] = known["heard_actions"]
        if SINKS_GRAPH in self._graphs:
            self._run(SINKS_GRAPH, known | {"rotation": known[SINK_ROTATION]}, self._main)
        x = given.at("noise 0")
        passes = steps if steps and self._config.transformer.history_level else steps + 1
        for at in range(passes):
            if steps and at == steps:
                # The commit needs no frames, nor the frames the commit.
                self._show(batch, x)
            out = batch.latents[at % 2]
            noise = given.at(f"noise {min(at, max(steps - 1, 0))}")
            of_pass = {name: given.at(f"{name} {at}") for name in _OF_PASS} | {"x": x, "noise": noise, "latents": out}
            self._run(PASS_GRAPH, known | of_pass, self._main)
            x = out
        if steps:
            if passes == steps:
                self._show(batch, x)
            device.download(batch.made.bytes("latents"), x, self._main)
            device.after(self._main, self._beside)
        if hears:
            device.download(batch.made.bytes("heard_actions"), known["heard_actions"], self._main)

    def _show(self, batch: _Batch, latents: int) -> None:
        """Decode beside whatever comes next."""
        device = self._device
        device.after(self._beside, self._main)
        known = {name: batch.given.at(name) for name in batch.given.names}
        self._run(DECODE_GRAPH, known | {"latents": latents, "frames": batch.made.at("frames")}, self._beside)
        device.download(batch.made.bytes("frames"), batch.made.at("frames"), self._beside)

    def _run(self, graph: str, known: dict[str, int], stream: int) -> None:
        executable = self._graphs[graph]
        names = *executable.inputs, *executable.outputs
        executable.run({name: known[name] for name in names}, stream)

    def _fill(self, batch: int, frame: Frame) -> _Batch:
        """Put a frame's inputs where the upload takes them from."""
        buffers = self._batch(batch)
        given: dict[str, NDArray[np.generic]] = dict(frame.given)
        given |= {f"noise {at}": noise for at, noise in enumerate(frame.noise)}
        for name, of_passes in zip(_OF_PASS, (frame.levels, frame.write, frame.length), strict=True):
            given |= {f"{name} {at}": of_pass for at, of_pass in enumerate(of_passes)}
        if frame.mel is not None and frame.hears is not None:
            given |= {"mel": frame.mel, "hears": frame.hears}
        for name, array in given.items():
            buffers.given.view(name)[...] = array
        return buffers

    def _batch(self, batch: int) -> _Batch:
        if batch not in self._batches:
            self._batches[batch] = _Batch(self._device, self._config, self.rows)
        return self._batches[batch]


class _Batch:
    """Where a batch's memory is. cache: address and bytes of each tensor. latents: what passes hand on, in turns."""

    def __init__(self, device: Device, config: StudentConfig, rows: int) -> None:
        sizes = [2 * prod(shape) for shape in in_place_cache_shapes(config, rows)]
        self.cache = {f"cache_{k}": (device.allocate(size), size) for k, size in enumerate(sizes)}
        given, made = _shapes(config, rows)
        self.given, self.made = _Block(device, given), _Block(device, made)
        size = prod(made["latents"][0]) * 4
        self.latents = device.allocate(size), device.allocate(size)


class _Block:
    """Arrays one after another, on the host and on the device."""

    def __init__(self, device: Device, shapes: Shapes) -> None:
        self.names = tuple(shapes)
        self._places: dict[str, tuple[int, tuple[int, ...], np.dtype[Any]]] = {}
        size = 0
        for name, (shape, kind) in shapes.items():
            self._places[name] = size, shape, np.dtype(kind)
            size += -(-prod(shape) * np.dtype(kind).itemsize // _ALIGNED) * _ALIGNED
        self.host, self.device = device.host(size), device.allocate(size)

    def at(self, name: str) -> int:
        """Its address on the device."""
        return self.device + self._places[name][0]

    def bytes(self, name: str) -> Bytes:
        """Its memory on the host."""
        first, shape, kind = self._places[name]
        return self.host[first : first + prod(shape) * kind.itemsize]

    def view(self, name: str) -> NDArray[Any]:
        """It, on the host."""
        _, shape, kind = self._places[name]
        return self.bytes(name).view(kind).reshape(shape)


def _shapes(config: StudentConfig, rows: int) -> tuple[Shapes, Shapes]:
    """What a frame is given, and what comes of it."""
    of, steps = config.transformer, max(config.step_plans)
    latents, actions = (rows, of.block_size, *config.latent_shape), (rows, of.block_size, config.action_dim)
    pairs = of.rope_pairs[0]
    given: Shapes = {f"noise {at}": (latents, np.float32) for at in range(steps)}
    for at in range(steps + 1):
        given |= {f"level {at}": ((rows,), np.int64), f"length {at}": ((rows,), np.int64)}
        given[f"write {at}"] = (rows, 2), np.int64
    given |= {
        "previous": ((rows, *config.latent_shape), np.float32),
        "actions": (actions, np.float32),
        "rotation": ((rows, of.block_size, 2, pairs), np.float32),
    }
    if of.sink:
        given[SINK_ROTATION] = (rows, of.sink, 2, pairs), np.float32
    if of.face_dim:
        given["reference"] = given["previous"]
        given["reference_actions"] = (rows, config.action_dim), np.float32
    if config.vae.warp_dim:
        given[PICTURE] = (rows, *config.picture_shape), np.uint8
    made: Shapes = {
        "frames": ((rows, of.block_size, config.height, config.width, 3), np.uint8),
        "latents": (latents, np.float32),
    }
    if config.speech is not None:
        given["mel"] = (rows, of.block_size, config.speech.window, MEL_BINS), np.float32
        given["hears"] = (rows,), np.bool_
        made["heard_actions"] = given["actions"]
    return given, made


def load(
    build: Build, student: Student, device: Device, store: ArtefactStore
) -> tuple[dict[str, Executable], Callable[[], None]]:
    """The engines of a build, ready to run, and what keeps in the store what TensorRT for RTX has compiled on this card
    until then.
    """
    trt = load_module(build.module)
    runtime = trt.Runtime(logger(build.module))
    key = student.hash, f"{build.module} {build.version}", device.name, f"{build.rows} rows, {build.precision}"
    shared = None
    graphs: dict[str, Executable] = {}
    for name, plan in build.engines.items():
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f"{device.name} does not take the engine {name} for {build.capability}: build it again")
        how = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if build.module == RTX:
            settings = engine.create_runtime_config()
            settings.set_execution_context_allocation_strategy(how)
            if shared is None:
                shared = settings.create_runtime_cache()
                if (kept := store.get(*key, "runtime cache")) is not None:
                    shared.deserialize(kept)
            settings.set_runtime_cache(shared)
            context = engine.create_execution_context(settings)
        else:
            context = engine.create_execution_context(how)
        graphs[name] = _Compiled(trt, engine, context, device)

    def keep() -> None:
        if shared is not None:
            store.put(bytes(shared.serialize()), *key, "runtime cache")

    return graphs, keep


class _Compiled:
    def __init__(self, trt: Any, engine: Any, context: Any, device: Device) -> None:
        names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
        mode = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = tuple(name for name in names if mode[name])
        self.outputs = tuple(name for name in names if not mode[name])
        size = engine.device_memory_size_v2
        if size:
            context.set_device_memory(device.allocate(size), size)
        self._engine, self._context, self._stream = engine, context, device.stream()

    @property
    def recordable(self) -> bool:
        # TensorRT for RTX has a word in it.
        asked = getattr(self._context, "is_stream_capturable", None)
        return asked is None or bool(asked(self._stream))

    def run(self, addresses: dict[str, int], stream: int) -> None:
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise EngineError(f"TensorRT does not take the memory of {name}")
        if not self._context.execute_async_v3(stream):
            raise EngineError("TensorRT could not run: its log says why")
