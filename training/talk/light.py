"""A portrait's camera, light and backdrop."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.talk.gl import looking, orthographic, perspective, unit
from training.talk.identity import Identity

Array = NDArray[np.floating[Any]]

_TARGET = np.array([0.0, 7.16, 1.0])
_DISTANCE = 11.2
"""Of the camera from it, in decimetres."""
_HALF_HEIGHT = 1.22
"""Of what the camera sees there: a head and a collar."""
CAMERA = _TARGET + np.array([0, 0.02, _DISTANCE])
_LIT = np.array([0, 6.9, 0.4])
"""The middle of what casts shadows, and how far they are looked for around it."""
_LIT_HALF = 2.1
_BACKDROP = 64


class Projections(NamedTuple):
    """[4, 4] of the camera, and of the key light for its shadows."""

    view: Array
    light: Array


def projections_for(identity: Identity) -> Projections:
    """Where the camera and the key light look from."""
    angle = 2 * float(np.arctan(_HALF_HEIGHT / _DISTANCE))
    view = perspective(angle, 4.0, 20.0) @ looking(CAMERA, _TARGET)
    light = orthographic(_LIT_HALF, 1.0, 12.0) @ looking(_LIT + 6 * _key_direction(identity), _LIT)
    return Projections(view, light)


def lights_for(identity: Identity) -> dict[str, ArrayLike]:
    """The uniforms of light.glsl."""
    side, warmth = identity.key_side, identity.warmth
    return {
        "key_direction": _key_direction(identity),
        "fill_direction": unit(np.array([-0.85 * side, 0.15, 0.65])),
        "rim_direction": unit(np.array([-0.75 * side, 0.45, -0.75])),
        "key_colour": (2.55 * (1 + warmth), 2.42, 2.30 * (1 - warmth)),
        "fill_colour": (0.55, 0.60, 0.68),
        "rim_colour": (1.5, 1.5, 1.6),
        "sky_colour": (0.50, 0.54, 0.60),
        "ground_colour": (0.24, 0.20, 0.18),
        "exposure": 0.62,
    }


def backdrop_for(identity: Identity) -> NDArray[np.float32]:
    """[H, W, 3] linear, the bottom row first; brighter behind the shaded side of the face."""
    y, x = np.mgrid[0:_BACKDROP, 0:_BACKDROP] / (_BACKDROP - 1)
    away = np.clip(np.hypot(x - 0.5 + 0.12 * identity.key_side, y - 0.55) * 1.25, 0, 1)[..., None]
    inner, outer = (np.array(colour) for colour in identity.backdrop)
    return (inner * (1 - away) + outer * away).astype(np.float32)


def _key_direction(identity: Identity) -> Array:
    return unit(np.array([0.55 * identity.key_side, 0.62, 0.75]))
