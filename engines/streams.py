"""What engines share on the host: the table of open streams, a stream's noise and the checks of a request."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.protocol import Capacity, EngineFull, StepRequest, UnknownStream
from streamgen.audio import MEL_BINS
from streamgen.config import StudentConfig
from streamgen.noise import block_noise

_T = TypeVar("_T")


class StreamTable(dict[str, _T]):
    """What an engine keeps for each open stream. Asking for one that is not open raises UnknownStream."""

    def __init__(self, capacity: Capacity) -> None:
        super().__init__()
        self._limit = capacity.streams

    def check_room(self, stream_id: str) -> None:
        """Raises EngineFull when there is none for a stream of this name; an open one has its place."""
        if stream_id not in self and len(self) >= self._limit:
            raise EngineFull(f"all {self._limit} streams of the engine are in use")

    def __missing__(self, stream_id: str) -> _T:
        raise UnknownStream(f"stream {stream_id} is not open in this engine")


def check_request(request: StepRequest, config: StudentConfig) -> None:
    """Raises ValueError for actions or mel frames of another shape or a step count without a plan."""
    expected = (config.transformer.block_size, config.action_dim)
    if request.actions.shape != expected:
        raise ValueError(f"actions of shape {request.actions.shape}; student {config.name} takes {expected}")
    if request.mel is not None:
        if config.speech is None:
            raise ValueError(f"sound for student {config.name}, which does not hear")
        wanted = (config.transformer.block_size, config.speech.window, MEL_BINS)
        if request.mel.shape != wanted:
            raise ValueError(f"mel frames of shape {request.mel.shape}; student {config.name} takes {wanted}")
    if request.steps not in config.step_plans:
        raise ValueError(f"{request.steps} steps; student {config.name} has plans for {sorted(config.step_plans)}")


def heard(curves: NDArray[np.float32], actions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Actions [F, A] whose first columns are the curves [F, n] that were heard."""
    return np.concatenate([curves, actions[:, curves.shape[1] :]], 1)


def step_noise(seed: int, frame: int, steps: int, config: StudentConfig) -> NDArray[np.float32]:
    """Noise [K, F, C, h, w] of the block that starts at `frame`."""
    shape = (config.transformer.block_size, *config.latent_shape)
    return np.stack([block_noise(seed, frame, step, shape) for step in range(steps)])
