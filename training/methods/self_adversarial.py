"""Adversarial self-distillation with first-frame enhancement: one student for several step counts. A discriminator
compares rollouts of n steps with those of the next count up, and DMD keeps both where the teacher is. The first block
takes the most steps: what is wrong there stays wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamgen.models.transformer import CausalVideoTransformer
from training.clips import LatentClips
from training.losses import distribution_matching
from training.methods.method import Roles
from training.methods.on_policy import Policy
from training.methods.settings import SelfAdversarial


class SelfAdversarialMethod:
    """In each step one count, drawn alike by all processes."""

    def __init__(self, roles: Roles, settings: SelfAdversarial) -> None:
        plans = roles.recipe.step_plans
        self._settings = settings
        self._policy = Policy(roles, settings, discriminator=True)
        self._plans = [plan for _, plan in sorted(plans.items())]
        (first,) = settings.opened(plans)
        self._first = plans[first]
        self.critic = self._policy.critic

    def begin(self, step: int) -> bool:
        return self._policy.begin(step)

    def loss(
        self, clips: LatentClips, ema: CausalVideoTransformer, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        policy, settings = self._policy, self._settings
        given = policy.given(clips, generator)
        index = policy.draw(len(self._plans))
        rolled = policy.roll(given, (self._first, self._plans[index]), generator, gradient=policy.students_turn)
        most = index == len(self._plans) - 1
        if not policy.students_turn:
            loss = policy.score_loss(rolled, generator)
            if most:
                return loss, {}
            better = policy.roll(given, (self._first, self._plans[index + 1]), generator, gradient=False)
            told = policy.telling(better, rolled, settings.steepness, generator)
            return loss + told, {"told": told.item()}
        loss = distribution_matching(*policy.scores(rolled, generator)) + policy.truth(rolled, given)
        if most:
            return loss, {}
        fooled = policy.fooling(rolled, generator)
        return loss + settings.adversarial * fooled, {"fooled": fooled.item()}
