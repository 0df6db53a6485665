"""Stage 1: the autoencoder, from single frames of fresh clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from streamgen.models.autoencoder import Autoencoder, to_float, to_uint8
from streamgen.models.loading import load_autoencoder, save_autoencoder
from training.data import Clip, held_out, open_data, recorded
from training.losses import psnr, reconstruction
from training.recipe import AutoencoderRecipe
from training.sheets import contact_sheet

_JUDGED = 16, 16
"""Clips and frames of a clip, of which every second one is judged."""
_STATISTICS_CLIPS = 256
_STATISTICS_EPISODE = 2**40
"""Far beyond what training reaches."""


class AutoencoderStage:
    """Trains `Autoencoder`; at the end its latents are normalised from statistics of fresh frames."""

    def __init__(self, recipe: AutoencoderRecipe) -> None:
        self.recipe = recipe
        self.data = open_data(recipe.data, recipe.width, recipe.height)
        torch.manual_seed(recipe.seed)
        self.model: nn.Module = Autoencoder(recipe.model)
        if recipe.start is not None:
            self.model.load_state_dict(load_autoencoder(recipe.start).state_dict())
        clips = held_out(self.data, *_JUDGED)
        self._held_out = to_float(torch.from_numpy(np.concatenate([clip.frames[::2] for clip in clips])))

    def batch(self, clips: list[Clip], number: int) -> Tensor:
        """Some frames of each clip as images [B, 3, H, W] in [-1, 1]."""
        rng = np.random.default_rng((self.recipe.seed, number))
        frames = [clip.frames[rng.choice(len(clip.frames), self.recipe.frames, replace=False)] for clip in clips]
        return to_float(torch.from_numpy(np.concatenate(frames))).contiguous(memory_format=torch.channels_last)

    def loss(self, batch: Tensor, ema: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(self.model, Autoencoder)
        z_BCHW = self.model.encoder(batch)
        noise = torch.randn(z_BCHW.shape, generator=generator) * self.recipe.latent_noise
        out_BCHW = self.model.decoder(z_BCHW + noise * z_BCHW.detach().std())
        loss = reconstruction(out_BCHW.float(), batch, self.recipe.gradient_weight)
        return loss + self.recipe.latent_weight * z_BCHW.float().square().mean(), {
            "psnr": psnr(out_BCHW.detach(), batch)
        }

    @torch.no_grad()
    def evaluate(self, ema: nn.Module, sheet: Path) -> dict[str, float]:
        assert isinstance(ema, Autoencoder)
        out = torch.cat([ema.decoder(ema.encoder(part)) for part in self._held_out.split(32)])
        rows = [to_uint8(x[::21][:6]).numpy() for x in (self._held_out, out)]
        contact_sheet(rows, sheet, scale=2)
        return {"psnr": psnr(out, self._held_out)}

    @torch.no_grad()
    def finish(self, ema: nn.Module, folder: Path) -> None:
        assert isinstance(ema, Autoencoder)
        episodes = range(_STATISTICS_EPISODE, _STATISTICS_EPISODE + _STATISTICS_CLIPS)
        clips = recorded(self.data, self.recipe.seed, episodes, self.recipe.clip_length)
        z = torch.cat([ema.encoder(self.batch([clip], number)) for number, clip in enumerate(clips)])
        ema.latents_mean.copy_(z.mean((0, 2, 3)))
        ema.latents_std.copy_(z.std((0, 2, 3)))
        save_autoencoder(ema, folder)
