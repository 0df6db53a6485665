"""Exponential moving average of a model's weights, in fp32."""

from __future__ import annotations

import copy

import torch
from torch import nn

from training.distributed import whole


class EMA:
    """`model` follows the trained model: w <- d w + (1 - d) w_trained with d = min(decay, (1 + n) / (10 + n)) at
    update n. It is whole in every process, also where the trained one is in pieces: processes may ask it for rollouts
    of different lengths.
    """

    def __init__(self, trained: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(trained).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, trained: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for weight, trained_weight in zip(self.model.parameters(), trained.parameters(), strict=True):
            weight.lerp_(whole(trained_weight), 1 - decay)
        for buffer, trained_buffer in zip(self.model.buffers(), trained.buffers(), strict=True):
            buffer.copy_(trained_buffer)
