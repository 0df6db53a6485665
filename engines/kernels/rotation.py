"""Rotary embedding inside the kernels: interleaved pairs (Su et al. 2021), as `streamgen.models.attention` has it.

Dimensions: B rows, F frames, N tokens a frame, M tokens of a block (F N), D head dim, P pairs (D / 2).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def rotation_table(time_BF2P: Tensor, space_2NP: Tensor) -> Tensor:
    """cos and sin [B, M, 2, P] of every token and pair, for all heads and layers of a step.

    time: of the frames [B, F, 2, Pt] (`streamgen.cache.block_rotation`, without the sinks or only them). space: of a
    frame's tokens [2, N, Ph + Pw] (`streamgen.models.attention.space_rotation`).
    """
    rows, frames = time_BF2P.shape[:2]
    tokens = space_2NP.shape[1]
    time = time_BF2P[:, :, None].expand(-1, -1, tokens, -1, -1)
    space = space_2NP.transpose(0, 1).expand(rows, frames, -1, -1, -1)
    return torch.cat([time, space], -1).flatten(1, 2)


@triton.jit
def rotated(
    x: tl.tensor, table: tl.tensor, token: tl.tensor, inside: tl.tensor, D: tl.constexpr, BLOCK_D: tl.constexpr
) -> tl.tensor:
    """The tile x [tokens, BLOCK_D] turned by the angles of `token`, which are rows of the table [..., 2, D / 2]."""
    pair = tl.arange(0, BLOCK_D // 2)
    known = inside[:, None] & (pair < D // 2)[None, :]
    at = table + token[:, None] * D + pair[None, :]
    cos = tl.load(at, mask=known, other=0.0)
    sin = tl.load(at + D // 2, mask=known, other=0.0)
    a, b = tl.split(tl.reshape(x, (x.shape[0], BLOCK_D // 2, 2)))
    return tl.reshape(tl.join(a * cos - b * sin, a * sin + b * cos), (x.shape[0], BLOCK_D))
