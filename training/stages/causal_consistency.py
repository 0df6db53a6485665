"""Stage 3: causal consistency distillation: one set of weights for two steps and for one.

Student, EMA and frozen teacher start from the teacher-forced model. A clip's frames share one noise level; the
teacher makes one Euler step along its trajectory to the next lower level, and the student's x0 from the higher level
must equal the EMA's from the lower one (Causal Forcing++). In the last interval the target is the teacher's end point
itself.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.models.loading import load_autoencoder, load_transformer, save_transformer
from streamgen.models.transformer import CausalVideoTransformer
from training.clips import ClipPass, LatentClips, encode, error_weight, imperfect_history
from training.data import Clip, held_out
from training.losses import add_noise, consistency_target, denoised
from training.metrics import JUDGED, evaluate_transformer
from training.package import data_for, write_origin
from training.recipe import CausalConsistencyRecipe


class CausalConsistencyStage:
    """Distils a teacher run into a few-step student."""

    def __init__(self, recipe: CausalConsistencyRecipe) -> None:
        self.recipe = recipe
        self._teacher = load_transformer(recipe.teacher)
        model = load_transformer(recipe.teacher).requires_grad_(True).train()
        if model.config.pose_scale:
            model.pose.requires_grad_(False)
        if model.config.face_dim:
            model.face.requires_grad_(False)
        self.model: nn.Module = model
        self._autoencoder = load_autoencoder(recipe.autoencoder)
        self.data = data_for(recipe, self._teacher.config, self._autoencoder)
        self._held_out_clips = held_out(self.data, *JUDGED)
        self._held_out = encode(self._autoencoder, self._held_out_clips, self._teacher.config)
        self._weight = error_weight(self._autoencoder, self._teacher.config, recipe, self._held_out)
        self._plan = recipe.step_plans[max(recipe.step_plans)]

    def batch(self, clips: list[Clip], number: int) -> LatentClips:
        return encode(self._autoencoder, clips, self._teacher.config)

    def loss(self, batch: LatentClips, ema: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(self.model, CausalVideoTransformer) and isinstance(ema, CausalVideoTransformer)
        recipe, x0 = self.recipe, batch.latents
        history, level = imperfect_history(ema, batch, recipe, self._plan, generator)
        target = x0[:, None].expand(-1, recipe.copies, *(-1 for _ in x0.shape[1:]))
        sigma, below = self._levels(len(x0), generator)
        sigma, below = (t[..., None].expand(target.shape[:3]) for t in (sigma, below))
        eps = torch.randn(target.shape, generator=generator)
        noisy = add_noise(target, eps, sigma)
        clip = ClipPass(self._teacher.config, history, level, batch.actions, recipe.copies)
        with torch.no_grad():
            velocity = clip.velocity(self._teacher, noisy, sigma)
            if recipe.guidance > 1:
                blind = clip.velocity(self._teacher, noisy, sigma, known=torch.zeros_like(sigma))
                velocity = blind + recipe.guidance * (velocity - blind)
            nearer = consistency_target(noisy, velocity, sigma, below)
            goal = denoised(nearer, clip.velocity(ema, nearer, below), below)
        made = denoised(noisy, clip.velocity(self.model, noisy, sigma), sigma)
        made, goal = (t[:, :, recipe.first_target :, : self._teacher.config.picture_channels] for t in (made, goal))
        return (F.mse_loss(made, goal, reduction="none") * self._weight).mean(), {}

    def _levels(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise level [B, K] of each noisy clip and the next lower one; float32 throughout.

        A share of the clips takes the levels that the step plans use, the others are uniform on the grid.
        """
        recipe = self.recipe
        shape = rows, recipe.copies
        grid = torch.randint(1, recipe.intervals + 1, shape, generator=generator)
        used = torch.tensor([round(s * recipe.intervals) for plan in recipe.step_plans.values() for s in plan])
        planned = used[torch.randint(0, len(used), shape, generator=generator)]
        index = torch.where(torch.rand(shape, generator=generator) < recipe.plan_weight, planned, grid)
        return index.float() / recipe.intervals, (index - 1).float() / recipe.intervals

    def evaluate(self, ema: nn.Module, sheet: Path) -> dict[str, float]:
        assert isinstance(ema, CausalVideoTransformer)
        return evaluate_transformer(
            ema, self._autoencoder, self._held_out, self._held_out_clips, self._plan, sheet, self.recipe.focus
        )

    def finish(self, ema: nn.Module, folder: Path) -> None:
        assert isinstance(ema, CausalVideoTransformer)
        save_transformer(ema, folder)
        write_origin(folder, self.recipe, self.recipe.step_plans, self.recipe.serve)
