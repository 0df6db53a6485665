"""The VP8 video of one WebRTC viewer, fed from its mailbox.

Two things that aiortc keeps to itself are reached for here, and nowhere else: the sender's encoder (so that frames are
scaled and encoded together, off the event loop, at a bitrate that fits them) and the RTP timestamp of the last packet
(aiortc adds a random origin to all timestamps and does not tell). tests/server/test_vp8.py holds both against the
installed aiortc.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction

from aiortc import MediaStreamTrack
from aiortc.codecs.vpx import Vp8Encoder
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpsender import RTCRtpSender
from av import VideoFrame
from av.frame import Frame as AVFrame

from server.clock import VIDEO_CLOCK_HZ, rtp_ticks
from server.mailbox import Frame, Mailbox, MailboxClosed

_TIME_BASE = Fraction(1, VIDEO_CLOCK_HZ)
_BITRATES = (300_000, 600_000, 1_200_000)
_RISE_ABOVE = 1.5
"""The receiver's estimate must exceed the next bitrate by this factor before it is used."""

_SHOWN_HEIGHT = 288


def upscale_for(height: int) -> int:
    """The factor at which VP8's halved colour resolution is no longer seen:

    pictures of about 288 lines, never smaller.
    """
    return max(1, round(_SHOWN_HEIGHT / height))


class LiveVp8Encoder(Vp8Encoder):
    """Scales RGB frames up by an integer factor and encodes them; called on a worker thread.

    encoded_s: when the last one was done, monotonic clock.
    The bitrate moves between few levels: every change makes aiortc start a new encoder with a key frame.
    """

    def __init__(self, upscale: int) -> None:
        super().__init__()
        self._upscale = upscale
        self._level = 1
        self.encoded_s = float("-inf")
        self._set(_BITRATES[self._level])

    def encode(self, frame: AVFrame, force_keyframe: bool = False) -> tuple[list[bytes], int]:
        assert isinstance(frame, VideoFrame)
        assert frame.pts is not None
        width, height = (side * self._upscale // 2 * 2 for side in (frame.width, frame.height))
        scaled = frame.reformat(width, height, format="yuv420p", interpolation="BICUBIC")
        payloads, _ = super().encode(scaled, force_keyframe)
        self.encoded_s = time.monotonic()
        # Not the timestamp that came with them: it went through microseconds and is often one tick short.
        return payloads, frame.pts

    @property
    def target_bitrate(self) -> int:
        return _BITRATES[self._level]

    @target_bitrate.setter
    def target_bitrate(self, bitrate: int) -> None:
        level = self._level
        while level > 0 and bitrate < _BITRATES[level]:
            level -= 1
        if level == self._level and level + 1 < len(_BITRATES) and bitrate > _RISE_ABOVE * _BITRATES[level + 1]:
            level += 1
        self._level = level
        self._set(_BITRATES[level])

    def _set(self, bitrate: int) -> None:
        vars(Vp8Encoder)["target_bitrate"].__set__(self, bitrate)


class SenderTap:
    """A sender's private parts that are needed. Raises RuntimeError when this aiortc names them differently."""

    _ENCODER, _PACKETS, _TIMESTAMP = (f"_RTCRtpSender__{name}" for name in ("encoder", "packet_count", "rtp_timestamp"))

    def __init__(self, sender: RTCRtpSender, encoder: LiveVp8Encoder) -> None:
        missing = [name for name in (self._ENCODER, self._PACKETS, self._TIMESTAMP) if not hasattr(sender, name)]
        if missing:
            raise RuntimeError(f"the installed aiortc has no {', '.join(missing)}: use aiortc 1.16")
        setattr(sender, self._ENCODER, encoder)
        self._sender, self.encoder = sender, encoder

    @property
    def packets(self) -> int:
        """Packets sent so far."""
        return int(getattr(self._sender, self._PACKETS))

    @property
    def timestamp(self) -> int:
        """RTP timestamp of the last packet sent."""
        return int(getattr(self._sender, self._TIMESTAMP))


class MailboxTrack(MediaStreamTrack):
    """The track that aiortc pulls frames from.

    rtp_origin: what aiortc adds to a frame's 90 kHz time; known once the first frame has been sent, which is when
    aiortc comes for the second one. taken: called with each frame as it is handed over; sent: when its packets have
    left, with the time at which it was encoded; origin_known: called once.
    """

    kind = "video"

    def __init__(
        self,
        mailbox: Mailbox,
        taken: Callable[[Frame], None],
        sent: Callable[[Frame, float], None],
        origin_known: Callable[[], None],
    ) -> None:
        super().__init__()
        self.rtp_origin: int | None = None
        self.tap: SenderTap | None = None
        self._mailbox, self._taken, self._sent, self._origin_known = mailbox, taken, sent, origin_known
        self._last: tuple[Frame, int] | None = None

    async def recv(self) -> AVFrame:
        self._observe()
        try:
            frame = await self._mailbox.get()
        except MailboxClosed:
            self.stop()
            raise MediaStreamError from None
        self._taken(frame)
        picture = VideoFrame.from_ndarray(frame.rgb, format="rgb24")
        picture.pts, picture.time_base = rtp_ticks(frame.pts_us), _TIME_BASE
        if self.tap is not None:
            self._last = frame, self.tap.packets
        return picture

    def _observe(self) -> None:
        """aiortc comes back: see whether it has sent the last frame."""
        if self.tap is None or self._last is None:
            return
        frame, packets_before = self._last
        if self.tap.packets > packets_before:
            if self.rtp_origin is None:
                self.rtp_origin = (self.tap.timestamp - rtp_ticks(frame.pts_us)) % 2**32
                self._origin_known()
            self._sent(frame, self.tap.encoder.encoded_s)
