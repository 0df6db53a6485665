"""What a talking head about looks like, before the teacher: frames from a reference and curves.

See streamgen/models/face.py. Single frames that lie far apart, so that only the curves say what they show.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from streamgen.config import TransformerConfig
from streamgen.models.face import Face
from streamgen.models.loading import load_autoencoder, load_face, load_transformer, save_face
from training.clips import LatentClips, encode, error_weight
from training.data import Clip, held_out
from training.metrics import decode, frames_psnr, inside, other_actions
from training.package import data_for, start_from
from training.recipe import FaceRecipe
from training.sheets import contact_sheet

_JUDGED = 24, 33
"""Held-out clips and the frames of each; every eighth frame is judged."""


class FaceStage:
    """Trains `Face` by squared error of the latents."""

    def __init__(self, recipe: FaceRecipe) -> None:
        self.recipe = recipe
        self._autoencoder = load_autoencoder(recipe.autoencoder)
        self.data = data_for(recipe, recipe.model, self._autoencoder)
        torch.manual_seed(recipe.seed)
        self.model: nn.Module = Face(recipe.model)
        if recipe.start is not None:
            start_from(self.model, _face_of(recipe.start, recipe.model), recipe.start)
        self._held_out = held_out(self.data, *_JUDGED)
        clips = encode(self._autoencoder, self._held_out, recipe.model)
        shown = [0, *range(1, _JUDGED[1], 8)]
        self._judged = LatentClips(clips.latents[:, shown], clips.actions[:, shown])
        self._weight = error_weight(self._autoencoder, recipe.model, recipe, self._judged)
        self._real = np.stack([clip.frames[shown[1:]] for clip in self._held_out])

    def batch(self, clips: list[Clip], number: int) -> LatentClips:
        return encode(self._autoencoder, clips, self.recipe.model)

    def loss(self, batch: LatentClips, ema: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        read = torch.rand(len(batch.actions), generator=generator) >= self.recipe.unread
        error = (_drawn(self.model, batch, read) - batch.latents[:, 1:]).square()
        return (error * self._weight).mean(), {"error": error.mean().item()}

    @torch.no_grad()
    def evaluate(self, ema: nn.Module, sheet: Path) -> dict[str, float]:
        clips = self._judged
        every = torch.ones(len(clips.actions), dtype=torch.bool)
        made = decode(self._autoencoder, _drawn(ema, clips, every))
        unread = decode(self._autoencoder, _drawn(ema, clips, ~every))
        other = decode(self._autoencoder, _drawn(ema, LatentClips(clips.latents, other_actions(clips.actions)), every))
        ceiling = decode(self._autoencoder, clips.latents[:, 1:])
        contact_sheet([rows[at] for at in range(0, 12, 3) for rows in (self._real, made)], sheet)
        figures = {"psnr": made, "unread": unread, "other": other, "ceiling": ceiling}
        out = {name: frames_psnr(frames, self._real) for name, frames in figures.items()}
        for part, box in self.recipe.focus.items():
            real = inside(self._real, box)
            out |= {f"{name}_{part}": frames_psnr(inside(frames, box), real) for name, frames in figures.items()}
        return out

    def finish(self, ema: nn.Module, folder: Path) -> None:
        assert isinstance(ema, Face)
        save_face(ema, folder)


def _face_of(folder: Path, config: TransformerConfig) -> Face:
    """From the run of a face, or from a transformer that has one. Raises StudentError."""
    if not (folder / "face").is_dir():
        return load_transformer(folder).face
    face = Face(config)
    load_face(face, folder)
    return face


def _drawn(face: nn.Module, clips: LatentClips, read: Tensor) -> Tensor:
    """All frames but the first, from it. read [B]: whether it is said what drives the first."""
    out: Tensor = face(clips.latents[:, 0], clips.actions[:, 0] * read[:, None], clips.actions[:, 1:])
    return out
