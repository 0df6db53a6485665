"""What is painted on a head: pores, blotches, freckles, brows, stubble and the scalp's shade, as two textures.

They lie around the head like a label: x is the angle around `training.talk.hair.AXIS_Z` from -pi to pi, the face in the
middle; y is the height on the base mesh from TOP down to BOTTOM.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree

from training.talk.hair import AXIS_Z, hairline
from training.talk.identity import Brow, Identity

Array = NDArray[np.floating[Any]]

SIZE = 1024
"""Width and height of a texture."""
TOP, BOTTOM = 8.7, 4.4
_FINER = 2
"""Brows are drawn larger and scaled down."""
_SCALP = 0.98
_WRINKLED_AGE = 0.25
_WRINKLES = 7.66, 7.75, 7.84


class Textures(NamedTuple):
    """detail: [SIZE, SIZE, 4] albedo (128 is neutral), hair, height, freckles. relief: [SIZE, SIZE, 2] slopes of the
    height, 128 is level.
    """

    detail: NDArray[np.uint8]
    relief: NDArray[np.uint8]


def paint(rng: np.random.Generator, identity: Identity, face: Array) -> Textures:
    """face: vertices [n, 3] of the base mesh, on whose front brows are drawn."""
    pores = _noise(rng, {1.0: 0.5, 2.0: 0.4, 5.0: 0.25})
    blotches = _noise(rng, {8.0: 0.25, 24.0: 0.45, 60.0: 0.6})
    albedo = 0.5 + 0.045 * blotches + 0.03 * _noise(rng, {1.5: 0.6, 3.0: 0.6})
    height = 0.5 + 0.11 * pores

    brows = _brows(rng, identity.brow, face)
    angle, up = _grid()
    speckles = gaussian_filter(rng.normal(size=(SIZE, SIZE)), 0.7)
    stubble = _jaw(angle, up) * identity.stubble * np.clip(0.62 + 0.30 * speckles / speckles.std(), 0, 1.4) * 0.42
    above = hairline(np.stack([np.sin(angle), up, AXIS_Z + np.cos(angle)], -1))
    ragged = above + 0.012 * _noise(rng, {1.5: 0.6, 4.0: 0.5})
    scalp = np.clip(ragged / 0.08 + 0.15, 0, 1) ** 1.3 * _SCALP
    hair = np.maximum(np.maximum(brows, scalp), stubble)

    freckles = np.clip(gaussian_filter(rng.normal(size=(SIZE, SIZE)), 1.6) / 0.09 - 1.55, 0, 1) * identity.freckles
    freckles *= np.exp(-((angle / 0.75) ** 2)) * np.exp(-(((up - 7.02) / 0.22) ** 2))
    for _ in range(identity.moles):
        x, y, radius = rng.normal() * 0.6, rng.uniform(6.3, 7.9), rng.uniform(0.010, 0.016)
        freckles += 0.44 * np.exp(-(((angle - x) * 0.9) ** 2 + (up - y) ** 2) / (2 * radius**2))
    if identity.age > _WRINKLED_AGE:
        height -= 0.35 * identity.age * _forehead_wrinkles(angle, up)

    detail = _bytes(np.stack([albedo, hair, height, freckles], -1))
    stored = detail[..., 2] / 255
    slopes = [np.roll(stored, -1, axis) - np.roll(stored, 1, axis) for axis in (1, 0)]
    return Textures(detail, _bytes(np.stack(slopes, -1) * 0.5 + 0.5))


def flush(canonical: Array) -> Array:
    """[m, 3] of places on the base mesh, 0 to about 1: where blood shows, shadows under the eyes, where it is oily."""

    def spot(centre: tuple[float, float, float], size: tuple[float, float, float]) -> Array:
        return np.asarray(np.exp(-(((canonical - np.array(centre)) / np.array(size)) ** 2).sum(1)))

    def spots(centre: tuple[float, float, float], size: tuple[float, float, float]) -> Array:
        x, y, z = centre
        return spot(centre, size) + spot((-x, y, z), size)

    nose = spot((0, 6.85, 1.66), (0.13, 0.14, 0.2))
    cheeks, chin = spots((0.42, 6.82, 1.25), (0.22, 0.2, 0.35)), spot((0, 6.3, 1.5), (0.16, 0.1, 0.2))
    under_eyes = spots((0.3, 7.12, 1.36), (0.15, 0.06, 0.2)).clip(0, 1)
    forehead = spot((0, 7.75, 1.4), (0.35, 0.22, 0.3))
    return np.stack([0.8 * cheeks + 0.75 * nose + 0.35 * chin, under_eyes, nose + forehead], 1)


def _noise(rng: np.random.Generator, sizes: dict[float, float]) -> Array:
    """Smooth noise of several sizes in pixels, each with its strength."""
    total = np.zeros((SIZE, SIZE))
    for size, strength in sizes.items():
        layer = gaussian_filter(rng.normal(size=(SIZE, SIZE)), size, mode="wrap")
        total += strength * layer / layer.std()
    return total


def _grid() -> tuple[Array, Array]:
    """Angle and height of each pixel's middle."""
    at = (np.arange(SIZE) + 0.5) / SIZE
    angle, up = np.meshgrid((at - 0.5) * 2 * np.pi, TOP - at * (TOP - BOTTOM))
    return angle, up


