"""What a stream is given to say beside a microphone: typed words and files."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

import numpy as np

from server.errors import Refused
from server.streams import Stream
from server.voice import VOICE_RATE, Samples, Voice
from streamgen.audio import SoundError, read_sound
from streamgen.say import SAMPLE_RATE as SPEAKER_RATE, Speaker, SpeechError

T = TypeVar("T")

_LOUDEST = 0.9
_PHONEMES_A_S = 18.0
"""As the speaker speaks, pauses included."""
_MOST_TEXTS = 4
"""Of one stream, that wait to become sound."""
_RETRY_TEXT_S = 5


class Speaking:
    """Turns text and files into sound, off the event loop. The speaker is loaded when it is first needed."""

    def __init__(self, pool: Executor, most_s: float) -> None:
        """most_s: seconds that a stream may have before it to say."""
        self._pool, self._most_s = pool, most_s
        self._speaker: Speaker | None = None
        self._turn = asyncio.Lock()
        self._waiting: Counter[str] = Counter()

    async def say(self, stream: Stream, text: str, utterance: int) -> float:
        """Let the stream say a text; returns its seconds. utterance: the stream's, when it was asked for; what an
        interruption overtakes is not said.

        Raises Refused, before a word of it is said.
        """
        voice = voice_of(stream)
        if self._waiting[stream.id] >= _MOST_TEXTS:
            message = f"{_MOST_TEXTS} texts wait to be spoken already"
            raise Refused(503, "voice_full", message, retry_after_s=_RETRY_TEXT_S)
        self._waiting[stream.id] += 1
        seconds = 0.0
        try:
            async with self._turn:
                speaker = await self._loaded()
                sentences = await self._off_loop(speaker.phonemize, text)
                check_room(voice, sum(map(len, sentences)) / _PHONEMES_A_S, self._most_s)
                for sentence in sentences:
                    samples = await self._off_loop(_pronounced, speaker, sentence)
                    if stream.utterance != utterance:
                        break
                    voice.say(samples)
                    seconds += len(samples) / VOICE_RATE
        except SpeechError as error:
            missing = self._speaker is None
            raise Refused(501 if missing else 422, "no_speech" if missing else "unspeakable", str(error)) from error
        finally:
            self._waiting[stream.id] -= 1
            self._waiting += Counter()  # forgets those that have nothing
        return seconds

    async def play(self, stream: Stream, data: bytes) -> float:
        """Let the stream say the sound of a file, at its own pace; returns its seconds. Raises Refused."""
        voice, utterance = voice_of(stream), stream.utterance
        try:
            samples = await self._off_loop(read_sound, io.BytesIO(data), VOICE_RATE, self._most_s)
        except SoundError as error:
            raise Refused(422, "unspeakable", str(error)) from error
        return queue(voice, samples, self._most_s) if stream.utterance == utterance else 0.0

    async def _loaded(self) -> Speaker:
        if self._speaker is None:
            self._speaker = await self._off_loop(Speaker)
        return self._speaker

    async def _off_loop(self, work: Callable[..., T], *given: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *given)


def queue(voice: Voice, samples: Samples, most_s: float) -> float:
    """Let a voice say samples at VOICE_RATE; at most most_s may wait. Returns their seconds. Raises Refused."""
    seconds = len(samples) / VOICE_RATE
    check_room(voice, seconds, most_s)
    voice.say(samples)
    return seconds


def check_room(voice: Voice, seconds: float, most_s: float) -> None:
    """Raises Refused where so much more may not wait to be said."""
    if seconds > most_s:
        raise Refused(422, "unspeakable", f"that takes about {seconds:.0f} s to say: the limit is {most_s:g} s")
    if voice.queued_s + seconds > most_s:
        message = f"{voice.queued_s:.0f} s wait to be said already: the limit is {most_s:g} s"
        room_s = voice.queued_s + seconds - most_s
        raise Refused(503, "voice_full", message, retry_after_s=max(1, round(room_s)))


def voice_of(stream: Stream) -> Voice:
    """Raises Refused for a student that says nothing."""
    if stream.voice is None:
        raise Refused(409, "no_voice", f"student {stream.student.config.name} is driven by keys and says nothing")
    return stream.voice


def _pronounced(speaker: Speaker, sentence: str) -> Samples:
    """A sentence at VOICE_RATE, as loud as others."""
    sound = speaker.pronounce(sentence).sound
    loudest = max(1e-6, float(np.abs(sound).max()))
    times = np.arange(len(sound) * VOICE_RATE // SPEAKER_RATE) * (SPEAKER_RATE / VOICE_RATE)
    samples: Samples = np.interp(times, np.arange(len(sound)), sound * (_LOUDEST / loudest)).astype(np.float32)
    return samples
