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
from streamgen_client.frames import Frame
from streamgen_client.script import Line, changes

_SCALE = 3
"""H.264 halves the colour resolution, which small frames do not bear."""

_TIME_BASE = Fraction(1, 90_000)


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


class _Film:
    """An MP4 file of H.264 that frames are added to."""

    def __init__(self, path: Path, stream: StreamClient) -> None:
        self.count = 0
        self._container = av.open(str(path), "w", format="mp4")
        rate = Fraction(stream.student.fps).limit_denominator(1000)
        self._video = self._container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "veryfast"})
        self._video.pix_fmt = "yuv420p"
        self._video.width, self._video.height = stream.student.width * _SCALE, stream.student.height * _SCALE
        self._video.codec_context.time_base = _TIME_BASE
        self._first_us = 0

    def __enter__(self) -> _Film:
        return self

    def __exit__(self, *_: object) -> None:
        with self._container:
            self._container.mux(self._video.encode())

    def add(self, frame: Frame) -> None:
        if self.count == 0:
            self._first_us = frame.pts_us
        picture = av.VideoFrame.from_ndarray(frame.rgb, format="rgb24")
        large = picture.reformat(self._video.width, self._video.height, "yuv420p", interpolation="BICUBIC")
        large.pts, large.time_base = (frame.pts_us - self._first_us) * 9 // 100, _TIME_BASE
        self._container.mux(self._video.encode(large))
        self.count += 1
