"""The judges of `streamgen evaluate`, trained on real clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.models.autoencoder import to_float
from training.clips import pose_vector
from training.data import Clip, held_out, open_data
from training.judges import Judges, recognised, save_judges, yaw_difference
from training.recipe import JudgesRecipe
from training.sheets import contact_sheet

_JUDGED = 24, 32
"""Held-out clips and the frames of each."""


class JudgesStage:
    """Trains `Judges`: binary cross-entropy of the keys, squared error of the pose where it is known."""

    def __init__(self, recipe: JudgesRecipe) -> None:
        self.recipe = recipe
        self.data = open_data(recipe.data, recipe.width, recipe.height)
        torch.manual_seed(recipe.seed)
        self.model: nn.Module = Judges(self.data.keys, recipe.height, recipe.width, recipe.scale)
        self._held_out = held_out(self.data, *_JUDGED)

    def batch(self, clips: list[Clip], number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images before and after [B, 3, H, W], keys [B, A] that led from one to the other, poses [B, 3] after."""
        rng = np.random.default_rng((self.recipe.seed, number))
        before, after, keys, poses = [], [], [], []
        for clip in clips:
            at = 1 + rng.choice(len(clip.frames) - 1, self.recipe.frames, replace=False)
            before.append(clip.frames[at - 1])
            after.append(clip.frames[at])
            keys.append(clip.actions[at])
            poses.append(clip.poses[at])
        x, y = (to_float(torch.from_numpy(np.concatenate(frames))) for frames in (before, after))
        return x, y, torch.from_numpy(np.concatenate(keys)).float(), torch.from_numpy(np.concatenate(poses))

    def loss(
        self, batch: tuple[Tensor, Tensor, Tensor, Tensor], ema: nn.Module, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(self.model, Judges)
        before, after, keys, poses = batch
        loss = F.binary_cross_entropy_with_logits(self.model.key_logits(before, after), keys)
        known = poses.isfinite().all(1)
        if known.any():
            target = pose_vector(poses[known], self.recipe.scale)
            loss = loss + F.mse_loss(self.model.pose(after[known]), target)
        return loss, {}

    def evaluate(self, ema: nn.Module, sheet: Path) -> dict[str, float]:
        assert isinstance(ema, Judges)
        contact_sheet([clip.frames[::4] for clip in self._held_out[:4]], sheet)
        said = np.concatenate([ema.keys_of(clip.frames) for clip in self._held_out])
        keys = np.concatenate([clip.actions[1:] for clip in self._held_out])
        figures = recognised(said, keys, self.data.keys)
        poses = np.concatenate([clip.poses for clip in self._held_out])
        if np.isfinite(poses).all():
            seen = np.concatenate([ema.poses_of(clip.frames) for clip in self._held_out])
            figures["yaw_deg"] = float(np.median(yaw_difference(seen[:, 2], poses[:, 2])))
            figures["distance"] = float(np.median(np.hypot(*(seen[:, :2] - poses[:, :2]).T)))
        return figures

    def finish(self, ema: nn.Module, folder: Path) -> None:
        assert isinstance(ema, Judges)
        save_judges(ema, folder)
