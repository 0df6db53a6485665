"""What moves a talking head: one vector of curves a frame. Free of torch.

Names and ranges are those of ARKit's blend shapes, left and right taken together. `SPEECH` is what the sound moves;
`LIFE` is what a face does by itself.
"""

from __future__ import annotations

SPEECH = {
    "jawOpen": 8.0,
    "mouthClose": 12.0,
    "mouthPress": 10.0,
    "mouthRollLower": 10.0,
    "mouthRollUpper": 12.0,
    "mouthUpperUp": 10.0,
    "mouthLowerDown": 8.0,
    "mouthShrugLower": 12.0,
    "mouthFunnel": 6.0,
    "mouthPucker": 5.0,
    "mouthStretch": 8.0,
    "mouthSmile": 8.0,
    "tongueRaise": 5.0,
    "tongueForward": 5.0,
}
"""Curve, and the factor that brings it to a spread of about 1; 0 is a mouth at rest."""

LIFE = {
    "emotion": 6.0,
    "blink": 4.0,
    "gazeYaw": 10.0,
    "gazePitch": 15.0,
    "browInnerUp": 12.0,
    "browOuterUp": 12.0,
    "browDown": 15.0,
    "jawLeft": 20.0,
    "headPitch": 20.0,
    "headYaw": 12.0,
    "headRoll": 25.0,
    "headX": 30.0,
    "headY": 40.0,
    "headZ": 25.0,
    "bodyX": 40.0,
    "bodyY": 50.0,
    "bodyZ": 50.0,
}
"""As `SPEECH`. Gaze and head in radians, places in decimetres, emotion and the others from 0 to 1; what asks
for a blink may ask for more."""

CURVES = (*SPEECH, *LIFE)
"""Names of a frame's vector, in order."""

FACE = 0.22, 0.18, 0.78, 0.86
"""Left, top, right and bottom of the part of a frame that a face moves in, in shares of its width and height."""
MOUTH = 0.34, 0.54, 0.66, 0.78
"""The part that its mouth moves in."""
