"""Mutual forcing: one set of weights in two modes, and no other teacher. Few steps write the history, many steps
learn the truth on that history, and what they make of a noise is what few steps must make of it.

Nothing tells the network which mode it is in: what it learns at a level that both use lies between the mean of what
could be and the end of one trajectory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamgen.models.transformer import CausalVideoTransformer
from training.clips import ClipPass, LatentClips, simulated
from training.losses import add_noise, denoised, flow_matching, shifted
from training.methods.method import Roles
from training.methods.settings import MutualForcing
from training.rollouts import roll_out


class MutualForcingMethod:
    """The teacher is only where the student starts."""

    critic: nn.Module | None = None

    def __init__(self, roles: Roles, settings: MutualForcing) -> None:
        self._roles, self._settings = roles, settings
        self._plans = roles.recipe.step_plans

    def begin(self, step: int) -> bool:
        return True

    def loss(
        self, clips: LatentClips, ema: CausalVideoTransformer, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        roles, context = self._roles, self._settings.context
        student, config, x0 = roles.student, roles.student.config, clips.latents
        plan = self._drawn(generator)
        blocks = (x0.shape[1] - context) // config.block_size
        history = roll_out(ema, clips, context, [plan] * blocks, generator, gradient=False).clips.latents
        noise = torch.randn(x0.shape, generator=generator) if config.history_level else None
        passed = ClipPass(config, history, torch.zeros(x0.shape[:2]), clips.actions, 1, noise)
        eps = torch.randn(x0[:, None].shape, generator=generator)
        # The many: flow matching towards the true frames.
        sigma = shifted(torch.rand(eps.shape[:3], generator=generator), 1.0)
        true = simulated(passed, ema, roles.recipe, x0[:, None], eps, sigma, generator)
        velocity = passed.velocity(student, add_noise(x0[:, None], true, sigma), sigma)
        counts = torch.ones(eps.shape[:3])
        counts[:, :, : max(context, 1)] = 0
        weight = counts[..., None, None, None] * roles.weight
        flow = flow_matching(roles.seen(velocity), roles.seen(x0[:, None]), roles.seen(true), weight)
        # The few: from one of their levels to where the many end.
        goal, starts = self._end(passed, ema, eps)
        at = plan[int(torch.randint(len(plan), (1,), generator=generator))]
        level = torch.full(eps.shape[:3], at)
        made = denoised(starts[at], passed.velocity(student, starts[at], level), level)
        few = roles.squared_error(made[:, :, context:], goal[:, :, context:])
        return flow + few, {"flow": flow.item(), "few": few.item()}

    def _drawn(self, generator: torch.Generator) -> tuple[float, ...]:
        counts = sorted(self._plans)
        return self._plans[counts[int(torch.randint(len(counts), (1,), generator=generator))]]

    @torch.no_grad()
    def _end(self, passed: ClipPass, ema: CausalVideoTransformer, x: Tensor) -> tuple[Tensor, dict[float, Tensor]]:
        """Where as many Euler steps lead from noise, and what they pass through, by level."""
        many, on_the_way = self._settings.many, {}
        for index in range(many, 0, -1):
            sigma = torch.full(x.shape[:3], index / many)
            on_the_way[index / many] = x
            x = x - passed.velocity(ema, x, sigma) / many
        return x, on_the_way
