"""The judge of `streamgen evaluate --student avatar`, trained on real clips."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.face import CURVES
from streamgen.models.autoencoder import to_float, to_uint8
from training.data import Clip, held_out
from training.distributed import rank_and_size
from training.footage import VideoDataError, pictures
from training.recipe import FaceJudgeRecipe
from training.sheets import contact_sheet
from training.talk.dataset import TalkDataset, Video
from training.talk.judge import SAID, FaceJudge, crops, opening, save_face_judge

_JUDGED = 12, 48
"""Held-out clips and the frames of each."""
_COLUMNS = [CURVES.index(name) for name in SAID]
_BRIGHTER = 0.15


class FaceJudgeStage:
    """Trains `FaceJudge` by squared error. What it looks at of every frame is kept: to find frames in videos took
    three times as long as to learn from them.
    """

    def __init__(self, recipe: FaceJudgeRecipe) -> None:
        self.recipe = recipe
        self.data = TalkDataset(recipe.data, recipe.width, recipe.height)
        torch.manual_seed(recipe.seed)
        self.model: nn.Module = FaceJudge()
        self._held_out = held_out(self.data, *_JUDGED)
        own = [video for video in self.data.videos if video.split and video.curves is not None]
        if not own:
            raise VideoDataError(f"{self.data.folder}: no video to train on says what moved it")
        rank, _ = rank_and_size()
        kept = [self._seen(video) for video in track(own, f"{recipe.name}: reading", transient=True, disable=rank > 0)]
        self._mouths, self._eyes, self._curves = (torch.cat(each) for each in zip(*kept, strict=True))
        # Whoever has more video is drawn more often, by the square root of its length.
        whose = np.repeat([video.who for video in own], [video.split for video in own])
        _, person, frames = np.unique(whose, return_inverse=True, return_counts=True)
        self._odds = 1 / np.sqrt(frames[person])
        self._odds /= self._odds.sum()

    def _seen(self, video: Video) -> tuple[Tensor, Tensor, Tensor]:
        """Mouths and eyes uint8 [F, h, w, 3] and curves [F, len(SAID)] of what is not held out of a video."""
        assert video.curves is not None
        frames = np.stack(list(islice(pictures(video.path, 0, self.data.width, self.data.height), video.split)))
        mouths, eyes = (to_uint8(part) for part in crops(frames))
        return mouths, eyes, torch.from_numpy(video.curves[: len(frames), _COLUMNS])

    def batch(self, clips: list[Clip], number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mouths and eyes [B, 3, h, w] and curves [B, len(SAID)]."""
        rng = np.random.default_rng((self.recipe.seed, number))
        chosen = torch.from_numpy(rng.choice(len(self._odds), self.recipe.frames, p=self._odds))
        # Generated faces are not as sharp as real ones, nor always as bright.
        mouths, eyes = (_roughened(to_float(part[chosen]), rng) for part in (self._mouths, self._eyes))
        return mouths, eyes, self._curves[chosen]

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
