"""The training stages, one module each."""

from __future__ import annotations

from training.loop import Stage
from training.recipe import AutoencoderRecipe, CausalConsistencyRecipe, TeacherForcingRecipe


def build_stage(recipe: AutoencoderRecipe | TeacherForcingRecipe | CausalConsistencyRecipe) -> Stage:
    """The stage of a recipe."""
    if isinstance(recipe, AutoencoderRecipe):
        from training.stages.autoencoder import AutoencoderStage

        return AutoencoderStage(recipe)
    if isinstance(recipe, TeacherForcingRecipe):
        from training.stages.teacher_forcing import TeacherForcingStage

        return TeacherForcingStage(recipe)
    from training.stages.causal_consistency import CausalConsistencyStage

    return CausalConsistencyStage(recipe)
