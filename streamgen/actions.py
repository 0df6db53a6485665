"""Keys as action vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

WORLD_KEYS = ("KeyW", "KeyS", "ArrowLeft", "ArrowRight", "Space")
"""KeyboardEvent.code of the world's actions: forward, back, turn left, turn right, fire."""


def action_vector(held: Iterable[str], keys: Sequence[str]) -> NDArray[np.float32]:
    """The action vector [A] of a frame: 1 for each of `keys` that is in `held`, else 0. Unknown codes count for
    nothing.
    """
    down = set(held)
    return np.array([code in down for code in keys], np.float32)
