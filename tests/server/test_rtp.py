"""The reach into aiortc's sender."""

from __future__ import annotations

import numpy as np
import pytest
from aiortc.codecs import depayload
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from av import CodecContext, Packet

from server.mailbox import Frame
from server.rtp import RtpEncoder, SenderTap
from server.video import CODECS, VideoEncoder, to_picture
from tests.server.synthetic import MADE

DECODERS = {"VP8": "libvpx", "H264": "h264"}


@pytest.mark.parametrize("name", CODECS)
def test_frames_are_cut_into_packets_and_keep_their_time(name: str) -> None:
    codec = RTCRtpCodecParameters(mimeType=f"video/{name}", clockRate=90_000, payloadType=97)
    encoder = RtpEncoder(VideoEncoder(CODECS[name], 128, 96, 3, lambda: 20.0), codec)
    rng = np.random.default_rng(1)
    for pts_us, forced in ((0, False), (83_333, True)):
        noise = Frame(0, 0, pts_us, rng.integers(0, 255, (96, 128, 3), np.uint8), MADE)
        payloads, timestamp = encoder.encode(to_picture(noise), force_keyframe=forced)
    assert timestamp == 7500
    assert len(payloads) > 1 and max(map(len, payloads)) <= 1300
    # A decoder can begin here: the receiver asked for a key frame.
    data = b"".join(depayload(codec, payload) for payload in payloads)
    decoded = CodecContext.create(DECODERS[name], "r")
    decoded.thread_count = 1
    assert [(f.width, f.height) for f in decoded.decode(Packet(data))] == [(384, 288)]  # type: ignore[attr-defined]


def test_another_aiortc_is_noticed() -> None:
    with pytest.raises(RuntimeError, match="use aiortc"):
        SenderTap(object(), object())  # type: ignore[arg-type]
