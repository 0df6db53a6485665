"""Attention of a block to the slots of the ring that its row sees and to itself, in one pass.

Dimensions: B rows, M tokens of a block, H heads, D head dim, P rotary pairs, S slots, N tokens of a slot, T tokens of
all slots (S N).

Which slots a row sees is a list. The kernel walks the list and knows no other way to a slot: one that holds nothing
yet, or that content-adaptive sparsity leaves out, is not loaded at all, and costs nothing. So cold rows, rows at
different positions and block-sparse attention are the same kernel with other lists.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from engines.kernels import reference
from engines.kernels.launch import Plan, check_contiguous, check_half, check_shape, power_of_two
from engines.kernels.rotation import rotated

_TILE = 4096
"""Numbers of a tile of keys: twice as many, and heads of 128 do not fit into the registers of four warps."""
_MOST_QUERIES = 128
_MOST_DIM = 128


def seen_slots(visible_BS: Tensor) -> Tensor:
    """int32 [B, S]: the slots that each row sees, then -1, from a mask [B, S] with zeros for those that it does not.

    The mask is `streamgen.cache.visible_slots`, or a part of it where attention is to be sparse.
    """
    seen = visible_BS != 0
    order = seen.int().argsort(dim=1, descending=True, stable=True)
    return torch.where(seen.gather(1, order), order, -1).int()


@triton_op("streamgen::ring_attention", mutates_args=())
def ring_attention(
    q_BMHD: Tensor,
    rstd_BM: Tensor,
    weight_HD: Tensor,
    rotation_BM2P: Tensor,
    own_k_BHMD: Tensor,
    own_v_BHMD: Tensor,
    cache_k_BHTD: Tensor,
    cache_v_BHTD: Tensor,
    seen_BS: Tensor,
) -> Tensor:
    """What the block's queries gather, [B, M, H, D]: softmax(q k / sqrt(D)) v over the slots they see and the block.

    q: queries as the linear layer gives them; they are normalised (`reciprocal_rms` of the token's whole width, and the
    norm's weight) and rotated (`rotation_table`) as they are loaded. own, cache: keys that `write_block` and
    `rotate_sinks` have normalised and rotated, and values. seen: int32, of `seen_slots`; no slot twice. What the other
    slots hold does not matter, NaN included.

    Raises TypeError where a kernel is to run and the tensors are not all fp16 or all bf16, ValueError for shapes that
    do not fit.
    """
    # In the operator's own function and not registered for the CPU: torch.compile takes the operator apart through it.
    if q_BMHD.device.type == "cpu":
        return reference.ring_attention(
            q_BMHD,
            rstd_BM,
            weight_HD,
            rotation_BM2P,
            own_k_BHMD,
            own_v_BHMD,
            cache_k_BHTD,
            cache_v_BHTD,
            seen_BS,
        )
    return launch_ring_attention(
        q_BMHD,
        rstd_BM,
        weight_HD,
        rotation_BM2P,
        own_k_BHMD,
        own_v_BHMD,
        cache_k_BHTD,
        cache_v_BHTD,
        seen_BS,
    )


def launch_ring_attention(q_BMHD: Tensor, *others: Tensor) -> Tensor:
    """`ring_attention` by the kernel, whatever the device."""
    out_BMHD = torch.empty(q_BMHD.shape, dtype=q_BMHD.dtype, device=q_BMHD.device)
    plan = plan_ring_attention(q_BMHD, *others, out_BMHD=out_BMHD)
    wrap_triton(_ring_attention)[plan.grid](**plan.arguments)
    return out_BMHD


def plan_ring_attention(
    q_BMHD: Tensor,
    rstd_BM: Tensor,
    weight_HD: Tensor,
    rotation_BM2P: Tensor,
    own_k_BHMD: Tensor,
    own_v_BHMD: Tensor,
    cache_k_BHTD: Tensor,
    cache_v_BHTD: Tensor,
    seen_BS: Tensor,
    *,
    out_BMHD: Tensor,
) -> Plan:
    """The launch; raises as `ring_attention` says."""
    rows, block, heads, dim = q_BMHD.shape
    slots = seen_BS.shape[1]
    tokens = cache_k_BHTD.shape[2] // slots
    check_half(q=q_BMHD, own_k=own_k_BHMD, own_v=own_v_BHMD, cache_k=cache_k_BHTD, cache_v=cache_v_BHTD)
    check_shape("rstd", rstd_BM, rows, block)
    check_shape("weight", weight_HD, heads, dim)
    check_shape("rotation", rotation_BM2P, rows, block, 2, dim // 2)
    check_shape("seen", seen_BS, rows, slots)
    for name, tensor in (("own_k", own_k_BHMD), ("own_v", own_v_BHMD)):
        check_shape(name, tensor, rows, heads, block, dim)
    for name, tensor in (("cache_k", cache_k_BHTD), ("cache_v", cache_v_BHTD)):
        check_shape(name, tensor, rows, heads, slots * tokens, dim)
    check_contiguous(
        rstd=rstd_BM,
        weight=weight_HD,
        rotation=rotation_BM2P,
        own_k=own_k_BHMD,
        own_v=own_v_BHMD,
        cache_k=cache_k_BHTD,
        cache_v=cache_v_BHTD,
        seen=seen_BS,
    )
    if q_BMHD.stride(3) != 1:
        raise ValueError(f"q of strides {q_BMHD.stride()} does not have a head's numbers beside each other")
    if dim > _MOST_DIM:
        raise ValueError(f"heads of {dim} numbers: the kernel has registers for {_MOST_DIM}")
    block_d = power_of_two(dim, 16)
    # More queries a program where there are many: the same keys then come from memory less often.
    block_q = _MOST_QUERIES if block > 512 else power_of_two(min(block, 64), 16)
    arguments = {
        "q": q_BMHD,
        "rstd": rstd_BM,
        "weight": weight_HD,
        "rotation": rotation_BM2P,
        "own_k": own_k_BHMD,
        "own_v": own_v_BHMD,
        "cache_k": cache_k_BHTD,
        "cache_v": cache_v_BHTD,
        "seen": seen_BS,
        "out": out_BMHD,
        "q_row": q_BMHD.stride(0),
        "q_token": q_BMHD.stride(1),
        "q_head": q_BMHD.stride(2),
        "to_log2": math.log2(math.e) / math.sqrt(dim),
        "M": block,
        "N": tokens,
        "H": heads,
        "D": dim,
        "SLOTS": slots,
        "BLOCK_Q": block_q,
        "BLOCK_K": power_of_two(min(tokens, _TILE // block_d), 16),
        "BLOCK_D": block_d,
        "BLOCK_S": power_of_two(slots),
        "num_warps": 8 if block_q == _MOST_QUERIES else 4,
        "num_stages": 3,
    }
    return Plan((triton.cdiv(block, block_q), heads, rows), arguments)


@triton.jit
def _ring_attention(
    q: tl.tensor,
    rstd: tl.tensor,
    weight: tl.tensor,
    rotation: tl.tensor,
    own_k: tl.tensor,
    own_v: tl.tensor,
    cache_k: tl.tensor,
    cache_v: tl.tensor,
    seen: tl.tensor,
    out: tl.tensor,
    q_row: int,
    q_token: int,
    q_head: int,
    to_log2: float,
    M: tl.constexpr,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
) -> None:
    """One program: BLOCK_Q queries of one head of one row."""
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)  # a cache may hold more numbers than int32 counts
    m = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    inside = m < M
    known = inside[:, None] & (d < D)[None, :]
    x = tl.load(q + row * q_row + m[:, None] * q_token + head * q_head + d[None, :], mask=known, other=0.0)
    x = x.to(tl.float32) * tl.load(rstd + row * M + m, mask=inside, other=0.0)[:, None]
    x = x * tl.load(weight + head * D + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    x = rotated(x, rotation, row * M + m, inside, D, BLOCK_D)
    query = (x * to_log2).to(out.dtype.element_ty)

    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    gathered = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    # The block itself comes first: it is always seen, so from then on `top` is a number.
    start = (row * H + head) * M * D
    for first in range(0, M, BLOCK_K):
        top, total, gathered = _attended(
            query, own_k + start, own_v + start, first, M, top, total, gathered, D, BLOCK_K, BLOCK_D
        )
    # One loop over the tiles of all slots, and the next tile's slot is looked up while this one is done: a load whose
    # place is known before its turn can start early.
    s = tl.arange(0, BLOCK_S)
    count = tl.sum((tl.load(seen + row * SLOTS + s, mask=s < SLOTS, other=-1) >= 0).to(tl.int32), 0)
    tiles: tl.constexpr = (N + BLOCK_K - 1) // BLOCK_K
    start = (row * H + head) * SLOTS * N * D
    slot = tl.load(seen + row * SLOTS)
    for i in range(count * tiles):
        at = start + slot * (N * D)
        top, total, gathered = _attended(
            query, cache_k + at, cache_v + at, i % tiles * BLOCK_K, N, top, total, gathered, D, BLOCK_K, BLOCK_D
        )
        slot = tl.load(seen + row * SLOTS + (i + 1) // tiles, mask=i + 1 < count * tiles, other=0)
    place = out + ((row * M + m[:, None]) * H + head) * D + d[None, :]
    tl.store(place, (gathered / total[:, None]).to(out.dtype.element_ty), mask=known)


@triton.jit
def _attended(
    query: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    first: int,
    END: tl.constexpr,
    top: tl.tensor,
    total: tl.tensor,
    gathered: tl.tensor,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> tl.tensor:
    """Softmax in one pass (Milakov and Gimelshein 2018) over one more tile: the keys from `first` on, up to END."""
    n = first + tl.arange(0, BLOCK_K)
    d = tl.arange(0, BLOCK_D)
    at = n[:, None] * D + d[None, :]
    if END % BLOCK_K == 0 and D == BLOCK_D:
        k = tl.load(keys + at)
        v = tl.load(values + at)
    else:
        known = (n < END)[:, None] & (d < D)[None, :]
        k = tl.load(keys + at, mask=known, other=0.0)
        v = tl.load(values + at, mask=known, other=0.0)
    scores = tl.dot(query, tl.trans(k))
    if END % BLOCK_K != 0:
        scores = tl.where((n < END)[None, :], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, 1))
    fade = tl.exp2(top - higher)
    weights = tl.exp2(scores - higher[:, None])
    total = total * fade + tl.sum(weights, 1)
    gathered = tl.dot(weights.to(v.dtype), v, gathered * fade[:, None])
    return higher, total, gathered
