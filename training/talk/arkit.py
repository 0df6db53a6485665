"""The 52 blend shapes of ARKit (Apple, ARFaceAnchor.BlendShapeLocation), as rendered heads know them."""

from __future__ import annotations

SIDES = ("Left", "Right")
_PAIRED = (
    "browDown",
    "browOuterUp",
    "cheekSquint",
    "eyeBlink",
    "eyeLookDown",
    "eyeLookIn",
    "eyeLookOut",
    "eyeLookUp",
    "eyeSquint",
    "eyeWide",
    "mouthDimple",
    "mouthFrown",
    "mouthLowerDown",
    "mouthPress",
    "mouthSmile",
    "mouthStretch",
    "mouthUpperUp",
    "noseSneer",
)
_SINGLE = (
    "browInnerUp",
    "cheekPuff",
    "jawForward",
    "jawLeft",
    "jawOpen",
    "jawRight",
    "mouthClose",
    "mouthFunnel",
    "mouthLeft",
    "mouthPucker",
    "mouthRight",
    "mouthRollLower",
    "mouthRollUpper",
    "mouthShrugLower",
    "mouthShrugUpper",
    "tongueOut",
)
SHAPES = tuple(sorted([*_SINGLE, *(name + side for name in _PAIRED for side in SIDES)]))
"""Names in the order of a clip's curves."""
INDEX = {name: index for index, name in enumerate(SHAPES)}


def both_sides(name: str) -> tuple[str, ...]:
    """The shapes that a curve for both sides together stands for: mouthSmile is mouthSmileLeft and mouthSmileRight."""
    return tuple(name + side for side in SIDES) if name in _PAIRED else (name,)
