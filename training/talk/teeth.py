"""Teeth and gums: two rows of rounded blocks on an arch, made once for the base mesh's jaws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Triangles = NDArray[np.int32]

TOOTH, GUM, TONGUE = 0.0, 1.0, 2.0
"""First column of `kinds`."""


@dataclass(frozen=True)
class _Jaw:
    """From the middle outwards, in decimetres. taper: how much wider a tooth is at its edge."""

    is_upper: bool
    widths: tuple[float, ...]
    heights: tuple[float, ...]
    tilt: float
    gum_height: float
    second_shift: float
    """How far the second tooth stands back from the row's edge."""


_UPPER = _Jaw(
    is_upper=True,
    widths=(0.088, 0.070, 0.080, 0.072, 0.070, 0.10, 0.10),
    heights=(0.105, 0.090, 0.100, 0.085, 0.080, 0.072, 0.07),
    tilt=0.10,
    gum_height=0.118,
    second_shift=0.012,
)
_LOWER = _Jaw(
    is_upper=False,
    widths=(0.056, 0.060, 0.070, 0.072, 0.072, 0.105, 0.10),
    heights=(0.085, 0.086, 0.092, 0.085, 0.080, 0.072, 0.07),
    tilt=-0.06,
    gum_height=-0.112,
    second_shift=-0.004,
)
_SPACING = 0.98
_AROUND, _UP = 10, 8
"""Vertices around a tooth and from its root to its edge."""
_INCISORS = 3
_GUM_RINGS, _GUM_AROUND = 40, 8


class Row(NamedTuple):
    """vertices: [n, 3]. triangles: [t, 3]. kinds: [n, 3] of TOOTH or GUM; height on a tooth, 0 at the root to 1 at the
    edge; z.
    """

    vertices: Points
    triangles: Triangles
    kinds: Points


class _Arch:
    """The row's middle line in the x-z plane, from the middle of the face to the right, by its length."""

    def __init__(self, jaw: Points) -> None:
        front, back, half = jaw[:, 2].max(), jaw[:, 2].min(), np.abs(jaw[:, 0]).max()
        angle = np.linspace(0, 1, 200) * np.pi / 2
        self._x = half * np.sin(angle) * 0.97
        self._z = front - 0.060 - (front - back) * (1 - np.cos(angle)) ** 1.05
        self._length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(self._x), np.diff(self._z)))])

    def at(self, length: Points | float) -> tuple[Points, Points]:
        """x and z."""
        return np.interp(length, self._length, self._x), np.interp(length, self._length, self._z)


def make_rows(upper: Points, lower: Points) -> tuple[Row, Row]:
    """The upper and the lower row for jaws whose vertices on the base mesh are upper and lower [n, 3]."""
    return _row(_UPPER, upper), _row(_LOWER, lower)


def _row(jaw: _Jaw, place: Points) -> Row:
    arch = _Arch(place)
    edge = float(place[:, 1].min() if jaw.is_upper else place[:, 1].max())
    widths = np.array(jaw.widths) * _SPACING
    middles = np.cumsum(widths) - widths / 2
    parts = []
    for number, (middle, width) in enumerate(zip(middles, widths, strict=True)):
        parts += [_tooth(jaw, number, arch, middle, width, edge, side) for side in (1, -1)]
    parts.append(_gum(arch, float(widths.sum()), edge + jaw.gum_height))
    first = np.cumsum([0, *(len(part.vertices) for part in parts)])
    return Row(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.triangles + start for part, start in zip(parts, first, strict=False)]).astype(np.int32),
        np.concatenate([part.kinds for part in parts]),
    )


def _tooth(jaw: _Jaw, number: int, arch: _Arch, middle: float, width: float, edge: float, side: int) -> Row:
    """A superellipsoid: a rounded block. side: 1 on the face's left, -1 on its right."""
    u, v = np.meshgrid(np.linspace(0, 2 * np.pi, _AROUND, endpoint=False), np.linspace(-np.pi / 2, np.pi / 2, _UP))
    ring = _power(np.cos(v), 0.45)
    across, through, up = ring * _power(np.cos(u), 0.6), ring * _power(np.sin(u), 0.6), _power(np.sin(v), 0.55)
    towards_root = up if jaw.is_upper else -up
    height = jaw.heights[number]
    across = across * width * 0.5 * (1 - 0.10 * towards_root)
    through = through * (0.055 if number < _INCISORS else 0.10) * 0.5
    up = up * height * 0.62

    (x, z), (next_x, next_z) = arch.at(middle), arch.at(middle + 0.01)
    angle = np.arctan2(z - next_z, next_x - x)
    shift = jaw.second_shift if number == 1 else 0.0
    middle_y = edge + shift + (0.5 if jaw.is_upper else -0.5) * height
    vertices = np.stack(
        [
            side * (x + across * np.cos(angle) + through * np.sin(angle)),
            middle_y + up,
            z - across * np.sin(angle) + through * np.cos(angle) - up * jaw.tilt,
        ],
        -1,
    ).reshape(-1, 3)
    kinds = np.stack([np.full(len(vertices), TOOTH), 0.5 - 0.5 * towards_root.ravel(), vertices[:, 2]], 1)
    # Mirrored teeth are turned inside out, so their faces are wound the other way.
    return Row(vertices, _tube(_UP, _AROUND)[:, ::-side], kinds)


def _gum(arch: _Arch, half: float, y: float) -> Row:
    """A tube along the roots of the whole row."""
    along = np.linspace(-1, 1, _GUM_RINGS) * half
    x, z = arch.at(np.abs(along))
    x = np.sign(along) * x
    slope_x, slope_z = np.gradient(x), np.gradient(z)
    length = np.hypot(slope_x, slope_z)
    angle = np.linspace(0, 2 * np.pi, _GUM_AROUND, endpoint=False)
    scallops = 0.010 * np.abs(np.sin(np.pi * np.arange(_GUM_RINGS) / 2.6))
    vertices = np.stack(
        [
            x[:, None] - (slope_z / length)[:, None] * np.cos(angle) * 0.040,
            y + np.sin(angle) * (0.045 + scallops[:, None]),
            z[:, None] + (slope_x / length)[:, None] * np.cos(angle) * 0.040,
        ],
        -1,
    ).reshape(-1, 3)
    kinds = np.stack([np.full(len(vertices), GUM), np.zeros(len(vertices)), vertices[:, 2]], 1)
    return Row(vertices, _tube(_GUM_RINGS, _GUM_AROUND), kinds)


def _tube(rings: int, around: int) -> Triangles:
    """Triangles between successive rings of vertices."""
    ring, place = np.meshgrid(np.arange(rings - 1), np.arange(around), indexing="ij")
    here, beside = ring * around + place, ring * around + (place + 1) % around
    quads = np.stack([here, beside, beside + around, here + around], -1).reshape(-1, 4)
    return quads[:, [[0, 1, 2], [0, 2, 3]]].reshape(-1, 3).astype(np.int32)


def _power(values: Points, exponent: float) -> Points:
    return np.sign(values) * np.abs(values) ** exponent
