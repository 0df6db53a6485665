"""The reference engine: PyTorch in fp32, one stream at a time."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch

from engines.protocol import Capacity, StepRequest, StepResult
from engines.streams import StreamTable, check_request, heard, step_noise
from streamgen.models.loading import load_autoencoder, load_speech, load_transformer
from streamgen.models.rollout import Commit, RollingCache, Rollout, recache
from streamgen.state import StreamState
from streamgen.student import Student


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
        self._streams[stream_id] = recache(self._commit, state), state.seed

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
            torch.from_numpy(noise)[:, None], cache.previous, torch.from_numpy(actions)[None], *cache.inputs()
        )
        cache.write(latents, *block)
        return StepResult(request.stream_id, frame, frames[0].numpy(), latents[0].half().numpy(), actions)
