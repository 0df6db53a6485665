"""The video of one WebRTC viewer on its way from its mailbox through aiortc.

Two things that aiortc keeps to itself are reached for here, and nowhere else: the sender's encoder (so that frames are
scaled and encoded together, off the event loop, at the rate and the bitrate that they have) and the RTP timestamp of
the last packet (aiortc adds a random origin to all timestamps and does not tell). tests/server/test_rtp.py holds both
against the installed aiortc.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from aiortc import MediaStreamTrack
from aiortc.codecs import get_encoder
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtcrtpsender import RTCRtpSender
from av import VideoFrame
from av.frame import Frame as AVFrame

from server.clock import rtp_ticks
from server.mailbox import Frame, Mailbox, MailboxClosed
from server.video import VideoEncoder, to_picture

ENCODER = "_RTCRtpSender__encoder"
"""A sender's private name for what it encodes with."""


class RtpEncoder:
    """What aiortc's sender calls in place of its own encoder, of which only the cutting into packets is used.

    encoded_s: when the last frame was done, monotonic clock. pts_us: its presentation time.
    """

    def __init__(self, encoder: VideoEncoder, codec: RTCRtpCodecParameters) -> None:
        self._encoder, self._packer = encoder, get_encoder(codec)
        self.encoded_s = float("-inf")
        self.pts_us = 0

    def encode(self, frame: AVFrame, force_keyframe: bool = False) -> tuple[list[bytes], int]:
        """RTP payloads, and the frame's time in ticks of 90 kHz."""
        assert isinstance(frame, VideoFrame)
        assert frame.pts is not None
        payloads, _ = self._packer.pack(self._encoder.encode(frame, force_keyframe))
        self.encoded_s = time.monotonic()
        self.pts_us = frame.pts * 100 // 9
        return payloads, frame.pts

    @property
    def target_bitrate(self) -> int:
        return self._encoder.target_bitrate

    @target_bitrate.setter
    def target_bitrate(self, estimate: int) -> None:
        self._encoder.target_bitrate = estimate


def use_encoder(sender: RTCRtpSender, encoder: object, *needed: str) -> None:
    """Let a sender encode with this. Raises RuntimeError when this aiortc has other private parts than those needed."""
    missing = [name for name in (ENCODER, *needed) if not hasattr(sender, name)]
    if missing:
        raise RuntimeError(f"the installed aiortc has no {', '.join(missing)}: use aiortc 1.16")
    setattr(sender, ENCODER, encoder)


class SenderTap:
    """A sender's private parts that are needed. Raises RuntimeError when this aiortc names them differently."""

    _PACKETS, _TIMESTAMP = (f"_RTCRtpSender__{name}" for name in ("packet_count", "rtp_timestamp"))

    def __init__(self, sender: RTCRtpSender, encoder: RtpEncoder) -> None:
        use_encoder(sender, encoder, self._PACKETS, self._TIMESTAMP)
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
        if self.tap is not None:
            self._last = frame, self.tap.packets
        return to_picture(frame)

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
