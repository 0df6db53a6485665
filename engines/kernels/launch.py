"""What the launches of all kernels share: what is passed on, and what is refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

HALF = torch.float16, torch.bfloat16


class Plan(NamedTuple):
    """How a kernel is launched: the grid, and its arguments and compile options by name."""

    grid: tuple[int, ...]
    arguments: dict[str, Any]


def power_of_two(size: int, least: int = 1) -> int:
    """The smallest power of two that is not below `size` nor `least` (itself one): what sides Triton's tiles have."""
    return max(least, 1 << (size - 1).bit_length())


def check_half(**tensors: Tensor) -> None:
    """Raise TypeError unless all are fp16 or all are bf16."""
    kinds = {name: tensor.dtype for name, tensor in tensors.items()}
    if len(set(kinds.values())) > 1 or not set(kinds.values()) <= set(HALF):
        raise TypeError(f"the kernels take tensors that are all float16 or all bfloat16, not {kinds}")


def check_contiguous(**tensors: Tensor) -> None:
    """Raise ValueError for a tensor that does not lie in memory in the order of its dimensions."""
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} of strides {tensor.stride()} is not contiguous: call contiguous() first")


def check_shape(name: str, tensor: Tensor, *shape: int) -> None:
    """Raise ValueError for a tensor of another shape."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
