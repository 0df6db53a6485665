"""Other voices, rooms and lines from one recording: what the lips are read from must not depend on them.

All functions take and give mono sound [T] at `SAMPLE_RATE`; none but `retimed` moves anything in time by more than the
few milliseconds of a room's first echo.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamgen.audio import SAMPLE_RATE

Sound = NDArray[np.float32]

_LOUDEST = 0.99


def retimed(sound: Sound, curves: NDArray[np.float32], factor: float) -> tuple[Sound, NDArray[np.float32]]:
    """Played `factor` times as fast: higher in pitch and formants, and the curves [F, n] with it.

    Sound and curves must begin together; both become shorter by the factor.
    """
    times = np.arange(int(len(sound) / factor)) * factor
    heard = np.interp(times, np.arange(len(sound)), sound).astype(np.float32)
    rows = (np.arange(int(len(curves) / factor)) + 0.5) * factor - 0.5
    below = np.clip(np.floor(rows).astype(int), 0, len(curves) - 1)
    above = np.minimum(below + 1, len(curves) - 1)
    share = np.clip(rows - below, 0, 1)[:, None].astype(np.float32)
    return heard, curves[below] * (1 - share) + curves[above] * share


def equalised(sound: Sound, rng: np.random.Generator, spread_db: float = 8.0) -> Sound:
    """Through a line of another colour: a smooth random gain over the octaves."""
    spectrum = np.fft.rfft(sound)
    hertz = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)
    points = np.log2([60.0, 125, 250, 500, 1000, 2000, 4000, 8000])
    gain_db = np.interp(np.log2(np.maximum(hertz, 30)), points, rng.normal(0, spread_db / 2, len(points)))
    return np.fft.irfft(spectrum * 10 ** (gain_db / 20), len(sound)).astype(np.float32)


def in_a_room(sound: Sound, rng: np.random.Generator) -> Sound:
    """With the echoes of a random room: exponentially falling noise after the direct sound, 0.1 to 0.6 s long."""
    seconds, level = rng.uniform(0.1, 0.6), rng.uniform(0.02, 0.25)
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    echo = rng.standard_normal(len(t)) * 10 ** (-3 * t / seconds)
    echo[: round(0.004 * SAMPLE_RATE)] = 0
    echo *= level / max(1e-9, float(np.sqrt((echo**2).sum())))
    echo[0] = 1
    size = 1 << (len(sound) + len(echo)).bit_length()
    heard = np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(echo, size), size)[: len(sound)]
    return heard.astype(np.float32)


def with_noise(sound: Sound, rng: np.random.Generator, other: Sound | None = None) -> Sound:
    """In front of noise between white and brown, or of another voice, at 5 to 35 dB (a voice: 12 and more) below the
    sound's own level.
    """
    if other is None:
        spectrum = np.fft.rfft(rng.standard_normal(len(sound)))
        spectrum /= np.maximum(np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE), 50) ** rng.uniform(0, 1)
        noise = np.fft.irfft(spectrum, len(sound))
        snr_db = rng.uniform(5, 35)
    else:
        noise, snr_db = np.resize(other, len(sound)), rng.uniform(12, 35)
    level = float(np.sqrt((sound**2).mean())) / max(1e-9, float(np.sqrt((noise**2).mean())))
    return (sound + noise * level * 10 ** (-snr_db / 20)).astype(np.float32)


def over_a_telephone(sound: Sound, rng: np.random.Generator) -> Sound:
    """Without what lies below 100 to 300 Hz and above 3.3 to 7 kHz, and in 8 bits of mu-law (ITU-T G.711)."""
    spectrum = np.fft.rfft(sound)
    hertz = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)
    low, high = rng.uniform(100, 300), rng.uniform(3300, 7000)
    spectrum *= 1 / (1 + (low / np.maximum(hertz, 1)) ** 8) / (1 + (hertz / high) ** 16)
    narrow = np.clip(np.fft.irfft(spectrum, len(sound)), -1, 1)
    coded = np.round(np.sign(narrow) * np.log1p(255 * np.abs(narrow)) / np.log(256) * 127) / 127
    return (np.sign(coded) * np.expm1(np.abs(coded) * np.log(256)) / 255).astype(np.float32)


def augmented(sound: Sound, rng: np.random.Generator, other: Sound | None = None) -> Sound:
    """A random choice of all that leaves the timing alone, at a random level. other: a voice for the background."""
    if rng.random() < 0.7:
        sound = equalised(sound, rng)
    if rng.random() < 0.4:
        sound = in_a_room(sound, rng)
    if rng.random() < 0.6:
        sound = with_noise(sound, rng, other if rng.random() < 0.3 else None)
    loudest = max(1e-6, float(np.abs(sound).max()))
    sound = sound * np.float32(10 ** (rng.uniform(-24, 0) / 20) / loudest)
    if rng.random() < 0.25:
        sound = over_a_telephone(sound, rng)
    return np.clip(sound, -_LOUDEST, _LOUDEST)
