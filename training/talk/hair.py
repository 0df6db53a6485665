"""Hair: strands that grow from the scalp step by step, each step bent towards where the style wants it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from training.talk.gl import unit

Array = NDArray[np.floating[Any]]

AXIS_Z = 0.42
"""The head's upright axis on the base mesh; angles around it are measured from the front."""
_HAIRLINE_ANGLE = np.radians([0, 22, 40, 52, 62, 70, 78, 86, 95, 105, 118, 150, 180])
_HAIRLINE_HEIGHT = np.array([7.90, 7.91, 7.88, 7.78, 7.62, 7.42, 7.12, 7.20, 7.34, 7.30, 6.95, 6.72, 6.62])
_PARTED, _FALLING = ("sidepart", "long", "bob"), ("long", "bob")
_KNOT_STRANDS, _KNOT_RADIUS = 260, 0.27


@dataclass(frozen=True)
class _Style:
    """points: of a strand. lift: distances from the skin at root and tip that are kept at least. clumping: how far tips
    draw together into locks. bend: share of the wanted direction in each step. Lengths in decimetres.
    """

    strands: int
    points: int
    width: float
    lift: tuple[float, float]
    clumping: float
    curl: float
    bend: float = 0.55


_STYLES = {
    "crop": _Style(3600, 5, 0.030, (0.0, 0.05), 0.35, 0.03),
    "sidepart": _Style(3600, 6, 0.030, (0.0, 0.05), 0.35, 0.03),
    "buzz": _Style(7000, 2, 0.014, (0.0, 0.02), 0.0, 0.05),
    "curly": _Style(2600, 8, 0.026, (0.02, 0.12), 0.8, 0.42),
    "bun": _Style(2300, 16, 0.036, (0.006, 0.03), 0.15, 0.006, 0.85),
    "long": _Style(2300, 11, 0.042, (0.03, 0.06), 0.5, 0.02, 0.75),
    "bob": _Style(2300, 10, 0.042, (0.03, 0.11), 0.5, 0.02, 0.75),
}


@dataclass(frozen=True)
class Hair:
    """S strands of K points, the foremost first. shade: [S] around 0, darker to lighter. openness: [S, K] to the sky,
    0 to 1.
    """

    points: Array
    width: float
    shade: Array
    openness: Array
    centre: Array


def hairline(canonical: ArrayLike) -> Array:
    """How far places [..., 3] on the base mesh lie above the hairline."""
    x, y, z = np.moveaxis(np.asarray(canonical, np.float64), -1, 0)
    around = np.abs(np.arctan2(x, z - AXIS_Z))
    return np.asarray(y - np.interp(around, _HAIRLINE_ANGLE, _HAIRLINE_HEIGHT))


@dataclass(frozen=True)
class _Scalp:
    """What hair grows on and around."""

    places: Array
    normals: Array
    tree: KDTree

    def nearest(self, points: Array) -> tuple[Array, Array, Array]:
        """For points [n, 3]: their distance [n] from the nearest vertex, its normal [n, 3], and their height [n] above
        it.
        """
        distance, index = self.tree.query(points)
        normal = self.normals[index]
        return distance, normal, _dot(points - self.places[index], normal)[:, 0]


@dataclass(frozen=True)
class _Roots:
    """S places where hair grows. base: on the base mesh. top: [S, 1] 1 on top of the head, 0 at its sides. part: x of
    the parting on the base mesh. side: to which the hair is combed, 1 or -1. lock: [S] each strand's, 0 to locks - 1;
    leaders: [locks] the strand that the others of a lock follow.
    """

    place: Array
    normal: Array
    base: Array
    top: Array
    part: float
    side: float
    lock: NDArray[np.int64]
    leaders: NDArray[np.int64]


