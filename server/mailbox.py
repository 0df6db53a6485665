"""Frames on their way to one viewer: a few of them, raw, the oldest dropped when another comes."""

from __future__ import annotations

import asyncio
import io
from collections import deque
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAILBOX_FRAMES = 2
SOUND_FRAMES = 12
"""Of what is only heard: half a second, since a gap in a sound is worse than a wait."""
JPEG_QUALITY = 90


class MailboxClosed(Exception):
    """The viewer has gone; no frame will come."""


@dataclass(frozen=True, slots=True)
class Making:
    """How a block came about. Times are on the monotonic clock: inputs were read at began_s, the block came at made_s.

    worker: number of its process. rows: streams of the same Step. open_s, step_s: what the engine took of that time.
    """

    stream: str
    worker: int
    rows: int
    steps: int
    began_s: float
    made_s: float
    open_s: float
    step_s: float


@dataclass(eq=False, slots=True)
class Frame:
    """A generated frame. rgb: uint8 [H, W, 3]. pts_us: presentation time since the session's first frame.

    sound: int16 [T] at 48 kHz, what is heard with it, where the stream has a voice. utterance: how often the voice had
    been interrupted.
    """

    generation: int
    index: int
    pts_us: int
    rgb: NDArray[np.uint8]
    making: Making
    sound: NDArray[np.int16] | None = None
    utterance: int = 0
    _jpeg: asyncio.Future[bytes] | None = field(default=None, init=False)

    async def jpeg(self, pool: Executor) -> bytes:
        """The frame as JPEG (4:4:4), encoded in `pool` once for all viewers."""
        if self._jpeg is None:
            self._jpeg = asyncio.get_running_loop().run_in_executor(pool, _encode, self.rgb)
        # One viewer's end must not cancel the picture that others wait for.
        return await asyncio.shield(self._jpeg)


class Mailbox:
    """One producer, one consumer, both on the event loop. `dropped` counts the frames that were not taken in time."""

    def __init__(self, size: int = MAILBOX_FRAMES) -> None:
        self.dropped = 0
        self._size = size
        self._frames: deque[Frame] = deque()
        self._ready = asyncio.Event()
        self._closed = False

    def put(self, frame: Frame) -> int:
        """Leave a frame; returns how many older ones it pushed out (0 or 1)."""
        if self._closed:
            return 0
        pushed = len(self._frames) == self._size
        if pushed:
            self._frames.popleft()
            self.dropped += 1
        self._frames.append(frame)
        self._ready.set()
        return int(pushed)

    async def get(self) -> Frame:
        """The oldest frame, when there is one. Raises MailboxClosed."""
        while not self._frames:
            if self._closed:
                raise MailboxClosed
            self._ready.clear()
            await self._ready.wait()
        return self._frames.popleft()

    def clear(self) -> None:
        """Throw away what was not taken: it belongs to an older generation."""
        self._frames.clear()

    def close(self) -> None:
        self._closed = True
        self._frames.clear()
        self._ready.set()


def _encode(rgb: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue()
