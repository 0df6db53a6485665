"""From phonemes to what the mouth does: visemes, and how they run into each other.

Coarticulation after Cohen and Massaro (1993), "Modeling coarticulation in synthetic visual speech": every viseme pulls
each curve towards its target with a dominance that rises before it and falls after it, and a curve is the mean of the
targets so weighted. Bilabials then close the lips whatever their neighbours want.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamgen.face import SPEECH
from streamgen.say import PAUSE, Phoneme
from training.talk.signals import Curve, smoothed

RATE = 100
"""Rows of mouth curves a second."""
SILENCE, BILABIAL = "sil", "PP"
OPEN_VOWELS = ("aa", "ae", "eh", "oh")

TARGETS: dict[str, dict[str, float]] = {
    # Consonants are in capitals, vowels in small letters: how clearly somebody speaks scales the latter only.
    "PP": {"jawOpen": 0.06, "mouthClose": 0.075, "mouthPress": 0.30, "mouthRollLower": 0.20, "mouthRollUpper": 0.18},
    "FF": {"jawOpen": 0.08, "mouthRollLower": 0.50, "mouthUpperUp": 0.22, "mouthShrugLower": 0.12},
    "TH": {
        "jawOpen": 0.15,
        "mouthLowerDown": 0.25,
        "mouthUpperUp": 0.08,
        "tongueRaise": 0.35,
        "tongueForward": 0.85,
    },
    "DD": {"jawOpen": 0.13, "mouthLowerDown": 0.22, "mouthUpperUp": 0.10, "tongueRaise": 0.85, "tongueForward": 0.2},
    "LL": {"jawOpen": 0.17, "mouthLowerDown": 0.20, "mouthUpperUp": 0.10, "tongueRaise": 1.0, "tongueForward": 0.3},
    "KK": {"jawOpen": 0.16, "mouthLowerDown": 0.14, "mouthUpperUp": 0.06, "mouthStretch": 0.08},
    "CH": {
        "jawOpen": 0.10,
        "mouthFunnel": 0.55,
        "mouthPucker": 0.25,
        "mouthUpperUp": 0.14,
        "mouthLowerDown": 0.18,
        "tongueRaise": 0.5,
    },
    "SS": {
        "jawOpen": 0.06,
        "mouthStretch": 0.28,
        "mouthSmile": 0.14,
        "mouthLowerDown": 0.34,
        "mouthUpperUp": 0.18,
        "tongueRaise": 0.5,
    },
    "RR": {"jawOpen": 0.12, "mouthPucker": 0.35, "mouthFunnel": 0.30, "mouthLowerDown": 0.10},
    "WW": {"jawOpen": 0.07, "mouthPucker": 0.90, "mouthFunnel": 0.30},
    "aa": {"jawOpen": 0.46, "mouthLowerDown": 0.30, "mouthUpperUp": 0.16},
    "ae": {
        "jawOpen": 0.38,
        "mouthLowerDown": 0.34,
        "mouthUpperUp": 0.20,
        "mouthStretch": 0.30,
        "mouthSmile": 0.12,
    },
    "uh": {"jawOpen": 0.27, "mouthLowerDown": 0.22, "mouthUpperUp": 0.10},
    "ax": {"jawOpen": 0.18, "mouthLowerDown": 0.15, "mouthUpperUp": 0.07},
    "eh": {
        "jawOpen": 0.27,
        "mouthLowerDown": 0.28,
        "mouthUpperUp": 0.14,
        "mouthStretch": 0.26,
        "mouthSmile": 0.10,
    },
    "ih": {
        "jawOpen": 0.17,
        "mouthLowerDown": 0.24,
        "mouthUpperUp": 0.12,
        "mouthStretch": 0.28,
        "mouthSmile": 0.14,
    },
    "iy": {
        "jawOpen": 0.12,
        "mouthLowerDown": 0.28,
        "mouthUpperUp": 0.16,
        "mouthStretch": 0.40,
        "mouthSmile": 0.30,
    },
    "oh": {"jawOpen": 0.32, "mouthFunnel": 0.55, "mouthPucker": 0.25, "mouthLowerDown": 0.10},
    "uu": {"jawOpen": 0.10, "mouthPucker": 0.80, "mouthFunnel": 0.35},
    "er": {"jawOpen": 0.17, "mouthPucker": 0.32, "mouthFunnel": 0.28, "mouthLowerDown": 0.12},
    SILENCE: {"mouthPress": 0.04},
}
"""Each viseme's curves where they are not 0."""


