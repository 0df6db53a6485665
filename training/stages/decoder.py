"""A decoder for what a student draws.

A student's latents are the mean of what could be, the more so the longer it plays, and a decoder that knows true ones
alone shows that as fog. This one learns from rollouts of the student under the keys and poses of true clips, and from
a discriminator, as those of image codecs do (VQGAN, Esser et al. 2021). Nothing that is shown goes back into the
rollout, so whatever it makes up, it cannot run away.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from streamgen.models.autoencoder import Decoder, to_float, to_uint8
from streamgen.models.loading import load_autoencoder, load_transformer, save_autoencoder
from training.clips import encode, recycled_history
from training.data import Clip, held_out, recorded
from training.discriminator import PictureDiscriminator
from training.distributed import rank_and_size
from training.losses import fools, psnr, reconstruction, steepness, tells_apart
from training.metrics import detail
from training.package import data_for
from training.recipe import DecoderRecipe, RecipeError
from training.sheets import contact_sheet

_EVERY = 8
"""Frames of a clip from one pair to the next: those between are much the same."""
_PART = 4
"""Clips that are rolled out together."""
_HELD_OUT = 8
"""Clips that are judged."""
_POOL_SEED = 2**30 + 2
"""Recorded for pools alone."""
_NEARBY = 0.05
"""Spread of the noise by which the discriminator's steepness is measured, in [-1, 1]."""


class DecoderStage:
    """Trains the `Decoder` of an autoencoder: L1 of pixels and of their differences, and a discriminator's pull."""

    def __init__(self, recipe: DecoderRecipe) -> None:
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self._autoencoder = load_autoencoder(recipe.autoencoder)
        self._student = load_transformer(recipe.student)
        config = self._student.config
        if recipe.clip_length < 2 * config.window + recipe.recycle:
            room = 2 * config.window + recipe.recycle
            raise RecipeError(f"clip_length {recipe.clip_length}: {recipe.recycle} frames and two windows need {room}")
        self.data = data_for(recipe, config, self._autoencoder)
        self._held_out = self._pairs(held_out(self.data, _HELD_OUT, recipe.clip_length), 0)
        parts = list(self._recorded())
        self._latents, self._frames = (torch.cat(each) for each in zip(*parts, strict=True))
        self.model: nn.Module = self._autoencoder.decoder.requires_grad_(True).train()
        self.critic = PictureDiscriminator()
        self._learns_to_tell = False

    def turn(self, step: int) -> nn.Module:
        """They take turns, the discriminator first."""
        self._learns_to_tell = step % 2 == 0
        return self.critic if self._learns_to_tell else self.model

    def batch(self, clips: list[Clip], number: int) -> tuple[Tensor, Tensor]:
        """Raw latents [N, 2, C, h, w] of pairs, and their pictures [N, 2, 3, H, W] in [-1, 1]."""
        chosen = np.random.default_rng((self.recipe.seed, number)).integers(len(self._latents), size=self.recipe.pairs)
        return self._latents[chosen].float(), to_float(self._frames[chosen])

    def loss(
        self, batch: tuple[Tensor, Tensor], ema: nn.Module, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        latents, true = batch
        made = self.model(latents.flatten(0, 1)).float().unflatten(0, latents.shape[:2])
        if self._learns_to_tell:
            return self._told_apart(true, made.detach(), generator), {}
        error = reconstruction(made.flatten(0, 1), true.flatten(0, 1), self.recipe.gradient_weight)
        # Of the discriminator only the direction counts: its slope is now steep, now flat.
        (towards_true,) = torch.autograd.grad(error, made, retain_graph=True)
        (towards_real,) = torch.autograd.grad(fools(self.critic(made)), made)
        pull = towards_real * (self.recipe.adversarial * towards_true.norm() / towards_real.norm().clamp_min(1e-12))
        return error + (pull * (made - made.detach())).sum(), {"psnr": psnr(made.detach(), true)}

    def _told_apart(self, true: Tensor, made: Tensor, generator: torch.Generator) -> Tensor:
        logits, slopes = [], []
        for pairs in (true, made):
            nearby = pairs + _NEARBY * torch.randn(pairs.shape, generator=generator)
            logits.append(self.critic(pairs))
            slopes.append(steepness(logits[-1], self.critic(nearby), _NEARBY))
        return tells_apart(*logits) + self.recipe.steepness * (slopes[0] + slopes[1])

    @torch.no_grad()
    def evaluate(self, ema: nn.Module, sheet: Path) -> dict[str, float]:
        latents, frames = (t.flatten(0, 1) for t in self._held_out)
        made = torch.cat([to_uint8(ema(part.float())) for part in latents.split(32)])
        some = slice(None, None, max(1, len(frames) // 16))
        rows = [each[some][at : at + 8].numpy() for at in (0, 8) for each in (frames, made)]
        contact_sheet(rows, sheet)
        a, b = (to_float(each) for each in (made, frames))
        return {"psnr": psnr(a, b), "detail": detail(made.numpy()) / detail(frames.numpy())}

    def finish(self, ema: nn.Module, folder: Path) -> None:
        assert isinstance(ema, Decoder)
        self._autoencoder.decoder.load_state_dict(ema.state_dict())
        save_autoencoder(self._autoencoder, folder)

    def _recorded(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs of this process's share of the walks, some clips at a time."""
        rank, size = rank_and_size()
        count = max(1, self.recipe.walks // size)
        clips = recorded(self.data, _POOL_SEED, range(rank * count, (rank + 1) * count), self.recipe.clip_length)
        said = f"{self.recipe.name}: rolling out {count} clips"
        for at in track(range(0, count, _PART), said, transient=True, disable=rank > 0):
            yield self._pairs(list(islice(clips, _PART)), rank * count + at)

    def _pairs(self, clips: list[Clip], number: int) -> tuple[Tensor, Tensor]:
        """Raw latents float16 [N, 2, C, h, w] of pairs of the student's rollouts, true ones among them from before
        they begin, and the pictures uint8 [N, 2, H, W, 3] that they are of.
        """
        config, autoencoder = self._student.config, self._autoencoder
        encoded = encode(autoencoder, clips, config)
        generator = torch.Generator().manual_seed(number)
        rolled = recycled_history(self._student, encoded, self.recipe, self.recipe.plan, generator)
        raw = rolled[:, :, : config.picture_channels] * autoencoder.latents_std[:, None, None]
        raw = raw + autoencoder.latents_mean[:, None, None]
        frames = torch.from_numpy(np.stack([clip.frames for clip in clips]))
        firsts = torch.arange(config.window, frames.shape[1] - 1, _EVERY)
        at = torch.stack([firsts, firsts + 1], 1)
        return raw[:, at].flatten(0, 1).half(), frames[:, at].flatten(0, 1)
