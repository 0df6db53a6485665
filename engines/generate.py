"""Offline generation: the frames that the server would send, as a video file."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from engines.protocol import Engine, StepRequest
from streamgen.config import StudentConfig
from streamgen.student import Student


def generate(
    engine: Engine, student: Student, actions: NDArray[np.float32], seed: int, steps: int | None = None
) -> Iterator[NDArray[np.uint8]]:
    """The frames [H, W, 3] of a new stream of `seed` under `actions` [F, A], one by one; whole blocks only."""
    size = student.config.transformer.block_size
    engine.open("generate", student.start(seed))
    try:
        for at in range(0, len(actions) // size * size, size):
            request = StepRequest("generate", actions[at : at + size], steps or student.config.steps)
            yield from engine.step([request])[0].frames
    finally:
        engine.close("generate")


def write_video(frames: Iterator[NDArray[np.uint8]], path: Path, config: StudentConfig, scale: int = 3) -> int:
    """Write H.264 at `scale` times the size (it halves chroma, which small frames do not bear); returns the count."""
    rate = Fraction(config.fps).limit_denominator(1000)
    count = 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "medium"})
        stream.pix_fmt = "yuv420p"
        stream.width, stream.height = config.width * scale, config.height * scale
        for count, pixels in enumerate(frames, 1):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            large = frame.reformat(stream.width, stream.height, "yuv420p", interpolation="BICUBIC")
            large.pts, large.time_base = count - 1, 1 / rate
            container.mux(stream.encode(large))
        container.mux(stream.encode())
    return count
