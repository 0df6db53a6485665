"""Sound as a student hears it: mono at 16 kHz, and log-mel frames of that. Free of torch.

Mel frame k is complete with sample (k + 1) HOP and covers the WINDOW samples before it, so what it says never depends
on what comes later. The stream is silent before its first sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import BinaryIO

import av
import av.error
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
HOP = 160
"""10 ms."""
WINDOW = 400
"""25 ms."""
MEL_BINS = 80
MEL_RATE = SAMPLE_RATE // HOP
"""Mel frames a second."""
_FFT = 512
_FLOOR = 1e-5
"""Energy below which nothing is heard: about the noise of 16-bit sound."""
_MIDDLE, _SPREAD = -5.0, 3.0
"""Mean and spread of the logarithms of speech at a usual level: what comes out is about -2 to 2."""
SILENCE = (float(np.log(_FLOOR)) - _MIDDLE) / _SPREAD
"""A mel frame's value where nothing is heard."""


class SoundError(ValueError):
    """A file's sound cannot be used; the message names the file."""


def read_sound(source: Path | BinaryIO, rate: int = SAMPLE_RATE, most_s: float = float("inf")) -> NDArray[np.float32]:
    """A file's first sound track, mixed to one channel: samples [T] in [-1, 1] at `rate`.

    Raises SoundError, also for one that is longer than `most_s` seconds.
    """
    name = str(source) if isinstance(source, Path) else "the file"
    pieces: list[NDArray[np.float32]] = []
    count = 0
    try:
        with _opened(source) as container:
            if not container.streams.audio:
                raise SoundError(f"{name}: no sound in it")
            for new in _resampled(container.decode(container.streams.audio[0]), rate):
                pieces.append(new)
                count += len(new)
                if count > most_s * rate:
                    raise SoundError(f"{name}: longer than {most_s:g} s")
    except (av.error.FFmpegError, OSError) as error:
        raise SoundError(f"{name}: its sound cannot be read: {error}") from error
    if not count:
        raise SoundError(f"{name}: no sound in it")
    return np.concatenate(pieces)


def _opened(source: Path | BinaryIO) -> InputContainer:
    """Bytes that somebody sent are no more than themselves: a playlist or a session description among them must open
    neither files nor ports here.
    """
    if isinstance(source, Path):
        return av.open(str(source), "r")
    return av.open(source, "r", options={"protocol_whitelist": "none"})


def _resampled(frames: Iterable[av.AudioFrame], rate: int) -> Iterator[NDArray[np.float32]]:
    """Samples of one channel at `rate`. Some files change their format on the way."""
    for _, alike in groupby(frames, key=lambda frame: (frame.format.name, frame.layout.name, frame.sample_rate)):
        resampler = av.AudioResampler("flt", "mono", rate)
        for frame in chain(alike, [None]):
            yield from (piece.to_ndarray()[0] for piece in resampler.resample(frame))


def _filters() -> NDArray[np.float32]:
    """Triangles [_FFT / 2 + 1, MEL_BINS], evenly spaced on the mel scale 2595 log10(1 + f / 700) up to 8 kHz."""

    def mel(f: NDArray[np.float64]) -> NDArray[np.float64]:
        return 2595.0 * np.log10(1.0 + f / 700.0)

    bins = mel(np.linspace(0.0, SAMPLE_RATE / 2, _FFT // 2 + 1))[:, None]
    edges = np.linspace(0.0, mel(np.array(SAMPLE_RATE / 2)), MEL_BINS + 2)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters: NDArray[np.float32] = np.clip(np.minimum(rising, falling), 0.0, None).astype(np.float32)
    return filters


_FILTERS = _filters()
_HANN = np.hanning(WINDOW + 1)[:-1].astype(np.float32)


class LogMel:
    """Mel frames of a stream that comes in pieces of any size: every frame is the same, bit for bit, whatever they are.

    Frames are computed one by one for that reason (a product of matrices rounds otherwise than its rows do): about 20
    microseconds each.
    """

    def __init__(self) -> None:
        self._kept = np.zeros(WINDOW - HOP, np.float32)

    def silence(self) -> None:
        """What was heard last was never said."""
        self._kept[:] = 0

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """The frames [n, MEL_BINS] that `samples` [T] in [-1, 1] complete."""
        heard = np.concatenate([self._kept, samples.astype(np.float32, copy=False)])
        count = max(0, (len(heard) - WINDOW) // HOP + 1)
        self._kept = heard[count * HOP :].copy()
        frames = np.empty((count, MEL_BINS), np.float32)
        for k in range(count):
            spectrum = np.fft.rfft(heard[k * HOP : k * HOP + WINDOW] * _HANN, _FFT)
            power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
            frames[k] = (np.log(np.maximum(power @ _FILTERS, _FLOOR)) - _MIDDLE) / _SPREAD
        return frames


def log_mel(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """All mel frames [T // HOP, MEL_BINS] of a sound [T] in [-1, 1]."""
    return LogMel().push(samples)
