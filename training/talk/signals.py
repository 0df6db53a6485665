"""Curves over time as faces and bodies move them: smoothing, and wandering at random."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float64]

_REACH = 4.0
"""Standard deviations to each side after which a Gaussian counts as over."""


def smoothed(curve: NDArray[Any], deviation: float) -> Curve:
    """curve [F] or [F, n] after a Gaussian along F, whose standard deviation is in frames; its ends are mirrored."""
    reach = int(_REACH * deviation + 0.5)
    if reach < 1:
        return curve.astype(np.float64)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights /= weights.sum()
    padded = np.pad(curve.astype(np.float64), [(reach, reach), *[(0, 0)] * (curve.ndim - 1)], mode="symmetric")
    columns = padded.reshape(len(padded), -1).T
    filtered = np.stack([np.convolve(column, weights, mode="valid") for column in columns], 1)
    return filtered.reshape(curve.shape)


def wandering(rng: np.random.Generator, frames: int, spread: float, pace: float) -> Curve:
    """A random curve [frames] with mean 0 and standard deviation `spread` that turns within about `pace` frames.

    Both are those of all such curves: one that is shorter than it takes to turn hardly moves, wherever it is.
    """
    margin = 100  # beyond which the ends' mirror images are out of sight
    curve = smoothed(rng.normal(size=frames + 2 * margin), pace)[margin : margin + frames]
    # Of white noise, a Gaussian leaves 1 / (2 sqrt(pi) pace) of the variance.
    return curve * (spread * float(np.sqrt(2 * np.sqrt(np.pi) * pace)))
