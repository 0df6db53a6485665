"""Which clips a training process sees."""

from __future__ import annotations

from training.loop import rank_and_size
from training.recipe import AutoencoderRecipe, StudentRecipe
from training.world.source import ClipSource

_RANK_STRIDE = 1_000_003
"""Between the seeds of two processes of one run."""


def clip_source(recipe: AutoencoderRecipe | StudentRecipe, first_step: int) -> ClipSource:
    """Fresh clips of this process, a function of the recipe's seed, the step and the rank."""
    rank, _ = rank_and_size()
    seed = recipe.seed + rank * _RANK_STRIDE
    return ClipSource(seed, recipe.clip_length, recipe.data_workers, start=first_step * recipe.clips)
