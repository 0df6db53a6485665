"""The VP8 encoder and the reach into aiortc's sender."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from av import CodecContext, Packet, VideoFrame

from server.vp8 import LiveVp8Encoder, SenderTap, upscale_for


@pytest.mark.parametrize(("height", "factor"), [(96, 3), (128, 2), (256, 1), (480, 1)])
def test_small_pictures_are_shown_at_about_288_lines(height: int, factor: int) -> None:
    assert upscale_for(height) == factor


def picture(pts: int) -> VideoFrame:
    rng = np.random.default_rng(pts)
    frame = VideoFrame.from_ndarray(rng.integers(0, 255, (96, 128, 3), np.uint8), format="rgb24")
    frame.pts, frame.time_base = pts, Fraction(1, 90_000)
    return frame


def test_frames_are_scaled_up_and_keep_their_time() -> None:
    encoder = LiveVp8Encoder(3)
    payloads, timestamp = encoder.encode(picture(7500))
    assert timestamp == 7500
    assert encoder.codec is not None
    assert (encoder.codec.width, encoder.codec.height) == (384, 288)
    data = b"".join(payload[4:] for payload in payloads)
    decoded = CodecContext.create("vp8", "r").decode(Packet(data))
    assert [(f.width, f.height) for f in decoded] == [(384, 288)]


def test_the_bitrate_moves_in_few_steps() -> None:
    encoder = LiveVp8Encoder(3)
    seen = []
    for estimate in (610_000, 590_000, 310_000, 650_000, 950_000, 1_500_000, 2_000_000, 900_000, 100_000):
        encoder.target_bitrate = estimate
        seen.append(encoder.target_bitrate)
    assert seen == [600_000, 300_000, 300_000, 300_000, 600_000, 600_000, 1_200_000, 600_000, 300_000]


def test_another_aiortc_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="use aiortc"):
        SenderTap(object(), LiveVp8Encoder(1))  # type: ignore[arg-type]
