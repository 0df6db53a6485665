"""What a talking head about looks like: drawn from a reference, another frame of the same person, and from what drives
the two.

It knows no past, so nothing in it can drift, and it is learned before the transformer, which draws the frame from it
and from the frames before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.config import FACE_BLOCKS, FACE_CODE, FACE_DEEP_BLOCKS, TransformerConfig

_GROUPS = 8


class _Steered(nn.Module):
    """A residual block that a code scales and shifts."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.steer = nn.Linear(FACE_CODE, 4 * dim)
        self.conv1, self.conv2 = (nn.Conv2d(dim, dim, 3, padding=1) for _ in range(2))
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        scale, shift, scale2, shift2 = self.steer(code)[:, :, None, None].chunk(4, 1)
        h = self.conv1(F.silu(_normalised(x) * (1 + scale) + shift))
        return x + self.conv2(F.silu(h * (1 + scale2) + shift2))


def _normalised(x: Tensor) -> Tensor:
    """A group norm, spelled out: OpenVINO 2026.4 crashes on the operator."""
    groups = x.unflatten(1, (_GROUPS, -1)).flatten(2)
    return F.layer_norm(groups, groups.shape[2:]).view_as(x)


class Face(nn.Module):
    """Latents of frames from those of a reference: convolutions at the latents' resolution and at half of it."""

    grid: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim, channels = config.face_dim, config.picture_channels
        self.embed = nn.Sequential(
            nn.Linear(2 * (config.action_dim or 0), FACE_CODE), nn.SiLU(), nn.Linear(FACE_CODE, FACE_CODE), nn.SiLU()
        )
        self.conv_in = nn.Conv2d(channels + 2, dim, 3, padding=1)
        self.before = nn.ModuleList(_Steered(dim) for _ in range(FACE_BLOCKS))
        self.down = nn.Conv2d(dim, 2 * dim, 4, stride=2, padding=1)
        self.deep = nn.ModuleList(_Steered(2 * dim) for _ in range(FACE_DEEP_BLOCKS))
        self.up = nn.ConvTranspose2d(2 * dim, dim, 4, stride=2, padding=1)
        self.after = nn.ModuleList(_Steered(dim) for _ in range(FACE_BLOCKS))
        self.conv_out = nn.Conv2d(dim, channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        y, x = (torch.linspace(-1, 1, side) for side in (config.height, config.width))
        self.register_buffer("grid", torch.stack(torch.meshgrid(y, x, indexing="ij")), persistent=False)

    def forward(self, reference_BCHW: Tensor, reference_BA: Tensor, actions_BFA: Tensor) -> Tensor:
        """Latents [B, F, C, h, w] of the frames that actions drive."""
        (rows, frames), dtype = actions_BFA.shape[:2], self.conv_in.weight.dtype
        driven = torch.cat([actions_BFA, reference_BA[:, None].expand(rows, frames, -1)], -1)
        code = self.embed(driven.flatten(0, 1).to(dtype))
        seen = torch.cat([reference_BCHW, self.grid.expand(rows, *self.grid.shape)], 1)
        # The same for all frames of a row until the first steered block.
        x = self.conv_in(seen.to(dtype))[:, None].expand(-1, frames, -1, -1, -1).flatten(0, 1)
        for block in self.before:
            x = block(x, code)
        deep = self.down(x)
        for block in self.deep:
            deep = block(deep, code)
        x = x + self.up(deep)
        for block in self.after:
            x = block(x, code)
        drawn = self.conv_out(F.silu(x)).unflatten(0, (rows, frames))
        return reference_BCHW[:, None] + drawn.to(reference_BCHW.dtype)
