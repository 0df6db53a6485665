"""Squares of frames and of their latents, for stages that need not see all of a picture at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.recipe import Box

_IN_FOCUS = 0.7
"""Share of the crops whose middle lies in the recipe's focus."""


def corner(size: Sequence[int], side: int, focus: Box | None, rng: np.random.Generator) -> tuple[int, int]:
    """The row and the column at which a random square of something of `size` begins."""
    low, high = np.zeros(2), np.ones(2)
    if focus is not None and rng.random() < _IN_FOCUS:
        left, top, right, bottom = focus
        low, high = np.array([top, left]), np.array([bottom, right])
    y, x = np.clip(rng.uniform(low, high) * size - side / 2, 0, np.array(size) - side).astype(int)
    return int(y), int(x)
