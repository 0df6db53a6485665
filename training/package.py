"""Makes a student folder from training runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streamgen.actions import WORLD_KEYS
from streamgen.config import StudentConfig
from streamgen.models.export import write_student
from streamgen.models.loading import load_autoencoder, load_transformer
from training.clips import encode
from training.world.recorder import FPS
from training.world.source import clip_for

_STARTS = 12
_START_FRAMES = 24
_START_SEED = 2**30
"""Recorded for starts alone: no training run of the recipes uses this seed."""


def package_world(run: Path, autoencoder_run: Path, out: Path, card: str, name: str = "world") -> None:
    """Write the world student: transformer of `run`, autoencoder, step plans, and starts from fresh real episodes."""
    transformer, autoencoder = load_transformer(run), load_autoencoder(autoencoder_run)
    clips = [clip_for(_START_SEED, index, _START_FRAMES) for index in range(_STARTS)]
    starts = encode(autoencoder, clips)
    frames = np.stack([clip.frames for clip in clips])
    config = StudentConfig(
        name=name,
        fps=FPS,
        width=frames.shape[3],
        height=frames.shape[2],
        keys=WORLD_KEYS,
        step_plans={1: (1.0,), 2: (1.0, 0.5)},
        steps=2,
        transformer=transformer.config,
        vae=autoencoder.config,
    )
    write_student(out, config, transformer, autoencoder, starts.latents, starts.actions, card)
