"""Rollouts to learn from: the one rollout (streamgen/models/rollout.py) with the serving cache, and gradients where a
method wants them.

Dimensions as in `training.clips`; R frames are rolled out after a context of P true ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamgen.models.rollout import Commit, RollingCache, Rollout
from streamgen.models.transformer import CausalVideoTransformer
from training.clips import LatentClips

Plan = tuple[float, ...]


@dataclass(frozen=True)
class Rolled:
    """clips: P true frames, then R of the model's own, [B, P + R, ...]; context: P."""

    clips: LatentClips
    context: int

    @property
    def made(self) -> Tensor:
        """[B, R, C, h, w]"""
        return self.clips.latents[:, self.context :]

    def detached(self) -> Rolled:
        return Rolled(LatentClips(self.clips.latents.detach(), self.clips.actions), self.context)

    def last(self, frames: int, context: int) -> Rolled:
        """Its last frames, and of those before them so many as context."""
        at = self.clips.latents.shape[1] - frames - context
        return Rolled(LatentClips(self.clips.latents[:, at:], self.clips.actions[:, at:]), context)


def roll_out(
    model: CausalVideoTransformer,
    clips: LatentClips,
    context: int,
    plans: Sequence[Plan],
    generator: torch.Generator,
    exits: Sequence[int] | None = None,
    lead: int = 0,
    gradient: bool = True,
) -> Rolled:
    """Roll a model out under the actions of clips after their first `context` frames, one plan for each block.

    exits: of each block the step after which its latents are taken as they are; by default the last. That step alone
    has a gradient, and it does not reach what came before the block: the cache holds detached keys and values. All
    steps have one in a model that maps flows, whose steps are one way. lead: frames without any. gradient: whether any.
    """
    config, x0 = model.config, clips.latents
    size, rows = config.block_size, len(x0)
    commit, cache = Commit(model), RollingCache.empty(config, rows)

    def drawn() -> Tensor:
        return torch.randn(rows, size, *x0.shape[2:], generator=generator)

    def known(latents: Tensor, at: int, noise: Tensor | None) -> None:
        with torch.no_grad():
            cache.clean(commit, latents.detach(), clips.actions[:, at : at + size], noise)

    for at in range(0, context, size):
        known(x0[:, at : at + size], at, drawn() if config.history_level else None)
    made = []
    for block, plan in enumerate(plans):
        at = context + block * size
        last = len(plan) - 1 if exits is None else exits[block]
        noise = torch.stack([drawn() for _ in range(last + 1)])
        # Copies: the way back may calculate a block again, when the cache has long been written over.
        rotation, visible, k, v, *reference = cache.inputs()
        given = cache.previous, clips.actions[:, at : at + size], rotation, visible, k.clone(), v.clone(), *reference
        wanted = gradient and at >= context + lead
        rollout, graded = Rollout(model, None, plan[: last + 1]), 0 if config.flow_map else last
        with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
            x, kept = rollout.made_and_kept(noise, *given, gradient_from=graded)
        made.append(x.float())
        if config.history_level:
            cache.write(made[-1].detach(), *(t.detach() for t in kept))
        else:
            known(made[-1], at, None)
    count = context + len(plans) * size
    return Rolled(LatentClips(torch.cat([x0[:, :context], *made], 1), clips.actions[:, :count]), context)
