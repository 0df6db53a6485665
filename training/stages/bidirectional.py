"""Beside the teacher: a bidirectional one, which denoises all frames of a clip together. A score that sees a whole
rollout can tell that its beginning has drifted.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.models.loading import load_autoencoder, load_transformer, save_transformer
from streamgen.models.transformer import CausalVideoTransformer
from training.clips import LatentClips, encode, error_weight
from training.data import Clip, held_out
from training.losses import add_noise, denoised, shifted
from training.metrics import decode, frames_psnr
from training.package import data_for, write_origin
from training.recipe import BidirectionalRecipe
from training.scores import freeze_known, joint_velocity
from training.sheets import contact_sheet

_LEVELS = 0.3, 0.6, 0.9
"""Noise levels at which they are judged."""


class BidirectionalStage:
    """Fine-tunes a causal transformer: one noise level for all frames of a clip after a clean beginning."""

    def __init__(self, recipe: BidirectionalRecipe) -> None:
        self.recipe = recipe
        model = load_transformer(recipe.start).requires_grad_(True).train()
        freeze_known(model)
        self.model: nn.Module = model
        self._autoencoder = load_autoencoder(recipe.autoencoder)
        self.data = data_for(recipe, model.config, self._autoencoder)
        self._held_out_clips = held_out(self.data, recipe.judged_clips, recipe.clip_length)
        self._held_out = encode(self._autoencoder, self._held_out_clips, model.config)
        self._weight = error_weight(self._autoencoder, model.config, recipe, self._held_out)

    def batch(self, clips: list[Clip], number: int) -> LatentClips:
        assert isinstance(self.model, CausalVideoTransformer)
        return encode(self._autoencoder, clips, self.model.config)

    def loss(self, batch: LatentClips, ema: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """An error of x0, which no level outweighs."""
        assert isinstance(self.model, CausalVideoTransformer)
        recipe = self.recipe
        context = 1 + int(torch.randint(recipe.context, (1,), generator=generator))
        target = batch.latents[:, context:]
        sigma = shifted(torch.rand(len(target), generator=generator), recipe.shift)
        known = (torch.rand(len(target), generator=generator) >= recipe.condition_dropout).float()
        noisy = add_noise(target, torch.randn(target.shape, generator=generator), sigma)
        velocity = joint_velocity(self.model, batch, context, noisy, sigma, known)
        channels = self.model.config.picture_channels
        made, true = (t[:, :, :channels] for t in (denoised(noisy, velocity, sigma), target))
        return (F.mse_loss(made, true, reduction="none") * self._weight).mean(), {}

    @torch.no_grad()
    def evaluate(self, ema: nn.Module, sheet: Path) -> dict[str, float]:
        """PSNR of x0 at some noise levels, all frames but the first at once."""
        assert isinstance(ema, CausalVideoTransformer)
        target = self._held_out.latents[:, 1:]
        eps = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
        real = np.stack([clip.frames[1:] for clip in self._held_out_clips])
        figures, rows = {}, [real[0][:: max(1, len(real[0]) // 8)][:8]]
        for level in _LEVELS:
            sigma = torch.full((len(target),), level)
            noisy = add_noise(target, eps, sigma)
            x0 = denoised(noisy, joint_velocity(ema, self._held_out, 1, noisy, sigma), sigma)
            made = decode(self._autoencoder, x0[:, :, : ema.config.picture_channels])
            figures[f"psnr_{level:g}"] = frames_psnr(made, real)
            rows.append(made[0][:: max(1, len(real[0]) // 8)][:8])
        contact_sheet(rows, sheet, scale=1)
        return figures

    def finish(self, ema: nn.Module, folder: Path) -> None:
        assert isinstance(ema, CausalVideoTransformer)
        save_transformer(ema, folder)
        write_origin(folder, self.recipe, {1: (1.0,)}, 1, bidirectional=True)