def _to_pixels(places: Array) -> Array:
    """x and y [..., 2] of places [..., 3] on the base mesh."""
    angle = np.arctan2(places[..., 0], places[..., 2] - AXIS_Z)
    return np.stack([(angle / (2 * np.pi) + 0.5) * SIZE, (TOP - places[..., 1]) / (TOP - BOTTOM) * SIZE], -1)


def _brows(rng: np.random.Generator, brow: Brow, face: Array) -> Array:
    """Two brows of single hairs, which stand up at the nose and lie down towards the temples."""
    is_front = (face[:, 2] > 0.2) & (face[:, 1] > 6.0) & (np.abs(face[:, 0]) < 0.75)
    front = face[is_front]
    tree = KDTree(front[:, :2])

    def on_face(x: Array, y: Array) -> Array:
        """[n, 3]: with the depth of the nearest vertices."""
        distance, nearest = tree.query(np.stack([x, y], -1), k=6)
        weight = 1 / (distance + 0.02) ** 2
        return np.stack([x, y, (front[nearest, 2] * weight).sum(-1) / weight.sum(-1)], -1)

    layer = Image.new("L", (SIZE * _FINER, SIZE * _FINER), 0)
    pen = ImageDraw.Draw(layer)
    for side in (-1, 1):
        along = rng.beta(1.05, 1.25, brow.hairs)  # 0 at the nose, 1 at the temple
        from_peak = np.where(along < 0.64, (along - 0.64) / 0.64, (along - 0.64) / 0.36)
        middle = brow.height + brow.arch * (1 - np.where(along < 0.64, 1.0, 1.5) * from_peak**2)
        thickness = brow.thickness * (1 - along) ** 0.35 * (0.75 + 0.5 * along * (1 - along))
        thickness *= np.clip(along / 0.06 + 0.35, 0, 1)
        offset = np.clip(rng.normal(size=brow.hairs) * 0.5, -1, 1)
        lean = np.radians(75 - 62 * np.clip(along * 1.6, 0, 1) + 14 * rng.normal(size=brow.hairs)) - 0.45 * offset
        length = brow.length * rng.uniform(0.6, 1.2, brow.hairs) * (1 - 0.35 * along)
        x, y = 0.095 + 0.455 * along, middle + offset * thickness
        roots = _to_pixels(on_face(side * x, y)) * _FINER
        tips = _to_pixels(on_face(side * (x + length * np.cos(lean)), y + 0.7 * length * np.sin(lean))) * _FINER
        for root, tip in zip(roots.tolist(), tips.tolist(), strict=True):
            pen.line([*root, *tip], fill=int(rng.integers(120, 235)), width=_FINER)
    drawn = np.asarray(layer, np.float64) / 255
    sharp, soft = (gaussian_filter(drawn, size)[::_FINER, ::_FINER] for size in (1.0, 5.0))
    return np.clip((sharp + 0.55 * soft) * brow.alpha, 0, 0.97)


def _jaw(angle: Array, up: Array) -> Array:
    """Where a beard grows, 0 to 1."""
    aside = np.abs(angle)
    before_ears = np.exp(-(np.clip(aside - 1.15, 0, None) ** 2) / 0.02)
    below_cheeks = np.clip((6.95 - up + 0.28 * np.clip(aside - 0.45, 0, 1)) / 0.12, 0, 1)
    above_throat = np.clip((up - 6.02 + 0.1 * aside) / 0.25, 0, 1)
    return before_ears * below_cheeks * above_throat


def _forehead_wrinkles(angle: Array, up: Array) -> Array:
    lines = [np.exp(-(((up - y - 0.02 * np.cos(angle * 5 + y)) / 0.012) ** 2)) for y in _WRINKLES]
    return np.asarray(sum(lines) * np.exp(-((angle / 0.42) ** 2)))


def _bytes(values: Array) -> NDArray[np.uint8]:
    return (np.clip(values, 0, 1) * 255).round().astype(np.uint8)
