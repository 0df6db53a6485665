"""The sound of one WebRTC viewer: what an avatar says to it, in Opus, and what its microphone brings.

Picture and sound reach a receiver as two streams whose clocks have random origins; RTCP sender reports tell it which
moments of the two belong together (RFC 3550, section 6.4.1). aiortc reports the time at which it sent a packet, which
says when the network took it and not when it is due. `EpochSender` reports the media clock instead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from fractions import Fraction

import numpy as np
from aiortc import MediaStreamTrack
from aiortc.clock import current_ntp_time
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpreceiver import RTCRtpReceiver
from aiortc.rtcrtpsender import RTCRtpSender
from aiortc.rtp import RtpPacket
from av import AudioCodecContext, AudioFrame, AudioResampler, CodecContext
from av.frame import Frame as AVFrame

from server.clock import MediaClock
from server.mailbox import Mailbox, MailboxClosed
from server.rtp import ENCODER, use_encoder
from server.streams import Stream
from server.voice import VOICE_RATE, Voice

PACKET_SAMPLES = VOICE_RATE // 50
"""20 ms: what a packet of Opus usually holds."""
_BITRATE = 40_000
_MOST_LOST_S = 0.2
_NTP_SECOND = 2**32


def ntp_of_clock(clock: MediaClock, now_s: float) -> int:
    """The NTP time at which the media clock stood at zero."""
    return current_ntp_time() - clock.elapsed_us(now_s) * _NTP_SECOND // 1_000_000


class EpochSender(RTCRtpSender):
    """A sender that reports when a frame is due in place of when it was sent. Made of an aiortc sender by `adopt`."""

    zero_ntp: int
    _due_ntp = 0

    @classmethod
    def adopt(cls, sender: RTCRtpSender, encoder: object, zero_ntp: int) -> EpochSender:
        """encoder: what the sender encodes with; its `pts_us` is that of the frame which is being sent. zero_ntp: NTP
        time of the media clock's zero, the same for picture and sound. Raises RuntimeError for another aiortc.
        """
        use_encoder(sender, encoder, "_RTCRtpSender__ntp_timestamp")
        sender.__class__ = cls
        assert isinstance(sender, cls)
        sender.zero_ntp = zero_ntp
        return sender

    @property
    def _RTCRtpSender__ntp_timestamp(self) -> int:
        return self._due_ntp

    @_RTCRtpSender__ntp_timestamp.setter
    def _RTCRtpSender__ntp_timestamp(self, sent_ntp: int) -> None:
        pts_us: int = getattr(getattr(self, ENCODER), "pts_us", 0)
        self._due_ntp = self.zero_ntp + pts_us * _NTP_SECOND // 1_000_000


class OpusEncoder:
    """What aiortc's sender calls in place of its own encoder, which counts time from the first packet.

    pts_us: presentation time of the sound that was encoded last.
    """

    def __init__(self) -> None:
        context = CodecContext.create("libopus", "w")
        assert isinstance(context, AudioCodecContext)
        context.bit_rate, context.sample_rate = _BITRATE, VOICE_RATE
        context.format, context.layout = "s16", "mono"
        context.options = {"application": "voip"}
        self._context = context
        self.pts_us = 0

    def encode(self, frame: AVFrame, force_keyframe: bool = False) -> tuple[list[bytes], int]:
        """Payloads of PACKET_SAMPLES of sound, and its time in ticks of 48 kHz."""
        assert isinstance(frame, AudioFrame) and frame.pts is not None
        self.pts_us = frame.pts * 1_000_000 // VOICE_RATE
        return [bytes(packet) for packet in self._context.encode(frame)], frame.pts


class SoundTrack(MediaStreamTrack):
    """The track that aiortc pulls sound from, PACKET_SAMPLES at a time."""

    kind = "audio"

    def __init__(self, sounds: Mailbox, stream: Stream) -> None:
        super().__init__()
        self._sounds, self._stream = sounds, stream
        self._ready: deque[AudioFrame] = deque()
        self._left = np.zeros(0, np.int16)
        self._next = 0
        self._began = (-1, -1)

    async def recv(self) -> AVFrame:
        while not self._ready or self._began != self._stream.moment:
            self._ready.clear()
            try:
                frame = await self._sounds.get()
            except MailboxClosed:
                self.stop()
                raise MediaStreamError from None
            if frame.sound is None or not self._stream.shows(frame):
                continue
            start = round(frame.pts_us * VOICE_RATE / 1_000_000)
            # What is left of the frame before goes first, unless it was interrupted or the clock has jumped.
            if self._began != self._stream.moment or abs(start - self._next - len(self._left)) > PACKET_SAMPLES:
                self._left, self._next, self._began = self._left[:0], start, self._stream.moment
            samples = np.concatenate([self._left, frame.sound])
            whole = len(samples) // PACKET_SAMPLES * PACKET_SAMPLES
            for at in range(0, whole, PACKET_SAMPLES):
                self._ready.append(self._packet(samples[at : at + PACKET_SAMPLES]))
            self._left = samples[whole:]
        return self._ready.popleft()

    def _packet(self, samples: np.ndarray) -> AudioFrame:
        packet = AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        packet.sample_rate, packet.pts, packet.time_base = VOICE_RATE, self._next, Fraction(1, VOICE_RATE)
        self._next += PACKET_SAMPLES
        return packet


class InOrder(JitterBuffer):
    """What aiortc's receiver keeps a microphone's packets in, without its waiting for four of them, and for the sixteen
    that follow a lost one: the voice holds sound back itself. A packet that comes after a later one is left out.
    """

    _BUFFER = "_RTCRtpReceiver__jitter_buffer"

    def __init__(self) -> None:
        super().__init__(capacity=4)
        self._last: int | None = None

    @classmethod
    def adopt(cls, receiver: RTCRtpReceiver) -> None:
        """Let a receiver use one. Raises RuntimeError for another aiortc."""
        if not hasattr(receiver, cls._BUFFER):
            raise RuntimeError(f"the installed aiortc has no {cls._BUFFER}: use aiortc 1.16")
        setattr(receiver, cls._BUFFER, cls())

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        number = packet.sequence_number
        if self._last is not None and not 0 < (number - self._last) % 2**16 < 2**15:
            return False, None
        self._last = number
        data: bytes = packet._data  # type: ignore[attr-defined]  # where the receiver puts the payload
        return False, JitterFrame(data=data, timestamp=packet.timestamp)


async def listen(track: MediaStreamTrack, voice: Voice, source: str) -> None:
    """Hand a viewer's microphone to the voice until it ends; where packets are lost it is silent."""
    resampler = AudioResampler("flt", "mono", VOICE_RATE)
    due: int | None = None
    try:
        while True:
            frame = await track.recv()
            if not isinstance(frame, AudioFrame) or frame.pts is None:
                continue
            lost = 0 if due is None else frame.pts - due
            if 0 < lost <= _MOST_LOST_S * frame.sample_rate:
                voice.hear(source, np.zeros(lost * VOICE_RATE // frame.sample_rate, np.float32))
            due = frame.pts + frame.samples
            for piece in resampler.resample(frame):
                voice.hear(source, piece.to_ndarray()[0])
    except (MediaStreamError, asyncio.CancelledError):
        voice.forget(source)