class _Dominance(NamedTuple):
    strength: float
    rise_s: float
    fall_s: float


_USUAL = _Dominance(1.0, 0.07, 0.07)
_DOMINANCE = {
    # Lips that touch or are rounded win; what the tongue alone makes yields.
    "PP": _Dominance(3.2, 0.050, 0.045),
    "FF": _Dominance(2.6, 0.055, 0.055),
    "WW": _Dominance(1.8, 0.09, 0.07),
    "CH": _Dominance(1.7, 0.08, 0.07),
    "uu": _Dominance(1.35, 0.10, 0.09),
    "oh": _Dominance(1.2, 0.09, 0.08),
    "RR": _Dominance(1.0, 0.08, 0.07),
    "TH": _Dominance(1.3, 0.05, 0.05),
    "SS": _Dominance(1.1, 0.05, 0.05),
    "DD": _Dominance(0.75, 0.045, 0.045),
    "LL": _Dominance(0.8, 0.05, 0.05),
    "KK": _Dominance(0.55, 0.05, 0.05),
    "ax": _Dominance(0.6, 0.06, 0.06),
    SILENCE: _Dominance(0.9, 0.10, 0.10),
}
_FALL_OFF = 1.4
"""Exponent of a dominance's flanks: between Cohen and Massaro's 1 (a cusp) and 2 (a Gaussian)."""
_SEAL_S = 0.028
"""Within this of a bilabial the lips are closed."""
_LIPS_S = 0.014
"""How fast lips follow: the standard deviation of what smooths them."""

_PHONEMES = {
    "PP": "pbm",
    "FF": "fv",
    "TH": "θð",
    "DD": "tdnɾT",
    "LL": "l",
    "KK": "kɡgŋxʔ",
    "CH": "ʃʒʧʤ",
    "SS": "sz",
    "RR": "ɹr",
    "WW": "w",
    "aa": "ɑa",
    "ae": "æ",
    "uh": "ʌɐ",
    "ax": "əᵊ",
    "eh": "ɛe",
    "ih": "ɪᵻj",
    "iy": "i",
    "oh": "ɔo",
    "uu": "uʊ",
    "er": "ɜɚɝ",
}
_VISEME = {symbol: viseme for viseme, symbols in _PHONEMES.items() for symbol in symbols}
_DIPHTHONGS = {
    "A": ("eh", "ih"),
    "I": ("aa", "ih"),
    "O": ("oh", "uu"),
    "W": ("aa", "uu"),
    "Y": ("oh", "ih"),
    "Q": ("ax", "uu"),
}
_TURN = 0.55
"""Share of a diphthong that its first vowel takes."""
_STRESS = {"ˌ": 1, "ˈ": 2}
_PAUSES = PAUSE + ".!?;:,—…"
_SHORT_PAUSE_S = 0.12
"""A pause shorter than this does not close the mouth."""
_LOUDNESS = (0.78, 0.45)
"""How far the jaw opens at no loudness, and how much further at full."""


class Viseme(NamedTuple):
    """name: of TARGETS. stress: 0 none, 1 secondary, 2 primary."""

    name: str
    start_s: float
    end_s: float
    stress: int


