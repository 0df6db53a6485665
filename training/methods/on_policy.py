"""What methods share that learn from the student's own rollouts: who learns when, rollouts, and what scores and a
discriminator say of them.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.clips import LatentClips
from training.discriminator import Discriminator
from training.losses import add_noise, denoised, fools, logits_and_steepness, tells_apart
from training.methods.method import Roles
from training.methods.settings import OnPolicy
from training.rollouts import Plan, Rolled, roll_out

_LEAST, _MOST = 0.02, 0.98
"""Noise levels at which scores are asked: nothing can be told apart at the ends."""


@dataclass(frozen=True)
class Noised:
    """Clips x [B, R, C, h, w] at levels sigma [B]."""

    x: Tensor
    sigma: Tensor


class Policy:
    """Student and critic in turns: `critic_steps` of the one for each of the other."""

    def __init__(self, roles: Roles, settings: OnPolicy, score: bool = True, discriminator: bool = False) -> None:
        self.roles, self._settings = roles, settings
        self._score = roles.teacher.trainable() if score else None
        self._discriminator = Discriminator(roles.student.config) if discriminator else None
        parts = {
            "score": self._score.model if self._score else None,
            "discriminator": self._discriminator,
        }
        self.critic = nn.ModuleDict({name: part for name, part in parts.items() if part is not None})
        self._shared = torch.Generator()
        self._step = 0
        self.students_turn = True

    def begin(self, step: int) -> bool:
        self._step = step
        every = self._settings.critic_steps + 1
        self.students_turn = step % every == every - 1
        return self.students_turn

    def draw(self, count: int) -> int:
        """One of so many: the same in all processes, and for all batches of a step, so that each takes as long."""
        return int(torch.randint(count, (1,), generator=self._shared))

    def given(self, clips: LatentClips, generator: torch.Generator) -> tuple[LatentClips, int, bool]:
        """The clips to roll out under, how many frames lead, and whether they tell what should become of it: not where
        others' actions take over. Begins a batch.
        """
        settings = self._settings
        self._shared.manual_seed(self.roles.recipe.seed * 1_000_003 + self._step)
        lead = self.draw(settings.lead + 1)
        count = settings.context + lead + settings.rolled
        latents, actions = clips.latents[:, :count], clips.actions[:, :count]
        if float(torch.rand(1, generator=generator)) >= settings.switch:
            return LatentClips(latents, actions), lead, True
        at = settings.context + int(torch.randint(lead + settings.rolled, (1,), generator=generator))
        # Somebody else's, or if there is nobody, one's own turned round.
        others = actions.roll(1, 0) if len(actions) > 1 else actions.flip(1)
        return LatentClips(latents, torch.cat([actions[:, :at], others[:, at:]], 1)), lead, False

    def roll(
        self,
        given: tuple[LatentClips, int, bool],
        plans: tuple[Plan, ...],
        generator: torch.Generator,
        exits: int | None = None,
        gradient: bool = True,
    ) -> Rolled:
        """A rollout by plans, of whose blocks those that are missing take the last."""
        clips, lead, _ = given
        blocks = (clips.latents.shape[1] - self._settings.context) // self.roles.student.config.block_size
        every = [plans[min(block, len(plans) - 1)] for block in range(blocks)]
        ends = None if exits is None else [min(exits, len(plan) - 1) for plan in every]
        rolled = roll_out(
            self.roles.student, clips, self._settings.context, every, generator, ends, lead, gradient=gradient
        )
        return rolled.last(self._settings.rolled, self._settings.seen)

    def truth(self, rolled: Rolled, given: tuple[LatentClips, int, bool]) -> Tensor:
        """Squared error of a rollout against what its actions led to, weighted; 0 where that is not known."""
        clips, _, known = given
        if not known or not self._settings.truth:
            return torch.zeros(())
        return self._settings.truth * self.roles.squared_error(rolled.made, clips.latents[:, -rolled.made.shape[1] :])

    def noised(self, x: Tensor, generator: torch.Generator) -> Noised:
        sigma = _LEAST + (_MOST - _LEAST) * torch.rand(len(x), generator=generator)
        eps = torch.randn(x.shape, generator=generator)
        return Noised(add_noise(x, eps, sigma), sigma)

    def scores(
        self, rolled: Rolled, generator: torch.Generator, gradient: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures of what was rolled out, and of what teacher and critic make of it when it is noised. gradient:
        whether theirs reaches it too.
        """
        assert self._score is not None
        x, fixed, settings = rolled.made, rolled.detached(), self._settings
        noised = self.noised(x, generator)
        noise = self._noise(fixed, generator)
        with nullcontext() if gradient else torch.no_grad():
            real, fake = (
                score.x0(fixed.clips, fixed.context, noised.x, noised.sigma, noise, guidance)
                for score, guidance in ((self.roles.teacher, settings.guidance), (self._score, 1.0))
            )
        return self.roles.seen(x), self.roles.seen(real), self.roles.seen(fake)

    def score_loss(self, rolled: Rolled, generator: torch.Generator) -> Tensor:
        """The critic's: flow matching of what the student makes, as an error of x0, which no level outweighs."""
        assert self._score is not None
        fixed = rolled.detached()
        noised = self.noised(fixed.made, generator)
        noise = self._noise(fixed, generator)
        velocity = self._score.velocity(fixed.clips, fixed.context, noised.x, noised.sigma, noise)
        x0 = denoised(noised.x, velocity, noised.sigma)
        return F.mse_loss(self.roles.seen(x0), self.roles.seen(fixed.made))

    def fooling(self, rolled: Rolled, generator: torch.Generator) -> Tensor:
        """The student's loss against the discriminator."""
        assert self._discriminator is not None
        noised = self.noised(self._judged(rolled), generator)
        return fools(self._discriminator(noised.x, noised.sigma, self._drove(rolled)))

    def telling(self, better: Rolled, worse: Rolled, weight: float, generator: torch.Generator) -> Tensor:
        """The discriminator's loss, R1 and R2 included, on what it shall hold for real and on what it shall not."""
        assert self._discriminator is not None
        told = []
        for rolled in (better, worse):
            noised = self.noised(self._judged(rolled.detached()), generator)
            sees = partial(self._discriminator, sigma_B=noised.sigma, actions_BFA=self._drove(rolled))
            told.append(logits_and_steepness(sees, noised.x, generator))
        (real, real_slope), (made, made_slope) = told
        return tells_apart(real, made) + weight * (real_slope + made_slope)

    def _judged(self, rolled: Rolled) -> Tensor:
        """What was rolled out, and the frame before it: a discriminator sees pairs."""
        return rolled.clips.latents[:, rolled.context - 1 :]

    def _drove(self, rolled: Rolled) -> Tensor:
        return rolled.clips.actions[:, rolled.context - 1 :]

    def _noise(self, rolled: Rolled, generator: torch.Generator) -> Tensor | None:
        """Of the history that a causal score sees, where it needs some."""
        if not self.roles.teacher.model.config.history_level:
            return None
        return torch.randn(rolled.clips.latents.shape, generator=generator)


def real_clips(clips: LatentClips, length: int, frames: int, seen: int) -> Rolled:
    """The first `length` frames of true clips, with what truly drove them, in the shape of a rollout of their last
    `frames`.
    """
    cut = LatentClips(clips.latents[:, :length], clips.actions[:, :length])
    return Rolled(cut, length - frames).last(frames, seen)
