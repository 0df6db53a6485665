"""What a block's queries attend to: the rolling cache while streaming, gathered windows while training.

Dimensions: B rows, F frames of a block, G blocks of a clip, M tokens of a block (F N), C copies of a clip (the clean
one first), H heads, D head dim, T cached tokens, P rotary pairs.

Queries and keys arrive normalised and not yet rotated. Rotary embedding (Su et al. 2021): interleaved pairs, a head's
pairs split among time, height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from streamgen.cache import block_rotation, time_rotation
from streamgen.config import TransformerConfig

_HIDDEN = -1e4
"""Added to a hidden key's score: its softmax weight is exactly zero in fp32, bf16 and fp16."""


IN_PLACE_OPSET = 24
"""Of ONNX: the first with a scatter into a cache."""


class Attend(Protocol):
    """Attention of one layer: q, k, v [B, F, N, H, D] to [B, F, N, H, D]."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs of x [..., D] by the angles of `full_rotation`, in their precision."""
    return (x * cos + _swapped(x) * sin).to(x.dtype)


def _swapped(x: Tensor) -> Tensor:
    """(b, a) for every pair (a, b) of x [..., D]."""
    if torch.compiler.is_exporting():
        # OpenVINO gathers nine times as fast as it flips; torch is slow in going backwards through a gather.
        return x.index_select(-1, torch.tensor([i ^ 1 for i in range(x.shape[-1])]))
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def space_rotation(config: TransformerConfig) -> Tensor:
    """cos and sin [2, N, Ph + Pw] of the height and width parts for the tokens of a frame, row by row."""
    rows, columns = config.height // config.patch, config.width // config.patch
    _, pairs_h, pairs_w = config.rope_pairs
    y = torch.from_numpy(time_rotation(np.arange(rows), pairs_h))
    x = torch.from_numpy(time_rotation(np.arange(columns), pairs_w))
    grid = [
        y.permute(1, 0, 2)[:, :, None].expand(2, rows, columns, pairs_h),
        x.permute(1, 0, 2)[:, None].expand(2, rows, columns, pairs_w),
    ]
    return torch.cat(grid, -1).flatten(1, 2)


def full_rotation(time: Tensor, space: Tensor) -> tuple[Tensor, Tensor]:
    """cos and signed sin [..., F, N, 1, D] from time [..., F, 2, Pt] and space [2, N, Ph + Pw].

    Both of a pair get their angle's values, the first a negative sine: (a, b) becomes (a cos - b sin, b cos + a sin).
    """
    frames = time.shape[:-2]
    tokens = space.shape[1]
    parts = [time[..., None, :].expand(*frames, 2, tokens, time.shape[-1]), space.expand(*frames, *space.shape)]
    cos, sin = torch.cat(parts, -1).unbind(-3)
    cos, sin = torch.stack([cos, cos], -1).flatten(-2), torch.stack([-sin, sin], -1).flatten(-2)
    return cos[..., None, :], sin[..., None, :]


