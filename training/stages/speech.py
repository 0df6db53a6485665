"""The avatar's ear: from sound to the mouth's curves, learned from speech whose curves are known.

It is trained before the transformer, which is driven by these curves, and apart from it: speech without pictures is
cheap, and lips that follow voices never heard need much of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.audio import log_mel
from streamgen.face import SPEECH
from streamgen.models.loading import load_speech, save_speech
from streamgen.models.speech import SpeechEncoder, windows
from training.data import Clip, ClipData, held_out
from training.package import start_from
from training.recipe import SpeechRecipe
from training.sheets import line_sheet
from training.talk.voices import FPS, VoiceDataset, ends_of

_JUDGED = 48, 150
"""Clips and frames of a clip."""
_SHOWN = ("jawOpen", "mouthPress", "mouthPucker", "mouthLowerDown")


@dataclass(frozen=True)
class _Heard:
    """mel [B, T, MEL_BINS]; curves [B, F, n]."""

    mel: Tensor
    curves: Tensor


class SpeechStage:
    """Trains `SpeechEncoder` to say the curves of every frame and how they change."""

    def __init__(self, recipe: SpeechRecipe) -> None:
        self.recipe = recipe
        self.data: ClipData = VoiceDataset(recipe.data)
        torch.manual_seed(recipe.seed)
        self.model: nn.Module = SpeechEncoder(recipe.model)
        if recipe.start is not None:
            start_from(self.model, load_speech(recipe.start), recipe.start)
        self._held_out = self.batch(held_out(self.data, *_JUDGED), 0)

    def batch(self, clips: list[Clip], number: int) -> _Heard:
        mel = torch.from_numpy(np.stack([log_mel(clip.sound) for clip in clips if clip.sound is not None]))
        return _Heard(mel, torch.from_numpy(np.stack([clip.actions for clip in clips])).float())

    def _read(self, model: nn.Module, heard: _Heard) -> Tensor:
        ends = torch.from_numpy(ends_of(heard.curves.shape[1], FPS))
        said: Tensor = model(windows(heard.mel, self.recipe.model, ends))
        return said

    def loss(self, batch: _Heard, ema: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        said = self._read(self.model, batch).float()
        curves = F.smooth_l1_loss(said, batch.curves, beta=0.3)
        change = F.smooth_l1_loss(said.diff(dim=1), batch.curves.diff(dim=1), beta=0.3)
        return curves + self.recipe.change_weight * change, {"curves": curves.item()}

    @torch.no_grad()
    def evaluate(self, ema: nn.Module, sheet: Path) -> dict[str, float]:
        said, truth = self._read(ema, self._held_out), self._held_out.curves
        names = list(SPEECH)

        def both(name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            return truth[..., names.index(name)].numpy(), said[..., names.index(name)].numpy()

        liveliest = int(both("jawOpen")[0].std(1).argmax())
        line_sheet({name: (both(name)[0][liveliest], both(name)[1][liveliest]) for name in _SHOWN}, sheet)
        alike = {name: _correlation(*both(name)) for name in names if both(name)[0].std() > 0}
        # A closure of p, b or m presses the lips far more than anything else does.
        pressed, said_pressed = both("mouthPress")
        closed, together = pressed > 0.6 * pressed.max(), said_pressed > 0.3 * pressed.max()
        return {
            "jaw": alike["jawOpen"],
            "curves": float(np.mean(list(alike.values()))),
            "error": F.l1_loss(said, truth).item(),
            "closures": float((closed & together).sum() / max(1, closed.sum())),
            "closed_wrongly": float((~closed & together).sum() / max(1, (~closed).sum())),
        }

    def finish(self, ema: nn.Module, folder: Path) -> None:
        assert isinstance(ema, SpeechEncoder)
        save_speech(ema, folder)


def _correlation(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    return float(np.corrcoef(x.ravel(), y.ravel())[0, 1])
