"""Encoders: what they send can be decoded, is what was shown, and has the rate that was asked for."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from av import CodecContext, Packet, VideoFrame

from server.mailbox import Frame
from server.video import CODECS, Codec, VideoEncoder, to_picture, upscale_for
from tests.server.synthetic import MADE

EACH = pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
HEIGHT, WIDTH = 96, 128


@pytest.mark.parametrize(("height", "factor"), [(96, 3), (128, 2), (256, 1), (480, 1)])
def test_small_pictures_are_shown_at_about_288_lines(height: int, factor: int) -> None:
    assert upscale_for(height) == factor


class Rate:
    fps = 17.5


def frame(index: int, fps: float = Rate.fps, grain: int = 0) -> Frame:
    """Squares of every colour that move, coarse enough to survive compression; grain is what no encoder can foresee."""
    squares = np.random.default_rng(7).integers(0, 255 - grain, (HEIGHT // 8, 2 * WIDTH // 8, 3), np.uint8)
    rgb = np.roll(squares.repeat(8, 0).repeat(8, 1), -3 * index, 1)[:, :WIDTH]
    rgb = rgb + np.random.default_rng(index).integers(0, grain + 1, rgb.shape, np.uint8)
    return Frame(0, index, round(index * 1e6 / fps), rgb, MADE)


def encoder_of(codec: Codec, rate: Rate | None = None, upscale: int = 3) -> VideoEncoder:
    rate = rate or Rate()
    return VideoEncoder(codec, WIDTH, HEIGHT, upscale, lambda: rate.fps)


def decoder_of(codec: Codec) -> CodecContext:
    decoder = CodecContext.create({"VP8": "libvpx", "H264": "h264"}[codec.name], "r")
    decoder.thread_count = 1
    return decoder


@EACH
def test_every_picture_leaves_at_once_and_is_what_was_shown(codec: Codec) -> None:
    encoder, decoder = encoder_of(codec), decoder_of(codec)
    for index in range(12):
        shown = frame(index)
        packet = encoder.encode(to_picture(shown), keyframe=index == 8)
        assert packet.is_keyframe == (index in (0, 8))
        (decoded,) = decoder.decode(Packet(bytes(packet)))
        assert isinstance(decoded, VideoFrame)
        assert (decoded.width, decoded.height) == (3 * WIDTH, 3 * HEIGHT)
        rgb = decoded.to_ndarray(format="rgb24", width=WIDTH, height=HEIGHT, interpolation="AREA").astype(float)
        # Colours too: the wrong matrix would be off by more than this.
        assert np.abs(rgb - shown.rgb).mean() < 12
        assert np.abs((rgb - shown.rgb).mean((0, 1))).max() < 4


@EACH
@pytest.mark.parametrize("fps", [8.75, 35.0])
def test_the_bitrate_is_the_one_that_was_asked_for_whatever_the_rate(codec: Codec, fps: float) -> None:
    rate = Rate()
    rate.fps = fps
    encoder, seconds = encoder_of(codec, rate), 4
    sizes = [encoder.encode(to_picture(frame(index, fps, grain=60))).size for index in range(round(seconds * fps))]
    assert 0.8 < sum(sizes[len(sizes) // 2 :]) * 8 / (seconds / 2) / encoder.target_bitrate < 1.2


@EACH
def test_another_rate_of_the_stream_is_taken_over(codec: Codec) -> None:
    rate = Rate()
    encoder, decoder = encoder_of(codec, rate), decoder_of(codec)
    packets = []
    for index in range(6):
        if index == 3:
            rate.fps /= 2
        packets.append(encoder.encode(to_picture(frame(index, rate.fps))))
    assert [packet.is_keyframe for packet in packets] == [True, False, False, True, False, False]
    assert sum(len(decoder.decode(Packet(bytes(packet)))) for packet in packets) == 6


def test_h264_is_constrained_baseline_with_its_parameters_in_every_key_frame() -> None:
    encoder = encoder_of(CODECS["H264"])
    for index in range(3):
        data = bytes(encoder.encode(to_picture(frame(index)), keyframe=True))
        units = [unit for unit in data.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if unit]
        kinds = [unit[0] & 31 for unit in units]
        sps = units[kinds.index(7)]
        assert 8 in kinds and 5 in kinds
        # profile_idc 66 with constraint_set1, level 3.1 (ITU-T H.264, 7.4.2.1.1 and A.2.1)
        assert sps[1] == 66 and sps[2] & 0x40 and sps[3] == 31


def spend(encoder: VideoEncoder, grain: int) -> int:
    """Encode for some seconds; returns the bitrate of the last ones."""
    sizes = [encoder.encode(to_picture(frame(index, grain=grain))).size for index in range(70)]
    return round(sum(sizes[35:]) * 8 / 2)


def test_the_bitrate_follows_the_receiver_within_what_is_of_use() -> None:
    encoder = encoder_of(CODECS["H264"])
    start = encoder.target_bitrate
    assert 400_000 < start < 800_000
    spend(encoder, grain=60)
    encoder.target_bitrate = 300_000
    low = encoder.target_bitrate
    assert 200_000 < low < 300_000
    encoder.target_bitrate = round(1.1 * low)
    assert encoder.target_bitrate == low, "a small rise is not worth a key frame"
    # A receiver estimates at most 1.5 times what it gets: that must lead all the way up.
    seen = [low]
    for _ in range(12):
        encoder.target_bitrate = round(1.5 * encoder.target_bitrate)
        seen.append(encoder.target_bitrate)
    assert all(b >= a for a, b in pairwise(seen)) and seen[-1] == seen[-2]
    assert 2 * start <= seen[-1] < 3 * start
    encoder.target_bitrate = 1
    assert encoder.target_bitrate > 100_000


def test_a_simple_picture_is_not_taken_for_a_bad_network() -> None:
    """Chromium's first estimate, after five seconds, is what it got until then."""
    encoder = encoder_of(CODECS["VP8"])
    start, got = encoder.target_bitrate, spend(encoder, grain=0)
    assert got < 0.8 * start
    for factor in (1.0, 1.1, 1.3):
        encoder.target_bitrate = round(factor * got)
    assert encoder.target_bitrate == start
    encoder.target_bitrate = got // 2
    assert encoder.target_bitrate < got // 2
