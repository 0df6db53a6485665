"""What methods that follow a causal teacher's trajectories share."""

from __future__ import annotations

import torch
from torch import Tensor

from streamgen.models.transformer import CausalVideoTransformer
from training.clips import ClipPass


def guided(clip: ClipPass, teacher: CausalVideoTransformer, x: Tensor, sigma: Tensor, guidance: float) -> Tensor:
    """The teacher's velocity of noisy copies x [B, K, F, C, h, w] at levels sigma [B, K, F]; guidance above 1: so far
    beyond what it predicts without actions.
    """
    velocity = clip.velocity(teacher, x, sigma)
    if guidance > 1:
        blind = clip.velocity(teacher, x, sigma, known=torch.zeros_like(sigma))
        velocity = blind + guidance * (velocity - blind)
    return velocity
