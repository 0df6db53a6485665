"""The transformer's layers through the kernels: what the engine torch runs on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from engines.kernels.attention import ring_attention, seen_slots
from engines.kernels.modulation import gate, gate_modulate, modulate
from engines.kernels.reference import reciprocal_rms
from engines.kernels.rotation import rotation_table
from engines.kernels.write import rotate_sinks, write_block
from streamgen.config import TransformerConfig
from streamgen.models.attention import Attend, InPlaceAttention, kept_of_layer
from streamgen.models.transformer import Block, CausalVideoTransformer, Projections


def use_kernels(transformer: CausalVideoTransformer) -> None:
    """Let a transformer's blocks run the kernels; its attention must be a `KernelAttention` then.

    Raises ValueError for one that reads text, which the kernels do not know.
    """
    if transformer.config.text_dim is not None:
        raise ValueError("the kernels know no attention to text")
    for block in transformer.blocks:
        block.__class__ = KernelBlock


class KernelAttention(InPlaceAttention):
    """An `InPlaceAttention` that normalises and rotates as it reads and writes."""

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
        self._config = config
        self._kept = kept_of_layer(config)
        self._table = rotation_table(rotation, space).contiguous()
        frames = torch.arange(config.block_size, device=write.device)
        self._slots = (write[:, :1] // config.tokens + frames).int()
        self._own = frames.int().expand(len(write), -1).contiguous()
        slots = torch.arange(cache[0].shape[2] // config.tokens, device=write.device)
        # The block itself is seen in its own keys and values, not in its slots.
        own = (slots[:, None] == self._slots[:, None]).any(-1)
        self._seen = seen_slots((slots < length[:, None] // config.tokens) & ~own)

    def attended(self, layer: int, attention: Projections, x: Tensor) -> Tensor:
        """What x [B, F, N, d] gathers from the cache and itself, [B, F, N, d], before the last linear layer."""
        q, k, v = (linear(x).flatten(1, 2) for linear in (attention.q, attention.k, attention.v))
        eps = attention.norm_q.eps
        rstd_q, rstd_k = reciprocal_rms(q, eps), reciprocal_rms(k, eps)
        q, k, v = (t.unflatten(-1, (attention.heads, -1)) for t in (q, k, v))
        weight_q, weight_k = (n.weight.view(attention.heads, -1) for n in (attention.norm_q, attention.norm_k))
        first = layer * self._kept
        cache_k, cache_v = self.cache[first : first + 2]
        none = cache_k[:, :, :0]
        raw = self.cache[first + 2] if self._config.sink else none
        shape = len(q), attention.heads, q.shape[1], q.shape[-1]
        own_k, own_v = q.new_empty(shape), q.new_empty(shape)
        write_block(k, v, rstd_k, weight_k, self._table, self._own, own_k, own_v, none)
        write_block(k, v, rstd_k, weight_k, self._table, self._slots, cache_k, cache_v, raw)
        out: Tensor = ring_attention(q, rstd_q, weight_q, self._table, own_k, own_v, cache_k, cache_v, self._seen)
        return out.flatten(-2).view_as(x)


class KernelBlock(Block):
    """A `Block` of the kernels; the same parameters."""

    def forward(self, x: Tensor, e_BF6d: Tensor, layer: int, attend: Attend, context: Tensor | None) -> Tensor:
        e = (self.modulation + e_BF6d).unbind(2)
        y = modulate(x, e[1], e[0], self.norm1.eps)
        y = self.self_attn.o(cast(KernelAttention, attend).attended(layer, self.self_attn, y))
        x, y = gate_modulate(x, y, e[2], e[4], e[3], self.norm2.eps)
        out: Tensor = gate(x, self.ffn(y), e[5])
        return out


def rotate_all_sinks(config: TransformerConfig, space: Tensor, rotation: Tensor, cache: Sequence[Tensor]) -> None:
    """`streamgen.models.attention.rotate_sinks` by the kernel, for every layer of an in-place cache."""
    table, kept, tokens = (
        rotation_table(rotation, space).contiguous(),
        kept_of_layer(config),
        config.sink * config.tokens,
    )
    for keys, raw in zip(cache[::kept], cache[2::kept], strict=True):
        rotate_sinks(raw[:, :, :tokens].contiguous(), table, keys)
