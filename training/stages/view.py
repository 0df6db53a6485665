"""The view of a world from any pose, learned from single frames, before the teacher learns to move through it.

A step costs little and frames cost much, so most of a batch is drawn from a pool that is recorded once, at the start.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.models.loading import load_autoencoder, save_view
from streamgen.models.view import View
from training.clips import encode
from training.data import Clip, held_out, recorded
from training.loop import rank_and_size
from training.metrics import decode, frames_psnr
from training.package import data_for
from training.recipe import ViewRecipe
from training.sheets import contact_sheet

_JUDGED = 48, 33
"""Held-out clips and the frames of each; every eighth frame is judged."""
_PART = 64
_POOL_SEED = 2**30 + 1
"""Recorded for pools alone."""

Batch = tuple[Tensor, Tensor]
"""Poses [N, 4] and latent pictures [N, C, h, w]."""


class ViewStage:
    """Trains `View` with the squared error of its latents."""

    def __init__(self, recipe: ViewRecipe) -> None:
        self.recipe = recipe
        self.data = data_for(recipe, recipe.model)
        self._autoencoder = load_autoencoder(recipe.autoencoder)
        torch.manual_seed(recipe.seed)
        self.model: nn.Module = View(recipe.model)
        self._held_out = held_out(self.data, *_JUDGED)
        self._judged = self._split(self._held_out, every=8)
        self._pool = self._record()

    def batch(self, clips: list[Clip], number: int) -> Batch:
        drawn = np.random.default_rng((self.recipe.seed, number)).integers(self.recipe.pool, size=self.recipe.frames)
        (poses, pictures), (old_poses, old_pictures) = self._split(clips), self._pool
        return torch.cat([poses, old_poses[drawn]]), torch.cat([pictures, old_pictures[drawn]])

    def loss(self, batch: Batch, ema: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        poses, pictures = batch
        return F.mse_loss(self.model(poses), pictures), {}

    @torch.no_grad()
    def evaluate(self, ema: nn.Module, sheet: Path) -> dict[str, float]:
        poses, pictures = self._judged
        made = decode(self._autoencoder, torch.cat([ema(part) for part in poses.split(_PART)]))
        real = np.concatenate([clip.frames[::8] for clip in self._held_out])
        contact_sheet([frames[at : at + 8] for at in (0, 40) for frames in (real, made)], sheet)
        return {"psnr": frames_psnr(made, real), "ceiling": frames_psnr(decode(self._autoencoder, pictures), real)}

    def finish(self, ema: nn.Module, folder: Path) -> None:
        assert isinstance(ema, View)
        save_view(ema, folder)

    def _record(self) -> Batch:
        frames = recorded(self.data, _POOL_SEED, range(self.recipe.pool), 1)
        parts = track(
            range(0, self.recipe.pool, _PART),
            f"{self.recipe.name}: recording {self.recipe.pool} frames",
            transient=True,
            disable=rank_and_size()[0] > 0,
        )
        poses, pictures = zip(*(self._split(list(islice(frames, _PART))) for _ in parts), strict=True)
        return torch.cat(poses), torch.cat(pictures)

    def _split(self, clips: list[Clip], every: int = 1) -> Batch:
        latents = encode(self._autoencoder, clips, self.recipe.model).latents[:, ::every].flatten(0, 1)
        channels = self.recipe.model.picture_channels
        return latents[:, channels:, 0, 0], latents[:, :channels]
