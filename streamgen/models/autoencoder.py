"""Image autoencoder; its latents are normalised per channel.

Both halves do most of their work at low resolution and cross to pixels by space-to-depth, which is what a CPU's frame
budget wants. There is no normalisation over space: a crop and a whole frame are encoded alike.

A decoder may look at a reference, another picture of the same person: latents are too few for every hair.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.config import PIXEL_PATCH, WARP_BLOCKS, WARP_FINE, WARP_NEAR, AutoencoderConfig

Reference = tuple[Tensor, Tensor]
"""Latents [B, C, h, w] of pictures, and the pictures [B, 3, H, W] in [-1, 1]."""

_FINE_REACH = 0.1
"""Of the flow that is found last: it corrects what was found before."""
_FEATURES = -2
"""The layers from here on make an image of a decoder's last features."""


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


class Shown(NamedTuple):
    """What a decoder shows: the image that it draws [B, 3, p h, p w] and, if it looks at a reference, that, bent to the
    frame, and how much of it is seen [B, 1, p h, p w].
    """

    image: Tensor
    bent: Tensor | None = None
    mask: Tensor | None = None

    def frames(self) -> Tensor:
        """[B, 3, p h, p w]."""
        if self.bent is None or self.mask is None:
            return self.image
        return torch.lerp(self.image.float(), self.bent, self.mask)


class Warp(nn.Module):
    """The reference, bent to where a frame's parts are, and where it fits.

    Dense flow and an occlusion mask (Siarohin et al. 2019), found twice: from the latents of both, and from how what
    that finds fits beside what the decoder is about to show.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        dim, shown = config.warp_dim, config.decoder_dims[-1] + 3 * PIXEL_PATCH**2
        self._upscale = config.latent_pixel // PIXEL_PATCH
        self.conv_in = nn.Conv2d(2 * config.latent_channels + 2, dim, 3, padding=1)
        self.blocks = nn.Sequential(*(_Residual(dim) for _ in range(WARP_BLOCKS)), nn.SiLU())
        self.conv_flow = nn.Conv2d(dim, 2, 1)
        self.conv_near = nn.Conv2d(dim, WARP_NEAR, 1)
        self.fine = nn.Sequential(
            nn.Conv2d(shown + WARP_NEAR, WARP_FINE, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(WARP_FINE, WARP_FINE, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(WARP_FINE, 3, 3, padding=1),
        )
        for last in (self.conv_flow, self.fine[-1]):
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(self, features: Tensor, z_BCHW: Tensor, reference: Reference) -> tuple[Tensor, Tensor]:
        """The bent references [B, 3, p h, p w] and their masks [B, 1, p h, p w], for a decoder's last features
        [B, d, p h / 4, p w / 4] of raw latents. The reference's latents are raw too.
        """
        latents, picture = reference
        seen = torch.cat([z_BCHW, latents, _places(z_BCHW).movedim(-1, 1).expand(len(z_BCHW), -1, -1, -1)], 1)
        found = self.blocks(self.conv_in(seen))
        # Eight bits of a place are not enough to find it.
        flow = _finer(self.conv_flow(found).float(), self._upscale)
        near = _finer(self.conv_near(found), self._upscale)
        fits = F.pixel_unshuffle(_bent(picture, flow), PIXEL_PATCH).to(features.dtype)
        further, mask = self.fine(torch.cat([features, near, fits], 1)).float().tensor_split((2,), 1)
        # In training a product gives what autocast says.
        return _bent(picture, flow + _FINE_REACH * further), _finer(mask, PIXEL_PATCH).float().sigmoid()


def _places(x: Tensor) -> Tensor:
    """[1, h, w, 2]: x and y of the middles of an image's pixels, whose edges are at -1 and 1."""
    y, x = ((2 * torch.arange(side, dtype=x.dtype, device=x.device) + 1) / side - 1 for side in x.shape[-2:])
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]


def _finer(x: Tensor, scale: int) -> Tensor:
    """Bilinear interpolation, as two products: OpenVINO's own takes as long as all convolutions of a warp. What is
    fixed comes first: second it would be a layer's weights, and put into eight bits.
    """
    rows, columns = (torch.from_numpy(_between(side, scale)).to(x) for side in x.shape[-2:])
    return (columns @ (rows @ x).mT).mT


def _between(side: int, scale: int) -> NDArray[np.float32]:
    """[scale side, side]: how much of each pixel is in those that are `scale` times as fine."""
    at = np.clip((np.arange(scale * side) + 0.5) / scale - 0.5, 0, side - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(side))).astype(np.float32)


def _bent(picture: Tensor, flow: Tensor) -> Tensor:
    """A picture, looked up where the flow [B, 2, h, w] says, in halves of its width and height."""
    at = _places(picture) + _finer(flow, PIXEL_PATCH).movedim(1, -1)
    return F.grid_sample(picture, at, mode="bilinear", padding_mode="border", align_corners=False)


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
        self.warp = Warp(config) if config.warp_dim else None

    def forward(self, z_BCHW: Tensor, reference: Reference | None = None) -> Tensor:
        """reference: with raw latents. Without one, what the latents alone show."""
        return self.shown(z_BCHW, reference).frames()

    def shown(self, z_BCHW: Tensor, reference: Reference | None = None) -> Shown:
        """The same in parts."""
        features: Tensor = self.layers[:_FEATURES](z_BCHW)
        image: Tensor = self.layers[_FEATURES:](features)
        if self.warp is None or reference is None:
            return Shown(image)
        return Shown(image, *self.warp(features, z_BCHW, reference))


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

    def decode(self, z_BCHW: Tensor, reference: Reference | None = None) -> Tensor:
        """Normalised latents [B, C, h, w] to images [B, 3, p h, p w]; values may overshoot [-1, 1] a little.

        Channels beyond the autoencoder's own are no picture (`TransformerConfig.pose_scale`) and are left out.
        reference: for a decoder that looks at one; without, it shows what the latents hold.
        """
        raw, seen = self.raw(z_BCHW), None
        if reference is not None:
            latents, picture = reference
            seen = self.raw(latents), picture
        image: Tensor = self.decoder(raw, seen)
        return image.to(z_BCHW.dtype)

    def raw(self, z_BCHW: Tensor) -> Tensor:
        """Normalised latents as the decoder takes them."""
        z_BCHW = z_BCHW[:, : self.config.latent_channels]
        raw = z_BCHW * self.latents_std[:, None, None] + self.latents_mean[:, None, None]
        return raw.to(next(self.decoder.parameters()).dtype)


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
