"""Who somebody is: everything about a rendered head that a seed decides before its mesh is touched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]

_GAMMA = 2.2
_TONES = np.array([[0.43, 0.305, 0.235], [0.75, 0.58, 0.465], [0.815, 0.645, 0.555]])
"""Skin in sRGB for African, Asian and Caucasian ancestry; in between, they mix."""
_LIPSTICKS = ((0.66, 0.22, 0.25), (0.70, 0.34, 0.34), (0.60, 0.26, 0.31))
_HAIR = {
    "black": (0.055, 0.045, 0.045),
    "dark": (0.12, 0.08, 0.06),
    "brown": (0.24, 0.15, 0.10),
    "auburn": (0.33, 0.15, 0.09),
    "blond": (0.56, 0.43, 0.27),
    "grey": (0.50, 0.49, 0.48),
}
_IRISES = ((0.30, 0.17, 0.08), (0.20, 0.11, 0.06), (0.25, 0.42, 0.55), (0.33, 0.42, 0.27), (0.40, 0.29, 0.14))
_CLOTHES = (
    (0.16, 0.20, 0.30),
    (0.55, 0.16, 0.16),
    (0.85, 0.84, 0.80),
    (0.10, 0.10, 0.11),
    (0.20, 0.34, 0.30),
    (0.40, 0.45, 0.52),
    (0.62, 0.50, 0.34),
    (0.36, 0.22, 0.40),
)
_BACKDROPS = (
    ((0.74, 0.77, 0.80), (0.40, 0.44, 0.49)),
    ((0.80, 0.76, 0.70), (0.47, 0.41, 0.36)),
    ((0.56, 0.63, 0.66), (0.22, 0.28, 0.32)),
    ((0.70, 0.72, 0.68), (0.34, 0.38, 0.34)),
    ((0.45, 0.44, 0.52), (0.17, 0.17, 0.22)),
)


@dataclass(frozen=True)
class Brow:
    """Lengths in decimetres on the base mesh. alpha: how dense."""

    hairs: int
    height: float
    arch: float
    thickness: float
    length: float
    alpha: float


@dataclass(frozen=True)
class Identity:
    """Colours are linear, from 0 to 1; so are all amounts without another unit."""

    seed: int
    gender: float
    """0 female, 1 male."""
    ancestry: tuple[float, float, float]
    """Shares of African, Asian and Caucasian."""
    age: float
    """0 is 25 years, 1 is old."""
    weight: float
    muscle: float
    skin: Colour
    lips: Colour
    lip_gloss: float
    hair: Colour
    hair_style: str
    iris: Colour
    brow: Brow
    stubble: float
    freckles: float
    moles: int
    ruddiness: float
    oiliness: float
    cloth: Colour
    hem: Colour
    neckline: float
    """Height in decimetres on the base mesh."""
    backdrop: tuple[Colour, Colour]
    """At its middle and around."""
    key_side: float
    """1: the key light comes from the picture's right; -1: from its left."""
    warmth: float
    """Of the key light; 0 is neutral."""
    lash_density: float

    @property
    def is_feminine(self) -> bool:
        return self.gender < 0.5


