"""What a face does by itself, whether it speaks or listens: blinks, glances, sways, nods, moods. numpy only.

Figures are those of a person at ease who looks at somebody: 12 to 20 blinks a minute (Bentivoglio et al. 1997,
"Analysis of blink rate patterns in normal subjects"), gaze that jumps and then rests, a head that never stands still.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.talk.signals import Curve, smoothed, wandering

_BLINK_S = (0.0, 0.04, 0.08, 0.12, 0.16, 0.20, 0.24, 0.28)
_LIDS = (0.35, 0.9, 1.0, 0.8, 0.45, 0.18, 0.05, 0.0)
"""How far the lids are closed at those times after a blink has begun: they fall fast and rise slowly."""
_DOUBLE_BLINK = 0.12
_LISTENING_S = 1.2
"""Of silence, after which somebody listens rather than pauses."""
_NODS_A_S = 0.22
"""While listening."""


@dataclass(frozen=True)
class Life:
    """Curves of F frames. Head pitch, yaw, roll and gaze yaw, pitch in radians (positive: down, to the head's left, and
    for gaze to its left and up), places in decimetres, all others from 0 to 1.
    """

    blink: Curve
    """[F] 1: the lids are closed."""
    gaze: Curve
    """[F, 2] of the eyes in the head; the head's own turns are made up for."""
    rot: Curve
    """[F, 3] of the head on its neck."""
    trn: Curve
    """[F, 3] of the head beyond what `body` moves it."""
    body: Curve
    """[F, 3] of head and shoulders."""
    emotion: Curve
    """[F] how friendly it looks."""
    brow_inner_up: Curve
    brow_outer_up: Curve
    brow_down: Curve
    jaw_left: Curve


def live(rng: np.random.Generator, fps: float, loudness: Curve, stress: Curve) -> Life:
    """A face's own life over F frames.

    loudness: [F] of what it says, 0 to about 1; where there is none for a while, it listens. stress: [F] 1 where a word
    is stressed: the head dips and the brows rise with it.
    """
    frames = len(loudness)
    hush = listening(loudness, fps)
    blink = blinks(rng, frames, fps)
    rot, trn, body = sways(rng, frames, fps)
    emphasis = rng.uniform(0.5, 1.3)
    rot[:, 0] += 0.035 * emphasis * smoothed(stress, 1.6) - 0.012 * smoothed(loudness, 0.12 * fps)
    rot[:, 0] += nods(rng, hush, fps)
    rot[:, 2] += hush * rng.normal(0, 0.04)
    gaze = glances(rng, frames, fps)
    gaze += 0.9 * np.stack([-rot[:, 1], rot[:, 0]], 1)
    emotion = np.clip(0.20 + wandering(rng, frames, 0.12, 2.0 * fps) + 0.08 * hush, 0, 0.6)
    brows = wandering(rng, frames, 0.06, 0.8 * fps)
    accents = smoothed(stress, 2.0)
    interest = hush * max(0.0, rng.normal(0.06, 0.08))
    return Life(
        blink=blink,
        gaze=gaze,
        rot=rot,
        trn=trn,
        body=body,
        emotion=emotion,
        brow_inner_up=0.7 * np.clip(brows, 0, 1) + 0.22 * accents + interest,
        brow_outer_up=0.8 * np.clip(brows, 0, 1) + 0.16 * accents + interest,
        brow_down=np.clip(-brows, 0, 1) + 0.06 * blink,
        jaw_left=np.clip(wandering(rng, frames, 0.03, 0.6 * fps), 0, 1),
    )


def blinks(rng: np.random.Generator, frames: int, fps: float) -> Curve:
    """[F] how far the lids are closed. Some blinks come in twos."""
    t = np.arange(frames) / fps
    closed = np.zeros(frames)
    at_s = rng.uniform(0.3, 2.5)
    while at_s < frames / fps:
        closed = np.maximum(closed, np.interp(t - at_s, _BLINK_S, _LIDS, left=0.0, right=0.0))
        at_s += 0.35 if rng.random() < _DOUBLE_BLINK else max(0.5, rng.gamma(2.6, 1.5))
    return closed


def glances(rng: np.random.Generator, frames: int, fps: float) -> Curve:
    """[F, 2] yaw and pitch of where somebody looks: near the middle mostly, elsewhere now and then, by jumps."""
    gaze = np.zeros((frames, 2))
    at_s, target = 0.0, np.zeros(2)
    while at_s < frames / fps:
        rest_s = 0.3 + rng.gamma(2.0, 0.7)
        gaze[int(at_s * fps) : int((at_s + rest_s) * fps)] = target
        at_s += rest_s
        away = rng.random() < 0.14
        target = rng.normal(size=2) * ((0.16, 0.08) if away else (0.028, 0.018))
    return smoothed(gaze, 0.02 * fps)


def sways(rng: np.random.Generator, frames: int, fps: float) -> tuple[Curve, Curve, Curve]:
    """[F, 3] each: turns of the head, its places, and those of the body, which also breathes."""

    def wander(spread: float, pace_s: float) -> Curve:
        return wandering(rng, frames, spread, pace_s * fps)

    yaw = wander(0.06, 1.0) + wander(0.016, 0.25) + rng.normal(0, 0.04)
    pitch = wander(0.03, 0.8) + wander(0.010, 0.2)
    roll = wander(0.024, 1.1)
    breath = 0.006 * np.sin(2 * np.pi * (np.arange(frames) / fps / 3.8 + rng.random()))
    rot = np.stack([pitch, yaw, roll], 1)
    trn = np.stack([wander(0.02, 1.5), wander(0.012, 1.5), wander(0.03, 1.5)], 1)
    body = np.stack([wander(0.012, 2.0), wander(0.008, 1.2) + breath, wander(0.01, 2.0)], 1)
    return rot, trn, body


def listening(loudness: Curve, fps: float) -> Curve:
    """[F] from 0 to 1: how much somebody listens, who has been silent for a while."""
    quiet_s = 0.0
    hush = np.zeros(len(loudness))
    for frame, level in enumerate(loudness):
        quiet_s = 0.0 if level > 0.05 else quiet_s + 1 / fps
        hush[frame] = quiet_s > _LISTENING_S
    return smoothed(hush, 0.25 * fps)


def nods(rng: np.random.Generator, hush: Curve, fps: float) -> Curve:
    """[F] pitch, positive is down: one to three dips now and then while listening, each smaller than the one before."""
    frames = len(hush)
    t = np.arange(frames) / fps
    pitch = np.zeros(frames)
    for begin in np.flatnonzero(rng.random(frames) < _NODS_A_S / fps * hush):
        dips, dip_s, depth = int(rng.integers(1, 4)), rng.uniform(0.35, 0.55), rng.uniform(0.03, 0.08)
        phase = np.clip((t - t[begin]) / dip_s, 0, dips)
        pitch += depth * 0.7 ** np.floor(phase) * np.sin(np.pi * phase) ** 2
    return smoothed(pitch, 0.02 * fps)
