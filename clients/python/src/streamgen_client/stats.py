"""What a client measures."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

_FPS_OVER_S = 3.0
_ARRIVALS_KEPT = 1024
_LATENCIES_KEPT = 512


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures since the client was opened.

    frames: that arrived. dropped: of those, the ones that nobody took before newer ones came. missed: that were
    generated and never arrived, dropped by the server or lost on the way. fps: arrivals a second over the last 3 s.
    latency_s: from each call that moved a key to the arrival of the first frame that shows it, oldest first, the last
    512 of `inputs`. reconnects: how often the connection was lost and made again.
    """

    frames: int
    dropped: int
    missed: int
    fps: float
    latency_s: tuple[float, ...]
    inputs: int
    reconnects: int


class Meter:
    """Takes note of what happens. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.reconnects = 0
        self._frames = self._missed = self._inputs = 0
        self._newest = (-1, -1)
        self._arrivals: deque[tuple[int, float]] = deque(maxlen=_ARRIVALS_KEPT)
        self._owed: list[tuple[int, float]] = []
        self._latencies: deque[float] = deque(maxlen=_LATENCIES_KEPT)

    def arrived(self, generation: int, number: int, pts_us: int) -> bool:
        """A frame came. False: it, or one after it, came before."""
        if (generation, number) <= self._newest:
            return False
        if generation == self._newest[0]:
            self._missed += number - self._newest[1] - 1
        self._newest = generation, number
        now_s = time.monotonic()
        self._frames += 1
        self._arrivals.append((pts_us, now_s))
        for owed_us, sent_s in self._owed:
            if owed_us <= pts_us:
                self._shown(now_s - sent_s)
        self._owed = [owed for owed in self._owed if owed[0] > pts_us]
        return True

    def acknowledged(self, pts_us: int, sent_s: float) -> None:
        """What was sent at sent_s shows from this presentation time on; that frame may have come already."""
        for shown_us, at_s in self._arrivals:
            if shown_us >= pts_us:
                self._shown(at_s - sent_s)
                return
        self._owed.append((pts_us, sent_s))

    def _shown(self, latency_s: float) -> None:
        self._latencies.append(latency_s)
        self._inputs += 1

    def read(self, dropped: int) -> Stats:
        """The figures now."""
        now_s = time.monotonic()
        recent = [at_s for _, at_s in self._arrivals if at_s > now_s - _FPS_OVER_S]
        fps = (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 else 0.0
        return Stats(self._frames, dropped, self._missed, fps, tuple(self._latencies), self._inputs, self.reconnects)
