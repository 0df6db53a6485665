"""The judge of `streamgen evaluate --student avatar`, trained on real clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.face import CURVES
from training.data import Clip, held_out
from training.recipe import FaceJudgeRecipe
from training.sheets import contact_sheet
from training.talk.dataset import TalkDataset
from training.talk.judge import SAID, FaceJudge, crops, opening, save_face_judge

_JUDGED = 12, 48
"""Held-out clips and the frames of each."""
_COLUMNS = [CURVES.index(name) for name in SAID]
_BRIGHTER = 0.15


class FaceJudgeStage:
    """Trains `FaceJudge` by squared error."""

    def __init__(self, recipe: FaceJudgeRecipe) -> None:
        self.recipe = recipe
        self.data = TalkDataset(recipe.data, recipe.width, recipe.height)
        torch.manual_seed(recipe.seed)
        self.model: nn.Module = FaceJudge()
        self._held_out = held_out(self.data, *_JUDGED)

    def batch(self, clips: list[Clip], number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mouths and eyes [B, 3, h, w] and curves [B, len(SAID)]."""
        rng = np.random.default_rng((self.recipe.seed, number))
        frames, curves = [], []
        for clip in clips:
            at = rng.choice(len(clip.frames), self.recipe.frames, replace=False)
            frames.append(clip.frames[at])
            curves.append(clip.actions[at][:, _COLUMNS])
        # Generated faces are not as sharp as real ones, nor always as bright.
        mouths, eyes = (_roughened(part, rng) for part in crops(np.concatenate(frames)))
        return mouths, eyes, torch.from_numpy(np.concatenate(curves)).float()

    def loss(
        self, batch: tuple[Tensor, Tensor, Tensor], ema: nn.Module, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        mouths, eyes, curves = batch
        return F.mse_loss(self.model(mouths, eyes), curves), {}

    def evaluate(self, ema: nn.Module, sheet: Path) -> dict[str, float]:
        assert isinstance(ema, FaceJudge)
        contact_sheet([clip.frames[::8] for clip in self._held_out[:4]], sheet)
        said = np.concatenate([ema.curves_of(clip.frames) for clip in self._held_out])
        truth = np.concatenate([clip.actions[:, _COLUMNS] for clip in self._held_out])
        return {
            "opening": float(np.corrcoef(opening(said), opening(truth))[0, 1]),
            "opening_error": float(np.abs(opening(said) - opening(truth)).mean()),
            "blink": float(np.corrcoef(said[:, -1], truth[:, -1])[0, 1]),
        }

    def finish(self, ema: nn.Module, folder: Path) -> None:
        assert isinstance(ema, FaceJudge)
        save_face_judge(ema, folder)


def _roughened(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of the images blurred, all of them a little brighter or darker."""
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    chosen = torch.from_numpy(rng.random(len(images)) < 0.5)[:, None, None, None]
    gain = torch.from_numpy(1 + _BRIGHTER * rng.uniform(-1, 1, len(images))).float()[:, None, None, None]
    return torch.where(chosen, blurred, images) * gain
