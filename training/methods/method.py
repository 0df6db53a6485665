"""What a method is: who takes part, and what the stage asks of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from streamgen.models.transformer import CausalVideoTransformer
from training.clips import LatentClips
from training.recipe import DistillationRecipe
from training.scores import Score


@dataclass(frozen=True)
class Roles:
    """student: learns. teacher: frozen. weight [C, h, w] or [h, w]: how much an error counts where, 1 on average."""

    student: CausalVideoTransformer
    teacher: Score
    recipe: DistillationRecipe
    weight: Tensor

    def seen(self, latents: Tensor) -> Tensor:
        """The picture of latents [..., C, h, w], without its pose, which no method moves."""
        return latents[..., : self.student.config.picture_channels, :, :]

    def squared_error(self, made: Tensor, goal: Tensor) -> Tensor:
        """Mean over the pictures of latents [..., C, h, w], weighted."""
        return ((self.seen(made) - self.seen(goal)).square() * self.weight).mean()


class Method(Protocol):
    """What a student learns from a batch. All randomness comes from the generator, or from `begin`."""

    @property
    def critic(self) -> nn.Module | None:
        """What learns beside the student, if anything does."""
        ...

    def begin(self, step: int) -> bool:
        """Whether the student learns in this step, not the critic. Draws what all processes must draw alike."""
        ...

    def loss(
        self, clips: LatentClips, ema: CausalVideoTransformer, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Of whoever learns in this step: scalar loss, and figures to log."""
        ...
