"""What a talking head does by itself: it breathes, blinks, looks around, and moves a little as it speaks.

Every value is a function of seed and frame number (and of how loud the voice was), so a stream that goes on in another
process, or is replayed, lives on as it did. The rates and spreads are those of the heads that students learn from.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from streamgen.face import LIFE

_SMOOTH = {
    # What drifts: spread, and the standard deviation in seconds of the bell that smooths it.
    "yaw": (0.06, 1.0),
    "yaw, quick": (0.016, 0.25),
    "pitch": (0.03, 0.8),
    "pitch, quick": (0.010, 0.2),
    "roll": (0.024, 1.1),
    "headX": (0.02, 1.5),
    "headY": (0.012, 1.5),
    "headZ": (0.03, 1.5),
    "bodyX": (0.012, 2.0),
    "bodyY": (0.008, 1.2),
    "bodyZ": (0.01, 2.0),
    "emotion": (0.12, 2.0),
    "brow": (0.06, 0.8),
    "jaw": (0.03, 0.6),
}
_BREATH_S, _BREATH = 3.8, 0.006
_BLINK = (0.35, 0.9, 1.0, 0.8, 0.45, 0.18, 0.05)
"""How far the lids are closed in the frames of a blink at 25 a second."""
_SHUT = 1.6
"""What a blink asks of a drawn face: lids that it has seen closed in few frames stay half open when asked for 1."""
_BLINK_EVERY_S, _BLINK_SLOT_S = 3.3, 0.55
_GAZE_SLOT_S, _GAZE_MOVES, _GAZE_FAR = 0.9, 0.55, 0.14
_EYES_FOLLOW = 0.9
"""Share of the head's turn that the eyes take back: they stay with whom they look at."""
_NOD, _BROWS_WITH_VOICE = 0.02, 0.05


def life(seed: int, frame: int, fps: float, loudness: float = 0.0) -> NDArray[np.float32]:
    """The curves of `streamgen.face.LIFE` of a frame, scaled, [len(LIFE)].

    loudness: of the voice around the frame, from 0 to 1: a speaker nods and raises the brows with what is stressed.
    """
    drift = {name: spread * _drift(seed, k, frame, s * fps) for k, (name, (spread, s)) in enumerate(_SMOOTH.items())}
    t = frame / fps
    pitch = drift["pitch"] + drift["pitch, quick"] + _NOD * loudness
    yaw = drift["yaw"] + drift["yaw, quick"]
    look_x, look_y = _gaze(seed, t)
    gaze_pitch = look_y + _EYES_FOLLOW * pitch
    blink, brow = _blink(seed, t), drift["brow"]
    raised = max(brow, 0.0) + _BROWS_WITH_VOICE * loudness
    values = {
        "emotion": min(max(0.2 + drift["emotion"], 0.0), 0.6),
        "blink": max(_SHUT * blink, min(1.0, blink + 0.8 * max(-gaze_pitch, 0.0))),
        "gazeYaw": look_x - _EYES_FOLLOW * yaw,
        "gazePitch": gaze_pitch,
        "browInnerUp": 0.7 * raised,
        "browOuterUp": 0.8 * raised,
        "browDown": max(-brow, 0.0) + 0.06 * blink,
        "jawLeft": max(drift["jaw"], 0.0),
        "headPitch": pitch,
        "headYaw": yaw,
        "headRoll": drift["roll"],
        "headX": drift["headX"],
        "headY": drift["headY"],
        "headZ": drift["headZ"],
        "bodyX": drift["bodyX"],
        "bodyY": drift["bodyY"] + _BREATH * float(np.sin(2 * np.pi * t / _BREATH_S)),
        "bodyZ": drift["bodyZ"],
    }
    return np.array([values[name] * scale for name, scale in LIFE.items()], np.float32)


def _drift(seed: int, channel: int, frame: int, sigma: float) -> float:
    """Smooth noise of spread 1: white noise of (seed, channel, frame) under a bell of `sigma` frames."""
    bell = _bell(sigma)
    reach = len(bell) // 2
    return float(bell @ _white(seed, channel, frame - reach, len(bell)))


@lru_cache(maxsize=64)
def _bell(sigma: float) -> NDArray[np.float64]:
    x = np.arange(-int(3 * sigma) - 1, int(3 * sigma) + 2)
    bell = np.exp(-0.5 * (x / sigma) ** 2)
    out: NDArray[np.float64] = bell / np.sqrt((bell**2).sum())
    return out


_BLOCK = 256


def _white(seed: int, channel: int, first: int, count: int) -> NDArray[np.float64]:
    blocks = range(first // _BLOCK, (first + count - 1) // _BLOCK + 1)
    noise = np.concatenate([_white_block(seed, channel, block) for block in blocks])
    start = first - blocks[0] * _BLOCK
    return noise[start : start + count]


@lru_cache(maxsize=512)
def _white_block(seed: int, channel: int, block: int) -> NDArray[np.float64]:
    return np.random.default_rng([seed, channel, block % 2**63]).standard_normal(_BLOCK)


@lru_cache(maxsize=512)
def _drawn(seed: int, what: int, slot: int) -> tuple[float, ...]:
    """Four uniform and two normal numbers of a slot of time."""
    rng = np.random.default_rng([seed, 1000 + what, slot % 2**63])
    return (*rng.random(4), *rng.standard_normal(2))


def _blink(seed: int, t: float) -> float:
    """How far the lids are closed, 0 to 1, at t seconds."""
    slot, closed = int(t // _BLINK_SLOT_S), 0.0
    for k in (slot - 1, slot):
        chance, at, *_ = _drawn(seed, 0, k)
        if chance < _BLINK_SLOT_S / _BLINK_EVERY_S:
            since = (t - (k + 0.5 * at) * _BLINK_SLOT_S) * 25.0
            if 0 <= since < len(_BLINK):
                closed = max(closed, float(np.interp(since, np.arange(len(_BLINK)), _BLINK)))
    return closed


def _gaze(seed: int, t: float) -> tuple[float, float]:
    """Where the eyes look, yaw and pitch in radians from straight ahead to the viewer: still, but for quick moves."""
    slot = int(t // _GAZE_SLOT_S)
    moved = [(k, _drawn(seed, 1, k)) for k in range(slot, slot - 12, -1)]
    places = [(k, drawn) for k, drawn in moved if drawn[0] < _GAZE_MOVES and (k + drawn[1]) * _GAZE_SLOT_S <= t]
    if not places:
        return 0.0, 0.0
    (k, (_, at, far, _, x, y)) = places[0]
    now = (0.16 * x, 0.08 * y) if far < _GAZE_FAR else (0.028 * x, 0.018 * y)
    share = min(1.0, (t - (k + at) * _GAZE_SLOT_S) / 0.06)
    if share >= 1 or len(places) < 2:
        return now
    _, (_, _, far, _, x, y) = places[1]
    before = (0.16 * x, 0.08 * y) if far < _GAZE_FAR else (0.028 * x, 0.018 * y)
    return before[0] + share * (now[0] - before[0]), before[1] + share * (now[1] - before[1])
