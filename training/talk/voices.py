"""A folder of recorded speech that says what a mouth does with it: no pictures, and any number of voices.

    heart_0001.flac   speech, in any container and codec that PyAV reads
    heart_0001.npz    ground truth as rendered heads have it (see training/talk/dataset.py), FPS rows a second

A folder of rendered heads is one too. What is held out goes by the number in the name, as there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamgen.audio import SAMPLE_RATE
from streamgen.face import SPEECH
from training.data import HELD_OUT_SEED, SOUND_AFTER_S, SOUND_BEFORE_S, Clip, FileRecorder
from training.footage import VideoDataError, draw
from training.talk.augment import augmented, retimed
from training.talk.dataset import around, is_held_out, read_curves, sound_of

FPS = 25.0
_TEMPO = 0.8, 1.25
_RETIMED = 0.6
"""Share of the clips that are played faster or slower."""


class VoiceDataset:
    """Clips of speech with the mouth's curves (a `training.data.ClipData`); frames are empty [F, 0, 0, 3]."""

    keys = tuple(SPEECH)
    fps = FPS

    def __init__(self, folder: Path) -> None:
        """Raises VideoDataError."""
        self.folder = folder
        self.paths = sorted(folder.glob("*.npz"))
        if not self.paths:
            raise VideoDataError(f"{folder}: no .npz in this folder says what a mouth does")

    def fingerprint(self) -> str:
        """Of names and sizes."""
        names = "\n".join(f"{path.name} {path.stat().st_size}" for path in self.paths)
        return hashlib.sha256(names.encode()).hexdigest()

    def ground(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        """There is none."""

    def recorder(self, seed: int) -> VoiceRecorder:
        return VoiceRecorder(self, seed)


class VoiceRecorder(FileRecorder):
    """Draws clips at random (a `training.data.Recorder`): those for training as other voices in other rooms."""

    def __init__(self, data: VoiceDataset, seed: int) -> None:
        """Reads all sounds. `seed` HELD_OUT_SEED draws from what is held out, all others from the rest. Raises
        VideoDataError.
        """
        self._data, self._seed = data, seed
        paths = [path for path in data.paths if is_held_out(path) == (seed == HELD_OUT_SEED)]
        self._sounds = [sound_of(path.with_suffix(".flac")) for path in paths]
        self._curves = [read_curves(path)[:, : len(SPEECH)] for path in paths]

    def record(self, num_frames: int, episode: int) -> Clip:
        """A pure function of (seed, episode, num_frames). Raises VideoDataError."""
        rng = np.random.default_rng([self._seed, episode])
        is_training = self._seed != HELD_OUT_SEED
        tempo = float(rng.uniform(*_TEMPO)) if is_training and rng.random() < _RETIMED else 1.0
        count = int(np.ceil(num_frames * tempo)) + (tempo != 1)
        place = draw([(0, len(curves)) for curves in self._curves], count, rng)
        if place is None:
            raise VideoDataError(f"{self._data.folder}: no recording to draw from is {count} frames long")
        index, first = place
        # The frames before and after, so that sound and curves are stretched together.
        start_s = first / FPS - SOUND_BEFORE_S * (tempo - 1)
        heard = around(self._sounds[index], start_s, count / FPS + (SOUND_BEFORE_S + SOUND_AFTER_S) * (tempo - 1))
        heard, curves = retimed(heard, self._curves[index][first : first + count], tempo)
        heard = heard[: round((num_frames / FPS + SOUND_BEFORE_S + SOUND_AFTER_S) * SAMPLE_RATE)]
        if is_training:
            other = self._sounds[int(rng.integers(len(self._sounds)))]
            heard = augmented(heard, rng, other[int(rng.integers(len(other))) :])
        nothing = np.zeros((num_frames, 0, 0, 3), np.uint8)
        unknown = np.full((num_frames, 3), np.nan, np.float32)
        return Clip(nothing, curves[:num_frames], unknown, heard)


def ends_of(num_frames: int, fps: float) -> NDArray[np.int64]:
    """The mel frame of a clip's sound before which each of its frames ends."""
    return np.round((SOUND_BEFORE_S + (np.arange(num_frames) + 1) / fps) * 100).astype(np.int64)
