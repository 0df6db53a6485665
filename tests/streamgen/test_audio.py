"""Mel frames: alike however the sound arrives, where they should be in time and in frequency."""

from __future__ import annotations

import io
import time
from pathlib import Path

import av
import numpy as np
import pytest

from streamgen.audio import (
    HOP,
    MEL_BINS,
    MEL_RATE,
    SAMPLE_RATE,
    SILENCE,
    WINDOW,
    LogMel,
    SoundError,
    log_mel,
    read_sound,
)  # fmt: skip


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


@pytest.mark.parametrize(
    "bytes_", [b"ffconcat version 1.0\nfile '%s'\n", b"v=0\r\nc=IN IP4 127.0.0.1\r\nm=audio 5004 RTP/AVP 0\r\n"]
)
def test_bytes_that_somebody_sent_open_nothing_here(
    bytes_: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tone(tmp_path / "x.wav")
    assert len(read_sound(tmp_path / "x.wav")) == SAMPLE_RATE
    began_s = time.monotonic()
    with pytest.raises(SoundError, match="the file"):
        read_sound(io.BytesIO(bytes_.replace(b"%s", b"x.wav")))
    assert time.monotonic() - began_s < 10  # FFmpeg waits 20 s for packets


def test_a_file_may_change_its_format(tmp_path: Path) -> None:
    """Pieces of two recordings in one stream, as radio has them."""
    parts = []
    for name, rate, layout in (("a", 48_000, "mono"), ("b", 24_000, "stereo")):
        write_tone(tmp_path / f"{name}.aac", rate, layout)
        parts.append((tmp_path / f"{name}.aac").read_bytes())
    sound = read_sound(io.BytesIO(b"".join(parts)))
    assert len(sound) == pytest.approx(2 * SAMPLE_RATE, abs=0.2 * SAMPLE_RATE)


def write_tone(path: Path, rate: int = SAMPLE_RATE, layout: str = "mono") -> None:
    """One second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream({".wav": "pcm_s16le", ".aac": "aac"}[path.suffix], rate=rate, layout=layout)
        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.stack([tone] * (2 if layout == "stereo" else 1)), "fltp", layout)
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_silence_is_silence() -> None:
    assert np.allclose(log_mel(np.zeros(4000, np.float32)), SILENCE, atol=1e-6)
