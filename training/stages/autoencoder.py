"""Stage 1: the autoencoder, from single frames of fresh clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamgen.models.autoencoder import Autoencoder, to_float, to_uint8
from streamgen.models.loading import load_autoencoder, save_autoencoder
from training.crops import corner
from training.data import Clip, held_out, open_data, recorded
from training.losses import psnr, reconstruction
from training.metrics import frames_psnr, inside
from training.package import start_from
from training.recipe import AutoencoderRecipe, Box
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
        self.data = open_data(recipe.data, recipe.width, recipe.height, recipe.driven_by)
        torch.manual_seed(recipe.seed)
        self.model: nn.Module = Autoencoder(recipe.model)
        if recipe.start is not None:
            start_from(self.model, load_autoencoder(recipe.start), recipe.start)
        clips = held_out(self.data, *_JUDGED)
        self._held_out = to_float(torch.from_numpy(np.concatenate([clip.frames[::2] for clip in clips])))

    def batch(self, clips: list[Clip], number: int) -> Tensor:
        """Some frames of each clip, or squares of them, as images [B, 3, H, W] in [-1, 1]."""
        rng = np.random.default_rng((self.recipe.seed, number))
        frames = self._frames(clips, rng)
        side = self.recipe.crop
        if side is not None:
            frames = np.stack([_cropped(frame, side, self.recipe.focus, rng) for frame in frames])
        return _images(frames)

    def _frames(self, clips: list[Clip], rng: np.random.Generator) -> NDArray[np.uint8]:
        frames = [clip.frames[rng.choice(len(clip.frames), self.recipe.frames, replace=False)] for clip in clips]
        return np.concatenate(frames)

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
        contact_sheet(rows, sheet, scale=max(1, 256 // self.recipe.width))
        figures = {"psnr": psnr(out, self._held_out)}
        if self.recipe.focus is not None:
            made, real = (inside(to_uint8(x).numpy(), self.recipe.focus) for x in (out, self._held_out))
            figures["psnr_focus"] = frames_psnr(made, real)
        return figures

    @torch.no_grad()
    def finish(self, ema: nn.Module, folder: Path) -> None:
        assert isinstance(ema, Autoencoder)
        episodes = range(_STATISTICS_EPISODE, _STATISTICS_EPISODE + _STATISTICS_CLIPS)
        clips = recorded(self.data, self.recipe.seed, episodes, self.recipe.clip_length)
        rng = np.random.default_rng(self.recipe.seed)
        z = torch.cat([ema.encoder(_images(self._frames([clip], rng))) for clip in clips])
        ema.latents_mean.copy_(z.mean((0, 2, 3)))
        ema.latents_std.copy_(z.std((0, 2, 3)))
        save_autoencoder(ema, folder)


def _images(frames_uint8: NDArray[np.uint8]) -> Tensor:
    return to_float(torch.from_numpy(frames_uint8)).contiguous(memory_format=torch.channels_last)


def _cropped(frame: NDArray[np.uint8], side: int, focus: Box | None, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A random square of a frame."""
    y, x = corner(frame.shape[:2], side, focus, rng)
    return frame[y : y + side, x : x + side]
