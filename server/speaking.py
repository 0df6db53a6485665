"""What a stream is given to say beside a microphone: typed words and files."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import Executor

import numpy as np

from server.errors import Refused
from server.streams import Stream
from server.voice import VOICE_RATE, Samples, Voice
from streamgen.audio import SoundError, read_sound
from streamgen.say import SAMPLE_RATE as SPEAKER_RATE, Speaker, SpeechError

_LOUDEST = 0.9


class Speaking:
    """Turns text and files into sound, off the event loop. The speaker is loaded when it is first needed."""

    def __init__(self, pool: Executor, most_s: float) -> None:
        """most_s: seconds that a stream may have before it to say."""
        self._pool, self._most_s = pool, most_s
        self._speaker: Speaker | None = None
        self._turn = asyncio.Lock()

    async def say(self, stream: Stream, text: str) -> float:
        """Let the stream say a text; returns its seconds. What an interruption overtakes is not said.

        Raises Refused.
        """
        voice, utterance = voice_of(stream), stream.utterance
        loop = asyncio.get_running_loop()
        seconds = 0.0
        try:
            async with self._turn:
                if self._speaker is None:
                    self._speaker = await loop.run_in_executor(self._pool, Speaker)
                speaker = self._speaker
                for sentence in await loop.run_in_executor(self._pool, speaker.phonemize, text):
                    samples = await loop.run_in_executor(self._pool, _pronounced, speaker, sentence)
                    if stream.utterance != utterance:
                        break
                    seconds += queue(voice, samples, self._most_s)
        except SpeechError as error:
            missing = self._speaker is None
            raise Refused(501 if missing else 422, "no_speech" if missing else "unspeakable", str(error)) from error
        return seconds

    async def play(self, stream: Stream, data: bytes) -> float:
        """Let the stream say the sound of a file, at its own pace; returns its seconds. Raises Refused."""
        voice, utterance = voice_of(stream), stream.utterance
        try:
            samples = await asyncio.get_running_loop().run_in_executor(
                self._pool, read_sound, io.BytesIO(data), VOICE_RATE, self._most_s
            )
        except SoundError as error:
            raise Refused(422, "unspeakable", str(error)) from error
        return queue(voice, samples, self._most_s) if stream.utterance == utterance else 0.0


def queue(voice: Voice, samples: Samples, most_s: float) -> float:
    """Let a voice say samples at VOICE_RATE; at most most_s may wait. Returns their seconds. Raises Refused."""
    seconds = len(samples) / VOICE_RATE
    if voice.queued_s + seconds > most_s:
        message = f"{voice.queued_s:.0f} s wait to be said already: the limit is {most_s:g} s"
        raise Refused(503, "voice_full", message, retry_after_s=max(1, round(seconds)))
    voice.say(samples)
    return seconds


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
