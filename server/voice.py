"""The sound of one talking stream: from microphones, files and typed words to what each frame shows and is heard with.

Sound comes and goes at 48 kHz in one channel. Every frame takes its own share of it, exactly as long as the frame. The
student hears a little ahead of what it shows; what is heard with a frame is therefore the sound that came in, delayed
by exactly that.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray

from streamgen.audio import HOP, SAMPLE_RATE
from streamgen.config import StudentConfig
from streamgen.talk import Ear

VOICE_RATE = 48_000
_DOWN = VOICE_RATE // SAMPLE_RATE
_TAPS = 48
JITTER_S = 0.04
"""A microphone's sound is held back this long, so that packets that come late still come in time."""
_JITTER = round(JITTER_S * VOICE_RATE)
_QUIET = 0.01
MOST_SOUND_BYTES = 64 * 1024
"""Of one message with sound: two thirds of a second."""
MOST_JITTER_S = 0.3
"""More than this is never held back: the sender's clock is faster, or its packets came in a burst."""

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Slice:
    """What a frame is made of. mel: [window, MEL_BINS], what the student hears. sound: int16 [T], what viewers hear."""

    mel: NDArray[np.float32]
    sound: NDArray[np.int16]


class Voice:
    """Not a task: whoever generates the stream cuts one slice for each frame.

    dropped_s: seconds of microphones' sound that came too fast to be heard. gaps: how often they had nothing to say in
    time after they had begun. Both are counted until they are taken.
    """

    def __init__(self, config: StudentConfig) -> None:
        """Raises ValueError for a student that does not hear."""
        self._ear = Ear(config)
        assert config.speech is not None
        self._end_s = 0.0
        self._live: dict[str, _Live] = {}
        self._queue: deque[Samples] = deque()
        self._lowpass = _Lowpass()
        # Frames need not be whole mel frames long, so one more is heard ahead.
        ahead = config.speech.lookahead + 1
        self._delay = np.zeros(ahead * HOP * _DOWN, np.float32)
        self._ear.push(np.zeros(ahead * HOP, np.float32))
        self.dropped_s = 0.0
        self.gaps = 0

    @property
    def delay_s(self) -> float:
        """From what comes in to what is heard with its frame, beside a microphone's own."""
        return len(self._delay) / VOICE_RATE

    @property
    def queued_s(self) -> float:
        """Seconds that are still to be said."""
        return sum(len(samples) for samples in self._queue) / VOICE_RATE

    def take_losses(self) -> tuple[float, int]:
        """dropped_s and gaps since the last call."""
        losses = self.dropped_s, self.gaps
        self.dropped_s, self.gaps = 0.0, 0
        return losses

    def say(self, samples: Samples) -> None:
        """Say this after all that is queued: [T] in [-1, 1]."""
        self._queue.append(samples)

    def hear(self, source: str, samples: Samples) -> None:
        """The next samples [T] in [-1, 1] of a microphone."""
        dropped = self._live.setdefault(source, _Live()).push(samples)
        self.dropped_s += dropped / VOICE_RATE

    def forget(self, source: str) -> None:
        """The microphone has gone."""
        self._live.pop(source, None)

    def listen_anew(self) -> None:
        """Nobody listened for a while: what microphones said meanwhile is not caught up with."""
        for live in self._live.values():
            live.clear()

    def interrupt(self) -> None:
        """Fall silent at once: nothing of what came before now is heard or shown from the next slice on."""
        self._queue.clear()
        self.listen_anew()
        self._delay[:] = 0
        self._lowpass.clear()
        self._ear.forget_from(self._end_s)

    def cut(self, seconds: float) -> Slice:
        """The share of the next frame, which is shown for so long."""
        begin, self._end_s = round(self._end_s * VOICE_RATE), self._end_s + seconds
        count = round(self._end_s * VOICE_RATE) - begin
        samples = self._take(count)
        self._ear.push(self._lowpass.push(samples))
        waiting = np.concatenate([self._delay, samples])
        self._delay = waiting[count:]
        sound = (np.clip(waiting[:count], -1, 1) * 32767).astype(np.int16)
        return Slice(self._ear.window(self._end_s), sound)

    def _take(self, count: int) -> Samples:
        mixed = np.zeros(count, np.float32)
        for live in self._live.values():
            flowed = live.flows
            samples = live.pull(count)
            self.gaps += flowed and not live.flows
            mixed[: len(samples)] += samples
        at = 0
        while self._queue and at < count:
            head = self._queue.popleft()
            piece = head[: count - at]
            mixed[at : at + len(piece)] += piece
            at += len(piece)
            if len(piece) < len(head):
                self._queue.appendleft(head[len(piece) :])
        return mixed


