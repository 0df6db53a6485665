"""Diagonal distillation: blocks take fewer and fewer steps, and the history is what the last, noisy step left in the
cache, in training as in serving: no commit. A loss on what changes from frame to frame keeps it moving.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamgen.models.transformer import CausalVideoTransformer
from training.clips import LatentClips
from training.losses import distribution_matching, motion_matching
from training.methods.method import Roles
from training.methods.on_policy import Policy
from training.methods.settings import Diagonal


class DiagonalMethod:
    """DMD of rollouts by a plan for each block, and of their motion."""

    def __init__(self, roles: Roles, settings: Diagonal) -> None:
        plans = roles.recipe.step_plans
        self._settings = settings
        self._policy = Policy(roles, settings)
        self._plans = *(plans[count] for count in settings.opened(plans)), plans[min(plans)]
        self.critic = self._policy.critic

    def begin(self, step: int) -> bool:
        return self._policy.begin(step)

    def loss(
        self, clips: LatentClips, ema: CausalVideoTransformer, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        policy = self._policy
        given = policy.given(clips, generator)
        rolled = policy.roll(given, self._plans, generator, gradient=policy.students_turn)
        if not policy.students_turn:
            return policy.score_loss(rolled, generator), {}
        scores = policy.scores(rolled, generator)
        motion = motion_matching(*scores)
        truth = policy.truth(rolled, given)
        loss = distribution_matching(*scores) + self._settings.motion * motion + truth
        return loss, {"motion": motion.item(), "truth": truth.item()}
