"""Scores: how a teacher or a critic denoises whole clips, each frame from its past or all of them together.

Dimensions as in `training.clips`.
"""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from streamgen.cache import time_rotation
from streamgen.config import TransformerConfig
from streamgen.models.attention import full_rotation, rotate
from streamgen.models.loading import load_transformer
from streamgen.models.transformer import CausalVideoTransformer
from training.clips import ClipPass, LatentClips, before
from training.losses import denoised, guided
from training.package import ORIGIN


class BidirectionalAttention:
    """Attention of all frames of a clip to all of them, at the positions that they have in a stream."""

    def __init__(self, config: TransformerConfig, space: Tensor, frames: int) -> None:
        positions = torch.arange(frames).numpy()
        cos, sin = full_rotation(torch.from_numpy(time_rotation(positions, config.rope_pairs[0])), space)
        self._cos, self._sin = cos, sin  # [F, N, 1, D]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        frames = q.shape[1]
        q, k = rotate(q, self._cos, self._sin), rotate(k, self._cos, self._sin)
        q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return out.unflatten(1, (frames, -1))


def joint_velocity(
    model: CausalVideoTransformer,
    clips: LatentClips,
    context: int,
    x: Tensor,
    sigma: Tensor,
    known: Tensor | None = None,
) -> Tensor:
    """Velocity [B, F - context, C, h, w] of all frames after the first `context` of clips at once, from x
    [B, F - context, C, h, w] at one level sigma [B] for each clip.

    The frames of the context, one or more, are clean; the last of them stands for the clean latent before each noisy
    frame, but for its pose, which is that of the clip. known [B]: 0 withholds what drives the noisy frames.
    """
    config, latents = model.config, clips.latents
    rows, frames = latents.shape[:2]
    levels = torch.cat([latents.new_zeros(rows, context), sigma[:, None].expand(-1, frames - context)], 1)
    previous = None
    if config.concat_previous:
        previous = before(latents, config.block_size).clone()
        previous[:, context:, : config.picture_channels] = latents[:, context - 1 : context, : config.picture_channels]
    face = model.face(latents[:, 0], clips.actions[:, 0], clips.actions) if config.face_dim else None
    given = torch.ones(rows, frames)
    if known is not None:
        given[:, context:] = known[:, None]
    velocity: Tensor = model(
        torch.cat([latents[:, :context], x], 1),
        levels,
        BidirectionalAttention(config, model.space, frames),
        clips.actions,
        previous,
        known_BF=given,
        shown_BFCHW=face,
    )
    return velocity[:, context:].float()


class Score:
    """x0 of noisy clips as a network predicts it.

    A causal network sees each frame's past as it is in the clip, so it cannot tell a past that has drifted from a good
    one; a bidirectional one denoises all frames together.
    """

    def __init__(self, model: CausalVideoTransformer, bidirectional: bool) -> None:
        self.model, self.bidirectional = model, bidirectional

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Of a run or student folder, frozen. Raises StudentError."""
        origin = folder / ORIGIN
        kind = json.loads(origin.read_text()).get("bidirectional", False) if origin.exists() else False
        return cls(load_transformer(folder), kind)

    def trainable(self) -> Self:
        """A copy that learns, but for its pose and face."""
        model = copy.deepcopy(self.model).requires_grad_(True).train()
        freeze_known(model)
        return type(self)(model, self.bidirectional)

    def velocity(
        self,
        clips: LatentClips,
        context: int,
        x: Tensor,
        sigma: Tensor,
        noise: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Of frames after the first `context` of clips, x [B, F - context, C, h, w] at level sigma [B] each.

        noise as the clips' latents: of the history, which a `history_level` needs. known [B]: 0 withholds actions.
        """
        if self.bidirectional:
            return joint_velocity(self.model, clips, context, x, sigma, known)
        rows, frames = clips.latents.shape[:2]
        history = clips.latents.detach()
        passed = ClipPass(self.model.config, history, torch.zeros(rows, frames), clips.actions, noise=noise)
        whole = torch.cat([history[:, :context], x], 1)[:, None]
        levels = sigma[:, None, None].expand(-1, 1, frames)
        given = None if known is None else known[:, None, None].expand(-1, 1, frames)
        return passed.velocity(self.model, whole, levels, given)[:, 0, context:]

    def x0(
        self,
        clips: LatentClips,
        context: int,
        x: Tensor,
        sigma: Tensor,
        noise: Tensor | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """As `velocity`. guidance: above 1, how far beyond what it predicts without actions."""
        velocity = guided(partial(self.velocity, clips, context, x, sigma, noise), sigma, guidance)
        return denoised(x, velocity, sigma)


def freeze_known(model: CausalVideoTransformer) -> None:
    """What was learned before the transformer stays as it is: pose and face."""
    for part in ("pose", "face"):
        if hasattr(model, part):
            getattr(model, part).requires_grad_(False)
