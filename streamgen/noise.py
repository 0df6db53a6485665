"""Counter-based noise: a function of (seed, frame, step), so that a stream can be replayed on any engine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SEED_LIMIT = 2**64


def block_noise(seed: int, frame: int, step: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal noise for the block that starts at `frame`.

    step 0 is the noise that the block starts from, step k > 0 the fresh noise added before denoising step k. The
    generator is Philox 4x64 keyed by the seed with frame and step as its counter's upper words, so no draw depends on
    another.
    """
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"seed {seed} is outside 0 .. 2**64 - 1")
    philox = np.random.Philox(key=np.array([seed, 0], np.uint64), counter=np.array([0, step, frame, 0], np.uint64))
    return np.random.Generator(philox).standard_normal(shape, np.float32)
