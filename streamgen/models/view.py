"""The light field of a world: what is to be seen from a pose, as far as the world never changes.

A column of the picture is a ray over the ground. Along its line the world is the same wherever one stands, but for what
hides it, so a ray is given as the line's direction and distance from the origin and as the place on the line (Light
Field Networks, Sitzmann et al. 2021, in the plane). Latents, not pixels, come out; they are blurred where the network
does not know better, and the transformer sharpens them with what it saw last.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.config import VIEW_DETAIL, VIEW_HARMONICS, VIEW_LAYERS, VIEW_OCTAVES, TransformerConfig


class View(nn.Module):
    """Poses [..., 4] (x, y, cosine and sine of yaw) to latent pictures [..., C, h, w]."""

    octaves: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim, width = config.view_dim, config.width
        self._shape = config.picture_channels, config.height
        # Of a camera with a field of view of 90 degrees, until training knows better.
        columns = (width - 1) / 2 - torch.arange(width)
        self.angles = nn.Parameter(torch.atan(columns / (width / 2)))
        self.embed = nn.Linear(4 + 2 * VIEW_HARMONICS + 4 * VIEW_OCTAVES, dim)
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(VIEW_LAYERS))
        self.column = nn.Linear(dim, config.picture_channels * config.height)
        self.conv1 = nn.Conv2d(config.picture_channels, VIEW_DETAIL, 3, padding=1)
        self.conv2 = nn.Conv2d(VIEW_DETAIL, config.picture_channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        self.register_buffer("octaves", torch.pi * 2.0 ** torch.arange(VIEW_OCTAVES), persistent=False)

    def forward(self, pose: Tensor) -> Tensor:
        rays = self._rays(pose.flatten(0, -2))
        hidden = F.silu(self.embed(rays))
        for layer in self.layers:
            hidden = hidden + F.silu(layer(hidden))
        picture = self.column(hidden).unflatten(-1, self._shape).permute(0, 2, 3, 1)
        picture = picture + self.conv2(F.silu(self.conv1(picture)))
        out: Tensor = picture.unflatten(0, pose.shape[:-1])
        return out

    def _rays(self, pose_N4: Tensor) -> Tensor:
        """Features of every column's ray [N, w, features]."""
        x, y, c, s = pose_N4[:, None].unbind(-1)
        ahead, aside = self.angles.cos(), self.angles.sin()
        c, s = c * ahead - s * aside, s * ahead + c * aside
        distance, along = x * s - y * c, x * c + y * s
        features = [ahead.expand_as(c), aside.expand_as(c), distance, along]
        for _ in range(VIEW_HARMONICS):
            features += [c, s]
            c, s = c * c - s * s, 2 * c * s
        places = (torch.stack([distance, along], -1)[..., None] * self.octaves).flatten(-2)
        return torch.cat([torch.stack(features, -1), places.sin(), places.cos()], -1)
