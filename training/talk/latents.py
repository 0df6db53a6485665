"""Latents of a talking-head data set, encoded once: a third of a teacher's training would go into them otherwise."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from streamgen.models.autoencoder import Autoencoder, to_float
from training.footage import pictures
from training.talk.dataset import TalkDataset

_BATCH = 16
_POLL_S = 1.0


@torch.no_grad()
def with_latents(
    data: TalkDataset, autoencoder: Autoencoder, folder: Path, rank: int = 0, size: int = 1
) -> TalkDataset:
    """The same data with latents float16 [F, C, h, w] of every video, kept in `folder` as NAME.npy.

    What is there already is taken as it is. Of `size` processes that call this at once, each encodes its share and
    waits for the others. Raises VideoDataError.
    """
    kept = folder / data.fingerprint()[:16]
    kept.mkdir(parents=True, exist_ok=True)
    for index, video in enumerate(data.videos):
        path = kept / f"{video.path.stem}.npy"
        if index % size != rank or path.exists():
            continue
        frames = list(pictures(video.path, 0, data.width, data.height))
        parts = [
            autoencoder.encode(to_float(torch.from_numpy(np.stack(frames[at : at + _BATCH])))).half()
            for at in range(0, len(frames), _BATCH)
        ]
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, torch.cat(parts).numpy())
        partial.replace(path)
    while not all((kept / f"{video.path.stem}.npy").exists() for video in data.videos):
        time.sleep(_POLL_S)
    return data.with_latents(kept)
