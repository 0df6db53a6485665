"""Causal consistency distillation (Causal Forcing++): one set of weights for two steps and for one.

Student, EMA and frozen teacher start from the teacher-forced model. A clip's frames share one noise level; the
teacher makes one Euler step along its trajectory to the next lower level, and the student's x0 from the higher level
must equal the EMA's from the lower one. In the last interval the target is the teacher's end point itself.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from streamgen.models.transformer import CausalVideoTransformer
from training.clips import ClipPass, LatentClips, imperfect_history, simulated
from training.losses import add_noise, consistency_target, denoised, guided
from training.methods.method import Roles
from training.methods.settings import CausalConsistency


class CausalConsistencyMethod:
    """Teacher: causal, with a clean prefix."""

    critic: nn.Module | None = None

    def __init__(self, roles: Roles, settings: CausalConsistency) -> None:
        self._roles, self._settings = roles, settings
        self._plans = list(roles.recipe.step_plans.values())
        self._used = torch.tensor([round(s * settings.intervals) for plan in self._plans for s in plan])

    def begin(self, step: int) -> bool:
        return True

    def loss(
        self, clips: LatentClips, ema: CausalVideoTransformer, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        roles, recipe, x0 = self._roles, self._roles.recipe, clips.latents
        history, level = imperfect_history(ema, clips, recipe, self._plans, generator)
        target = x0[:, None].expand(-1, recipe.copies, *(-1 for _ in x0.shape[1:]))
        sigma, below = self._levels(len(x0), generator)
        sigma, below = (t[..., None].expand(target.shape[:3]) for t in (sigma, below))
        eps = torch.randn(target.shape, generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        clip, own = (
            ClipPass(model.config, history, level, clips.actions, recipe.copies, noise)
            for model in (roles.teacher.model, roles.student)
        )
        noisy = add_noise(target, simulated(own, ema, recipe, target, eps, sigma, generator), sigma)
        with torch.no_grad():
            velocity = guided(partial(clip.velocity, roles.teacher.model, noisy, sigma), sigma, self._settings.guidance)
            nearer = consistency_target(noisy, velocity, sigma, below)
            goal = denoised(nearer, own.velocity(ema, nearer, below), below)
        made = denoised(noisy, own.velocity(roles.student, noisy, sigma), sigma)
        return roles.squared_error(made[:, :, recipe.first_target :], goal[:, :, recipe.first_target :]), {}

    def _levels(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise level [B, K] of each noisy clip and the next lower one; float32 throughout.

        A share of the clips takes the levels that the step plans use, the others are uniform on the grid.
        """
        settings, shape = self._settings, (rows, self._roles.recipe.copies)
        grid = torch.randint(1, settings.intervals + 1, shape, generator=generator)
        planned = self._used[torch.randint(0, len(self._used), shape, generator=generator)]
        index = torch.where(torch.rand(shape, generator=generator) < settings.plan_weight, planned, grid)
        return index.float() / settings.intervals, (index - 1).float() / settings.intervals
