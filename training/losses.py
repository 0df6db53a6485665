"""Losses and samplers as pure tensor functions.

Flow matching (Lipman et al. 2022; Liu et al. 2022): x_s = (1 - s) x0 + s eps with noise level s in [0, 1], the model
predicts the velocity v = eps - x0, so x0 = x_s - s v.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

_SIDES = 1, 2, 4, 8
"""Of the squares, in pixels, whose means are compared."""
_AROUND = 5
"""Side of the square whose mean a pixel is compared with, in pixels."""
_NEARBY = 0.05
"""Spread of the noise by which a discriminator's steepness is measured."""


def reconstruction(x_BCHW: Tensor, y_BCHW: Tensor, gradient_weight: float) -> Tensor:
    """L1 of the pixels plus `gradient_weight` times L1 of their horizontal and vertical differences, a scalar."""
    pixels = (x_BCHW - y_BCHW).abs().mean()
    d_BCHW = x_BCHW - y_BCHW
    gradients = d_BCHW.diff(dim=-1).abs().mean() + d_BCHW.diff(dim=-2).abs().mean()
    return pixels + gradient_weight * gradients


def near(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Mean L1 of the pixels, of their means two by two, four by four, and eight by eight, a scalar: what is off by some
    pixels is drawn to its place from there.
    """
    apart = x_BCHW - y_BCHW
    return torch.stack([F.avg_pool2d(apart, side).abs().mean() for side in _SIDES]).mean()


def apart_from_around(grey_BCHW: Tensor) -> Tensor:
    """How pixels differ from the mean of the square around them: detail alone."""
    edge = (_AROUND // 2,) * 4
    return grey_BCHW - F.avg_pool2d(F.pad(grey_BCHW, edge, mode="replicate"), _AROUND, stride=1)


def texture(x_BCHW: Tensor) -> Tensor:
    """How far pixels are from those around them, in grey, in squares of eight by eight [B, 1, H / 8, W / 8]: it stays
    what it is where hair is off by a strand.
    """
    return F.avg_pool2d(apart_from_around(x_BCHW.mean(1, keepdim=True)).abs(), _SIDES[-1])


def add_noise(x0: Tensor, eps: Tensor, sigma: Tensor) -> Tensor:
    """x_sigma; `sigma` is broadcast from the left (its dimensions are x0's first ones)."""
    sigma = sigma.reshape(sigma.shape + (1,) * (x0.dim() - sigma.dim()))
    return (1 - sigma) * x0 + sigma * eps


def denoised(x_sigma: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """x0 as the velocity predicts it."""
    return x_sigma - sigma.reshape(sigma.shape + (1,) * (x_sigma.dim() - sigma.dim())) * velocity


def guided(velocity: Callable[..., Tensor], sigma: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): what `velocity` says, and with a guidance above 1 so far beyond
    what it says without actions, `known` as sigma and 0.
    """
    out = velocity()
    if guidance > 1:
        blind = velocity(known=torch.zeros_like(sigma))
        out = blind + guidance * (out - blind)
    return out


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


def distribution_matching(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """DMD (Yin et al. 2024): half the squared distance of clips x [B, ...] to where the difference of two scores pulls
    them. real and fake: x0 as the teacher and as the critic predict it from the same noised x, which get no gradient.

    The pull is divided by each clip's mean distance from what the teacher predicts, so that no noise level outweighs
    others.
    """
    with torch.no_grad():
        pull = (fake - real) / _distance(x, real)
        goal = x - pull
    return 0.5 * F.mse_loss(x, goal)


def motion_matching(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """`distribution_matching` of what changes from frame to frame of clips [B, F, ...] (diagonal distillation).

    Its gradient reaches both frames of every difference.
    """
    return distribution_matching(*(clip.diff(dim=1) for clip in (x, real, fake)))


def score_identity(x: Tensor, real: Tensor, fake: Tensor, alpha: float) -> Tensor:
    """SiD (Zhou et al. 2024) for clips [B, ...]; real and fake as for `distribution_matching`, but the gradient goes
    through both networks to x. alpha, near 1: how much of the squared difference of the scores is taken away again.
    """
    apart = real - fake
    return (apart * (real - x - alpha * apart) / _distance(x, real)).mean()


def _distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of each clip, without gradient."""
    return (x - y).detach().abs().mean(tuple(range(1, x.dim())), keepdim=True).clamp_min(1e-4)


def fools(logits: Tensor) -> Tensor:
    """Loss of whose clips shall pass for real, from a discriminator's logits of them."""
    return F.softplus(-logits).mean()


def tells_apart(real: Tensor, fake: Tensor) -> Tensor:
    """Loss of a discriminator from its logits of real and of made clips."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def logits_and_steepness(
    discriminator: Callable[[Tensor], Tensor], x: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A discriminator's logits of x, and R1 or R2 by a finite difference: its squared slope between x and the same with
    a little noise added (Lin et al. 2025); no second derivative is needed.
    """
    logits = discriminator(x)
    nearby = discriminator(x + _NEARBY * torch.randn(x.shape, generator=generator))
    return logits, ((nearby - logits) / _NEARBY).square().mean()


def flow_map_target(velocity: Tensor, derivative: Tensor, sigma: Tensor, to: Tensor) -> Tensor:
    """What a flow map u(x, sigma, to) must equal: the velocity less (sigma - to) du/dsigma along the flow (MeanFlow,
    Geng et al. 2025; AnyFlow). Without gradient; sigma and to are broadcast from the left.
    """
    gap = (sigma - to).reshape(sigma.shape + (1,) * (velocity.dim() - sigma.dim()))
    return (velocity - gap * derivative).detach()


@torch.no_grad()
def psnr(x: Tensor, y: Tensor) -> float:
    """PSNR in dB of images in [-1, 1], from their pooled mean squared error."""
    mse = F.mse_loss(x.clamp(-1, 1).float(), y.clamp(-1, 1).float()).item()
    return float("inf") if mse == 0 else 10 * torch.tensor(4 / mse).log10().item()
