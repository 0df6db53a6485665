"""The adaptive layer norm: normalise, scale and shift by frame; and the gated residual before it in the same pass.

Dimensions: B rows, F frames of a block, N tokens a frame, d model dim. `_Block.forward` of
`streamgen.models.transformer` is what it follows; `modulation + e` unbound gives scale, shift and gate as they are
taken here, views with numbers beside each other.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from engines.kernels import reference
from engines.kernels.launch import Plan, check_contiguous, check_half, check_shape, power_of_two

_TILE = 2048
"""Numbers of a tile where a token has fewer, 16 a thread."""


@triton_op("streamgen::modulate", mutates_args=())
def modulate(x_BFNd: Tensor, scale_BFd: Tensor, shift_BFd: Tensor, eps: float) -> Tensor:
    """layer_norm(x) (1 + scale) + shift, [B, F, N, d].

    Raises TypeError where a kernel is to run and x is neither fp16 nor bf16, ValueError for shapes that do not fit.
    """
    if x_BFNd.device.type == "cpu":
        return reference.modulate(x_BFNd, scale_BFd, shift_BFd, eps)
    return launch_modulate(x_BFNd, scale_BFd, shift_BFd, eps)


@triton_op("streamgen::gate", mutates_args=())
def gate(x_BFNd: Tensor, update_BFNd: Tensor, gate_BFd: Tensor) -> Tensor:
    """x + gate update, [B, F, N, d], where no norm follows that `gate_modulate` could do; raises as `modulate`."""
    if x_BFNd.device.type == "cpu":
        return reference.gate(x_BFNd, update_BFNd, gate_BFd)
    return launch_gate(x_BFNd, update_BFNd, gate_BFd)


@triton_op("streamgen::gate_modulate", mutates_args=())
def gate_modulate(
    x_BFNd: Tensor, update_BFNd: Tensor, gate_BFd: Tensor, scale_BFd: Tensor, shift_BFd: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """y = x + gate update, and layer_norm(y) (1 + scale) + shift, each [B, F, N, d]; raises as `modulate`.

    Between attention and feed-forward, and, with the next block's scale and shift, between blocks.
    """
    if x_BFNd.device.type == "cpu":
        return reference.gate_modulate(x_BFNd, update_BFNd, gate_BFd, scale_BFd, shift_BFd, eps)
    return launch_gate_modulate(x_BFNd, update_BFNd, gate_BFd, scale_BFd, shift_BFd, eps)


def launch_modulate(x_BFNd: Tensor, scale_BFd: Tensor, shift_BFd: Tensor, eps: float) -> Tensor:
    """`modulate` by the kernel, whatever the device."""
    out_BFNd = torch.empty_like(x_BFNd)
    plan = plan_modulate(x_BFNd, scale_BFd, shift_BFd, eps, out_BFNd=out_BFNd)
    wrap_triton(_modulate)[plan.grid](**plan.arguments)
    return out_BFNd


def launch_gate(x_BFNd: Tensor, update_BFNd: Tensor, gate_BFd: Tensor) -> Tensor:
    """`gate` by the kernel, whatever the device."""
    out_BFNd = torch.empty_like(x_BFNd)
    plan = plan_gate(x_BFNd, update_BFNd, gate_BFd, out_BFNd=out_BFNd)
    wrap_triton(_gate)[plan.grid](**plan.arguments)
    return out_BFNd


def launch_gate_modulate(
    x_BFNd: Tensor, update_BFNd: Tensor, gate_BFd: Tensor, scale_BFd: Tensor, shift_BFd: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`gate_modulate` by the kernel, whatever the device."""
    sum_BFNd, out_BFNd = torch.empty_like(x_BFNd), torch.empty_like(x_BFNd)
    plan = plan_gate_modulate(
        x_BFNd, update_BFNd, gate_BFd, scale_BFd, shift_BFd, eps, sum_BFNd=sum_BFNd, out_BFNd=out_BFNd
    )
    wrap_triton(_gate_modulate)[plan.grid](**plan.arguments)
    return sum_BFNd, out_BFNd


def plan_modulate(x_BFNd: Tensor, scale_BFd: Tensor, shift_BFd: Tensor, eps: float, *, out_BFNd: Tensor) -> Plan:
    """The launch; raises as `modulate` says."""
    vectors = _vectors(x_BFNd, scale=scale_BFd, shift=shift_BFd)
    return _plan(x_BFNd, {"x": x_BFNd, "out": out_BFNd, "eps": eps, **vectors})


def plan_gate(x_BFNd: Tensor, update_BFNd: Tensor, gate_BFd: Tensor, *, out_BFNd: Tensor) -> Plan:
    """The launch; raises as `modulate` says."""
    _check_update(x_BFNd, update_BFNd)
    vectors = _vectors(x_BFNd, gate=gate_BFd)
    return _plan(x_BFNd, {"x": x_BFNd, "update": update_BFNd, "out": out_BFNd, **vectors})


def plan_gate_modulate(
    x_BFNd: Tensor,
    update_BFNd: Tensor,
    gate_BFd: Tensor,
    scale_BFd: Tensor,
    shift_BFd: Tensor,
    eps: float,
    *,
    sum_BFNd: Tensor,
    out_BFNd: Tensor,
) -> Plan:
    """The launch; raises as `modulate` says."""
    _check_update(x_BFNd, update_BFNd)
    vectors = _vectors(x_BFNd, gate=gate_BFd, scale=scale_BFd, shift=shift_BFd)
    tensors = {"x": x_BFNd, "update": update_BFNd, "summed": sum_BFNd, "out": out_BFNd}
    return _plan(x_BFNd, {**tensors, "eps": eps, **vectors})


