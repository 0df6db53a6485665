"""Offline generation: the frames that the server would send, as a video file."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from engines.protocol import Engine, StepRequest
from streamgen.audio import SAMPLE_RATE
from streamgen.config import StudentConfig
from streamgen.student import Student
from streamgen.talk import Ear, Performer, loudness


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


def speak(
    engine: Engine,
    student: Student,
    sound: NDArray[np.float32],
    seed: int,
    identity: str | None = None,
    steps: int | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """The frames [H, W, 3] of a new stream that says `sound`, samples [T] at `streamgen.audio.SAMPLE_RATE`, one by one.

    Frame n shows what is heard from n / fps seconds on. The last whole block ends no later than the sound.
    """
    config = student.config
    size = config.transformer.block_size
    start = student.start(seed, identity)
    ear, performer = Ear(config), Performer(config, start)
    ear.push(sound)
    ear.push(np.zeros(SAMPLE_RATE, np.float32))
    engine.open("speak", start)
    try:
        for at in range(0, int(len(sound) / SAMPLE_RATE * config.fps) // size * size, size):
            mel = np.stack([ear.window((at + i + 1) / config.fps) for i in range(size)])
            actions = np.stack([performer.actions(start.frame + at + i, loudness(mel[i])) for i in range(size)])
            yield from engine.step([StepRequest("speak", actions, steps or config.steps, mel)])[0].frames
    finally:
        engine.close("speak")


def write_video(
    frames: Iterator[NDArray[np.uint8]],
    path: Path,
    config: StudentConfig,
    scale: int = 3,
    sound: tuple[NDArray[np.float32], int] | None = None,
) -> int:
    """Write H.264 at `scale` times the size (it halves chroma, which small frames do not bear); returns the count.

    sound: samples [T] in [-1, 1] and their rate, from the first frame's beginning on.
    """
    rate = Fraction(config.fps).limit_denominator(1000)
    count = 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "medium"})
        stream.pix_fmt = "yuv420p"
        stream.width, stream.height = config.width * scale, config.height * scale
        track = container.add_stream("aac", rate=sound[1], layout="mono") if sound is not None else None
        for count, pixels in enumerate(frames, 1):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            large = frame.reformat(stream.width, stream.height, "yuv420p", interpolation="BICUBIC")
            large.pts, large.time_base = count - 1, 1 / rate
            container.mux(stream.encode(large))
            if track is not None and sound is not None:
                container.mux(track.encode(_slice(*sound, count - 1, rate)))
        container.mux(stream.encode())
        if track is not None:
            container.mux(track.encode())
    return count


def _slice(samples: NDArray[np.float32], sample_rate: int, number: int, rate: Fraction) -> av.AudioFrame:
    """The sound of one frame."""
    begin, end = (int(n * sample_rate / rate) for n in (number, number + 1))
    piece = samples[begin:end]
    padded = np.ascontiguousarray(np.pad(piece, (0, end - begin - len(piece)))[None])
    frame = av.AudioFrame.from_ndarray(padded, format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = sample_rate, begin, Fraction(1, sample_rate)
    return frame
