"""Losses as pure tensor functions: values, and gradients where they belong."""

from __future__ import annotations

import math

import pytest
import torch

from training.losses import (
    add_noise,
    consistency_target,
    denoised,
    distribution_matching,
    flow_map_target,
    flow_matching,
    fools,
    logits_and_steepness,
    motion_matching,
    psnr,
    reconstruction,
    score_identity,
    shifted,
    tells_apart,
)


def test_noise_and_denoising_are_inverse() -> None:
    x0, eps = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    sigma = torch.rand(2, 3)
    noisy = add_noise(x0, eps, sigma)
    torch.testing.assert_close(denoised(noisy, eps - x0, sigma), x0, atol=1e-6, rtol=0)
    assert torch.equal(add_noise(x0, eps, torch.zeros(2, 3)), x0)
    assert torch.equal(add_noise(x0, eps, torch.ones(2, 3)), eps)


def test_shift_follows_its_formula() -> None:
    u = torch.tensor([0.0, 0.25, 0.5, 1.0])
    torch.testing.assert_close(shifted(u, 5.0), torch.tensor([0, 0.625, 5 / 6, 1.0]))
    torch.testing.assert_close(shifted(u, 1.0), u)


def test_flow_matching_counts_what_has_weight() -> None:
    x0, eps = torch.randn(1, 2, 3), torch.randn(1, 2, 3)
    velocity = (eps - x0).clone()
    velocity[0, 1] += 2
    velocity.requires_grad_()
    loss = flow_matching(velocity, x0, eps, torch.tensor([[1.0, 1.0]]))
    assert loss.item() == pytest.approx(2.0)
    loss.backward()
    assert velocity.grad is not None
    assert velocity.grad[0, 0].abs().max() < 1e-6
    assert velocity.grad[0, 1].abs().min() > 0.1
    assert flow_matching(velocity, x0, eps, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(0, abs=1e-9)


def test_terminal_consistency_target_is_the_teachers_end_point() -> None:
    """At zero noise the student's x0 of the target is the target itself, whatever velocity it predicts there."""
    x0, eps = torch.randn(2, 1, 6), torch.randn(2, 1, 6)
    sigma = torch.full((2, 1), 1 / 32)
    noisy, velocity = add_noise(x0, eps, sigma), torch.randn(2, 1, 6)
    end = consistency_target(noisy, velocity, sigma, torch.zeros(2, 1))
    torch.testing.assert_close(end, denoised(noisy, velocity, sigma), atol=1e-7, rtol=0)
    torch.testing.assert_close(denoised(end, torch.randn(2, 1, 6), torch.zeros(2, 1)), end)
    # On a straight trajectory the Euler step stays on it.
    along = consistency_target(noisy, eps - x0, sigma, sigma / 2)
    torch.testing.assert_close(along, add_noise(x0, eps, sigma / 2), atol=1e-6, rtol=0)


def test_reconstruction_sees_edges_that_l1_forgives() -> None:
    flat, edge = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    edge[..., 2] = 1
    assert reconstruction(edge, flat, 0).item() == pytest.approx(0.25)
    # Two of three horizontal differences are 1, no vertical one.
    assert reconstruction(edge, flat, 1).item() == pytest.approx(0.25 + 2 / 3)


def test_psnr_is_pooled() -> None:
    x, y = torch.zeros(2, 3), torch.tensor([[0.2] * 3, [0.0] * 3])
    assert psnr(x, y) == pytest.approx(10 * math.log10(4 / 0.02), abs=1e-4)
    assert psnr(x, x) == float("inf")


def test_distribution_matching_pulls_towards_the_teacher() -> None:
    x, real, fake = (torch.randn(2, 3, 4) for _ in range(3))
    x.requires_grad_()
    real.requires_grad_()
    fake.requires_grad_()
    distribution_matching(x, real, fake).backward()
    distance = (x - real).abs().mean((1, 2), keepdim=True).detach()
    torch.testing.assert_close(x.grad, ((fake - real) / distance / x.numel()).detach(), atol=1e-6, rtol=1e-5)
    assert real.grad is None and fake.grad is None
    # Where the two scores agree there is nothing to learn.
    (gradient,) = torch.autograd.grad(distribution_matching(x, real, real), x)
    assert gradient.abs().max() == 0


def test_motion_matching_moves_both_frames() -> None:
    x, real, fake = torch.zeros(1, 4, 3, requires_grad=True), torch.zeros(1, 4, 3), torch.zeros(1, 4, 3)
    real = (
        real + torch.tensor([0.0, 0, 1, 1])[None, :, None]
    )  # the teacher wants a step between the second and the third
    motion_matching(x, real, fake).backward()
    assert x.grad is not None
    assert x.grad[0, 1].min() > 0 > x.grad[0, 2].max()
    torch.testing.assert_close(x.grad[0, 1], -x.grad[0, 2])
    assert x.grad[0, 0].abs().max() == 0 == x.grad[0, 3].abs().max()


def test_score_identity_reaches_x_through_both_scores() -> None:
    x = torch.randn(1, 5, requires_grad=True)
    real, fake = 0.5 * x + 1, 0.25 * x
    loss = score_identity(x, real, fake, 1.0)
    distance = (x - real).detach().abs().mean()
    want = ((real - fake) * (fake - x) / distance).mean()  # alpha 1: the square is gone
    torch.testing.assert_close(loss, want)
    (own,) = torch.autograd.grad(loss, x, retain_graph=True)
    (alone,) = torch.autograd.grad(score_identity(x, real.detach(), fake.detach(), 1.0), x)
    assert (own - alone).abs().max() > 1e-3


def test_a_discriminators_losses() -> None:
    sure, unsure = torch.full((4,), 9.0), torch.zeros(4)
    assert fools(sure) < 1e-3 < fools(unsure) < fools(-sure)
    assert tells_apart(sure, -sure) < 1e-3
    assert tells_apart(unsure, unsure).item() == pytest.approx(2 * math.log(2), rel=1e-5)
    # The slope of 3 x, by a finite difference.
    x = torch.randn(50)
    logits, steepness = logits_and_steepness(lambda x: 3 * x, x, torch.Generator().manual_seed(1))
    assert torch.equal(logits, 3 * x)
    noise = torch.randn(50, generator=torch.Generator().manual_seed(1))
    assert steepness.item() == pytest.approx(9 * noise.square().mean().item(), rel=1e-3)


def test_a_flow_map_of_a_straight_flow_is_its_velocity() -> None:
    """Towards one point c: u = (x - c) / sigma from anywhere to anywhere, and does not change on the way."""
    c, eps = torch.randn(6), torch.randn(6)
    sigma, to, h = torch.tensor(0.8), torch.tensor(0.3), 0.01

    def u(level: torch.Tensor) -> torch.Tensor:
        return (add_noise(c, eps, level) - c) / level

    derivative = (u(sigma + h) - u(sigma - h)) / (2 * h)
    torch.testing.assert_close(flow_map_target(eps - c, derivative, sigma, to), u(sigma), atol=1e-4, rtol=0)
    # Of a bent one, u = sigma + to is the mean of a velocity 2 sigma between the two.
    torch.testing.assert_close(flow_map_target(2 * sigma, torch.ones(()), sigma, to), sigma + to, atol=1e-6, rtol=0)
    assert not flow_map_target(eps.clone().requires_grad_(), derivative, sigma, to).requires_grad
