"""One viewer's video: RGB frames, enlarged and encoded as VP8 or H.264, for WebRTC and WebSocket alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from av import CodecContext, Packet, VideoCodecContext, VideoFrame, VideoStream
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace

from server.clock import VIDEO_CLOCK_HZ, rtp_ticks
from server.mailbox import Frame
from server.streams import Stream

_TIME_BASE = Fraction(1, VIDEO_CLOCK_HZ)

_START_BITS, _LEAST_BITS, _MOST_BITS = 0.3, 0.1, 0.6
"""Of the bitrate, for one pixel of one frame."""

_CONGESTED = 0.9
"""An estimate below this share of what is sent is acted upon, and this share of it is what is sent then."""

_RISE, _RISE_ABOVE = 1.25, 1.35
"""A receiver's estimate never exceeds 1.5 times what it receives: a larger rise would wait for ever."""

_SPENT_OVER_S = 2.0

_SHOWN_HEIGHT = 288


def upscale_for(height: int) -> int:
    """The factor at which video's halved colour resolution is no longer seen:

    pictures of about 288 lines, never smaller.
    """
    return max(1, round(_SHOWN_HEIGHT / height))


def to_picture(frame: Frame) -> VideoFrame:
    """A frame as encoders take it, dated by the media clock in ticks of 90 kHz."""
    picture = VideoFrame.from_ndarray(frame.rgb, format="rgb24")
    picture.pts, picture.time_base = rtp_ticks(frame.pts_us), _TIME_BASE
    return picture


@dataclass(frozen=True, slots=True)
class Codec:
    """How a codec is run live: every frame leaves when it comes, at a constant bitrate, a key frame when asked for."""

    name: str
    library: str
    options: dict[str, str]
    shares: dict[str, float]
    """Options that are a share of the bitrate."""


VP8 = Codec(
    "VP8",
    "libvpx",
    {
        "deadline": "realtime",
        "cpu-used": "-6",
        "lag-in-frames": "0",
        "qmin": "2",
        "qmax": "56",
        "noise-sensitivity": "4",
        "static-thresh": "1",
        "undershoot-pct": "100",
        "overshoot-pct": "15",
    },
    {"minrate": 1.0, "maxrate": 1.0, "bufsize": 1.0},
)
H264 = Codec(
    "H264",
    "libx264",
    # 384x288 costs 2.1 ms where VP8 costs 2.8 and looks worse; `ultrafast` costs a third less, and .6 dB.
    {"profile": "baseline", "level": "31", "preset": "superfast", "tune": "zerolatency", "sc_threshold": "0"},
    {"maxrate": 1.0, "bufsize": 0.5},
)
CODECS: dict[str, Codec] = {codec.name: codec for codec in (VP8, H264)}


class VideoEncoder:
    """Enlarges and encodes the frames of one viewer; called on a worker thread, one frame at a time.

    width, height: of the frames, pixels. upscale: whole factor. fps: the stream's rate now; it is asked before every
    frame, because libx264 shares out the bitrate by it. H.264 is constrained baseline in Annex B, with its parameter
    sets before every key frame.
    """

    def __init__(self, codec: Codec, width: int, height: int, upscale: int, fps: Callable[[], float]) -> None:
        self.width, self.height = (side * upscale // 2 * 2 for side in (width, height))
        self._codec, self._fps = codec, fps
        self._bits = _START_BITS
        self._spent = 0.0
        self._estimate = float("inf")
        self._context: VideoCodecContext | None = None
        self._opened_for = (0.0, 0)

    def encode(self, picture: VideoFrame, keyframe: bool = False) -> Packet[VideoStream]:
        """The picture, encoded; as a key frame if asked for, or if the encoder has to begin anew."""
        scaled = picture.reformat(
            self.width, self.height, "yuv420p", dst_colorspace=Colorspace.ITU601, interpolation="BICUBIC"
        )
        scaled.pict_type = PictureType.I if keyframe else PictureType.NONE
        wanted = self._fps(), self.target_bitrate
        if self._context is None or wanted != self._opened_for:
            self._context, self._opened_for = self._open(*wanted), wanted
        (packet,) = self._context.encode(scaled)
        spent = 8 * packet.size / (self.width * self.height)
        self._spent += (spent - self._spent) / max(1.0, _SPENT_OVER_S * wanted[0])
        return packet

    @property
    def target_bitrate(self) -> int:
        """Bits a second."""
        return round(self._bits * self._pixels_per_s)

    @target_bitrate.setter
    def target_bitrate(self, estimate: int) -> None:
        """Follow what a receiver estimates to get through (REMB), within what is of use to such a picture.

        A receiver cannot see what was not sent: while a simple picture needs few bits, its estimate is as low. Only one
        that falls below what is spent tells of congestion. Every change makes a new encoder and so a key frame.
        """
        bits = estimate / self._pixels_per_s
        fell, self._estimate = estimate < self._estimate, estimate
        if fell and bits < _CONGESTED * min(self._spent, self._bits):
            self._bits = max(_LEAST_BITS, _CONGESTED * bits)
        elif bits > _RISE_ABOVE * self._bits:
            self._bits = min(_MOST_BITS, _RISE * self._bits)

    @property
    def _pixels_per_s(self) -> float:
        return self.width * self.height * self._fps()

    def _open(self, fps: float, bitrate: int) -> VideoCodecContext:
        context = CodecContext.create(self._codec.library, "w")
        assert isinstance(context, VideoCodecContext)
        context.width, context.height, context.pix_fmt = self.width, self.height, "yuv420p"
        context.time_base, context.framerate = _TIME_BASE, Fraction(fps).limit_denominator(1000)
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU601
        context.bit_rate = bitrate
        context.gop_size = VIDEO_CLOCK_HZ  # in frames: longer than anybody waits for a key frame without asking
        context.thread_count = 1  # viewers are encoded side by side
        shares = {name: str(round(share * bitrate)) for name, share in self._codec.shares.items()}
        context.options = self._codec.options | shares
        return context


def encoder_for(stream: Stream, codec: Codec, upscale: int | None) -> VideoEncoder:
    """An encoder of the stream's pictures. upscale: None chooses it by their height."""
    config = stream.student.config
    return VideoEncoder(
        codec, config.width, config.height, upscale or upscale_for(config.height), lambda: stream.clock.fps
    )