def _check_update(x_BFNd: Tensor, update_BFNd: Tensor) -> None:
    check_half(x=x_BFNd, update=update_BFNd)
    check_contiguous(update=update_BFNd)
    check_shape("update", update_BFNd, *x_BFNd.shape)


def _vectors(x_BFNd: Tensor, **vectors: Tensor) -> dict[str, Any]:
    """Arguments of what each frame has one of."""
    rows, frames, _, dim = x_BFNd.shape
    arguments: dict[str, Any] = {}
    for name, vector_BFd in vectors.items():
        check_shape(name, vector_BFd, rows, frames, dim)
        stride = vector_BFd.stride(1)
        if vector_BFd.stride() != (frames * stride, stride, 1):
            raise ValueError(f"{name} of strides {vector_BFd.stride()}: frames must be equally far apart, numbers by 1")
        arguments |= {name: vector_BFd, f"{name}_stride": stride}
    return arguments


def _plan(x_BFNd: Tensor, arguments: dict[str, Any]) -> Plan:
    check_half(x=x_BFNd)
    check_contiguous(x=x_BFNd)
    rows, frames, tokens, dim = x_BFNd.shape
    block_d = power_of_two(dim)
    block_n = min(max(1, _TILE // block_d), power_of_two(tokens))
    sizes = {"N": tokens, "DIM": dim, "BLOCK_N": block_n, "BLOCK_D": block_d}
    # Wide tokens go to more threads, so that a thread's share stays in its registers.
    options = {"num_warps": 4 if block_d <= _TILE else 8}
    return Plan((triton.cdiv(tokens, block_n), rows * frames), {**arguments, **sizes, **options})


@triton.jit
def _modulate(
    x: tl.tensor,
    out: tl.tensor,
    eps: float,
    scale: tl.tensor,
    scale_stride: int,
    shift: tl.tensor,
    shift_stride: int,
    N: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    at, known, d = _tile(N, DIM, BLOCK_N, BLOCK_D)
    y = tl.load(x + at, mask=known, other=0.0).to(tl.float32)
    y = _modulated(y, known, d, eps, scale, scale_stride, shift, shift_stride, DIM)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=known)


@triton.jit
def _gate(
    x: tl.tensor,
    update: tl.tensor,
    out: tl.tensor,
    gate: tl.tensor,
    gate_stride: int,
    N: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    at, known, d = _tile(N, DIM, BLOCK_N, BLOCK_D)
    y = _gated(x, update, at, known, d, gate, gate_stride, DIM)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=known)


@triton.jit
def _gate_modulate(
    x: tl.tensor,
    update: tl.tensor,
    summed: tl.tensor,
    out: tl.tensor,
    eps: float,
    gate: tl.tensor,
    gate_stride: int,
    scale: tl.tensor,
    scale_stride: int,
    shift: tl.tensor,
    shift_stride: int,
    N: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    at, known, d = _tile(N, DIM, BLOCK_N, BLOCK_D)
    y = _gated(x, update, at, known, d, gate, gate_stride, DIM)
    tl.store(summed + at, y.to(summed.dtype.element_ty), mask=known)
    y = _modulated(y, known, d, eps, scale, scale_stride, shift, shift_stride, DIM)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=known)


@triton.jit
def _tile(N: tl.constexpr, DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr) -> tl.tensor:
    """Where this program's BLOCK_N tokens of a frame lie, which of their numbers there are, and a token's numbers."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    known = (n < N)[:, None] & (d < DIM)[None, :]
    at = (tl.program_id(1).to(tl.int64) * N + n[:, None]) * DIM + d[None, :]
    return at, known, d


@triton.jit
def _vector(of: tl.tensor, stride: int, d: tl.tensor, DIM: tl.constexpr) -> tl.tensor:
    """This program's frame's vector, as a row."""
    return tl.load(of + tl.program_id(1) * stride + d, mask=d < DIM, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _gated(
    x: tl.tensor,
    update: tl.tensor,
    at: tl.tensor,
    known: tl.tensor,
    d: tl.tensor,
    gate: tl.tensor,
    gate_stride: int,
    DIM: tl.constexpr,
) -> tl.tensor:
    added = tl.load(update + at, mask=known, other=0.0).to(tl.float32)
    return tl.load(x + at, mask=known, other=0.0).to(tl.float32) + _vector(gate, gate_stride, d, DIM) * added


@triton.jit
def _modulated(
    y: tl.tensor,
    known: tl.tensor,
    d: tl.tensor,
    eps: float,
    scale: tl.tensor,
    scale_stride: int,
    shift: tl.tensor,
    shift_stride: int,
    DIM: tl.constexpr,
) -> tl.tensor:
    # Twice over registers, not the difference of two sums: far from zero that would lose what is asked for.
    centred = tl.where(known, y - (tl.sum(y, 1) / DIM)[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / DIM
    normal = centred * tl.rsqrt(variance + eps)[:, None]
    return normal * (1 + _vector(scale, scale_stride, d, DIM)) + _vector(shift, shift_stride, d, DIM)
