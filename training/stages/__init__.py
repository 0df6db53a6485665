"""The training stages, one module each."""

from __future__ import annotations

from training.loop import Stage
from training.recipe import (
    AnyRecipe,
    AutoencoderRecipe,
    BidirectionalRecipe,
    DecoderRecipe,
    FaceJudgeRecipe,
    FaceRecipe,
    JudgesRecipe,
    PoseRecipe,
    SpeechRecipe,
    TeacherForcingRecipe,
)


def build_stage(recipe: AnyRecipe) -> Stage:
    """The stage of a recipe."""
    if isinstance(recipe, AutoencoderRecipe):
        from training.stages.autoencoder import AutoencoderStage

        return AutoencoderStage(recipe)
    if isinstance(recipe, SpeechRecipe):
        from training.stages.speech import SpeechStage

        return SpeechStage(recipe)
    if isinstance(recipe, FaceJudgeRecipe):
        from training.stages.face_judge import FaceJudgeStage

        return FaceJudgeStage(recipe)
    if isinstance(recipe, JudgesRecipe):
        from training.stages.judges import JudgesStage

        return JudgesStage(recipe)
    if isinstance(recipe, FaceRecipe):
        from training.stages.face import FaceStage

        return FaceStage(recipe)
    if isinstance(recipe, PoseRecipe):
        from training.stages.pose import PoseStage

        return PoseStage(recipe)
    if isinstance(recipe, DecoderRecipe):
        from training.stages.decoder import DecoderStage

        return DecoderStage(recipe)
    if isinstance(recipe, TeacherForcingRecipe):
        from training.stages.teacher_forcing import TeacherForcingStage

        return TeacherForcingStage(recipe)
    if isinstance(recipe, BidirectionalRecipe):
        from training.stages.bidirectional import BidirectionalStage

        return BidirectionalStage(recipe)
    from training.stages.distillation import DistillationStage

    return DistillationStage(recipe)
