"""Discriminators, of latent clips and of pictures: whether each frame, beside the one before it, could be real."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.config import TransformerConfig
from streamgen.models.transformer import TIME_SCALE, sinusoid
from training.losses import apart_from_around

_DIM = 96
_STRIDES = 1, 2, 1, 2
_GAIN = 6.0
"""Brings that difference, some .06 in pictures that have any detail, near to 1."""


class Discriminator(nn.Module):
    """Convolutions over pairs of frames at one noise level, modulated by level and actions, to logits of patches."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self._config = config
        self.conv_in = nn.Conv2d(2 * config.picture_channels, _DIM, 3, padding=1)
        self.embed = nn.Sequential(nn.Linear(config.freq_dim + (config.action_dim or 0), _DIM), nn.SiLU())
        self.steer = nn.ModuleList(nn.Linear(_DIM, 2 * _DIM) for _ in _STRIDES)
        self.convs = nn.ModuleList(nn.Conv2d(_DIM, _DIM, 3, stride, padding=1) for stride in _STRIDES)
        self.conv_out = nn.Conv2d(_DIM, 1, 1)

    def forward(self, x_BFCHW: Tensor, sigma_B: Tensor, actions_BFA: Tensor) -> Tensor:
        """Logits [B, F - 1, patches] of clips at level sigma; their poses are left out."""
        picture = x_BFCHW[:, :, : self._config.picture_channels]
        pairs = torch.cat([picture[:, :-1], picture[:, 1:]], 2)
        level = sinusoid(sigma_B * TIME_SCALE, self._config.freq_dim)[:, None].expand(-1, pairs.shape[1], -1)
        driven = actions_BFA[:, 1:] if self._config.action_dim is not None else actions_BFA[:, 1:, :0]
        code = self.embed(torch.cat([level, driven], -1)).flatten(0, 1)
        x = F.silu(self.conv_in(pairs.flatten(0, 1)))
        for conv, steer in zip(self.convs, self.steer, strict=True):
            scale, shift = steer(code)[..., None, None].chunk(2, 1)
            x = F.silu(conv(x) * (1 + scale) + shift)
        logits: Tensor = self.conv_out(x).flatten(1).unflatten(0, pairs.shape[:2])
        return logits


class PictureDiscriminator(nn.Module):
    """Convolutions over the detail of pairs of successive pictures in grey, to logits of patches.

    What is sharp is sharp in grey; one that saw colours let dark mouths turn violet, where few pixels tell otherwise.
    The mean of the three, as it pulls at all of them alike. And it sees how a pixel differs from those around it: of
    whole pictures it learned nothing, since what sharp and soft ones differ by is small in them (training/LOG.md).
    """

    def __init__(self) -> None:
        super().__init__()
        dims = 8, 48, 96, 192, 192
        layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
        for before, after, stride in zip(dims, dims[1:], (1, 2, 2, 1), strict=False):
            layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(dims[-1], 1, 1))
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                # What tells sharp from soft is small, and is not to get smaller from layer to layer.
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, layer.bias))

    def forward(self, pairs_B2CHW: Tensor) -> Tensor:
        """Logits [B, 1, patches, patches] of pairs in [-1, 1]."""
        logits: Tensor = self.layers(_GAIN * apart_from_around(pairs_B2CHW.mean(2))).float()
        return logits
