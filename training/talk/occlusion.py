"""What is seen from where, found out by drawing: how open the skin is to the sky, and which hair is ever in sight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.talk.gl import Drawable, floats, looking, orthographic

if TYPE_CHECKING:
    import moderngl

Array = NDArray[np.floating[Any]]

_DIRECTIONS, _MAP = 80, 384
_FROM_BELOW, _FROM_ABOVE = 0.75, 1.25
"""Weights of light from the ground and the sky."""
_BIAS = 0.0035
_MIDDLE = np.array([0.0, 6.7, 0.3])
_IN_SIGHT = 768
_LEAST_PIXELS = 2


def openness(context: moderngl.Context, skin: Array, normals: Array, triangles: NDArray[np.int32]) -> Array:
    """[m] from 0 to 1: the share of the sky that each vertex of skin [m, 3] sees past the rest of it."""
    depth = context.depth_texture((_MAP, _MAP))
    depth.compare_func = ""
    target = context.framebuffer(depth_attachment=depth)
    drawable = Drawable(context, "depth.vert", "depth.frag")
    mesh = drawable.mesh([(floats(context, skin), "place:3")], triangles.ravel())
    context.enable_only(context.DEPTH_TEST)
    seen, possible = np.zeros(len(skin)), np.zeros(len(skin))
    for direction in _sphere(_DIRECTIONS):
        projection = orthographic(2.6, 1, 12) @ looking(_MIDDLE + 6 * direction, _MIDDLE)
        drawable.set(projection=projection)
        target.use()
        target.clear(depth=1.0)
        mesh.render()
        nearest = np.frombuffer(depth.read(), np.float32).reshape(_MAP, _MAP)
        place = (skin @ projection[:3, :3].T + projection[:3, 3]) * 0.5 + 0.5
        column, row = np.clip((place[:, :2] * _MAP).astype(int), 0, _MAP - 1).T
        is_seen = place[:, 2] < nearest[row, column] + _BIAS
        weight = np.maximum(normals @ direction, 0) * (_FROM_ABOVE if direction[1] > 0 else _FROM_BELOW)
        seen += weight * is_seen
        possible += weight
    for thing in (mesh, target, depth):
        thing.release()
    return seen / np.maximum(possible, 1e-6)


def strands_in_sight(
    context: moderngl.Context, head: moderngl.VertexArray, hair: moderngl.VertexArray, poses: list[Drawable], count: int
) -> NDArray[np.int64]:
    """Which of `count` strands show in any of the poses that heads take.

    head and hair draw 0 and the strand's number; `poses` are their programs, whose head is turned here.
    """
    numbers = context.texture((_IN_SIGHT, _IN_SIGHT), 1, dtype="f4")
    depth = context.depth_renderbuffer((_IN_SIGHT, _IN_SIGHT))
    target = context.framebuffer(numbers, depth)
    pixels = np.zeros(count + 1, np.int64)
    context.enable_only(context.DEPTH_TEST)
    for turn in ((0, 0, 0), (0, 0.33, 0), (0, -0.33, 0), (0.18, 0.17, 0.07), (0.18, -0.17, -0.07), (-0.15, 0, 0)):
        for drawable in poses:
            drawable.set(head_rotation=rotation(np.array(turn)), head_shift=np.zeros(3), body_shift=np.zeros(3))
        target.use()
        target.clear(depth=1.0)
        head.render()
        hair.render()
        drawn = np.frombuffer(numbers.read(), np.float32).round().astype(int)
        pixels += np.bincount(drawn, minlength=count + 1)
    for thing in (target, numbers, depth):
        thing.release()
    return np.flatnonzero(pixels[1:] > _LEAST_PIXELS)


def rotation(vector: Array) -> Array:
    """Matrix [3, 3] of a rotation vector [3] in radians (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-9:
        return np.eye(3)
    x, y, z = np.asarray(vector, np.float64) / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _sphere(count: int) -> Array:
    """[count, 3] directions spread evenly (a Fibonacci lattice)."""
    y = 1 - 2 * (np.arange(count) + 0.5) / count
    around = np.pi * (3 - np.sqrt(5)) * np.arange(count)
    ring = np.sqrt(1 - y * y)
    return np.stack([ring * np.cos(around), y, ring * np.sin(around)], 1)
