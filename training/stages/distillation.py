"""Stage 3: distillation: a few-step student of a teacher, by the recipe's method."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from streamgen.config import TransformerConfig
from streamgen.models.loading import load_autoencoder, load_transformer, save_transformer
from streamgen.models.transformer import CausalVideoTransformer
from training.clips import LatentClips, encode, error_weight
from training.data import Clip, held_out
from training.methods.causal_consistency import CausalConsistencyMethod
from training.methods.diagonal import DiagonalMethod
from training.methods.flow_map import FlowMapMethod
from training.methods.method import Method, Roles
from training.methods.mutual_forcing import MutualForcingMethod
from training.methods.ode_regression import OdeRegressionMethod
from training.methods.self_adversarial import SelfAdversarialMethod
from training.methods.self_forcing import SelfForcingMethod
from training.methods.settings import (
    CausalConsistency,
    Diagonal,
    FlowMap,
    MutualForcing,
    OdeRegression,
    OnPolicy,
    SelfAdversarial,
    SelfForcing,
)
from training.metrics import evaluate_transformer
from training.package import data_for, write_origin
from training.recipe import DistillationRecipe, RecipeError
from training.scores import Score, freeze_known


class DistillationStage:
    """Binds the roles and hands each batch to the method."""

    def __init__(self, recipe: DistillationRecipe) -> None:
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        teacher = Score.load(recipe.teacher)
        if teacher.bidirectional and recipe.start is None:
            raise RecipeError(f"teacher {recipe.teacher} sees the future: name a causal one to start from (start)")
        if teacher.bidirectional and not recipe.method.rolls_out:
            raise RecipeError(
                f"teacher {recipe.teacher} sees the future: {recipe.method.name} follows a causal one's trajectories"
            )
        if teacher.model.config.flow_map:
            raise RecipeError(
                f"teacher {recipe.teacher} maps flows, so its velocities are means over many levels: give the teacher "
                "that it was made from"
            )
        model = student_from(load_transformer(recipe.start or recipe.teacher), recipe)
        self.model: nn.Module = model
        self._autoencoder = load_autoencoder(recipe.autoencoder)
        self.data = data_for(recipe, model.config, self._autoencoder)
        self._held_out_clips = held_out(self.data, recipe.judged_clips, recipe.judged_frames)
        self._held_out = encode(self._autoencoder, self._held_out_clips, model.config)
        weight = error_weight(self._autoencoder, model.config, recipe, self._held_out)
        self._method = bound(Roles(model, teacher, recipe, weight))
        self.critic = self._method.critic

    def turn(self, step: int) -> nn.Module:
        if self._method.begin(step):
            return self.model
        assert self.critic is not None
        return self.critic

    def batch(self, clips: list[Clip], number: int) -> LatentClips:
        assert isinstance(self.model, CausalVideoTransformer)
        return encode(self._autoencoder, clips, self.model.config)

    def loss(self, batch: LatentClips, ema: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(ema, CausalVideoTransformer)
        return self._method.loss(batch, ema, generator)

    def evaluate(self, ema: nn.Module, sheet: Path) -> dict[str, float]:
        assert isinstance(ema, CausalVideoTransformer)
        plan = self.recipe.step_plans[self.recipe.serve]
        return evaluate_transformer(
            ema, self._autoencoder, self._held_out, self._held_out_clips, plan, sheet, self.recipe.focus
        )

    def finish(self, ema: nn.Module, folder: Path) -> None:
        assert isinstance(ema, CausalVideoTransformer)
        save_transformer(ema, folder)
        recipe = self.recipe
        write_origin(folder, recipe, recipe.step_plans, recipe.serve, opening=recipe.method.opened(recipe.step_plans))


def student_from(old: CausalVideoTransformer, recipe: DistillationRecipe) -> CausalVideoTransformer:
    """A transformer as the recipe's method wants it, with the weights of another; what those lack is made new. Raises
    RecipeError.
    """
    try:
        config = TransformerConfig.model_validate(old.config.model_dump() | recipe.method.changes)
    except ValueError as error:
        raise RecipeError(f"a transformer such as start has cannot learn by {recipe.method.name}: {error}") from error
    if old.config.flow_map and not isinstance(recipe.method, FlowMap):
        raise RecipeError(
            f"start maps flows, and {recipe.method.name} would not teach it where jumps lead: take method flow_map, or "
            "a start without model.flow_map"
        )
    rolls = isinstance(recipe.method, (OnPolicy, MutualForcing))
    if rolls and config.block_size > 1:
        raise RecipeError(
            f"{recipe.method.name} counts single frames, and the student makes {config.block_size} at a time: take a "
            "start of model.block_size 1"
        )
    if isinstance(recipe.method, OnPolicy) and recipe.method.lead and config.sink:
        raise RecipeError("lead: scores would take a frame of the rollout for the reference; set it to 0")
    for count, plan in recipe.step_plans.items():
        if config.history_level and plan[config.history_step(count)] != config.history_level:
            raise RecipeError(
                f"step plan {count}: {plan} does not end at the history's level {config.history_level}, whose keys are "
                "kept: let it, or set the method's history_level where it has one"
            )
    model = CausalVideoTransformer(config).train()
    model.load_state_dict(old.state_dict(), strict=False)
    freeze_known(model)
    return model


def bound(roles: Roles) -> Method:
    """The recipe's method, with its roles."""
    match roles.recipe.method:
        case OdeRegression() as settings:
            return OdeRegressionMethod(roles, settings)
        case CausalConsistency() as settings:
            return CausalConsistencyMethod(roles, settings)
        case SelfForcing() as settings:
            return SelfForcingMethod(roles, settings)
        case Diagonal() as settings:
            return DiagonalMethod(roles, settings)
        case SelfAdversarial() as settings:
            return SelfAdversarialMethod(roles, settings)
        case FlowMap() as settings:
            return FlowMapMethod(roles, settings)
        case MutualForcing() as settings:
            return MutualForcingMethod(roles, settings)
