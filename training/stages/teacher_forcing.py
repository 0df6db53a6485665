"""Stage 2: autoregressive flow matching with teacher forcing: the teacher, and where the student starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from streamgen.models.loading import load_autoencoder, load_face, load_pose, load_transformer, save_transformer
from streamgen.models.transformer import CausalVideoTransformer
from training.clips import ClipPass, LatentClips, encode, error_weight, imperfect_history, simulated
from training.data import Clip, held_out
from training.losses import add_noise, flow_matching, shifted
from training.metrics import evaluate_transformer
from training.package import data_for, write_origin
from training.recipe import RecipeError, TeacherForcingRecipe

_SECOND_STEP = 0.5
"""Noise level of a teacher's second step in its own rollouts."""
_MORE_STEPS = 1.0, 0.75, 0.5, 0.25
_SHARED = "blocks.", "time_"
"""Weights that do not depend on what is generated, nor on what drives it."""


def rollout_plans(recipe: TeacherForcingRecipe) -> dict[int, tuple[float, ...]]:
    """Step plans that a teacher can be rolled out by, by count."""
    level = recipe.model.history_level
    if 0 < level < 1:
        return {2: (1.0, level)}
    return {1: (1.0,), 2: (1.0, _SECOND_STEP), 4: _MORE_STEPS} if recipe.copies else {1: (1.0,)}


def _of_layers(weights: Mapping[str, Tensor], layers: Sequence[int], folder: Path) -> dict[str, Tensor]:
    """Weights of a transformer of only these layers."""
    kept = {name: value for name, value in weights.items() if not name.startswith("blocks.")}
    for number, layer in enumerate(layers):
        own = f"blocks.{layer}."
        found = {name: value for name, value in weights.items() if name.startswith(own)}
        if not found:
            raise RecipeError(f"start_layers {list(layers)}: {folder} has no layer {layer}; its first is 0")
        kept |= {f"blocks.{number}.{name.removeprefix(own)}": value for name, value in found.items()}
    return kept


class TeacherForcingStage:
    """Trains `CausalVideoTransformer` to predict the velocity of every frame from its (imperfect) past."""

    def __init__(self, recipe: TeacherForcingRecipe) -> None:
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        model = CausalVideoTransformer(recipe.model)
        self.model: nn.Module = model
        if (folder := recipe.start or recipe.start_blocks) is not None:
            weights, own = load_transformer(folder).state_dict(), model.state_dict()
            if recipe.start_blocks is not None:
                weights = {name: value for name, value in weights.items() if name.startswith(_SHARED)}
            if recipe.start_layers is not None:
                weights = _of_layers(weights, recipe.start_layers, folder)
            # What has a run of its own is taken from there.
            given = tuple(f"{part}." for part in ("pose", "face") if getattr(recipe, part) is not None)
            weights = {name: value for name, value in weights.items() if not name.startswith(given)}
            parts = tuple(part for part in ("pose.", "face.") if part not in given)
            lacking = [name for name in own if name.startswith(parts) and name not in weights]
            if lacking:
                raise RecipeError(f"start: {folder} has no {lacking[0]}, ...: name the run of a {lacking[0][:4]} too")
            other = [name for name, value in weights.items() if name not in own or own[name].shape != value.shape]
            if other:
                raise RecipeError(f"start: {folder} has weights that do not fit this model: {other[0]}, ...")
            model.load_state_dict(weights, strict=False)
        if recipe.model.pose_scale:
            if recipe.pose is not None:
                load_pose(model.pose, recipe.pose)
            model.pose.requires_grad_(False)
        if recipe.model.face_dim:
            if recipe.face is not None:
                load_face(model.face, recipe.face)
            model.face.requires_grad_(False)
        self._autoencoder = load_autoencoder(recipe.autoencoder)
        self.data = data_for(recipe, recipe.model, self._autoencoder)
        self._held_out_clips = held_out(self.data, recipe.judged_clips, recipe.judged_frames)
        self._held_out = encode(self._autoencoder, self._held_out_clips, recipe.model)
        self._plans = rollout_plans(recipe)
        self._serve = min(2, max(self._plans))
        self._weight = error_weight(self._autoencoder, recipe.model, recipe, self._held_out)

    def batch(self, clips: list[Clip], number: int) -> LatentClips:
        return encode(self._autoencoder, clips, self.recipe.model)

    def loss(self, batch: LatentClips, ema: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(self.model, CausalVideoTransformer) and isinstance(ema, CausalVideoTransformer)
        recipe = self.recipe
        own = recipe.model.history_level
        history, level = imperfect_history(ema, batch, recipe, list(self._plans.values()), generator)
        last = slice(-(recipe.tail or recipe.clip_length), None)
        history, level, x0, actions = (t[:, last] for t in (history, level, batch.latents, batch.actions))
        rows, frames = x0.shape[:2]
        target = x0[:, None].expand(-1, recipe.copies, *(-1 for _ in x0.shape[1:]))
        sigma = shifted(torch.rand(rows, recipe.copies, frames, generator=generator), recipe.shift)
        eps = torch.randn(target.shape, generator=generator)
        known = (torch.rand(sigma.shape, generator=generator) >= recipe.condition_dropout).float()
        noise = torch.randn(x0.shape, generator=generator) if own else None
        clip = ClipPass(recipe.model, history, level, actions, recipe.copies, noise)
        eps = simulated(clip, ema, recipe, target, eps, sigma, generator)
        velocity = clip.all_velocities(self.model, add_noise(target, eps, sigma), sigma, known)
        if noise is None:
            velocity = velocity[:, 1:]
        else:
            # The pass that makes the history's keys is a step like any other: it learns as they do, and to mend what
            # the history it starts from has of errors.
            target = torch.cat([x0[:, None], target], 1)
            eps = torch.cat([(x0 + (clip.history - x0) / own)[:, None], eps], 1)
            sigma = torch.cat([torch.full((rows, 1, frames), own), sigma], 1)
        weight = torch.ones_like(sigma) if recipe.sigma_floor == 0 else (sigma / recipe.sigma_floor).clamp(max=1) ** 2
        weight[:, :, : recipe.first_target] = 0
        velocity, target, eps = (t[:, :, :, : recipe.model.picture_channels] for t in (velocity, target, eps))
        return flow_matching(velocity, target, eps, weight[..., None, None, None] * self._weight), {}

    @torch.no_grad()
    def evaluate(self, ema: nn.Module, sheet: Path) -> dict[str, float]:
        assert isinstance(ema, CausalVideoTransformer)
        return evaluate_transformer(
            ema,
            self._autoencoder,
            self._held_out,
            self._held_out_clips,
            self._plans[self._serve],
            sheet,
            self.recipe.focus,
        )

    def finish(self, ema: nn.Module, folder: Path) -> None:
        assert isinstance(ema, CausalVideoTransformer)
        save_transformer(ema, folder)
        write_origin(folder, self.recipe, self._plans, self._serve)
