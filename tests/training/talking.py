"""Talking heads at toy size: grey frames that tell their number, and sound that tells its own."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

RATE = 24_000
NAMES = [
    "jawOpen", "mouthClose", "mouthPressRight", "mouthRollLower", "mouthRollUpper", "mouthUpperUpRight",
    "mouthLowerDownRight", "mouthShrugLower", "mouthFunnel", "mouthPucker", "mouthStretchRight", "mouthSmileRight",
    "mouthDimpleRight", "eyeBlinkRight", "browInnerUp", "browOuterUpRight", "browDownRight", "jawLeft",
]  # fmt: skip


def write_talk(
    folder: Path, name: str, frames: int = 60, base: int = 40, truth: bool = True, pictures: bool = True, seed: int = 0
) -> NDArray[np.float32]:
    """NAME.mp4, NAME.flac and NAME.npz: the jaw [F], which it returns, opens as the noise swells, and frame n is
    `base` + 2 n bright.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    jaw = np.clip(np.convolve(rng.normal(size=frames + 8), np.ones(5) / 2, "same")[4:-4], 0, 1).astype(np.float32)
    level = np.interp(np.arange(frames * RATE // 25), (np.arange(frames) + 0.5) * RATE / 25, jaw)
    sound = (0.3 * level * rng.standard_normal(len(level))).clip(-1, 1)
    with av.open(str(folder / f"{name}.flac"), "w") as container:
        track = container.add_stream("flac", rate=RATE)
        track.layout = "mono"
        frame = av.AudioFrame.from_ndarray((sound * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux([*track.encode(frame), *track.encode(None)])
    if pictures:
        stripes = np.broadcast_to(np.where(np.arange(64) // 8 % 2, 6, -6)[:, None, None], (64, 64, 3))
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for number in range(frames):
                grey = (base + 2 * number + stripes).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
            container.mux(stream.encode(None))
    if truth:
        arkit = np.zeros((frames, len(NAMES)), np.float32)
        arkit[:, 0] = jaw
        groups = {"rot": 3, "trn": 3, "body": 3, "gaze": 2, "tongue": 2}
        rest = {group: np.zeros((frames, n), np.float32) for group, n in groups.items()}
        rest["rot"][:, 1] = np.arange(frames)
        np.savez(folder / f"{name}.npz", arkit=arkit, names=np.array(NAMES), **rest)
    return jaw
