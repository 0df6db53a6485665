"""Self-forcing (Huang et al. 2025): the student learns from its own rollouts, by one of three objectives: matched
scores (DMD), score identity (SiD) or a discriminator (GAN).
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamgen.models.transformer import CausalVideoTransformer
from training.clips import LatentClips
from training.losses import distribution_matching, score_identity
from training.methods.method import Roles
from training.methods.on_policy import Policy, real_clips
from training.methods.settings import SelfForcing


class SelfForcingMethod:
    """One step of each block, drawn at random and the same for all processes, has a gradient."""

    def __init__(self, roles: Roles, settings: SelfForcing) -> None:
        gan = settings.objective == "gan"
        self._settings = settings
        self._policy = Policy(roles, settings, score=not gan, discriminator=gan)
        self._plans = [plan for _, plan in sorted(roles.recipe.step_plans.items())]
        self.critic = self._policy.critic

    def begin(self, step: int) -> bool:
        return self._policy.begin(step)

    def loss(
        self, clips: LatentClips, ema: CausalVideoTransformer, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        policy, settings = self._policy, self._settings
        given = policy.given(clips, generator)
        plan = self._plans[policy.draw(len(self._plans))]
        rolled = policy.roll(given, (plan,), generator, policy.draw(len(plan)), policy.students_turn)
        if not policy.students_turn:
            if settings.objective == "gan":
                true = real_clips(clips, given[0].latents.shape[1], settings.rolled, settings.seen)
                return policy.telling(true, rolled, settings.steepness, generator), {}
            return policy.score_loss(rolled, generator), {}
        if settings.objective == "gan":
            loss = policy.fooling(rolled, generator)
        elif settings.objective == "sid":
            x, real, fake = policy.scores(rolled, generator, gradient=True)
            loss = score_identity(x, real, fake, settings.alpha)
        else:
            loss = distribution_matching(*policy.scores(rolled, generator))
        truth = policy.truth(rolled, given)
        return loss + truth, {"truth": truth.item()}
