"""Image autoencoder; its latents are normalised per channel.

Both halves do most of their work at low resolution and cross to pixels by space-to-depth, which is what a CPU's frame
budget wants. There is no normalisation over space: a crop and a whole frame are encoded alike.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.config import PIXEL_PATCH, AutoencoderConfig


class _Residual(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Encoder(nn.Module):
    """Images [B, 3, p h, p w] in [-1, 1], p pixels a latent pixel, to raw latents [B, C, h, w]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        dims = config.encoder_dims
        layers: list[nn.Module] = [nn.PixelUnshuffle(PIXEL_PATCH), nn.Conv2d(3 * PIXEL_PATCH**2, dims[0], 3, padding=1)]
        for fine, coarse in pairwise(dims):
            layers += [_Residual(fine), nn.Conv2d(fine, coarse, 3, stride=2, padding=1)]
        layers += [_Residual(dims[-1]), _Residual(dims[-1]), nn.SiLU(), nn.Conv2d(dims[-1], config.latent_channels, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.layers(x_BCHW)
        return out


class Decoder(nn.Module):
    """Raw latents [B, C, h, w] to images [B, 3, p h, p w], roughly in [-1, 1]."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        dims, blocks = config.decoder_dims, config.decoder_blocks
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, dims[0], 3, padding=1)]
        layers += [_Residual(dims[0]) for _ in range(blocks[0])]
        for (coarse, fine), count in zip(pairwise(dims), blocks[1:], strict=True):
            layers += [nn.Conv2d(coarse, 4 * fine, 1), nn.PixelShuffle(2), *(_Residual(fine) for _ in range(count))]
        layers += [nn.SiLU(), nn.Conv2d(dims[-1], 3 * PIXEL_PATCH**2, 3, padding=1), nn.PixelShuffle(PIXEL_PATCH)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        out: Tensor = self.layers(z_BCHW)
        return out


class Autoencoder(nn.Module):
    """Encoder, decoder and the latents' statistics."""

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("latents_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latents_std", torch.ones(config.latent_channels))

    def encode(self, x_BCHW: Tensor) -> Tensor:
        """Images [B, 3, p h, p w] in [-1, 1] to normalised latents [B, C, h, w]."""
        z = self.encoder(x_BCHW)
        return (z - self.latents_mean[:, None, None]) / self.latents_std[:, None, None]

    def decode(self, z_BCHW: Tensor) -> Tensor:
        """Normalised latents [B, C, h, w] to images [B, 3, p h, p w]; values may overshoot [-1, 1] a little.

        Channels beyond the autoencoder's own are no picture (`TransformerConfig.pose_scale`) and are left out.
        """
        z_BCHW = z_BCHW[:, : self.config.latent_channels]
        raw = z_BCHW * self.latents_std[:, None, None] + self.latents_mean[:, None, None]
        image: Tensor = self.decoder(raw.to(next(self.decoder.parameters()).dtype))
        return image.to(z_BCHW.dtype)


def to_float(frames_uint8: Tensor) -> Tensor:
    """uint8 [..., H, W, 3] to float [..., 3, H, W] in [-1, 1]."""
    return frames_uint8.movedim(-1, -3).float() / 127.5 - 1


def to_levels(images: Tensor) -> Tensor:
    """float in [-1, 1] to whole numbers from 0 to 255, clipped and rounded, still float."""
    return ((images + 1) * 127.5).round().clamp(0, 255)


def to_uint8(images: Tensor) -> Tensor:
    """float [..., 3, H, W] to uint8 [..., H, W, 3]."""
    # Bytes move to their places four times as fast as floats.
    return to_levels(images).to(torch.uint8).movedim(-3, -1)