def grow(
    style: str,
    rng: np.random.Generator,
    skin: Array,
    normals: Array,
    canonical: Array,
    triangles: NDArray[np.int32],
    ears: Array,
) -> Hair:
    """Hair of a style on a head: skin and normals [m, 3] at rest, the same vertices on the base mesh, triangles [t, 3],
    and a mask [m] of the ears, on which none grows.
    """
    kind = _STYLES[style]
    is_head = (canonical[:, 1] > 5.6) & (ears < 0.15)
    scalp = _Scalp(skin[is_head], normals[is_head], KDTree(skin[is_head]))
    roots = _roots(style, kind, rng, skin, normals, canonical, triangles)
    top_of_head = np.percentile(scalp.places[:, 1], 99.9)
    centre = np.array([0.0, top_of_head - 0.95, skin[canonical[:, 1] > 7.6, 2].mean()])
    knot = np.array([0.0, top_of_head - 0.57, scalp.places[:, 2].min() - 0.02])
    points = _strands(style, kind, rng, roots, scalp, knot)

    along = np.linspace(0, 1, kind.points)[None, :, None]
    points += (points[roots.leaders][roots.lock] - points) * kind.clumping * along**1.3
    lock = roots.lock
    if style == "bun":
        points = np.concatenate([points, _knot(rng, knot, kind.points)])
        lock = np.concatenate([lock, rng.integers(0, len(roots.leaders), _KNOT_STRANDS)])
    if style in _FALLING:
        before_face = (np.abs(points[..., 0]) < 0.58) & (points[..., 2] > 0.85) & (points[..., 1] > 5.9)
        is_low = points[..., 1] < 7.74 + 0.10 * rng.random((len(points), 1))
        keep = ~(before_face & is_low).any(1)
        points, lock = points[keep], lock[keep]
    shade = 0.75 * rng.normal(size=len(roots.leaders))[lock] + 0.65 * rng.normal(size=len(points))
    to_tip = np.broadcast_to(np.linspace(0, 1, kind.points), points.shape[:2])
    openness = 0.6 + 0.4 * to_tip if style in ("bun", "buzz") else 0.32 + 0.68 * to_tip**0.7
    front_first = np.argsort(-points[:, :, 2].max(1))
    return Hair(points[front_first], kind.width, shade[front_first], openness[front_first], centre)


