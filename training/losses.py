"""Losses and samplers as pure tensor functions.

Flow matching (Lipman et al. 2022; Liu et al. 2022): x_s = (1 - s) x0 + s eps with noise level s in [0, 1], the model
predicts the velocity v = eps - x0, so x0 = x_s - s v.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F


def reconstruction(x_BCHW: Tensor, y_BCHW: Tensor, gradient_weight: float) -> Tensor:
    """L1 of the pixels plus `gradient_weight` times L1 of their horizontal and vertical differences, a scalar."""
    pixels = (x_BCHW - y_BCHW).abs().mean()
    d_BCHW = x_BCHW - y_BCHW
    gradients = d_BCHW.diff(dim=-1).abs().mean() + d_BCHW.diff(dim=-2).abs().mean()
    return pixels + gradient_weight * gradients


def add_noise(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """x_sigma; `sigma` is broadcast from the left (its dimensions are x0's first ones)."""
    sigma = sigma.reshape(sigma.shape + (1,) * (x0.dim() - sigma.dim()))
    return (1 - sigma) * x0 + sigma * eps


def denoised(x_sigma: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """x0 as the velocity predicts it."""
    return x_sigma - sigma.reshape(sigma.shape + (1,) * (x_sigma.dim() - sigma.dim())) * velocity


def shifted(u: Tensor, shift: float) -> Tensor:
    """Noise levels from uniform u in [0, 1]: shift u / (1 + (shift - 1) u); 1 leaves them uniform."""
    return shift * u / (1 + (shift - 1) * u)


def flow_matching(velocity: Tensor, x0: Tensor, eps: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean squared velocity error; `weight` is broadcast from the left and averages to 1 where it counts."""
    error = F.mse_loss(velocity.float(), eps - x0, reduction="none")
    weight = weight.reshape(weight.shape + (1,) * (error.dim() - weight.dim()))
    return (error * weight).sum() / weight.expand_as(error).sum().clamp_min(1e-8)


def focus_weight(height: int, width: int, boxes: Iterable[tuple[float, float, float, float]], weight: float) -> Tensor:
    """[h, w]: `weight` inside of boxes (left, top, right, bottom in shares of width and height), 1 outside, 1 on
    average.

    A latent pixel is inside when its middle is.
    """
    out = torch.ones(height, width)
    x, y = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    for left, top, right, bottom in boxes:
        out[((top <= y) & (y <= bottom))[:, None] & ((left <= x) & (x <= right))] = weight
    return out / out.mean()


def consistency_target(x_sigma: Tensor, velocity_teacher: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """The teacher's Euler step from `sigma` to `sigma_next`: where the student must land on the same x0."""
    gap = (sigma - sigma_next).reshape(sigma.shape + (1,) * (x_sigma.dim() - sigma.dim()))
    return x_sigma - gap * velocity_teacher


@torch.no_grad()
def psnr(x: Tensor, y: Tensor) -> float:
    """PSNR in dB of images in [-1, 1], from their pooled mean squared error."""
    mse = F.mse_loss(x.clamp(-1, 1).float(), y.clamp(-1, 1).float()).item()
    return float("inf") if mse == 0 else 10 * torch.tensor(4 / mse).log10().item()