class CacheAttention:
    """Attention of a block to the rolling cache and itself; keeps the block's keys and values for the commit.

    rotation [B, S + F, 2, Pt] and visible [B, slots] come from `streamgen.cache`; cache_k and cache_v are
    [L, B, H, slots N, D]. It serves any number of passes over the block; `block` gives what the cache stores of the
    last, or of one that was to be kept: rotated keys, or raw ones for the sinks.
    """

    def __init__(
        self,
        config: TransformerConfig,
        space: Tensor,
        rotation: Tensor,
        visible: Tensor,
        cache_k: Tensor,
        cache_v: Tensor,
    ) -> None:
        self._cos, self._sin = full_rotation(rotation[:, config.sink :], space)
        self._past_k, self._past_v = [cache_k], [cache_v]
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None
        if config.sink:
            sinks = config.sink * config.tokens
            cos, sin = (x.flatten(1, 2).transpose(1, 2) for x in full_rotation(rotation[:, : config.sink], space))
            self._past_k = [rotate(cache_k[:, :, :, :sinks], cos, sin), cache_k[:, :, :, sinks:]]
        bias = (visible - 1) * -_HIDDEN
        own = bias.new_zeros(len(bias), config.block_size)
        self._bias = torch.cat([bias, own], 1).repeat_interleave(config.tokens, 1)[:, None, None]
        self.new_k: list[Tensor] = []
        self.new_k_raw: list[Tensor] = []
        self.new_v: list[Tensor] = []

    def keep(self) -> None:
        """The last pass is what the cache stores; those that follow see it beside their own block."""
        self._kept = keys, _, values = self.block()
        self._past_k.append(keys)
        self._past_v.append(values)
        self._bias = F.pad(self._bias, (0, keys.shape[-2]))

    def block(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated keys, raw keys and values of the pass that is kept, each [L, B, H, F N, D]."""
        return self._kept or (torch.stack(self.new_k), torch.stack(self.new_k_raw), torch.stack(self.new_v))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        frames = q.shape[1]
        q_BHMD, k_BHMD, v_BHMD = (
            x.flatten(1, 2).transpose(1, 2)
            for x in (rotate(q, self._cos, self._sin), rotate(k, self._cos, self._sin), v)
        )
        if layer == 0:
            self.new_k, self.new_k_raw, self.new_v = [], [], []
        self.new_k.append(k_BHMD)
        self.new_k_raw.append(k.flatten(1, 2).transpose(1, 2))
        self.new_v.append(v_BHMD)
        out = F.scaled_dot_product_attention(
            q_BHMD,
            torch.cat([*(past[layer] for past in self._past_k), k_BHMD], 2),
            torch.cat([*(past[layer] for past in self._past_v), v_BHMD], 2),
            attn_mask=self._bias.to(q_BHMD.dtype),
        )
        return out.transpose(1, 2).unflatten(1, (frames, -1))


class InPlaceAttention:
    """Attention of a block to a cache that has room for the block itself, whose keys and values are written into it.

    For engines whose runtime writes into a cache in place. rotation [B, F, 2, Pt]; write [B, 2], the first tokens of
    the block and of its raw keys, and length [B], how many tokens it sees (`streamgen.cache.in_place`). cache: of each
    layer keys, values [B, H, (S + window) N, D], and with sinks the raw keys [B, H, (S + F) N, D] of the sinks and of
    the block; the sinks' own keys are rotated by `rotate_sinks` before. `cache` is what a pass makes of it, each tensor
    written once; the last pass of a clean block is the commit.
    """

    def __init__(
        self,
        config: TransformerConfig,
        space: Tensor,
        rotation: Tensor,
        write: Tensor,
        length: Tensor,
        cache: Sequence[Tensor],
    ) -> None:
        self.cache = list(cache)
        self._kept = kept_of_layer(config)
        self._at, self._raw_at = write.unbind(1)
        self._length = length
        self._cos, self._sin = full_rotation(rotation, space)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        frames, first = q.shape[1], layer * self._kept
        # Scaled here: the operator would scale all cached keys too.
        q = rotate(q, self._cos, self._sin) * q.shape[-1] ** -0.5
        q_BHMD, k_BHMD, v_BHMD, raw_BHMD = (
            x.flatten(1, 2).transpose(1, 2) for x in (q, rotate(k, self._cos, self._sin), v, k)
        )
        new = (k_BHMD, self._at), (v_BHMD, self._at), (raw_BHMD, self._raw_at)
        for kept, (x, at) in enumerate(new[: self._kept], first):
            self.cache[kept] = _written(self.cache[kept], x, at)
        out = _attended(q_BHMD, self.cache[first], self.cache[first + 1], self._length)
        return out.transpose(1, 2).unflatten(1, (frames, -1))


def kept_of_layer(config: TransformerConfig) -> int:
    """Tensors of an in-place cache that belong to a layer: keys, values, and with sinks raw keys."""
    return 3 if config.sink else 2


def rotate_sinks(
    config: TransformerConfig, space: Tensor, rotation: Tensor, keys: Sequence[Tensor], raw: Sequence[Tensor]
) -> list[Tensor]:
    """The keys of an in-place cache, a tensor a layer, with those of the sinks rotated [B, S, 2, Pt] afresh from the
    raw ones; once before a block.
    """
    cos, sin = (x.flatten(1, 2).transpose(1, 2) for x in full_rotation(rotation, space))
    tokens = config.sink * config.tokens
    start = torch.zeros(len(rotation), dtype=torch.int64, device=rotation.device)
    return [_written(k, rotate(r[:, :, :tokens], cos, sin), start) for k, r in zip(keys, raw, strict=True)]


def _written(cache_BHTD: Tensor, new_BHMD: Tensor, at_B: Tensor) -> Tensor:
    """The cache, with new keys or values written into it from token `at` on in each row."""
    if torch.onnx.is_in_onnx_export():
        written: Tensor = torch.onnx.ops.symbolic(
            "TensorScatter",
            (cache_BHTD, new_BHMD, at_B),
            {"axis": 2, "mode": "linear"},
            dtype=cache_BHTD.dtype,
            shape=cache_BHTD.shape,
            version=IN_PLACE_OPSET,
        )
        return written
    at = at_B[:, None] + torch.arange(new_BHMD.shape[2], device=at_B.device)
    return cache_BHTD.scatter_(2, at[:, None, :, None].expand_as(new_BHMD), new_BHMD)


def _attended(q_BHMD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, length_B: Tensor) -> Tensor:
    """Attention of scaled queries to the first `length` keys of each row."""
    if torch.onnx.is_in_onnx_export():
        out: Tensor = torch.onnx.ops.symbolic(
            "Attention",
            (q_BHMD, k_BHTD, v_BHTD, None, None, None, length_B),
            {"scale": 1.0},
            dtype=q_BHMD.dtype,
            shape=q_BHMD.shape,
            version=IN_PLACE_OPSET,
        )
        return out
    seen = torch.arange(k_BHTD.shape[2], device=length_B.device) < length_B[:, None]
    return F.scaled_dot_product_attention(q_BHMD, k_BHTD, v_BHTD, attn_mask=seen[:, None, None], scale=1.0)


class ClipAttention:
    """Attention within a whole clip at once, by the same window, sinks and positions as streaming.

    The clip comes as C copies [B, C F_all, N, H, D]: copy 0 is the clean history, the others are noisy. A block of
    any copy sees the clean blocks before it (its window and the sinks) and itself; nobody sees a noisy block but
    itself. With C = 1 this is the block-causal windowed pass over a clean clip. later [B, C, F_all]: blocks that see
    copy 0 of themselves too, as later steps see the first.
    """

    def __init__(
        self, config: TransformerConfig, space: Tensor, frames: int, copies: int = 1, later: Tensor | None = None
    ) -> None:
        if frames % config.block_size:
            raise ValueError(f"a clip of {frames} frames is not a whole number of blocks of {config.block_size}")
        self._copies = copies
        self._block_size = config.block_size
        self._blocks = blocks = frames // config.block_size
        self._window = window = config.window // config.block_size
        self._sinks = sinks = min(config.sink // config.block_size, blocks)
        tokens = config.block_size * config.tokens
        rotations = np.stack([block_rotation(g * config.block_size, config) for g in range(blocks)])
        own = torch.from_numpy(rotations[:, config.sink :])
        cos, sin = full_rotation(own, space)
        self._cos, self._sin = cos.flatten(1, 2), sin.flatten(1, 2)
        if sinks:
            cos, sin = full_rotation(torch.from_numpy(rotations[:, : sinks * config.block_size]), space)
            self._sink = cos.flatten(1, 2), sin.flatten(1, 2)
        query = torch.arange(blocks)[:, None]
        past = query + torch.arange(1 - window, 0)
        seen = torch.cat([torch.arange(sinks) < query, past >= sinks], 1).repeat_interleave(tokens, 1)
        copy = torch.arange(copies).repeat_interleave(tokens)
        mask = torch.cat(
            [
                seen[:, None].expand(-1, copies * tokens, -1),
                (copy[:, None] == copy)[None].expand(blocks, -1, -1),
            ],
            2,
        )
        if later is not None:
            of_block = later[:, :, :: config.block_size].transpose(1, 2).repeat_interleave(tokens, 2)
            first = torch.arange(mask.shape[2]) - (mask.shape[2] - copies * tokens)
            mask = mask | (of_block[..., None] & (first >= 0) & (first < tokens))
        self._bias = torch.zeros(mask.shape).masked_fill_(~mask, _HIDDEN)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = q.shape[0]
        q, k, v = (
            x.unflatten(1, (self._copies, self._blocks, -1)).flatten(3, 4) for x in (q, k, v)
        )  # [B, C, G, M, H, D]
        rotated_q, rotated_k = rotate(q, self._cos, self._sin), rotate(k, self._cos, self._sin)
        keys, values = [self._past(rotated_k[:, 0])], [self._past(v[:, 0])]
        if self._sinks:
            raw = k[:, 0, : self._sinks].flatten(1, 2)[:, None].expand(-1, self._blocks, -1, -1, -1)
            keys.insert(0, rotate(raw, *self._sink))
            values.insert(0, v[:, 0, : self._sinks].flatten(1, 2)[:, None].expand(-1, self._blocks, -1, -1, -1))
        keys.append(rotated_k.transpose(1, 2).flatten(2, 3))
        values.append(v.transpose(1, 2).flatten(2, 3))
        query = rotated_q.transpose(1, 2).flatten(2, 3)  # [B, G, C M, H, D]
        q_XHMD, k_XHTD, v_XHTD = (
            x.flatten(0, 1).transpose(1, 2) for x in (query, torch.cat(keys, 2), torch.cat(values, 2))
        )
        bias = self._bias.expand(rows, *self._bias.shape[-3:]).to(q.dtype).flatten(0, 1)[:, None]
        out = F.scaled_dot_product_attention(q_XHMD, k_XHTD, v_XHTD, attn_mask=bias)
        out = out.transpose(1, 2).unflatten(0, (rows, self._blocks)).unflatten(2, (self._copies, -1)).transpose(1, 2)
        return out.unflatten(3, (self._block_size, -1)).flatten(1, 3)

    def _past(self, x_BGMHD: Tensor) -> Tensor:
        """The window - 1 blocks before each block, [B, G, (W - 1) M, H, D]; zeros before the clip's start."""
        reach = self._window - 1
        padded = F.pad(x_BGMHD, (0, 0, 0, 0, 0, 0, reach, 0))[:, :-1]
        return padded.unfold(1, reach, 1).movedim(-1, 2).flatten(2, 3)
