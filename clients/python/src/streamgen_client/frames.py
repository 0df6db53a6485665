"""Frames: as they arrive, in a buffer that keeps the newest, and decoded when a program takes them."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

import av
import numpy as np
from numpy.typing import NDArray

SOUND_RATE = 48_000
"""Samples a second of all sound, either way."""


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """A frame of the stream.

    rgb: uint8 [H, W, 3], in the student's own size whatever the transport. number: index in the stream; the stream's
    given past counts, so the first one is not 0. pts_us: presentation time in microseconds since the session's first
    frame; it grows from frame to frame, across resets too. generation: how often the stream was begun anew.
    """

    rgb: NDArray[np.uint8]
    number: int
    pts_us: int
    generation: int

    @property
    def pts_s(self) -> float:
        """Presentation time in seconds."""
        return self.pts_us / 1e6


@dataclass(frozen=True, eq=False, slots=True)
class Arrival:
    """A frame as a link received it. picture: JPEG, or what the video decoder gave."""

    generation: int
    number: int
    pts_us: int
    picture: bytes | av.VideoFrame

    def decoded(self, width: int, height: int) -> Frame:
        """The frame, in this size. Takes some milliseconds: not for an event loop."""
        if isinstance(self.picture, bytes):
            codec = av.CodecContext.create("mjpeg", "r")
            (picture,) = codec.decode(av.Packet(self.picture))
        else:
            picture = self.picture
        # Video is sent enlarged, by a whole factor: averaging over each square gives the student's pixel back.
        rgb = picture.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")
        return Frame(np.asarray(rgb, np.uint8), self.number, self.pts_us, self.generation)


@dataclass(frozen=True, eq=False, slots=True)
class Sound:
    """What is heard with a frame. samples: int16 [T], mono at SOUND_RATE. The others as in `Frame`."""

    samples: NDArray[np.int16]
    number: int
    pts_us: int
    generation: int


_Item = TypeVar("_Item", Arrival, Sound)


class Buffer(Generic[_Item]):
    """The newest `size` frames that were not taken yet. `dropped` counts those that newer ones pushed out."""

    def __init__(self, size: int) -> None:
        self.dropped = 0
        self._arrivals: deque[_Item] = deque()
        self._size = size
        self._changed = asyncio.Event()
        self._error: Exception | None = None

    def put(self, arrival: _Item) -> None:
        """Leave a frame. One of a newer generation pushes out all that were made before the stream began anew."""
        while self._arrivals and (
            len(self._arrivals) >= self._size or self._arrivals[0].generation < arrival.generation
        ):
            self._arrivals.popleft()
            self.dropped += 1
        self._arrivals.append(arrival)
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """No frame will come any more; whoever waits for one, now or later, is told by this error."""
        self._error = error
        self._changed.set()

    async def get(self) -> _Item:
        """The oldest frame, when there is one. Raises what `fail` was given once all are taken."""
        while not self._arrivals:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        return self._arrivals.popleft()
