"""A clip's files, as `training.talk.dataset` and `training.talk.voices` read them: NAME.flac, NAME.npz and NAME.mp4.

Each is written beside its place and moved there when it is whole, the one that a reader looks for last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from streamgen.say import SAMPLE_RATE
from training.talk.arkit import SHAPES
from training.talk.performance import FPS, Performance
from training.talk.takes import Take

PART = ".part"
"""Ends the name of a file that is not yet whole."""
_QUALITY = {"crf": "12", "preset": "veryfast"}


def is_complete(clip: Path, with_pictures: bool) -> bool:
    """Whether a clip (its path without a suffix) is there with all its files."""
    suffixes = (".flac", ".npz", ".mp4") if with_pictures else (".flac", ".npz")
    return all(clip.with_name(clip.name + suffix).is_file() for suffix in suffixes)


def length_of(clip: Path) -> int:
    """Frames of a clip that is complete."""
    with np.load(clip.with_name(clip.name + ".npz"), allow_pickle=False) as stored:
        return len(stored["rot"])


def write_clip(
    clip: Path, take: Take, played: Performance, identity: int, pictures: Iterable[NDArray[np.uint8]] | None
) -> None:
    """All files of a clip (its path without a suffix).

    pictures: RGB [H, W, 3] of each of its frames, or None to write no video.
    """
    with _in_its_place(clip, ".flac") as path:
        write_flac(path, take.speech.sound)
    with _in_its_place(clip, ".npz") as path, path.open("wb") as file:
        np.savez_compressed(
            file,
            arkit=played.arkit.astype(np.float16),
            names=np.array(SHAPES),
            rot=played.rot,
            trn=played.trn,
            gaze=played.gaze,
            tongue=played.tongue,
            body=played.body,
            visemes=np.array([viseme.name for viseme in played.shown]),
            viseme_times=np.array([(v.start_s, v.end_s) for v in played.shown], np.float32).reshape(-1, 2),
            voice=np.array(take.voice),
            identity=np.array(identity),
        )
    if pictures is not None:
        with _in_its_place(clip, ".mp4") as path:
            write_mp4(path, pictures)


def write_flac(path: Path, sound: NDArray[np.float32]) -> None:
    """Mono sound [T] in [-1, 1] at SAMPLE_RATE, 16 bits a sample."""
    samples = np.round(np.clip(sound, -1, 1) * 32767).astype(np.int16)
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono", format="s16")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_mp4(path: Path, pictures: Iterable[NDArray[np.uint8]]) -> None:
    """RGB pictures [H, W, 3], one or more, as H.264 at FPS without loss of colour resolution (4:4:4)."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options=_QUALITY)
        stream.pix_fmt = "yuv444p"
        stream.thread_count = 1  # clips are made side by side
        given = iter(pictures)
        first = next(given)
        stream.height, stream.width = first.shape[:2]
        for picture in chain([first], given):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@contextmanager
def _in_its_place(clip: Path, suffix: str) -> Iterator[Path]:
    """Where to write a file so that it appears at once or not at all."""
    path = clip.with_name(clip.name + suffix)
    part = clip.with_name(clip.name + suffix + PART)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
