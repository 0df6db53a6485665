"""Which of MakeHuman's morph targets make a face, and how strongly. Names are paths below its folder `targets`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

Weights = dict[str, float]

_GENDERS, _AGES = ("male", "female"), ("young", "old")
_ANCESTRIES = ("african", "asian", "caucasian")
_SHAPES = ("oval", "round", "rectangular", "square", "triangular", "invertedtriangular", "diamond")
_ASYMMETRIES = ("brown-1", "eye-3", "mouth-1", "nose-1", "jaw-1", "cheek-1")
_LEAST = 1e-4
"""Weights below it are left out."""


class _Modifier(NamedTuple):
    """A pair of opposite targets; in `name` a question mark stands for l and r. reach: the usual weight."""

    name: str
    negative: str
    positive: str
    reach: float


def _modifiers(folder: str, reaches: str, negative: str = "decr", positive: str = "incr") -> Iterator[_Modifier]:
    """From words such as "nose-hump:0.5"."""
    for word in reaches.split():
        stem, _, reach = word.partition(":")
        yield _Modifier(f"{folder}/{stem}", negative, positive, float(reach))


MODIFIERS = (
    *_modifiers("head", "head-scale-horiz:0.5 head-scale-vert:0.35 head-fat:0.5"),
    *_modifiers("forehead", "forehead-scale-vert:0.5 forehead-nubian:0.4 forehead-temple:0.5"),
    *_modifiers("eyebrows", "eyebrows-angle:0.6 eyebrows-trans:0.5", "down", "up"),
    *_modifiers("eyes", "?-eye-scale:0.45 ?-eye-height2:0.4"),
    *_modifiers("eyes", "?-eye-corner2:0.5", "down", "up"),
    *_modifiers("eyes", "?-eye-trans:0.4", "in", "out"),
    *_modifiers("eyes", "?-eye-eyefold:0.5", "down", "up"),
    *_modifiers("eyes", "?-eye-bag:0.5"),
    *_modifiers("nose", "nose-scale-horiz:0.5 nose-scale-vert:0.4 nose-scale-depth:0.4 nose-hump:0.5"),
    *_modifiers("nose", "nose-point:0.6", "down", "up"),
    *_modifiers("nose", "nose-width1:0.4 nose-width3:0.5 nose-flaring:0.5"),
    *_modifiers("nose", "nose-curve:0.4", "concave", "convex"),
    *_modifiers("nose", "nose-nostrils-width:0.4"),
    *_modifiers("mouth", "mouth-scale-horiz:0.45 mouth-scale-vert:0.3 mouth-upperlip-volume:0.6"),
    *_modifiers("mouth", "mouth-lowerlip-volume:0.6 mouth-cupidsbow:0.6"),
    *_modifiers("mouth", "mouth-trans:0.3", "down", "up"),
    *_modifiers("mouth", "mouth-philtrum-volume:0.5 mouth-upperlip-height:0.4 mouth-lowerlip-height:0.4"),
    *_modifiers("chin", "chin-width:0.5 chin-height:0.35 chin-prominent:0.4 chin-bones:0.5 chin-jaw-drop:0.3"),
    *_modifiers("cheek", "?-cheek-bones:0.5 ?-cheek-volume:0.5 ?-cheek-inner:0.4"),
    *_modifiers("ears", "?-ear-scale:0.3 ?-ear-flap:0.3"),
)
"""In the order in which `modified` draws their weights."""


def build(gender: float, age: float, ancestry: Sequence[float], weight: float, muscle: float) -> Weights:
    """MakeHuman's own mixture for a kind of person.

    gender: 0 female, 1 male. age: 0 is 25 years, 1 is old. ancestry: shares of African, Asian and Caucasian, which add
    up to 1. weight, muscle: 0.5 is average.
    """
    genders, ages = (
        dict(zip(_GENDERS, (gender, 1 - gender), strict=True)),
        dict(zip(_AGES, (1 - age, age), strict=True)),
    )
    weights: Weights = {}
    for (g, of_gender), (a, of_age) in product(genders.items(), ages.items()):
        for name, share in zip(_ANCESTRIES, ancestry, strict=True):
            weights[f"macrodetails/{name}-{g}-{a}"] = of_gender * of_age * share
        for (m, of_muscle), (w, of_weight) in product(
            _thirds("muscle", muscle).items(), _thirds("weight", weight).items()
        ):
            weights[f"macrodetails/universal-{g}-{a}-{m}-{w}"] = of_gender * of_age * of_muscle * of_weight
    return {name: value for name, value in weights.items() if value > _LEAST}


def modified(rng: np.random.Generator) -> Weights:
    """What makes a face its own: every modifier a little, one shape of head, and no face is symmetric."""
    weights: Weights = {}
    for modifier in MODIFIERS:
        value = float(np.clip(rng.normal() * 0.6, -1.2, 1.2)) * modifier.reach
        for name in _sides(modifier.name):
            weights[f"{name}-{modifier.negative if value < 0 else modifier.positive}"] = abs(value)
    shape = _SHAPES[rng.integers(len(_SHAPES))]
    weights[f"head/head-{shape}"] = float(rng.uniform(0, 0.6))
    for name in _ASYMMETRIES:
        strength = float(rng.uniform(0, 0.25))
        weights[f"asym/asym-{name}-{'lr'[rng.integers(2)]}"] = strength
    return weights


def every_target() -> list[str]:
    """All that `build` and `modified` may name."""
    names = [f"macrodetails/{kind}-{g}-{a}" for kind, g, a in product(_ANCESTRIES, _GENDERS, _AGES)]
    thirds = product(_GENDERS, _AGES, _thirds("muscle", 0.5), _thirds("weight", 0.5))
    names += [f"macrodetails/universal-{g}-{a}-{m}-{w}" for g, a, m, w in thirds]
    for modifier in MODIFIERS:
        names += [f"{name}-{end}" for name in _sides(modifier.name) for end in (modifier.negative, modifier.positive)]
    names += [f"head/head-{shape}" for shape in _SHAPES]
    return names + [f"asym/asym-{name}-{side}" for name, side in product(_ASYMMETRIES, "lr")]


def _sides(name: str) -> list[str]:
    return [name.replace("?", side) for side in "lr"] if "?" in name else [name]


def _thirds(what: str, value: float) -> Weights:
    least, most = max(0.0, 1 - 2 * value), max(0.0, 2 * value - 1)
    return {f"min{what}": least, f"average{what}": 1 - least - most, f"max{what}": most}
