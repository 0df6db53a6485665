"""Losses as pure tensor functions: values, and gradients where they belong."""

from __future__ import annotations

import math

import pytest
import torch

from training.losses import add_noise, consistency_target, denoised, flow_matching, psnr, reconstruction, shifted


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
