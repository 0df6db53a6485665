"""Two judges that look at frames alone and were trained on real ones: which keys drove a frame, and where it was seen
from.

A judge errs on real frames too; that is its ceiling, reported beside what it says of generated ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamgen.models.autoencoder import to_float
from streamgen.models.loading import load_weights, save_weights
from streamgen.student import WEIGHTS
from training.recipe import RecipeError

JUDGES = "judges"
_BATCH = 128


class _Network(nn.Sequential):
    """Images [B, in, H, W] to numbers [B, out]: four halvings of 4x4 patches, then a layer over all places."""

    def __init__(self, in_channels: int, out: int, height: int, width: int) -> None:
        dims = (48, 64, 96, 128)
        layers: list[nn.Module] = [nn.PixelUnshuffle(4), nn.Conv2d(16 * in_channels, dims[0], 3, padding=1), nn.SiLU()]
        h, w = height // 4, width // 4
        for a, b in pairwise(dims):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(b, b, 3, padding=1), nn.SiLU()]
            h, w = -(-h // 2), -(-w // 2)
        super().__init__(*layers, nn.Flatten(), nn.Linear(dims[-1] * h * w, 256), nn.SiLU(), nn.Linear(256, out))


class Judges(nn.Module):
    """keys: inverse dynamics, from two successive frames; pose: from one frame. Map units are divided by `scale`."""

    def __init__(self, keys: Sequence[str], height: int, width: int, scale: float) -> None:
        """keys: KeyboardEvent.code of each action; height and width in pixels."""
        super().__init__()
        self.keys, self.height, self.width, self.scale = tuple(keys), height, width, scale
        self._keys = _Network(6, len(self.keys), height, width)
        self._pose = _Network(3, 4, height, width)

    def key_logits(self, before: Tensor, after: Tensor) -> Tensor:
        """[B, A] for images [B, 3, H, W] in [-1, 1]; positive: the key was held."""
        logits: Tensor = self._keys(torch.cat([after - before, after], 1))
        return logits

    def pose(self, images: Tensor) -> Tensor:
        """[B, 4]: x and y in units of `scale`, cosine and sine of yaw."""
        pose: Tensor = self._pose(images)
        return pose

    @torch.no_grad()
    def keys_of(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities [F - 1, A] of the keys that drove frames 1, 2, … of successive frames [F, H, W, 3]."""
        images = to_float(torch.from_numpy(frames))
        pairs = zip(images[:-1].split(_BATCH), images[1:].split(_BATCH), strict=True)
        out: NDArray[np.float32] = torch.cat([self.key_logits(a, b).sigmoid() for a, b in pairs]).numpy()
        return out

    @torch.no_grad()
    def poses_of(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[F, 3], x and y in map units and yaw in degrees, of frames [F, H, W, 3]."""
        pose = torch.cat([self.pose(part) for part in to_float(torch.from_numpy(frames)).split(_BATCH)])
        yaw = torch.rad2deg(torch.atan2(pose[:, 3], pose[:, 2])) % 360
        out: NDArray[np.float32] = torch.cat([pose[:, :2] * self.scale, yaw[:, None]], 1).numpy()
        return out


def save_judges(judges: Judges, run: Path) -> None:
    save_weights(judges, run / JUDGES / WEIGHTS)
    config = {"keys": judges.keys, "height": judges.height, "width": judges.width, "scale": judges.scale}
    (run / JUDGES / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_judges(run: Path) -> Judges:
    """Raises RecipeError when the run has none."""
    try:
        judges = Judges(**json.loads((run / JUDGES / "config.json").read_text()))
    except OSError as error:
        raise RecipeError(f"{run}: no judges; train them first (`streamgen train world/judges`)") from error
    load_weights(judges, run / JUDGES / WEIGHTS)
    return judges.requires_grad_(False).eval()


def recognised(said: NDArray[np.float32], keys: NDArray[np.uint8], codes: Sequence[str]) -> dict[str, float]:
    """Balanced accuracy of each key by its code, from probabilities and truth [N, A]: mean of the shares of frames
    found with and without it. A key that was always held or never is left out.
    """
    held, found = keys > 0, said > 0.5
    return {
        code: float((found[held[:, k], k].mean() + (~found[~held[:, k], k]).mean()) / 2)
        for k, code in enumerate(codes)
        if held[:, k].any() and not held[:, k].all()
    }


def turn_accuracy(said: NDArray[np.float32], keys: NDArray[np.uint8], left: int, right: int) -> float | None:
    """Of the frames with exactly one of two opposite keys held, the share in which that key, and not the other, is the
    likelier one and likelier than not. None without such frames.
    """
    turning = keys[:, left] != keys[:, right]
    if not turning.any():
        return None
    towards = np.where(keys[turning, left] > 0, left, right)
    away = left + right - towards
    row = np.arange(len(towards))
    p, q = said[turning][row, towards], said[turning][row, away]
    return float(((p > 0.5) & (p > q)).mean())


def yaw_difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Absolute difference of two headings in degrees, 0 to 180."""
    out: NDArray[np.float32] = np.abs((a - b + 180) % 360 - 180)
    return out
