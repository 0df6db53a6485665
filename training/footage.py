"""Video files as training data reads them: frames by number, and pieces drawn from them at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from numpy.typing import NDArray

_SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v"}
_EXACT = 1e-3
"""Two frame rates closer than this, relatively, are the same one as two containers write it."""


class VideoDataError(ValueError):
    """A folder of videos cannot be trained on; the message names the file, and the frame where there is one."""


def videos_in(folder: Path) -> list[Path]:
    """A folder's videos, by name. Raises VideoDataError when it has none."""
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise VideoDataError(f"{folder}: no videos ({', '.join(sorted(_SUFFIXES))}) in this folder")
    return paths


def describe(path: Path) -> tuple[int, Fraction]:
    """Frames as the container says (0: it does not) and frames a second. Raises VideoDataError."""
    with opened(path) as (_, stream):
        if not stream.average_rate:
            raise VideoDataError(f"{path}: it does not say its frame rate")
        return int(stream.frames), stream.average_rate


def check_rate(path: Path, rate: Fraction, fps: float, first: Path) -> None:
    """Raises VideoDataError when a video has another frame rate than the first."""
    if abs(float(rate) / fps - 1) > _EXACT:
        raise VideoDataError(f"{path}: {float(rate):.3f} frames a second, but {first.name} has {fps:.3f}")


def pictures(path: Path, first: int, width: int, height: int) -> Iterator[NDArray[np.uint8]]:
    """Every frame from number `first` on, RGB [height, width, 3]. Raises VideoDataError.

    Numbers follow from time stamps, so a seek lands where it should.
    """
    at = first
    with opened(path) as (container, stream):
        rate, base, origin = stream.average_rate, stream.time_base, stream.start_time or 0
        if first:
            container.seek(origin + int(first / rate / base), stream=stream)
        try:
            for frame in container.decode(stream):
                if frame.pts is None:
                    raise VideoDataError(f"{path}: frame {at} has no time stamp")
                number = round((frame.pts - origin) * base * rate)
                if number < at:
                    continue
                if number > at:
                    raise VideoDataError(
                        f"{path}: frame {at} is missing (the next one is {number}); is the frame rate constant?"
                    )
                yield frame.reformat(width, height, format="rgb24", interpolation="AREA").to_ndarray()
                at += 1
        except av.error.FFmpegError as error:
            raise VideoDataError(f"{path}: frame {at} cannot be decoded: {error}") from error


def draw(parts: Sequence[tuple[int, int]], count: int, rng: np.random.Generator) -> tuple[int, int] | None:
    """Where a random piece of `count` frames lies: the part's index and its first frame; every place is as likely.

    parts: (first frame, frame after the last) that may be drawn from. None when no part is long enough.
    """
    room = np.array([max(0, last - first - count + 1) for first, last in parts])
    if not room.any():
        return None
    place = int(rng.integers(room.sum()))
    index = int(np.searchsorted(room.cumsum(), place, side="right"))
    return index, parts[index][0] + place - int(room[:index].sum())


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream. Raises VideoDataError."""
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise VideoDataError(f"{path}: not a video that can be read: {error}") from error
    with container:
        if not container.streams.video:
            raise VideoDataError(f"{path}: no video in it")
        yield container, container.streams.video[0]