def _roots(
    style: str,
    kind: _Style,
    rng: np.random.Generator,
    skin: Array,
    normals: Array,
    canonical: Array,
    triangles: NDArray[np.int32],
) -> _Roots:
    """Evenly over the skin above the hairline."""
    above = hairline(canonical) + rng.normal(size=len(canonical)) * 0.012
    haired = triangles[above[triangles].min(1) > 0]
    a, b, c = (skin[haired[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    chosen = haired[rng.choice(len(haired), kind.strands, p=area / area.sum())]
    within = rng.dirichlet([1, 1, 1], kind.strands)[..., None]
    place, normal, base = ((values[chosen] * within).sum(1) for values in (skin, normals, canonical))
    side = float(np.sign(rng.random() - 0.5))
    part = side * (0.34 if style == "sidepart" else 0.22) if style in _PARTED else 0.0
    leaders = rng.choice(kind.strands, max(60, kind.strands // 14), replace=False)
    apart = place.copy()
    if style in _PARTED:
        apart[:, 0] += np.where(base[:, 0] > part, 5.0, 0.0)  # no lock crosses the parting
    _, lock = KDTree(apart[leaders]).query(apart)
    top = np.clip((base[:, 1] - 7.75) / 0.45, 0, 1)[:, None]
    return _Roots(place, unit(normal), base, top, part, side, lock, leaders)


def _lengths(style: str, rng: np.random.Generator, roots: _Roots) -> Array:
    """[S]."""
    count, top = len(roots.place), roots.top[:, 0]
    if style in ("crop", "sidepart"):
        longer = 0.33 if style == "crop" else 0.38
        at_edge = np.clip(hairline(roots.base) / 0.25 + 0.45, 0.45, 1)
        return (0.15 + longer * top**1.2) * rng.uniform(0.8, 1.15, count) * at_edge
    if style == "buzz":
        return 0.055 * rng.uniform(0.7, 1.2, count)
    if style == "curly":
        return (0.22 + 0.42 * top) * rng.uniform(0.7, 1.2, count)
    if style == "bun":
        return np.full(count, 2.9)
    return rng.uniform(2.4, 3.0, count) if style == "long" else rng.uniform(1.55, 1.75, count)


def _strands(style: str, kind: _Style, rng: np.random.Generator, roots: _Roots, scalp: _Scalp, knot: Array) -> Array:
    """Points [S, K, 3] of all strands."""
    count = len(roots.place)
    step = (_lengths(style, rng, roots) / (kind.points - 1))[:, None]
    wave = rng.uniform(0, 0.35) if style in _FALLING else 0.0
    frizz = rng.normal(size=(count, 3)) * 0.12 * kind.curl * 4
    locks = len(roots.leaders)
    phase = rng.uniform(0, 6.28, locks)[roots.lock]
    curl_axes = [unit(rng.normal(size=(locks, 3)))[roots.lock] for _ in range(2)]
    wanted = _direction(style, roots, knot, phase, curl_axes, kind.curl)

    points = np.zeros((count, kind.points, 3))
    points[:, 0] = roots.place - roots.normal * 0.01
    at, heading = roots.place.copy(), roots.normal.copy()
    if style == "bun":
        to_knot = unit(knot - roots.place)
        heading = unit(unit(to_knot - roots.normal * _dot(to_knot, roots.normal)) + 0.10 * roots.normal)
    growing = np.ones(count)
    for k in range(1, kind.points):
        u = k / (kind.points - 1)
        _, normal, height = scalp.nearest(at)
        aim = unit(wanted(at, normal, u))
        into_skin = np.minimum(_dot(aim, normal), 0) * np.clip(1 - height / 0.12, 0, 1)[:, None]
        aim = unit(aim - normal * into_skin)
        if style == "bun":
            aim = unit(aim - normal * _dot(aim, normal) * 0.9)
            growing = np.where(np.linalg.norm(knot - at, axis=1) < 0.16, 0.0, growing)
        heading = unit((1 - kind.bend) * heading + kind.bend * aim + frizz)
        at = at + heading * step * growing[:, None]

        distance, normal, height = scalp.nearest(at)
        clearance = kind.lift[0] + kind.lift[1] * u * (0.6 + 0.4 * rng.random(count))
        if style in _FALLING:
            clearance += 0.07 * np.exp(-(((roots.base[:, 0] - roots.part) / 0.5) ** 2)) + 0.05
        at += normal * (np.clip(clearance - height, 0, 0.3) * (distance < 0.6))[:, None]
        if style in _FALLING:
            at[:, 0] += _off_the_face(at, roots)
        if style == "bob":
            ends = 6.28 + 0.02 * rng.normal(size=count) + 0.12 * np.clip(-at[:, 2] / 0.8, 0, 1)
            at[:, 1] = np.maximum(at[:, 1], ends)
        swing = wave * 0.10 * np.clip(u * 1.6 - 0.4, 0, 1) * np.sin(phase + u * 13)
        points[:, k] = at + swing[:, None] * np.array([1, 0, 0.6])
    return points


def _off_the_face(at: Array, roots: _Roots) -> Array:
    """[S] how far hair in front is drawn aside, like a curtain that opens downwards."""
    side = np.where(roots.base[:, 0] - roots.part >= 0, 1.0, -1.0)
    down = np.clip((8.02 - at[:, 1]) / 0.55, 0, 1)
    opening = 0.66 * down * down * (3 - 2 * down)
    return side * np.clip(opening - at[:, 0] * side, 0, 1) * (at[:, 2] > 0.2) * 0.75


def _direction(
    style: str, roots: _Roots, knot: Array, phase: Array, curl_axes: list[Array], curl: float
) -> Callable[[Array, Array, float], Array]:
    """Where a style wants strands to go: from places [S, 3], the skin's normals there and how far along they are."""
    from_part = roots.base[:, 0] - roots.part
    zero = np.zeros(len(from_part))

    def combed(at: Array, normal: Array, u: float) -> Array:
        if style == "sidepart":
            across = np.where(from_part * roots.side > 0, roots.side, -roots.side)
            on_top = np.stack([0.95 * across, zero, zero - 0.45], 1)
            rise = 0.26 * np.clip(np.abs(from_part) / 0.18, 0.15, 1)
        else:
            on_top = np.stack([zero + 0.45 * roots.side, zero, zero + 0.8 - 0.5 * u], 1)
            rise = zero + 0.55
        rise = rise * roots.top[:, 0] * (1 - u) ** 1.5 * np.clip(1.25 - 0.5 * np.abs(from_part), 0.3, 1)
        aim = roots.top * on_top + (1 - roots.top) * np.array([0, -1.0, -0.45])
        return unit(aim - normal * _dot(aim, normal) * 0.92) + normal * rise[:, None]

    def cropped(at: Array, normal: Array, u: float) -> Array:
        return roots.normal + np.array([0, -0.6, 0.1])

    def curled(at: Array, normal: Array, u: float) -> Array:
        turn = (phase + 9 * u)[:, None]
        spiral = np.cos(turn) * curl_axes[0] + np.sin(turn) * curl_axes[1]
        return roots.normal * 0.9 + np.array([0, -0.15, 0]) + curl * 3 * spiral

    def gathered(at: Array, normal: Array, u: float) -> Array:
        return knot - at

    def falling(at: Array, normal: Array, u: float) -> Array:
        is_long = style == "long"
        side = np.where(from_part >= 0, 1.0, -1.0)
        fall = min(u * 2.2, 1.0)
        away = np.stack([side, zero, zero - 0.35], 1)
        back = np.array([0, 0, -0.55 if is_long else -0.25])
        aim = (1 - fall) * (away + 0.6 * back) + fall * np.array([0, -1.2, 0])
        aim[:, 1] -= 0.15
        if is_long:
            aim += np.where(at[:, 1:2] < 7.3, np.array([[0, -1.0, -0.10]]), 0)
            inwards = np.clip((7.2 - at[:, 1]) / 0.4, 0, 1) * (np.abs(at[:, 0]) > 0.62)
            aim[:, 0] -= 0.42 * np.sign(at[:, 0]) * inwards
        return aim

    return {"crop": combed, "sidepart": combed, "buzz": cropped, "curly": curled, "bun": gathered}.get(style, falling)


def _knot(rng: np.random.Generator, centre: Array, points: int) -> Array:
    """[_KNOT_STRANDS, points, 3]: strands wound around a ball."""
    start = rng.uniform(0, 6.28, _KNOT_STRANDS)
    axis = unit(rng.normal(size=(_KNOT_STRANDS, 3)))
    right = unit(np.cross(axis, [0.3, 1, 0.2]))
    up = np.cross(axis, right)
    radius = _KNOT_RADIUS * rng.uniform(0.8, 1.0, (_KNOT_STRANDS, 1, 1))
    turn = (start[:, None] + np.linspace(0, 1, points) * 2.2)[..., None]
    ball = radius * (np.cos(turn) * right[:, None] + np.sin(turn) * up[:, None]) * np.array([1, 1, 0.85])
    return centre + np.array([0, 0.05, -0.12]) + ball


def ribbons(hair: Hair, every: int = 1, skip: int = 1, wider: float = 1.0) -> tuple[NDArray[np.float32], int]:
    """Vertices [S * K * 2, 10] of a band along each strand, and how many a strand has: place, direction, signed half
    width, shade, openness, root to tip. every, skip: take only each so manieth strand and point, and those wider.
    """
    points = hair.points[::every, ::skip]
    strands, k, _ = points.shape
    to_tip = np.linspace(0, 1, k)
    half = hair.width * wider * (1 - 0.5 * to_tip**2)
    bands = np.empty((strands, k, 2, 10), np.float32)
    bands[..., :3] = points[:, :, None]
    bands[..., 3:6] = unit(np.gradient(points, axis=1))[:, :, None]
    bands[..., 6] = half[:, None] * np.array([-1, 1])
    bands[..., 7] = hair.shade[::every, None, None]
    bands[..., 8] = hair.openness[::every, :k, None]
    bands[..., 9] = to_tip[:, None]
    return bands.reshape(-1, 10), 2 * k


def ribbon_triangles(strands: NDArray[np.int64], vertices: int) -> NDArray[np.int32]:
    """[t] corners of the triangles of some strands' bands."""
    first = (strands * vertices)[:, None] + np.arange(0, vertices - 2, 2)
    corners = np.stack([first + k for k in (0, 1, 2, 1, 3, 2)], -1)
    return corners.reshape(-1).astype(np.int32)


def _dot(a: Array, b: Array) -> Array:
    """[n, 1]."""
    return (a * b).sum(1, keepdims=True)
