"""ODE regression: from every level of the step plans straight to where the teacher's trajectory ends.

The baseline: what many trajectories through one point end in is averaged, which blurs. From one level, and a teacher's
one step, nothing is averaged: the student learns to do the same over a history of another kind.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from streamgen.models.transformer import CausalVideoTransformer
from training.clips import ClipPass, LatentClips, imperfect_history
from training.losses import consistency_target, denoised, guided
from training.methods.method import Roles
from training.methods.settings import OdeRegression


class OdeRegressionMethod:
    """Teacher: causal, with a clean prefix."""

    critic: nn.Module | None = None

    def __init__(self, roles: Roles, settings: OdeRegression) -> None:
        self._roles, self._settings = roles, settings
        self._plans = list(roles.recipe.step_plans.values())
        self._levels = sorted({sigma for plan in self._plans for sigma in plan}, reverse=True)

    def begin(self, step: int) -> bool:
        return True

    def loss(
        self, clips: LatentClips, ema: CausalVideoTransformer, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        roles, recipe, count = self._roles, self._roles.recipe, self._settings.intervals
        x0 = clips.latents
        history, level = imperfect_history(ema, clips, recipe, self._plans, generator)
        noise = torch.randn(x0.shape, generator=generator)
        clip, own = (
            ClipPass(model.config, history, level, clips.actions, 1, noise)
            for model in (roles.teacher.model, roles.student)
        )
        x = torch.randn(x0[:, None].shape, generator=generator)
        on_the_way = {}
        with torch.no_grad():
            for index in range(count, 0, -1):
                sigma, below = (torch.full(x.shape[:3], each / count) for each in (index, index - 1))
                on_the_way[index / count] = x
                velocity = guided(partial(clip.velocity, roles.teacher.model, x, sigma), sigma, self._settings.guidance)
                x = consistency_target(x, velocity, sigma, below)
        at = self._levels[int(torch.randint(len(self._levels), (1,), generator=generator))]
        sigma = torch.full(x.shape[:3], at)
        made = denoised(on_the_way[at], own.velocity(roles.student, on_the_way[at], sigma), sigma)
        return roles.squared_error(made[:, :, recipe.first_target :], x[:, :, recipe.first_target :]), {}
