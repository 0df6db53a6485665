"""A block's keys and values into the slots of the ring, in place; the sinks' keys turned to where they now are.

Dimensions: B rows, F frames of a block, N tokens a frame, M tokens of a block (F N), H heads, D head dim, P rotary
pairs, T tokens of all slots.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from engines.kernels import reference
from engines.kernels.launch import Plan, check_contiguous, check_half, check_shape, power_of_two
from engines.kernels.rotation import rotated

_TILE = 2048
"""Numbers of a tile, 16 a thread."""


@triton_op("streamgen::write_block", mutates_args=("cache_k_BHTD", "cache_v_BHTD", "raw_k_BHTD"))
def write_block(
    k_BMHD: Tensor,
    v_BMHD: Tensor,
    rstd_BM: Tensor,
    weight_HD: Tensor,
    rotation_BM2P: Tensor,
    slots_BF: Tensor,
    cache_k_BHTD: Tensor,
    cache_v_BHTD: Tensor,
    raw_k_BHTD: Tensor,
) -> None:
    """Normalise and rotate keys and write them and the values into the slots of their frames.

    k, v: as the linear layers give them; keys are normalised (`reciprocal_rms` of the token's whole width, and the
    norm's weight) and rotated (`rotation_table`). slots: int32, of each row's frames (`streamgen.cache.slot_of`);
    outside of the cache, as -1, nothing is written, so that a batch may have empty rows. raw_k [B, H, sinks N, D]:
    where the sinks' keys are kept unrotated; frames whose slots are sinks are written there as well. Without sinks it
    holds no tokens.

    The block's own keys and values for `ring_attention` are written in the same way, into a cache of F slots.

    Raises TypeError where a kernel is to run and the tensors are not all fp16 or all bf16, ValueError for shapes that
    do not fit.
    """
    if k_BMHD.device.type == "cpu":
        reference.write_block(
            k_BMHD, v_BMHD, rstd_BM, weight_HD, rotation_BM2P, slots_BF, cache_k_BHTD, cache_v_BHTD, raw_k_BHTD
        )
    else:
        launch_write_block(
            k_BMHD, v_BMHD, rstd_BM, weight_HD, rotation_BM2P, slots_BF, cache_k_BHTD, cache_v_BHTD, raw_k_BHTD
        )


def launch_write_block(*tensors: Tensor) -> None:
    """`write_block` by the kernel, whatever the device."""
    plan = plan_write_block(*tensors)
    wrap_triton(_write_block)[plan.grid](**plan.arguments)


def plan_write_block(
    k_BMHD: Tensor,
    v_BMHD: Tensor,
    rstd_BM: Tensor,
    weight_HD: Tensor,
    rotation_BM2P: Tensor,
    slots_BF: Tensor,
    cache_k_BHTD: Tensor,
    cache_v_BHTD: Tensor,
    raw_k_BHTD: Tensor,
) -> Plan:
    """The launch; raises as `write_block` says."""
    rows, block, heads, dim = k_BMHD.shape
    frames = slots_BF.shape[1]
    tokens = block // frames
    check_half(k=k_BMHD, v=v_BMHD, cache_k=cache_k_BHTD, cache_v=cache_v_BHTD, raw_k=raw_k_BHTD)
    check_shape("v", v_BMHD, rows, block, heads, dim)
    check_shape("rstd", rstd_BM, rows, block)
    check_shape("weight", weight_HD, heads, dim)
    check_shape("rotation", rotation_BM2P, rows, block, 2, dim // 2)
    check_shape("slots", slots_BF, rows, block // tokens)
    for name, tensor in (("cache_k", cache_k_BHTD), ("cache_v", cache_v_BHTD), ("raw_k", raw_k_BHTD)):
        check_shape(name, tensor, rows, heads, tensor.shape[2] // tokens * tokens, dim)
    check_shape("cache_v", cache_v_BHTD, *cache_k_BHTD.shape)
    check_contiguous(
        rstd=rstd_BM,
        weight=weight_HD,
        rotation=rotation_BM2P,
        slots=slots_BF,
        cache_k=cache_k_BHTD,
        cache_v=cache_v_BHTD,
        raw_k=raw_k_BHTD,
    )
    if k_BMHD.stride(3) != 1 or v_BMHD.stride() != k_BMHD.stride():
        raise ValueError(
            f"k and v of strides {k_BMHD.stride()} and {v_BMHD.stride()}: they must lie in the same way, with a head's "
            "numbers beside each other"
        )
    block_d = power_of_two(dim, 16)
    block_n = min(_TILE // block_d, power_of_two(tokens))
    arguments = {
        "k": k_BMHD,
        "v": v_BMHD,
        "rstd": rstd_BM,
        "weight": weight_HD,
        "rotation": rotation_BM2P,
        "slots": slots_BF,
        "cache_k": cache_k_BHTD,
        "cache_v": cache_v_BHTD,
        "raw_k": raw_k_BHTD,
        "row_stride": k_BMHD.stride(0),
        "token_stride": k_BMHD.stride(1),
        "head_stride": k_BMHD.stride(2),
        "F": frames,
        "N": tokens,
        "H": heads,
        "D": dim,
        "SLOTS": cache_k_BHTD.shape[2] // tokens,
        "SINKS": raw_k_BHTD.shape[2] // tokens,
        "BLOCK_N": block_n,
        "BLOCK_D": block_d,
        "num_warps": 4,
    }
    return Plan((triton.cdiv(tokens, block_n), heads, rows * frames), arguments)


@triton.jit
def _write_block(
    k: tl.tensor,
    v: tl.tensor,
    rstd: tl.tensor,
    weight: tl.tensor,
    rotation: tl.tensor,
    slots: tl.tensor,
    cache_k: tl.tensor,
    cache_v: tl.tensor,
    raw_k: tl.tensor,
    row_stride: int,
    token_stride: int,
    head_stride: int,
    F: tl.constexpr,
    N: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    SLOTS: tl.constexpr,
    SINKS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One program: BLOCK_N tokens of one head of one frame of one row."""
    head = tl.program_id(1)
    frame = tl.program_id(2)
    slot = tl.load(slots + frame)
    if (slot >= 0) & (slot < SLOTS):
        row = (frame // F).to(tl.int64)
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        d = tl.arange(0, BLOCK_D)
        inside = n < N
        known = inside[:, None] & (d < D)[None, :]
        m = frame % F * N + n
        source = row * row_stride + m[:, None] * token_stride + head * head_stride + d[None, :]
        target = ((row * H + head) * SLOTS + slot) * N * D + n[:, None] * D + d[None, :]
        tl.store(cache_v + target, tl.load(v + source, mask=known), mask=known)
        token = row * (F * N) + m
        x = tl.load(k + source, mask=known, other=0.0).to(tl.float32)
        x = x * tl.load(rstd + token, mask=inside, other=0.0)[:, None]
        x = x * tl.load(weight + head * D + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
        if slot < SINKS:
            raw = ((row * H + head) * SINKS + slot) * N * D + n[:, None] * D + d[None, :]
            tl.store(raw_k + raw, x.to(raw_k.dtype.element_ty), mask=known)
        x = rotated(x, rotation, token, inside, D, BLOCK_D)
        tl.store(cache_k + target, x.to(cache_k.dtype.element_ty), mask=known)


@triton_op("streamgen::rotate_sinks", mutates_args=("cache_k_BHTD",))
def rotate_sinks(raw_k_BHTD: Tensor, rotation_BT2P: Tensor, cache_k_BHTD: Tensor) -> None:
    """Write the sinks' raw keys [B, H, sinks N, D] into the first slots of the cache, rotated to their present places.

    Once a frame and layer. Always from the raw keys: turning what was turned would add rounding to rounding. rotation:
    `rotation_table` of the sinks. What is not a key yet is turned too; nobody sees its slot.

    Raises TypeError where a kernel is to run and the tensors are not all fp16 or all bf16, ValueError for shapes that
    do not fit.
    """
    if raw_k_BHTD.device.type == "cpu":
        reference.rotate_sinks(raw_k_BHTD, rotation_BT2P, cache_k_BHTD)
    else:
        launch_rotate_sinks(raw_k_BHTD, rotation_BT2P, cache_k_BHTD)


def launch_rotate_sinks(*tensors: Tensor) -> None:
    """`rotate_sinks` by the kernel, whatever the device."""
    plan = plan_rotate_sinks(*tensors)
    wrap_triton(_rotate_sinks)[plan.grid](**plan.arguments)


def plan_rotate_sinks(raw_k_BHTD: Tensor, rotation_BT2P: Tensor, cache_k_BHTD: Tensor) -> Plan:
    """The launch; raises as `rotate_sinks` says."""
    rows, heads, tokens, dim = raw_k_BHTD.shape
    check_half(raw_k=raw_k_BHTD, cache_k=cache_k_BHTD)
    check_shape("rotation", rotation_BT2P, rows, tokens, 2, dim // 2)
    check_shape("cache_k", cache_k_BHTD, rows, heads, max(tokens, cache_k_BHTD.shape[2]), dim)
    check_contiguous(raw_k=raw_k_BHTD, rotation=rotation_BT2P, cache_k=cache_k_BHTD)
    block_d = power_of_two(dim, 16)
    block_n = min(_TILE // block_d, power_of_two(tokens))
    arguments = {
        "raw_k": raw_k_BHTD,
        "rotation": rotation_BT2P,
        "cache_k": cache_k_BHTD,
        "T": tokens,
        "CACHED": cache_k_BHTD.shape[2],
        "H": heads,
        "D": dim,
        "BLOCK_N": block_n,
        "BLOCK_D": block_d,
        "num_warps": 4,
    }
    return Plan((triton.cdiv(tokens, block_n), heads, rows), arguments)


@triton.jit
def _rotate_sinks(
    raw_k: tl.tensor,
    rotation: tl.tensor,
    cache_k: tl.tensor,
    T: tl.constexpr,
    CACHED: tl.constexpr,
    H: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """One program: BLOCK_N tokens of one head of one row."""
    head = tl.program_id(1)
    row = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    inside = n < T
    known = inside[:, None] & (d < D)[None, :]
    at = n[:, None] * D + d[None, :]
    x = tl.load(raw_k + (row * H + head) * T * D + at, mask=known, other=0.0).to(tl.float32)
    x = rotated(x, rotation, row * T + n, inside, D, BLOCK_D)
    tl.store(cache_k + (row * H + head) * CACHED * D + at, x.to(cache_k.dtype.element_ty), mask=known)