class Pcm:
    """PCM s16le in one channel at a rate of its own, in pieces of any size, as samples at VOICE_RATE."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._resampler = None if rate == VOICE_RATE else av.AudioResampler("flt", "mono", VOICE_RATE)
        self._half = b""

    def push(self, pcm: bytes) -> Samples:
        """The next bytes as samples [T] in [-1, 1]."""
        pcm = self._half + pcm
        whole = len(pcm) // 2 * 2
        self._half = pcm[whole:]
        samples: Samples = np.frombuffer(pcm[:whole], "<i2").astype(np.float32) / np.float32(32768)
        if self._resampler is not None and len(samples):
            frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
            frame.sample_rate = self._rate
            pieces = [piece.to_ndarray()[0] for piece in self._resampler.resample(frame)]
            samples = np.concatenate(pieces) if pieces else samples[:0]
        return samples


class Microphone:
    """One viewer's sound on its way into a voice."""

    def __init__(self, voice: Voice, source: str, rate: int) -> None:
        self._voice, self._source, self._pcm = voice, source, Pcm(rate)

    def push(self, pcm: bytes) -> None:
        """The next bytes."""
        samples = self._pcm.push(pcm)
        if len(samples):
            self._voice.hear(self._source, samples)


class _Live:
    """One microphone's sound, held back a little."""

    def __init__(self) -> None:
        self._held: deque[Samples] = deque()
        self._count, self.flows = 0, False
        self._least, self._pulled = VOICE_RATE, 0

    def push(self, samples: Samples) -> int:
        """Returns how many samples were thrown away to make room."""
        self._held.append(samples)
        self._count += len(samples)
        too_many = max(0, self._count - round(MOST_JITTER_S * VOICE_RATE))
        self._take(too_many)
        return too_many

    def pull(self, count: int) -> Samples:
        """At most `count` samples: none before enough is held, fewer where it runs dry."""
        if not self.flows and self._count < count + _JITTER:
            return np.zeros(0, np.float32)
        self.flows = self._count >= count
        pieces = self._take(count)
        self._least = min(self._least, self._count)
        self._pulled += count
        if self._pulled >= VOICE_RATE:
            self._catch_up()
        return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)

    def clear(self) -> None:
        self._held.clear()
        self._count, self.flows = 0, False
        self._least, self._pulled = VOICE_RATE, 0

    def _catch_up(self) -> None:
        """For a second there was always twice as much as is to be held back, since the stream stood still, say: leave
        out of the next silence what is too much.
        """
        if self._least < 2 * _JITTER:
            self._least = _JITTER
        while self._least > _JITTER and self._held and np.abs(self._held[0]).max() < _QUIET:
            count = min(self._least - _JITTER, len(self._held[0]))
            self._take(count)
            self._least -= count
        if self._least <= _JITTER:
            self._least, self._pulled = VOICE_RATE, 0

    def _take(self, count: int) -> list[Samples]:
        pieces: list[Samples] = []
        while self._held and count:
            head = self._held.popleft()
            pieces.append(head[:count])
            if len(head) > count:
                self._held.appendleft(head[count:])
            count -= len(pieces[-1])
            self._count -= len(pieces[-1])
        return pieces


class _Lowpass:
    """Every third sample of a sound without what lies above 8 kHz (a windowed sinc); half a millisecond late."""

    _FILTER = np.sinc((np.arange(_TAPS) - (_TAPS - 1) / 2) / _DOWN * 0.92) * np.blackman(_TAPS)
    _FILTER = (_FILTER / _FILTER.sum()).astype(np.float32)

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._kept = np.zeros(_TAPS - 1, np.float32)

    def push(self, samples: Samples) -> Samples:
        """[T] at 48 kHz to about T / 3 at 16 kHz: every third that the filter gives, counted from the first ever."""
        heard = np.concatenate([self._kept, samples])
        count = (len(heard) - _TAPS) // _DOWN + 1
        if count <= 0:
            self._kept = heard
            return np.zeros(0, np.float32)
        out: Samples = np.convolve(heard, self._FILTER, "valid")[: count * _DOWN : _DOWN]
        self._kept = heard[count * _DOWN :]
        return out
