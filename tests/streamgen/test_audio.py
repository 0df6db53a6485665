"""Mel frames: alike however the sound arrives, where they should be in time and in frequency."""

from __future__ import annotations

import numpy as np
import pytest

from streamgen.audio import HOP, MEL_BINS, MEL_RATE, SAMPLE_RATE, SILENCE, WINDOW, LogMel, log_mel


def speechlike(seconds: float) -> np.ndarray:
    rng = np.random.default_rng(3)
    noise = rng.standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32)
    return 0.1 * noise * np.abs(np.sin(np.arange(len(noise)) / 1500)).astype(np.float32)


@pytest.mark.parametrize("size", [1, 7, HOP, 441, 960, 5000])
def test_frames_do_not_depend_on_the_pieces(size: int) -> None:
    sound = speechlike(0.7)
    whole, stream = log_mel(sound), LogMel()
    pieces = [stream.push(sound[at : at + size]) for at in range(0, len(sound), size)]
    assert whole.shape == (len(sound) // HOP, MEL_BINS)
    assert np.array_equal(np.concatenate(pieces), whole)


def test_a_frame_hears_nothing_after_its_end() -> None:
    sound = speechlike(0.5)
    other = sound.copy()
    other[20 * HOP :] = 0.3
    assert np.array_equal(log_mel(sound)[:20], log_mel(other)[:20])
    assert not np.array_equal(log_mel(sound)[20], log_mel(other)[20])


def test_a_click_is_heard_by_the_frames_that_cover_it() -> None:
    sound = np.zeros(SAMPLE_RATE // 2, np.float32)
    sound[30 * HOP + 100] = 0.9
    heard = np.flatnonzero((log_mel(sound) > SILENCE + 0.01).any(1))
    # Frame k covers the WINDOW samples before (k + 1) HOP.
    assert heard.tolist() == [30, 31, 32]
    assert WINDOW == 2.5 * HOP


@pytest.mark.parametrize("hertz", [200, 1000, 3000, 6500])
def test_a_tone_is_in_its_band(hertz: float) -> None:
    tone = 0.3 * np.sin(2 * np.pi * hertz * np.arange(SAMPLE_RATE // 4) / SAMPLE_RATE).astype(np.float32)
    loudest = log_mel(tone)[5:-1].argmax(1)
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    expected = 2595 * np.log10(1 + hertz / 700) / top * (MEL_BINS + 1) - 1
    assert np.abs(loudest - expected).max() <= 1.0
    assert len(loudest) == MEL_RATE // 4 - 6


def test_silence_is_silence() -> None:
    assert np.allclose(log_mel(np.zeros(4000, np.float32)), SILENCE, atol=1e-6)
