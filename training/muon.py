"""Muon (Jordan et al. 2024): momentum whose update is the nearest matrix with all singular values alike.

Our own, where torch has one: that one takes no kernels of convolutions, and works in bf16, which CPUs without bf16
units do at a third of the speed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from training.distributed import like, whole

_POLYNOMIAL = 3.4445, -4.7750, 2.0315
"""Jordan's quintic: it brings singular values in (0, 1] near 1 in few steps, to within 0.3."""
_STEPS = 5
_RMS = 0.2
"""Spread of an update's entries, that of AdamW's (Liu et al. 2025): so rates are of the same size."""


@torch.no_grad()
def orthogonalised(matrices: Tensor) -> Tensor:
    """[..., m, n] with their singular values brought near 1.

    Works on the smaller of the two Gram matrices: every step is a polynomial of it, so it is as large as the smaller
    side whatever the other is.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalised(matrices.mT).mT
    a, b, c = _POLYNOMIAL
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    gram = x @ x.mT
    one = torch.eye(gram.shape[-1])
    total = one
    for _ in range(_STEPS):
        step = a * one + b * gram + c * gram @ gram
        total = step @ total
        gram = step @ gram @ step
    return total @ x


class Muon(torch.optim.Optimizer):
    """For matrices and for kernels [out, in, ...], which count as matrices of `out` rows."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Matrices of one shape are orthogonalised together. A closure is not used."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                nesterov = parameter.grad.lerp(momentum, group["momentum"])
                # An update needs the whole matrix, of which a process may have a piece.
                nesterov = whole(nesterov).flatten(1)
                alike[nesterov.shape].append((parameter, nesterov))
            for shape, found in alike.items():
                updates = orthogonalised(torch.stack([update for _, update in found]))
                for (parameter, _), update in zip(found, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(
                        like(parameter, update.view(parameter.shape)), alpha=-group["lr"] * _RMS * max(shape) ** 0.5
                    )
