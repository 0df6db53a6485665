"""The world before the teacher: where the keys lead, and what is to be seen from there (streamgen/models/pose.py).

Both learn side by side and share nothing: the one from the poses of clips, the other from single frames. A batch is
drawn from a pool of clips and a pool of frames that are recorded once, at the start, by each process its share: a step
costs little and a recording much.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.models.loading import load_autoencoder, save_pose
from streamgen.models.pose import SHARPNESS, Motion, Pose
from training.clips import LatentClips, encode, poses_of
from training.data import Clip, held_out, recorded
from training.distributed import rank_and_size
from training.judges import yaw_difference
from training.metrics import JUDGED, decode, frames_psnr
from training.package import data_for
from training.recipe import PoseRecipe
from training.sheets import contact_sheet

_SEEN = 48, 33
"""Held-out clips and the frames of each; every eighth frame is judged."""
_WALKED = 24, JUDGED[1]
"""Held-out clips that are walked through to their end, and the frames of each."""
_PART = 64
_POOL_SEED = 2**30 + 1
"""Recorded for pools alone."""
_SHARPNESS = 64.0
"""Errors of a place count squared up to a quarter of 1 / 64 of the scale (2 map units of 512), linearly beyond: whether
one hits a pillar or slides past it is not to be averaged."""
_SOFT_EDGES = 8.0, 0.6
"""Sharpness of the view's edges at the start, and the share of the steps after which they are as sharp as in play."""
_HEADING = 30.0
"""What an error of the heading's cosine and sine counts beside: two degrees are about one, as are eight map units."""


class PoseStage:
    """Trains `Pose`: squared error of the view's latents, Huber's of places some frames on."""

    def __init__(self, recipe: PoseRecipe) -> None:
        self.recipe = recipe
        self._autoencoder = load_autoencoder(recipe.autoencoder)
        self.data = data_for(recipe, recipe.model, self._autoencoder)
        torch.manual_seed(recipe.seed)
        self.model: nn.Module = Pose(recipe.model)
        self._held_out = held_out(self.data, *_SEEN)
        self._judged = self._encoded(self._held_out)[:, ::8].flatten(0, 1)
        self._walked = self._poses(held_out(self.data, *_WALKED))
        parts = self._recorded("frames", 0, recipe.pool, 1)
        self._pool = torch.cat([self._encoded(part)[:, 0] for part in parts])
        walks = [self._poses(part) for part in self._recorded("walks", recipe.pool, recipe.walks, recipe.clip_length)]
        self._walks = LatentClips(torch.cat([w.latents for w in walks]), torch.cat([w.actions for w in walks]))

    def batch(self, clips: list[Clip], number: int) -> tuple[Tensor, float, LatentClips]:
        """Latents [N, C, h, w] of single frames, how sharp the view's edges are by now, and short walks: poses
        [B, 1 + walk, 6] in place of latents.
        """
        recipe, rng = self.recipe, np.random.default_rng((self.recipe.seed, number))
        frames = rng.integers(len(self._pool), size=recipe.frames)
        chosen = rng.integers(len(self._walks.latents), size=recipe.starts)
        poses, actions = self._walks.latents[chosen], self._walks.actions[chosen]
        # Not from a clip's first frame, whose speed is not known.
        starts = rng.integers(1, recipe.clip_length - recipe.walk, size=(len(poses), 1))
        at = np.arange(len(poses))[:, None], starts + np.arange(1 + recipe.walk)
        return self._pool[frames], self._sharpness(number), LatentClips(poses[at], actions[at])

    def loss(
        self, batch: tuple[Tensor, float, LatentClips], ema: nn.Module, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(self.model, Pose)
        pictures, sharpness, walks = batch
        picture, pose = self._split(pictures)
        view = F.mse_loss(self.model.view(pose, sharpness), picture)
        made, true = walk(self.model.motion, walks.latents[:, 0], walks.actions[:, 1:]), walks.latents[:, 1:]
        place = F.smooth_l1_loss(made[..., :2] * _SHARPNESS, true[..., :2] * _SHARPNESS, beta=0.25)
        motion = place + F.mse_loss(made[..., 2:4] * _HEADING, true[..., 2:4] * _HEADING)
        return view + motion, {"view": view.item(), "motion": motion.item()}

    @torch.no_grad()
    def evaluate(self, ema: nn.Module, sheet: Path) -> dict[str, float]:
        assert isinstance(ema, Pose)
        pictures, poses = self._split(self._judged)
        made = decode(self._autoencoder, torch.cat([ema.view(part) for part in poses.split(_PART)]))
        real = np.concatenate([clip.frames[::8] for clip in self._held_out])
        contact_sheet([frames[at : at + 8] for at in (0, 40) for frames in (real, made)], sheet)
        walks = self._walked
        ends, true = walk(ema.motion, walks.latents[:, 1], walks.actions[:, 2:])[:, -1], walks.latents[:, -1]
        headings = (np.degrees(torch.atan2(pose[:, 3], pose[:, 2]).numpy()) for pose in (ends, true))
        assert self.recipe.model.pose_scale
        return {
            "psnr": frames_psnr(made, real),
            "ceiling": frames_psnr(decode(self._autoencoder, pictures), real),
            "yaw_deg": float(np.median(yaw_difference(*headings))),
            "distance": float((ends - true)[:, :2].norm(dim=1).median()) * self.recipe.model.pose_scale,
        }

    def finish(self, ema: nn.Module, folder: Path) -> None:
        assert isinstance(ema, Pose)
        save_pose(ema, folder)

    def _sharpness(self, number: int) -> float:
        recipe = self.recipe
        _, size = rank_and_size()
        done = number / (recipe.steps * recipe.accumulate * size)
        start, until = _SOFT_EDGES
        return start + min(1.0, done / until) * (SHARPNESS - start)

    def _recorded(self, what: str, first: int, count: int, length: int) -> Iterator[list[Clip]]:
        """This process's share of the clips for a pool, some at a time."""
        rank, size = rank_and_size()
        count = max(1, count // size)
        first += rank * count
        clips = recorded(self.data, _POOL_SEED, range(first, first + count), length)
        said = f"{self.recipe.name}: recording {count} {what}"
        for _ in track(range(0, count, _PART), said, transient=True, disable=rank > 0):
            yield list(islice(clips, _PART))

    def _encoded(self, clips: list[Clip]) -> Tensor:
        return encode(self._autoencoder, clips, self.recipe.model).latents

    def _poses(self, clips: list[Clip]) -> LatentClips:
        assert self.recipe.model.pose_scale
        actions = torch.from_numpy(np.stack([clip.actions for clip in clips])).float()
        return LatentClips(poses_of(clips, self.recipe.model.pose_scale), actions)

    def _split(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [N, C, h, w] and poses [N, 6] of latents."""
        channels = self.recipe.model.picture_channels
        return latents[:, :channels], latents[:, channels:, 0, 0]


def walk(motion: Motion, pose: Tensor, actions: Tensor) -> Tensor:
    """Poses [..., F, 6] that actions [..., F, A] lead to from a pose [..., 6]."""
    poses = []
    for action in actions.unbind(-2):
        pose = motion(pose, action)
        poses.append(pose)
    return torch.stack(poses, -2)
