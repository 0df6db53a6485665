"""A stretch of a stream as a video file, with the figures of how it came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from streamgen_client.client import StreamClient
from streamgen_client.frames import SOUND_RATE, Frame, Sound
from streamgen_client.script import Line, changes

_SCALE, _LARGE_SCALE, _LARGE = 3, 2, 200
"""H.264 halves the colour resolution, which small frames do not bear; frames of so many lines bear more of it."""

_TIME_BASE = Fraction(1, 90_000)
_TAIL_S = 0.5
"""What is recorded after the last word."""


async def record(stream: StreamClient, script: Sequence[Line], seconds: float, path: Path) -> dict[str, Any]:
    """Steer by the script and write what comes, for this long on the stream's clock. Raises ClientError, OSError.

    Frames stand in the file at their own presentation times: one that was missed leaves its time to the one before it.
    """
    with _Film(path, stream) as film:
        steering = asyncio.create_task(_steer(stream, script, seconds))
        try:
            first = frame = await stream.next()
            first_s = time.monotonic()
            while frame.pts_us - first.pts_us < seconds * 1e6:
                await asyncio.to_thread(film.add, frame)
                frame = await stream.next()
            elapsed_s = time.monotonic() - first_s
        finally:
            steering.cancel()
            (stopped,) = await asyncio.gather(steering, return_exceptions=True)
        if isinstance(stopped, Exception):
            raise stopped
        stats = stream.stats
    figures: dict[str, Any] = {
        "seconds": round(elapsed_s, 3),
        "frames": film.count,
        "dropped": stats.dropped,
        "missed": stats.missed,
        "target_fps": stream.student.fps,
        "fps": round(film.count / elapsed_s, 2),
        "latency_ms": {"inputs": len(stats.latency_s)},
        "reconnects": stats.reconnects,
    }
    if stats.latency_s:
        p50, p99 = np.percentile(stats.latency_s, (50, 99)) * 1e3
        figures["latency_ms"] |= {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}
    return figures


async def _steer(stream: StreamClient, script: Sequence[Line], seconds: float) -> None:
    start_s = time.monotonic()
    held: frozenset[str] = frozenset()
    for at_s, keys in changes(script, seconds):
        await asyncio.sleep(start_s + at_s - time.monotonic())
        if keys != held:
            held = keys
            await stream.hold(keys)


async def talk(stream: StreamClient, file: Path, path: Path) -> dict[str, Any]:
    """Let an avatar say a file's sound, and write what is seen and heard until it has. Raises ClientError, OSError.

    silent_ms: from the request to the first sound of it.
    """
    with _Film(path, stream, sound=True) as film:
        first = await stream.next_sound()
        watching = asyncio.create_task(_watch(stream, film))
        try:
            asked_s = time.monotonic()
            seconds = await stream.play(file)
            began_s, heard_us, missed, last = None, 0, 0, first
            # It is heard a little later than it was asked for, and its end with that.
            while heard_us < (seconds + _TAIL_S) * 1e6:
                sound = await stream.next_sound()
                missed += sound.number - last.number - 1
                if began_s is None and sound.samples.any():
                    began_s = time.monotonic()
                heard_us += (sound.pts_us - last.pts_us) if began_s is not None else 0
                film.hear(sound)
                last = sound
        finally:
            watching.cancel()
            (stopped,) = await asyncio.gather(watching, return_exceptions=True)
        if isinstance(stopped, Exception):
            raise stopped
        stats = stream.stats
    elapsed_s = (last.pts_us - first.pts_us) / 1e6
    return {
        "seconds": round(elapsed_s, 3),
        "said_s": round(seconds, 3),
        "silent_ms": round((began_s - asked_s) * 1e3, 1) if began_s is not None else None,
        "frames": film.count,
        "dropped": stats.dropped,
        "missed": stats.missed,
        "missed_sounds": missed,
        "target_fps": stream.student.fps,
        "fps": round(film.count / elapsed_s, 2),
        "reconnects": stats.reconnects,
    }


async def _watch(stream: StreamClient, film: _Film) -> None:
    while True:
        film.add(await stream.next())


class _Film:
    """An MP4 file of H.264, with AAC where there is sound, that frames are added to."""

    def __init__(self, path: Path, stream: StreamClient, sound: bool = False) -> None:
        self.count = 0
        self._container = av.open(str(path), "w", format="mp4")
        rate = Fraction(stream.student.fps).limit_denominator(1000)
        self._video = self._container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
        self._video.pix_fmt = "yuv420p"
        scale = _SCALE if stream.student.height < _LARGE else _LARGE_SCALE
        self._video.width, self._video.height = stream.student.width * scale, stream.student.height * scale
        self._video.codec_context.time_base = _TIME_BASE
        self._first_us: int | None = None
        self._voice = self._container.add_stream("aac", rate=SOUND_RATE, layout="mono") if sound else None

    def __enter__(self) -> _Film:
        return self

    def __exit__(self, *_: object) -> None:
        with self._container:
            self._container.mux(self._video.encode())
            if self._voice is not None:
                self._container.mux(self._voice.encode())

    def add(self, frame: Frame) -> None:
        if self._first_us is None:
            self._first_us = frame.pts_us
        picture = av.VideoFrame.from_ndarray(frame.rgb, format="rgb24")
        large = picture.reformat(self._video.width, self._video.height, "yuv420p", interpolation="BICUBIC")
        large.pts, large.time_base = (frame.pts_us - self._first_us) * 9 // 100, _TIME_BASE
        self._container.mux(self._video.encode(large))
        self.count += 1

    def hear(self, sound: Sound) -> None:
        """Nothing before the first frame."""
        if self._voice is None or self._first_us is None or sound.pts_us < self._first_us:
            return
        piece = av.AudioFrame.from_ndarray(sound.samples[None], format="s16", layout="mono")
        piece.sample_rate, piece.time_base = SOUND_RATE, Fraction(1, SOUND_RATE)
        piece.pts = round((sound.pts_us - self._first_us) * SOUND_RATE / 1e6)
        self._container.mux(self._voice.encode(piece))