def draw_identity(seed: int) -> Identity:
    """A pure function of the seed (0 or more)."""
    rng = np.random.default_rng(seed)
    gender = float(np.clip(rng.choice([0.03, 0.97]) + rng.normal() * 0.04, 0, 1))
    feminine = gender < 0.5
    shares = rng.dirichlet([0.35, 0.35, 0.45])
    is_pale = bool(shares[2] > 0.5)
    age = float(np.clip(rng.beta(1.3, 3.0) * 0.75, 0.02, 0.7))
    weight, muscle = float(rng.uniform(0.35, 0.68)), float(rng.uniform(0.4, 0.65))
    skin = shares @ _TONES * (1 + 0.05 * rng.normal()) * (1 + 0.012 * rng.normal(size=3))
    lips = np.clip(skin * ([0.93, 0.66, 0.68] if feminine else [0.90, 0.735, 0.735]), 0.1, 0.9)
    if feminine and rng.random() < 0.5:
        lips = 0.62 * lips + 0.38 * np.array(_LIPSTICKS[rng.integers(len(_LIPSTICKS))])
    lip_gloss = float(0.7 * feminine * rng.random())
    hair = _hair(rng, is_pale, age)
    style = _style(rng, feminine)
    chances = [0.3, 0.25, 0.17, 0.13, 0.15] if is_pale else [0.4, 0.6, 0, 0, 0]
    iris = _IRISES[rng.choice(len(_IRISES), p=chances)]
    brow = _brow(rng, feminine)
    stubble = 0.0 if feminine else float(rng.choice([0.1, 0.35, 0.8]))
    freckles = float(rng.random() ** 2 * (shares[2] > 0.6))
    moles = int(rng.integers(0, 5))
    ruddiness = float(rng.uniform(0.35, 0.7) * (1 - 0.75 * shares[0]))
    oiliness = float(rng.random())
    cloth = np.array(_CLOTHES[rng.integers(len(_CLOTHES))])
    neckline = float(5.72 + 0.08 * rng.normal() - 0.12 * feminine)
    inner, outer = _BACKDROPS[rng.integers(len(_BACKDROPS))]
    return Identity(
        seed=seed,
        gender=gender,
        ancestry=(float(shares[0]), float(shares[1]), float(shares[2])),
        age=age,
        weight=weight,
        muscle=muscle,
        skin=_linear(np.clip(skin, 0.2, 0.93)),
        lips=_linear(lips),
        lip_gloss=lip_gloss,
        hair=hair,
        hair_style=style,
        iris=_linear(np.array(iris)),
        brow=brow,
        stubble=stubble,
        freckles=freckles,
        moles=moles,
        ruddiness=ruddiness,
        oiliness=oiliness,
        cloth=_linear(cloth),
        hem=_linear(0.8 * cloth),
        neckline=neckline,
        backdrop=(_linear(np.array(inner)), _linear(np.array(outer))),
        key_side=float(rng.choice([-1, 1])),
        warmth=float(rng.uniform(-0.04, 0.05)),
        lash_density=0.95 if feminine else 0.6,
    )


def _hair(rng: np.random.Generator, is_pale: bool, age: float) -> Colour:
    chances = np.array([0.8, 0.9, 0.5, 0.2, 0.35, 0]) if is_pale else np.array([1.2, 0.6, 0.1, 0, 0, 0])
    chances[-1] = 1.5 * max(0.0, age - 0.4)
    name = str(rng.choice(list(_HAIR), p=chances / chances.sum()))
    return _linear(np.array(_HAIR[name]) * rng.uniform(0.9, 1.15))


def _style(rng: np.random.Generator, feminine: bool) -> str:
    if feminine:
        return str(rng.choice(["long", "bob", "bun", "curly"], p=[0.35, 0.25, 0.28, 0.12]))
    return str(rng.choice(["crop", "sidepart", "buzz", "curly"], p=[0.35, 0.35, 0.18, 0.12]))


def _brow(rng: np.random.Generator, feminine: bool) -> Brow:
    return Brow(
        hairs=620 if feminine else 760,
        height=7.462 + 0.010 * float(rng.normal()),
        arch=float(rng.uniform(0.03, 0.055) if feminine else rng.uniform(0.012, 0.032)),
        thickness=float(rng.uniform(0.015, 0.022) if feminine else rng.uniform(0.021, 0.030)),
        length=0.085,
        alpha=float(rng.uniform(0.62, 0.85)),
    )


def _linear(colour: NDArray[np.float64]) -> Colour:
    """From sRGB, near enough."""
    red, green, blue = (colour**_GAMMA).tolist()
    return red, green, blue
