"""What is heard in a clip: some sentences in one of many voices, with pauses, or nothing at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from streamgen.say import SAMPLE_RATE, Phoneme, Speaker, Speech, SpeechError, joined, silence
from training.talk.kokoro import VOICES, Kokoro
from training.talk.script import sentence

HEART = "heart"
SILENT = "silence"
_LEVEL = 0.8
"""Of the loudest sample."""
_SILENT = 0.12
"""Share of the takes in which somebody only listens."""
_KOKORO = 0.28
"""Share of the others that Kokoro speaks, where it is installed."""


@dataclass(frozen=True)
class Voice:
    """mix: shares of Kokoro's voices, empty for hibari's "heart". pitch: 1 as it is; formants move with it, as if
    the head were of another size. speed: 1 as it is.
    """

    mix: Mapping[str, float] = field(default_factory=dict)
    pitch: float = 1.0
    speed: float = 1.0

    def __str__(self) -> str:
        name = "+".join(f"{name}:{share:.2f}" for name, share in self.mix.items()) or HEART
        return f"{name}@{self.pitch:.2f}x{self.speed:.2f}"


@dataclass(frozen=True)
class Take:
    """voice: its name, or SILENT."""

    speech: Speech
    voice: str


class Voices:
    """All voices that are installed."""

    def __init__(self) -> None:
        """Raises SpeechError when not even `streamgen.say` can speak."""
        self._speaker = Speaker()
        self._kokoro: Kokoro | None
        try:
            self._kokoro = Kokoro()
        except SpeechError:
            self._kokoro = None

    def draw(self, rng: np.random.Generator) -> Voice:
        """A voice at random. The same numbers are drawn whatever is installed, so that what is said stays the same."""
        speed = float(rng.uniform(0.88, 1.15))
        lower, higher = float(rng.uniform(0.80, 0.93)), float(rng.uniform(1.05, 1.12))
        kind, other, share = rng.random(), str(rng.choice(VOICES)), float(rng.uniform(0.4, 1.0))
        if kind < _KOKORO and self._kokoro is not None:
            # The only man among them carries most mixes: "heart" is a woman's voice.
            mix = {"jm_kumo": 1.0} if other == "jm_kumo" else {"jm_kumo": share, other: 1 - share}
            return Voice(mix, speed=speed)
        pitch = 1.0 if kind < 0.65 else lower if kind < 0.92 else higher
        return Voice(pitch=pitch, speed=speed)

    def say(self, text: str, voice: Voice, seed: int) -> Speech:
        """A text; the same seed gives the same phonemes at the same times. Raises SpeechError when there is nothing to
        pronounce.
        """
        # Resampling changes the speed too, so it is said that much faster or slower.
        speed = voice.speed / voice.pitch
        parts = []
        for phonemes in self._speaker.phonemize(text):
            if voice.mix and self._kokoro is not None:
                parts.append(self._kokoro.pronounce(phonemes, voice.mix, speed))
            else:
                parts.append(self._speaker.pronounce(phonemes, speed, seed))
        return pitched(joined(parts), voice.pitch)


def pitched(speech: Speech, pitch: float) -> Speech:
    """Played `pitch` times as fast."""
    if pitch == 1.0:
        return speech
    places = np.arange(int(len(speech.sound) / pitch)) * pitch
    sound = np.interp(places, np.arange(len(speech.sound)), speech.sound).astype(np.float32)
    return Speech(sound, tuple(Phoneme(p.symbol, p.start_s / pitch, p.end_s / pitch) for p in speech.phonemes))


def draw_take(rng: np.random.Generator, voices: Voices, longest_s: float) -> Take:
    """Two to four sentences with short and long pauses, 5 to 20 s, or silence for 5 to 9 s; cut at `longest_s`."""
    if rng.random() < _SILENT:
        return Take(silence(min(float(rng.uniform(5, 9)), longest_s)), SILENT)
    voice = voices.draw(rng)
    parts: list[Speech] = []
    for _ in range(int(rng.integers(2, 5))):
        if sum(part.seconds for part in parts) >= longest_s:
            break
        is_short = rng.random() < 0.7
        parts.append(silence(float(rng.uniform(0.05, 0.35) if is_short else rng.uniform(0.6, 2.2))))
        parts.append(voices.say(sentence(rng), voice, seed=int(rng.integers(1 << 30))))
    parts.append(silence(float(rng.uniform(0.2, 0.8))))
    said = _cut(joined(parts), longest_s)
    loudest = float(np.abs(said.sound).max()) + 1e-6
    return Take(Speech((said.sound * (_LEVEL / loudest)).astype(np.float32), said.phonemes), str(voice))


def _cut(speech: Speech, longest_s: float) -> Speech:
    if speech.seconds <= longest_s:
        return speech
    phonemes = (Phoneme(p.symbol, p.start_s, min(p.end_s, longest_s)) for p in speech.phonemes)
    sound = speech.sound[: round(longest_s * SAMPLE_RATE)]
    return Speech(sound, tuple(p for p in phonemes if p.start_s < longest_s))
