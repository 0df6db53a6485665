"""The training stages, one module each."""

from __future__ import annotations

from training.loop import Stage
from training.recipe import AutoencoderRecipe, CausalConsistencyRecipe, TeacherForcingRecipe


def build_stage(
    recipe: AutoencoderRecipe | TeacherForcingRecipe | CausalConsistencyRecipe, first_step: int = 0
) -> Stage:
    """The stage of a recipe, its data starting at `first_step`."""
    if isinstance(recipe, AutoencoderRecipe):
        from training.stages.autoencoder import AutoencoderStage

        return AutoencoderStage(recipe, first_step)
    if isinstance(recipe, TeacherForcingRecipe):
        from training.stages.teacher_forcing import TeacherForcingStage

        return TeacherForcingStage(recipe, first_step)
    from training.stages.causal_consistency import CausalConsistencyStage

    return CausalConsistencyStage(recipe, first_step)
