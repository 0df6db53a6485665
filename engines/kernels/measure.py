"""The kernels on a GPU: against plain torch in fp32, and as fast as what PyTorch has for the same attention."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from engines.kernels import reference
from engines.kernels.attention import ring_attention, seen_slots
from engines.kernels.modulation import gate_modulate
from engines.kernels.write import write_block

SHAPES = {
    "world": (4, 1, 48, 4, 64, 12),
    "avatar": (4, 1, 64, 5, 64, 13),
    "1.3 B layout": (1, 3, 1560, 12, 128, 21),
}
"""Rows, frames of a block, tokens, heads, head dim, slots."""
_APART = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
_EPS = 1e-6


def usable() -> bool:
    """Whether torch sees a GPU."""
    return torch.cuda.is_available()


def measure(
    shapes: Mapping[str, tuple[int, ...]] = SHAPES, device: str = "cuda"
) -> Iterator[tuple[str, bool, dict[str, Any]]]:
    """Name, whether it agrees, and figures, of each kernel on a device of torch."""
    for name, shape in shapes.items():
        for dtype in _APART:
            with torch.device(device):
                found = list(_of(f"{name}, {str(dtype).removeprefix('torch.')}", shape, dtype))
            yield from found


def _of(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[tuple[str, bool, dict[str, Any]]]:
    rows, frames, tokens, heads, dim, slots = shape
    block = frames * tokens
    torch.manual_seed(0)

    def normal(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(size).to(of)

    q, k, v = (normal(rows, block, heads, dim) for _ in range(3))
    weight, angles = normal(heads, dim), normal(rows, block, dim // 2, of=torch.float32)
    rotation = torch.stack([angles.cos(), angles.sin()], 2).contiguous()
    rstd = reference.reciprocal_rms(q.flatten(-2), _EPS)
    cache_k, cache_v = (normal(rows, heads, slots * tokens, dim) for _ in range(2))
    own_k, own_v = (normal(rows, heads, block, dim) for _ in range(2))
    # All but a few: a row that sees less is done sooner.
    seen = seen_slots(torch.arange(slots)[None] < torch.arange(slots - rows, slots)[:, None])
    given = q, rstd, weight, rotation, own_k, own_v, cache_k, cache_v, seen
    wide = tuple(x.float() if x.is_floating_point() else x for x in given)
    apart = _apart(ring_attention(*given), reference.ring_attention(*wide))
    # The same attention as others do it: queries ready, keys and values beside each other.
    queries = q.transpose(1, 2).contiguous()
    keys, values = torch.cat([cache_k, own_k], 2), torch.cat([cache_v, own_v], 2)
    times: dict[str, Any] = {"ms": _ms(lambda: ring_attention(*given))}
    for backend in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        times[f"{backend.name.lower()} ms"] = _ms_of_backend(backend, queries, keys, values)
    yield f"ring_attention, {name}", apart <= _APART[dtype], {"apart": apart, **times}
    raw = normal(rows, heads, 0, dim)
    where = torch.arange(frames, dtype=torch.int32).expand(rows, -1).contiguous()
    ours, theirs = (cache_k.clone(), cache_v.clone()), (cache_k.clone(), cache_v.clone())
    write_block(k, v, rstd, weight, rotation, where, *ours, raw)
    reference.write_block(k, v, rstd, weight, rotation, where, *theirs, raw)
    apart = sum(_apart(a, b) for a, b in zip(ours, theirs, strict=True))
    took = _ms(lambda: write_block(k, v, rstd, weight, rotation, where, *ours, raw))
    yield f"write_block, {name}", apart <= _APART[dtype], {"apart": apart, "ms": took}
    x, update = (normal(rows, frames, tokens, heads * dim) for _ in range(2))
    gate, scale, shift = (normal(rows, frames, heads * dim) for _ in range(3))
    modulated = x, update, gate, scale, shift, _EPS
    pairs = zip(gate_modulate(*modulated), reference.gate_modulate(*modulated), strict=True)
    apart = sum(_apart(a, b) for a, b in pairs)
    figures = {
        "ms": _ms(lambda: gate_modulate(*modulated)),
        "torch ms": _ms(lambda: reference.gate_modulate(*modulated)),
    }
    yield f"gate_modulate, {name}", apart <= _APART[dtype], {"apart": apart, **figures}


def _apart(got: Tensor, wanted: Tensor) -> float:
    """Largest difference, by the largest number."""
    return float((got.float() - wanted.float()).abs().max() / wanted.float().abs().max())


def _ms_of_backend(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> float | str:
    try:
        with sdpa_kernel(backend):
            return _ms(lambda: F.scaled_dot_product_attention(q, k, v))
    except RuntimeError as error:
        return f"left out ({str(error).splitlines()[0]})"


def _ms(work: Callable[[], object], times: int = 50) -> float:
    for _ in range(5):
        work()
    _wait()
    begun = time.perf_counter()
    for _ in range(times):
        work()
    _wait()
    return 1e3 * (time.perf_counter() - begun) / times


def _wait() -> None:
    if usable():
        torch.cuda.synchronize()
