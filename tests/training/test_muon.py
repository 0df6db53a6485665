"""The optimiser of matrices and kernels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 90), (90, 16)])
def test_singular_values_are_brought_near_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape) * 10 ** torch.randn((*shape[:-2], 1, 1))
    out = orthogonalised(matrices)
    values = torch.linalg.svdvals(out)
    assert out.shape == shape and values.min() > 0.1 and values.max() < 1.3
    assert 0.6 < values.median() < 1.3
    # They are turned into each other as before: U S V^T becomes U V^T.
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.nn.functional.cosine_similarity((u @ v).flatten(), out.flatten(), dim=0) > 0.93


def test_a_step_is_torchs_own_but_for_its_rounding() -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(48, 24), torch.randn(3, 48, 24)
    mine, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = Muon([mine], lr=0.01, weight_decay=0.1)
    theirs = torch.optim.Muon([other], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        for parameter, optimizer in ((mine, ours), (other, theirs)):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved, wanted = (mine - start).detach().flatten(), (other - start).detach().flatten()
    assert torch.nn.functional.cosine_similarity(moved, wanted, dim=0) > 0.999
    assert float(moved.norm()) == pytest.approx(float(wanted.norm()), rel=0.02)


def test_a_kernel_is_the_matrix_of_its_rows() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 6, 3, 3), torch.randn(8, 6, 3, 3)
    kernel, matrix = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1).clone())
    untouched = nn.Parameter(start.clone())
    kernel.grad, matrix.grad = gradient, gradient.flatten(1)
    Muon([kernel, matrix, untouched], lr=0.1).step()
    assert not torch.equal(kernel, start) and torch.equal(untouched, start)
    torch.testing.assert_close(kernel.flatten(1), matrix)
