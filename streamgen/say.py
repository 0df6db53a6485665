"""Text to speech that says when each phoneme sounds: hibari-tts with its voice "heart", English, free of torch.

Needs the extra `speech`. About a hundred times as fast as speech on one core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 24_000
PAUSE = "_"
"""Phoneme of the silence before and after a sentence."""
SLOWEST, FASTEST = 0.5, 2.0
PHONEME_LAG_S = 0.060
"""How far a Kokoro-family model's token times trail its sound: 0.05 by fricatives, 0.07 by forced alignment."""
_MOST_PHONEMES = 400
_DURATIONS = "/Clip_output_0"
"""Tensor inside hibari's graph: how many frames each token lasts."""


class SpeechError(RuntimeError):
    """Nothing can be said; the message says what is missing."""


class Phoneme(NamedTuple):
    """One token of misaki's alphabet (a sound, a stress mark, punctuation or PAUSE), from start_s to end_s."""

    symbol: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Speech:
    """sound: [T] mono in [-1, 1] at SAMPLE_RATE. phonemes: without gaps, from 0 to the sound's end."""

    sound: NDArray[np.float32]
    phonemes: tuple[Phoneme, ...]

    @property
    def seconds(self) -> float:
        return len(self.sound) / SAMPLE_RATE


class Speaker:
    """Says English text. Loading takes about half a second."""

    def __init__(self, threads: int = 1) -> None:
        """threads: of the network. Raises SpeechError when the extra is not installed."""
        try:
            import hibari
        except ImportError as error:
            raise SpeechError(
                f"speech needs hibari-tts and onnxruntime: install streamgen with the extra `speech` ({error})"
            ) from error
        model = Path(hibari.__file__).parent / "assets" / "hibari.onnx"
        self._engine = hibari.Hibari(model=with_output(model.read_bytes(), _DURATIONS), threads=threads)

    def phonemize(self, text: str) -> list[str]:
        """Phonemes of each sentence, a character each. Raises SpeechError when there is nothing to pronounce."""
        sentences: list[str] = self._engine.phonemize(text)
        if not any(c.isalpha() for sentence in sentences for c in sentence):
            raise SpeechError(f"nothing in {text!r} can be pronounced; give it English words or numbers")
        return [piece for sentence in sentences for piece in _pieces(sentence)]

    def pronounce(self, phonemes: str, speed: float = 1.0, seed: int = 0) -> Speech:
        """A sentence from its phonemes. The same seed gives the same sound. Raises ValueError for a speed out of
        SLOWEST..FASTEST.
        """
        from hibari import dsp

        check_speed(speed)
        known = [c for c in phonemes if c in self._engine.vocab]
        tokens = np.array([self._engine.ids(phonemes)], np.int64)
        *parts, durations = self._engine.sess.run(None, {"ids": tokens, "speed": np.array([speed], np.float32)})
        sound = dsp.synth(*(part[0] for part in parts), np.random.default_rng(seed))
        return timed([PAUSE, *known, PAUSE], np.ravel(durations), sound)

    def say(self, text: str, speed: float = 1.0, seed: int = 0) -> Speech:
        """All sentences of a text, one after the other. Raises SpeechError and ValueError as above."""
        return joined([self.pronounce(phonemes, speed, seed) for phonemes in self.phonemize(text)])


def _pieces(sentence: str) -> Iterator[str]:
    """A sentence in parts that the network has memory for: it takes as much as the square of a part's length."""
    while len(sentence) > _MOST_PHONEMES:
        cut = sentence.rfind(" ", 1, _MOST_PHONEMES) + 1 or _MOST_PHONEMES
        yield sentence[:cut]
        sentence = sentence[cut:]
    yield sentence


def check_speed(speed: float) -> None:
    """Raises ValueError for a speed out of SLOWEST..FASTEST."""
    if not SLOWEST <= speed <= FASTEST:
        raise ValueError(f"speed must be {SLOWEST:g} to {FASTEST:g}, got {speed:g}")


def timed(symbols: Sequence[str], durations: NDArray[Any], sound: NDArray[np.float32]) -> Speech:
    """What a Kokoro-family model gave: its tokens with durations [n] in any unit, set against the sound.

    The lag is taken off every boundary; the last token, a pause, fills what that leaves over.
    """
    seconds = len(sound) / SAMPLE_RATE
    edges = np.concatenate([[0.0], np.cumsum(durations, dtype=np.float64)]) * (seconds / float(durations.sum()))
    edges = np.maximum(edges - PHONEME_LAG_S, 0.0)
    edges[-1] = seconds
    spans = zip(symbols, edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    return Speech(sound.astype(np.float32, copy=False), tuple(Phoneme(*span) for span in spans))


def silence(seconds: float) -> Speech:
    """Nothing said, for so long."""
    sound = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    return Speech(sound, (Phoneme(PAUSE, 0.0, len(sound) / SAMPLE_RATE),))


def joined(parts: Sequence[Speech]) -> Speech:
    """One speech after the other."""
    phonemes: list[Phoneme] = []
    at_s = 0.0
    for part in parts:
        phonemes += [Phoneme(symbol, start_s + at_s, end_s + at_s) for symbol, start_s, end_s in part.phonemes]
        at_s += part.seconds
    sounds = [part.sound for part in parts]
    return Speech(np.concatenate(sounds) if sounds else np.zeros(0, np.float32), tuple(phonemes))


def with_output(model: bytes, tensor: str) -> bytes:
    """An ONNX model that also gives out a float tensor of its inside, as its last output.

    A protocol buffer may come in pieces, which readers merge (Protocol Buffers encoding, "Last One Wins"): a piece that
    holds one more output is added, and no `onnx` package is needed for it.
    """
    float_tensor = _field(1, bytes([1 << 3, 1]))  # TypeProto.tensor_type, whose elem_type is FLOAT
    output = _field(1, tensor.encode()) + _field(2, float_tensor)  # ValueInfoProto: name and type
    return model + _field(7, _field(12, output))  # ModelProto.graph, GraphProto.output


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer; number below 16 and content shorter than 128 bytes, so that
    either is a single byte.
    """
    return bytes([number << 3 | 2, len(content)]) + content