def visemes(phonemes: Iterable[Phoneme]) -> list[Viseme]:
    """What the lips show of phonemes. Marks, spaces and /h/ show nothing: their time goes to what follows, or before a
    pause to what went before.
    """
    shown: list[Viseme] = []
    stress = 0
    pending: float | None = None
    """Where a run of phonemes began that show nothing."""
    for symbol, start_s, end_s in phonemes:
        is_pause = symbol in _PAUSES
        if not (is_pause or symbol in _DIPHTHONGS or symbol in _VISEME):
            stress = _STRESS.get(symbol, stress)
            pending = start_s if pending is None else pending
            continue
        turn_s = start_s + _TURN * (end_s - start_s)
        if pending is not None:
            if is_pause and shown:
                shown[-1] = shown[-1]._replace(end_s=start_s)
            elif not is_pause:
                start_s = pending
            pending = None
        if is_pause:
            name = SILENCE if end_s - start_s >= _SHORT_PAUSE_S else "ax"
            shown.append(Viseme(name, start_s, end_s, 0))
        elif symbol in _DIPHTHONGS:
            first, second = _DIPHTHONGS[symbol]
            shown += [Viseme(first, start_s, turn_s, stress), Viseme(second, turn_s, end_s, stress)]
            stress = 0
        elif _VISEME[symbol].islower():
            shown.append(Viseme(_VISEME[symbol], start_s, end_s, stress))
            stress = 0
        else:
            shown.append(Viseme(_VISEME[symbol], start_s, end_s, 0))  # the stress mark is the next vowel's
    return shown


def mouth_curves(shown: Iterable[Viseme], loudness: Curve, clarity: float = 1.0) -> Curve:
    """Curves [T, n] in the order of `streamgen.face.SPEECH`, RATE rows a second, from 0 to about 1.

    loudness: [T] of the sound, 0 to about 1. clarity: how far vowels open, 1 as usual.
    """
    t = np.arange(len(loudness)) / RATE
    weighted = np.zeros((len(t), len(SPEECH)))
    weights = np.full((len(t), 1), 1e-4)
    seal = np.zeros(len(t))
    for name, start_s, end_s, stress in shown:
        strength, rise_s, fall_s = _DOMINANCE.get(name, _USUAL)
        before = np.clip((start_s - t) / rise_s, 0, None) ** _FALL_OFF
        after = np.clip((t - end_s) / fall_s, 0, None) ** _FALL_OFF
        dominance = ((1 + 0.25 * stress) * strength * np.exp(-before - after))[:, None]
        scale = (1 + 0.12 * stress) * clarity if name.islower() else 1.0
        weighted += dominance * _target(name) * scale
        weights += dominance
        if name == BILABIAL:
            distance_s = np.clip(np.maximum(start_s - t, t - end_s), 0, None)
            seal = np.maximum(seal, np.exp(-((distance_s / _SEAL_S) ** 2)))
    curves = weighted / weights
    curves[:, list(SPEECH).index("jawOpen")] *= _LOUDNESS[0] + _LOUDNESS[1] * loudness
    curves = smoothed(curves, _LIPS_S * RATE)
    # The tongue is free while the lips are closed.
    lips = [column for column, name in enumerate(SPEECH) if not name.startswith("tongue")]
    curves[:, lips] += (_target(BILABIAL)[lips] - curves[:, lips]) * seal[:, None]
    return curves


def stress_curve(shown: Iterable[Viseme], frames: int) -> Curve:
    """[frames] at RATE: 1 at the middle of each vowel with primary stress, 0 away from them."""
    t = np.arange(frames) / RATE
    total = np.zeros(frames)
    for _, start_s, end_s, stress in shown:
        if stress == 2:
            total += np.exp(-(((t - (start_s + end_s) / 2) / 0.09) ** 2))
    return np.clip(total, 0, 1)


def _target(name: str) -> NDArray[np.float64]:
    return np.array([TARGETS[name].get(curve, 0.0) for curve in SPEECH])
