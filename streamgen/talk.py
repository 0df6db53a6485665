"""What drives a talking head from frame to frame: what it hears, and its own life. Free of torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamgen.audio import MEL_BINS, MEL_RATE, SILENCE, LogMel
from streamgen.config import StudentConfig
from streamgen.face import LIFE, SPEECH
from streamgen.life import life
from streamgen.state import StreamState

_SETTLE_S = 1.0
"""Time in which a new stream's face goes over from what its start showed to its own life."""
_SWAYS = "head", "body", "gaze"
_LOUD_FRAMES = 12
"""Mel frames whose loudness counts for a frame's nods."""


class Ear:
    """The sound of a stream as windows of mel frames, one for each video frame; it begins with the first sample, and
    before that all is silent.
    """

    def __init__(self, config: StudentConfig) -> None:
        """Raises ValueError for a student that does not hear."""
        if config.speech is None:
            raise ValueError(f"student {config.name} does not hear")
        self._speech = config.speech
        self._mel = LogMel()
        self._kept = np.full((config.speech.window, MEL_BINS), SILENCE, np.float32)
        self._first = -config.speech.window

    def push(self, samples: NDArray[np.float32]) -> None:
        """The next samples [T], mono at 16 kHz, in [-1, 1]."""
        self._kept = np.concatenate([self._kept, self._mel.push(samples)])

    def has(self, end_s: float) -> bool:
        """Whether enough was heard to show a frame whose own sound ends here."""
        return self._end(end_s) <= self._first + len(self._kept)

    def window(self, end_s: float) -> NDArray[np.float32]:
        """Mel frames [window, MEL_BINS] of a frame whose own sound ends here; what lies before them is forgotten.

        Raises IndexError.
        """
        begin = self._end(end_s) - self._speech.window - self._first
        window = self._kept[max(0, begin) : max(0, begin + self._speech.window)]
        if begin < 0 or len(window) < self._speech.window:
            raise IndexError(f"the sound around {end_s:.3f} s was not heard yet, or is forgotten")
        self._kept, self._first = self._kept[begin:], self._first + begin
        return window

    def forget_from(self, start_s: float) -> None:
        """What was heard from here on was never said: its place is silent."""
        self._kept[max(0, round(start_s * MEL_RATE) - self._first) :] = SILENCE
        self._mel.silence()

    def _end(self, end_s: float) -> int:
        return round(end_s * MEL_RATE) + self._speech.lookahead


def loudness(window: NDArray[np.float32]) -> float:
    """How loud the voice is at the end of a window: 0 is silent, 1 as loud as people talk."""
    level = float(window[-_LOUD_FRAMES:].mean())
    return min(1.0, max(0.0, 1.0 - level / SILENCE))


class Performer:
    """The action vectors of a stream but for what it says: the head's own life, from the stream's start on."""

    def __init__(self, config: StudentConfig, start: StreamState) -> None:
        """start: as the student gave it for the stream's seed."""
        self._config, self._seed, self._begin = config, start.seed, start.frame
        self._sway = np.array([config.sway if name.startswith(_SWAYS) else 1.0 for name in LIFE], np.float32)
        own = self._sway * life(start.seed, start.frame, config.fps)
        self._offset = start.actions[-1, len(SPEECH) :] - own if len(start.actions) else np.zeros(len(LIFE), np.float32)

    def actions(self, frame: int, loud: float = 0.0) -> NDArray[np.float32]:
        """[A], scaled, with a mouth at rest."""
        left = max(0.0, 1.0 - (frame - self._begin) / (_SETTLE_S * self._config.fps))
        own = self._sway * life(self._seed, frame, self._config.fps, loud)
        own += np.float32(left**2 * (3 - 2 * left)) * self._offset
        return np.concatenate([np.zeros(len(SPEECH), np.float32), own.astype(np.float32)])
