"""Any-step flow maps (AnyFlow): a student u(x, sigma, to) that jumps between any two noise levels, so that the number
of steps is free when it is served. It learns from clips by the flow map's own equation, and, if wanted, from its own
rollouts by DMD.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamgen.models.transformer import CausalVideoTransformer
from training.clips import ClipPass, LatentClips, imperfect_history, simulated
from training.losses import add_noise, distribution_matching, flow_map_target
from training.methods.method import Roles
from training.methods.on_policy import Policy
from training.methods.settings import FlowMap

_FLOOR = 0.5
"""An error of x0 counts 1 / max(sigma, this) squared."""


class FlowMapMethod:
    """The teacher is where it starts, and a score of its rollouts."""

    def __init__(self, roles: Roles, settings: FlowMap) -> None:
        self._roles, self._settings = roles, settings
        self._plans = [plan for _, plan in sorted(roles.recipe.step_plans.items())]
        self._policy = Policy(roles, settings) if settings.on_policy else None
        self.critic: nn.Module | None = self._policy.critic if self._policy else None

    def begin(self, step: int) -> bool:
        return self._policy is None or self._policy.begin(step)

    def loss(
        self, clips: LatentClips, ema: CausalVideoTransformer, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        policy = self._policy
        if policy is None:
            return self._from_clips(clips, ema, generator), {}
        given = policy.given(clips, generator)
        plan = self._plans[policy.draw(len(self._plans))]
        rolled = policy.roll(given, (plan,), generator, gradient=policy.students_turn)
        if not policy.students_turn:
            return policy.score_loss(rolled, generator), {}
        matched = distribution_matching(*policy.scores(rolled, generator)) + policy.truth(rolled, given)
        return matched + self._from_clips(clips, ema, generator), {"matched": matched.item()}

    def _from_clips(self, clips: LatentClips, ema: CausalVideoTransformer, generator: torch.Generator) -> Tensor:
        roles, recipe, x0, h = self._roles, self._roles.recipe, clips.latents, self._settings.nearby
        student, config = roles.student, roles.student.config
        history, level = imperfect_history(ema, clips, recipe, self._plans, generator)
        noise = torch.randn(x0.shape, generator=generator) if config.history_level else None
        clip = ClipPass(config, history, level, clips.actions, recipe.copies, noise)
        target = x0[:, None].expand(-1, recipe.copies, *(-1 for _ in x0.shape[1:]))
        sigma, to = self._levels(target.shape[:3], generator)
        eps = torch.randn(target.shape, generator=generator)
        eps = simulated(clip, ema, recipe, target, eps, sigma, generator)
        velocity = eps - target
        with torch.no_grad():
            above, below = (sigma + h).clamp(max=1.0), sigma - h
            jumps = [
                clip.velocity(student, add_noise(target, eps, s), s, to=torch.minimum(to, s)) for s in (above, below)
            ]
            derivative = (jumps[0] - jumps[1]) / (above - below)[..., None, None, None]
        goal = flow_map_target(velocity, derivative, sigma, to)
        made = clip.velocity(student, add_noise(target, eps, sigma), sigma, to=to)
        weight = (sigma / _FLOOR).clamp(max=1.0)[..., None, None, None]
        made, goal, weight = (t[:, :, recipe.first_target :] for t in (made, goal, weight))
        return roles.squared_error(made * weight, goal * weight)

    def _levels(self, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """From where and to where, [B, K, F] each: some stay where they are, some go all the way, the rest anywhere."""
        h = self._settings.nearby
        sigma = 2 * h + (1 - 2 * h) * torch.rand(shape, generator=generator)
        kind = torch.rand(shape, generator=generator)
        same, far = self._settings.same, self._settings.all_the_way
        # A rollout begins at pure noise.
        whole = torch.rand(shape, generator=generator) < far
        sigma = torch.where(whole & (kind >= same), torch.ones(()), sigma)
        to = sigma * torch.rand(shape, generator=generator)
        return sigma, torch.where(kind < same, sigma, torch.where(kind < same + far, torch.zeros(()), to))
