"""A judge of generated faces that was trained on real ones: which curves does this frame show?

It sees a frame's mouth and eyes, and nothing that drove them. It errs on real frames too; that is its ceiling, reported
beside what it says of generated ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.face import MOUTH, SPEECH
from streamgen.models.autoencoder import to_float
from streamgen.models.loading import load_weights, save_weights
from streamgen.student import WEIGHTS
from training.metrics import inside
from training.recipe import Box, RecipeError

FACE_JUDGE = "face_judge"
SAID = (*SPEECH, "blink")
"""Curves that it names, scaled as in `streamgen.face`."""
EYES: Box = (0.27, 0.34, 0.73, 0.54)
_CROPS: tuple[tuple[Box, tuple[int, int]], ...] = ((MOUTH, (48, 64)), (EYES, (32, 64)))
"""Parts of a frame and the height and width that they are looked at in."""
_BATCH = 64


class _Network(nn.Sequential):
    """Images [B, 3, H, W] to numbers [B, out]: three halvings, then a layer over all places."""

    def __init__(self, out: int, height: int, width: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, 24, 3, stride=2, padding=1), nn.SiLU()]
        for before, after in ((24, 48), (48, 64)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
            layers += [nn.Conv2d(after, after, 3, padding=1), nn.SiLU()]
        places = (height // 8) * (width // 8)
        super().__init__(*layers, nn.Flatten(), nn.Linear(64 * places, 128), nn.SiLU(), nn.Linear(128, out))


class FaceJudge(nn.Module):
    """mouth: the curves of speech. eyes: how far they are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.mouth = _Network(len(SPEECH), *_CROPS[0][1])
        self.eyes = _Network(1, *_CROPS[1][1])

    def forward(self, mouths: Tensor, eyes: Tensor) -> Tensor:
        """Curves [B, len(SAID)] of crops as `crops` makes them."""
        return torch.cat([self.mouth(mouths), self.eyes(eyes)], 1)

    @torch.no_grad()
    def curves_of(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[F, len(SAID)], scaled, of frames [F, H, W, 3]."""
        parts = [frames[at : at + _BATCH] for at in range(0, len(frames), _BATCH)]
        out: NDArray[np.float32] = torch.cat([self(*crops(part)) for part in parts]).numpy()
        return out


def crops(frames: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Mouths and eyes of frames [F, H, W, 3] as images in [-1, 1]."""
    mouths, eyes = (
        F.interpolate(to_float(torch.from_numpy(np.ascontiguousarray(inside(frames, box)))), size, mode="area")
        for box, size in _CROPS
    )
    return mouths, eyes


def opening(curves: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far a mouth is open, [F], of scaled curves [F, n] that begin as `SPEECH`: about 0 shut, 1 wide open."""
    unscaled = {name: curves[:, k] / scale for k, (name, scale) in enumerate(SPEECH.items())}
    jaw, lips = unscaled["jawOpen"], unscaled["mouthLowerDown"] + unscaled["mouthUpperUp"]
    out: NDArray[np.float32] = 2.0 * (jaw + 0.3 * lips - unscaled["mouthClose"] - 0.15 * unscaled["mouthPress"])
    return out


def save_face_judge(judge: FaceJudge, run: Path) -> None:
    save_weights(judge, run / FACE_JUDGE / WEIGHTS)
    (run / FACE_JUDGE / "config.json").write_text(json.dumps({"curves": SAID}, indent=2) + "\n")


def load_face_judge(run: Path) -> FaceJudge:
    """Raises RecipeError when the run has none."""
    if not (run / FACE_JUDGE / WEIGHTS).is_file():
        raise RecipeError(f"{run}: no judge of faces; train it first (`streamgen train avatar/judge`)")
    judge = FaceJudge()
    load_weights(judge, run / FACE_JUDGE / WEIGHTS)
    return judge.requires_grad_(False).eval()
