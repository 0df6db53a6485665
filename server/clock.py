"""The media clock of a session, in epochs.

Within an epoch frame n is due at t0 + (n - n0) / fps, an absolute deadline: rounding never adds up, so there is no
drift. Pause, resume and a stall that cannot be caught up open a new epoch, so the frames that were missed are not sent
in a burst. Time is passed in, never read.
"""

from __future__ import annotations

from dataclasses import dataclass

VIDEO_CLOCK_HZ = 90_000
"""RTP's clock rate for video (RFC 6184, RFC 7741)."""


def rtp_ticks(pts_us: int) -> int:
    """A presentation time in microseconds as ticks of the 90 kHz RTP clock."""
    return (pts_us * 9 + 50) // 100


@dataclass(frozen=True, slots=True)
class Epoch:
    """A stretch with fixed start and rate.

    n0: first frame. t0_s: when it is due, monotonic clock. pts0_us: its presentation time since the session's first
    frame.
    """

    n0: int
    t0_s: float
    pts0_us: int


class MediaClock:
    """Frame deadlines and presentation times of one session. `epochs` counts those opened so far."""

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self.epoch: Epoch | None = None
        self.epochs = 0
        self._origin_s: float | None = None
        self._free_s = float("-inf")

    @property
    def period_s(self) -> float:
        return 1.0 / self.fps

    def open(self, n0: int, t0_s: float, fps: float | None = None) -> Epoch:
        """Begin an epoch: frame n0 is due at t0_s, or one period after the last stamped frame if that is later.

        fps: the new rate; None keeps it.
        """
        self.fps = fps or self.fps
        t0_s = max(t0_s, self._free_s)
        if self._origin_s is None:
            self._origin_s = t0_s
        self.epoch = Epoch(n0, t0_s, round((t0_s - self._origin_s) * 1e6))
        self.epochs += 1
        return self.epoch

    def close(self) -> None:
        """End the epoch: nothing is due until the next `open`."""
        self.epoch = None

    def due_s(self, n: int) -> float:
        """When frame n is due, monotonic clock."""
        epoch = self._running()
        return epoch.t0_s + (n - epoch.n0) / self.fps

    def stamp(self, n: int) -> int:
        """Presentation time of frame n in microseconds; later epochs start after it, so stamps only ever grow."""
        epoch = self._running()
        self._free_s = max(self._free_s, self.due_s(n) + self.period_s)
        return epoch.pts0_us + round((n - epoch.n0) * 1e6 / self.fps)

    def elapsed_us(self, now_s: float) -> int:
        """Presentation time of a frame that would be due now; 0 before the first."""
        return 0 if self._origin_s is None else round((max(now_s, self._free_s) - self._origin_s) * 1e6)

    def go_on(self, elapsed_us: int, now_s: float) -> None:
        """Continue a clock of another process, which stood at elapsed_us: stamps grow beyond it."""
        if elapsed_us:
            self._origin_s = now_s - elapsed_us / 1e6

    def _running(self) -> Epoch:
        if self.epoch is None:
            raise RuntimeError("the media clock has no epoch: open one first")
        return self.epoch
