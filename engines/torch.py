"""PyTorch: the reference in fp32, one stream at a time; and batches over a cache on a GPU, through the Triton kernels
where they are installed (not yet run on a GPU).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engines.batches import SINK_ROTATION, Batches, Frame, Made
from engines.protocol import Capacity, Engine, EngineError, StepRequest, StepResult
from engines.streams import StreamTable, check_request, heard, step_noise
from streamgen.cache import in_place_cache_shapes
from streamgen.config import TransformerConfig
from streamgen.models.attention import InPlaceAttention, kept_of_layer, rotate_sinks
from streamgen.models.export import HearingRows
from streamgen.models.loading import load_autoencoder, load_speech, load_transformer, to_precision
from streamgen.models.rollout import Commit, Decode, InPlacePass, RollingCache, Rollout, recache
from streamgen.state import StreamState
from streamgen.student import PICTURE, Student

_ROWS = 4
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class TorchEngine:
    """Runs the rollout as it is written. Every other engine must agree with it."""

    name = "torch"
    precision = "fp32"
    device = platform.processor() or platform.machine()

    def __init__(self, student: Student, streams: int = 16, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.student = student
        self.capacity = Capacity(streams, (1,))
        transformer, autoencoder = load_transformer(student.path), load_autoencoder(student.path)
        self._commit = Commit(transformer)
        self._rollouts = {
            count: Rollout(transformer, autoencoder, sigmas) for count, sigmas in student.config.step_plans.items()
        }
        self._speech = load_speech(student.path) if student.config.speech else None
        self._streams: StreamTable[tuple[RollingCache, int]] = StreamTable(self.capacity)

    @torch.inference_mode()
    def open(self, stream_id: str, state: StreamState) -> None:
        self._streams.check_room(stream_id)
        self._streams[stream_id] = recache(self._commit, state, self.student.config.steps), state.seed

    @torch.inference_mode()
    def step(self, requests: Sequence[StepRequest]) -> list[StepResult]:
        return [self._one(request) for request in requests]

    def close(self, stream_id: str) -> None:
        self._streams.pop(stream_id, None)

    def _one(self, request: StepRequest) -> StepResult:
        config = self.student.config
        check_request(request, config)
        cache, seed = self._streams[request.stream_id]
        frame, actions = cache.frame, request.actions
        if request.mel is not None and self._speech is not None:
            actions = heard(self._speech(torch.from_numpy(request.mel)[None])[0].numpy(), actions)
        noise = step_noise(seed, frame, request.steps, config)
        frames, latents, *block = self._rollouts[request.steps](
            torch.from_numpy(noise)[:, None],
            cache.previous,
            torch.from_numpy(actions)[None],
            *cache.inputs(),
            *cache.picture,
        )
        cache.write(latents, *block)
        return StepResult(request.stream_id, frame, frames[0].numpy(), latents[0].half().numpy(), actions)


def torch_engine(student: Student, streams: int, threads: int | None, precision: str | None) -> Engine:
    """Batches on a GPU where torch sees one, else the reference. threads and precision: of what has them."""
    if torch.cuda.is_available():
        return TorchBatches(student, streams, precision=precision)
    return TorchEngine(student, streams, threads)


class TorchBatches(Batches):
    """Batches of `rows` streams on a device of torch."""

    name = "torch"

    def __init__(
        self,
        student: Student,
        streams: int = 16,
        rows: int | None = None,
        precision: str | None = None,
        device: str = "cuda",
        compiled: Callable[[nn.Module], Callable[..., Any]] = lambda module: module,
        kernels: bool = True,
    ) -> None:
        """rows: None takes four, or `streams` if there are fewer. precision: fp32, bf16 or fp16, which None takes.
        compiled: makes what runs in place of each module. kernels: whether those of Triton are used where they are
        installed; they have no fp32.
        """
        self.precision = precision = precision or "fp16"
        if precision not in _DTYPES:
            raise EngineError(f"precision {precision!r}: choose one of {', '.join(_DTYPES)}")
        self.device = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
        kernels = kernels and precision != "fp32" and find_spec("triton") is not None
        rows = rows or min(_ROWS, streams)
        runner = _Runner(student, rows, _DTYPES[precision], torch.device(device), compiled, kernels)
        super().__init__(student, runner, streams)


class _Runner:
    def __init__(
        self,
        student: Student,
        rows: int,
        dtype: torch.dtype,
        device: torch.device,
        compiled: Callable[[nn.Module], Callable[..., Any]],
        kernels: bool,
    ) -> None:
        self.rows = rows
        self._student, self._device, self._dtype = student.config, device, dtype
        transformer, autoencoder = load_transformer(student.path), load_autoencoder(student.path)
        for module in (transformer, autoencoder):
            to_precision(module, dtype)
            module.to(device)
        self._space = transformer.space
        attention = InPlaceAttention
        self._rotate_sinks: Callable[..., None] = _rotate_all_sinks
        if kernels:
            from engines.kernels.transformer import KernelAttention, rotate_all_sinks, use_kernels

            use_kernels(transformer)
            attention, self._rotate_sinks = KernelAttention, rotate_all_sinks
        self._pass = compiled(InPlacePass(transformer, student.config.all_jumps, attention).to(device).eval())
        self._decode = compiled(Decode(autoencoder).eval())
        speech = load_speech(student.path) if student.config.speech else None
        self._hear = HearingRows(speech).to(device).eval() if speech else None
        self._caches: dict[int, list[Tensor]] = {}

    @torch.inference_mode()
    def start(self, batch: int, frame: Frame) -> Callable[[], Made]:
        given = self._given(frame)
        if self._hear is not None and frame.mel is not None and frame.hears is not None:
            given["actions"] = self._hear(self._tensor(frame.mel), given["actions"], self._tensor(frame.hears))
        seen = [given["reference"], given.pop(PICTURE)] if PICTURE in given else []
        latents = self._passes(batch, frame, given)
        frames = self._decode(latents, *seen)
        return lambda: Made(*(tensor.cpu().numpy() for tensor in (frames, latents, given["actions"])))

    @torch.inference_mode()
    def commit(self, batch: int, frame: Frame) -> None:
        given = self._given(frame)
        given.pop(PICTURE, None)
        self._passes(batch, frame, given)

    @torch.inference_mode()
    def clear(self, batch: int, row: int) -> None:
        for tensor in self._cache(batch):
            tensor[row] = 0

    def _passes(self, batch: int, frame: Frame, given: dict[str, Tensor]) -> Tensor:
        cache = self._cache(batch)
        given = dict(given)
        if SINK_ROTATION in given:
            self._rotate_sinks(self._student.transformer, self._space, given.pop(SINK_ROTATION), cache)
        x = self._tensor(frame.noise[0])
        for of_pass in frame.passes():
            own = {name: self._tensor(array) for name, array in of_pass.items()}
            x, _ = self._pass(x, **own, **given, cache=cache)
        return x

    def _given(self, frame: Frame) -> dict[str, Tensor]:
        return {name: self._tensor(array) for name, array in frame.given.items()}

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, non_blocking=True)

    def _cache(self, batch: int) -> list[Tensor]:
        if batch not in self._caches:
            shapes = in_place_cache_shapes(self._student, self.rows)
            self._caches[batch] = [torch.zeros(s, dtype=self._dtype, device=self._device) for s in shapes]
        return self._caches[batch]


def _rotate_all_sinks(config: TransformerConfig, space: Tensor, rotation: Tensor, cache: list[Tensor]) -> None:
    kept = kept_of_layer(config)
    rotate_sinks(config, space, rotation, cache[::kept], cache[2::kept])
