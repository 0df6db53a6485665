"""What engines share on the host: a stream's noise and the checks of a request."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engines.protocol import StepRequest
from streamgen.config import StudentConfig
from streamgen.noise import block_noise


def check_request(request: StepRequest, config: StudentConfig) -> None:
    """Raises ValueError for actions of another shape or a step count without a plan."""
    expected = (config.transformer.block_size, len(config.keys))
    if request.actions.shape != expected:
        raise ValueError(f"actions of shape {request.actions.shape}; student {config.name} takes {expected}")
    if request.steps not in config.step_plans:
        raise ValueError(f"{request.steps} steps; student {config.name} has plans for {sorted(config.step_plans)}")


def step_noise(seed: int, frame: int, steps: int, config: StudentConfig) -> NDArray[np.float32]:
    """Noise [K, F, C, h, w] of the block that starts at `frame`."""
    shape = (config.transformer.block_size, *config.latent_shape)
    return np.stack([block_noise(seed, frame, step, shape) for step in range(steps)])
