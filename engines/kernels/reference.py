"""The kernels' arithmetic in plain torch: what the operators are on a CPU, in fp32, or fp64 for fp64.

Dimensions: B rows, F frames of a block, N tokens a frame, M tokens of a block (F N), H heads, D head dim, P pairs,
S slots, T tokens of all slots (S N), d model dim. The arguments are those of the operators of the same name.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def reciprocal_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean of squares + eps) of x [..., d] over d, in fp32: what `RMSNorm` multiplies by beside its weight."""
    return torch.rsqrt(_wide(x).square().mean(-1) + eps)


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
    rows, slots = seen_BS.shape
    # The list's end, -1, becomes one more slot, which is cut off again.
    places = torch.where(seen_BS < 0, slots, seen_BS).long()
    seen = torch.zeros(rows, slots + 1, dtype=torch.bool, device=seen_BS.device).scatter(1, places, True)[:, :slots]
    seen_BT = seen.repeat_interleave(cache_k_BHTD.shape[2] // slots, 1)
    q = _rotated(_normalised(q_BMHD, rstd_BM, weight_HD), rotation_BM2P[:, :, None]).transpose(1, 2)
    # Zeros for what is not seen: its weight is zero, but zero times NaN is NaN.
    past_k, past_v = (_wide(x).where(seen_BT[:, None, :, None], 0) for x in (cache_k_BHTD, cache_v_BHTD))
    out = F.scaled_dot_product_attention(
        q,
        torch.cat([past_k, _wide(own_k_BHMD)], 2),
        torch.cat([past_v, _wide(own_v_BHMD)], 2),
        attn_mask=F.pad(seen_BT, (0, own_k_BHMD.shape[2]), value=True)[:, None, None],
    )
    return out.transpose(1, 2).to(q_BMHD.dtype).contiguous()


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
    frames = slots_BF.shape[1]
    tokens = k_BMHD.shape[1] // frames
    raw = _normalised(k_BMHD, rstd_BM, weight_HD)
    turned = _rotated(raw, rotation_BM2P[:, :, None])
    for source, target in ((turned, cache_k_BHTD), (v_BMHD, cache_v_BHTD), (raw, raw_k_BHTD)):
        slots = target.shape[2] // tokens
        if not slots:
            continue
        blocks = source.to(target.dtype).transpose(1, 2).unflatten(2, (frames, tokens))
        held = target.view(*target.shape[:2], slots, tokens, -1)
        rows = torch.arange(len(held), device=held.device)
        for frame in range(frames):
            slot = slots_BF[:, frame].long()
            inside = ((slot >= 0) & (slot < slots))[:, None, None, None]
            # What lies outside writes back what it finds.
            place = rows, slice(None), slot.clamp(0, slots - 1)
            held[place] = torch.where(inside, blocks[:, :, frame], held[place])


def rotate_sinks(raw_k_BHTD: Tensor, rotation_BT2P: Tensor, cache_k_BHTD: Tensor) -> None:
    turned = _rotated(_wide(raw_k_BHTD), rotation_BT2P[:, None])
    cache_k_BHTD[:, :, : raw_k_BHTD.shape[2]] = turned.to(cache_k_BHTD.dtype)


def modulate(x_BFNd: Tensor, scale_BFd: Tensor, shift_BFd: Tensor, eps: float) -> Tensor:
    return _modulated(_wide(x_BFNd), scale_BFd, shift_BFd, eps).to(x_BFNd.dtype)


def gate(x_BFNd: Tensor, update_BFNd: Tensor, gate_BFd: Tensor) -> Tensor:
    return _gated(x_BFNd, update_BFNd, gate_BFd).to(x_BFNd.dtype)


def gate_modulate(
    x_BFNd: Tensor, update_BFNd: Tensor, gate_BFd: Tensor, scale_BFd: Tensor, shift_BFd: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    x = _gated(x_BFNd, update_BFNd, gate_BFd)
    return x.to(x_BFNd.dtype), _modulated(x, scale_BFd, shift_BFd, eps).to(x_BFNd.dtype)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normalised(x_BMHD: Tensor, rstd_BM: Tensor, weight_HD: Tensor) -> Tensor:
    return _wide(x_BMHD) * rstd_BM[:, :, None, None] * weight_HD


def _rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """x [..., D] turned by cos and sin [..., 2, P]."""
    cos, sin = rotation.unbind(-2)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def _gated(x_BFNd: Tensor, update_BFNd: Tensor, gate_BFd: Tensor) -> Tensor:
    return _wide(x_BFNd) + _wide(gate_BFd)[:, :, None] * update_BFNd


def _modulated(x_BFNd: Tensor, scale_BFd: Tensor, shift_BFd: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x_BFNd, x_BFNd.shape[-1:], eps=eps) * (1 + _wide(scale_BFd)[:, :, None]) + shift_BFd[:, :, None]
