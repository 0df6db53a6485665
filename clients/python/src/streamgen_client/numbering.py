"""Which frame a picture is that came over WebRTC, where it carries nothing but its RTP timestamp.

Two messages of the server tell: an acknowledgement names the RTP timestamp and the presentation time of one frame,
which ties the two clocks together for the whole link; an epoch says that from frame n0 on, due at t0, frames follow
each other at a fixed rate.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_EPOCHS_KEPT = 64


@dataclass(frozen=True, slots=True)
class Name:
    """What a frame is called."""

    generation: int
    number: int
    pts_us: int


@dataclass(frozen=True, slots=True)
class _Epoch:
    n0: int
    t0_us: int
    fps: float
    generation: int


class Numbering:
    """The names of the frames of one link."""

    def __init__(self) -> None:
        self._epochs: deque[_Epoch] = deque(maxlen=_EPOCHS_KEPT)
        self._tie: tuple[int, int] | None = None

    @property
    def tied(self) -> bool:
        """Whether RTP timestamps can be read yet."""
        return self._tie is not None

    def opened(self, n0: int, t0_us: int, fps: float, generation: int) -> None:
        """The server opened an epoch."""
        self._epochs.append(_Epoch(n0, t0_us, fps, generation))

    def tie(self, rtp: int, pts_us: int) -> None:
        """The frame with this RTP timestamp has this presentation time."""
        self._tie = rtp, pts_us

    def name(self, rtp: int) -> Name | None:
        """The frame with this RTP timestamp. None: it is older than every epoch that this link has heard of."""
        assert self._tie is not None
        tied_rtp, tied_us = self._tie
        ticks = (rtp - tied_rtp + 2**31) % 2**32 - 2**31
        near_us = tied_us + ticks * 100 / 9
        for epoch in reversed(self._epochs):
            # Epochs lie a period apart at least, so half of one forgives what RTP's ticks round away.
            since_us = near_us - epoch.t0_us
            if since_us > -0.5e6 / epoch.fps:
                index = round(since_us * epoch.fps / 1e6)
                return Name(epoch.generation, epoch.n0 + index, epoch.t0_us + round(index * 1e6 / epoch.fps))
        return None
