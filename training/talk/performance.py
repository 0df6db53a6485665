"""What a head does in a clip: the mouth as its sound says, and a life of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamgen.face import SPEECH
from streamgen.say import SAMPLE_RATE, Speech
from training.talk.arkit import INDEX, SHAPES, both_sides
from training.talk.life import Life, live
from training.talk.signals import Curve, smoothed
from training.talk.visemes import RATE, Viseme, mouth_curves, stress_curve, visemes

FPS = 25

Floats = NDArray[np.float32]


class Pose(NamedTuple):
    """A head in one frame; see `Performance`."""

    arkit: Floats
    rot: Floats
    trn: Floats
    gaze: Floats
    body: Floats
    tongue: Floats


@dataclass(frozen=True)
class Performance:
    """F frames, FPS a second, each posed at its middle. arkit: [F, 52] in the order of SHAPES, from 0 to 1; rot, trn,
    body [F, 3] and gaze [F, 2] as in `training.talk.life`; tongue: [F, 2] raised and put forward, from 0 to 1.
    """

    arkit: Floats
    rot: Floats
    trn: Floats
    gaze: Floats
    body: Floats
    tongue: Floats
    shown: tuple[Viseme, ...]

    def __len__(self) -> int:
        return len(self.arkit)

    def pose(self, frame: int) -> Pose:
        """Raises IndexError."""
        return Pose(*(getattr(self, name)[frame] for name in Pose._fields))


REST = Pose(np.zeros(len(SHAPES), np.float32), *(np.zeros(n, np.float32) for n in (3, 3, 2, 3, 2)))
"""A head that does nothing."""


def perform(speech: Speech, rng: np.random.Generator) -> Performance:
    """The frames that lie wholly within a speech; a pure function of it and of the generator's state."""
    frames = int(speech.seconds * FPS)
    middles_s = (np.arange(frames) + 0.5) / FPS
    clarity = rng.uniform(0.85, 1.2)
    shown = visemes(speech.phonemes)
    loudness = loudness_curve(speech.sound)
    times_s = np.arange(len(loudness)) / RATE

    def at_frames(curve: Curve) -> Curve:
        return np.interp(middles_s, times_s, curve)

    mouth = mouth_curves(shown, loudness, clarity)
    life = live(rng, FPS, at_frames(loudness), at_frames(stress_curve(shown, len(times_s))))
    speaking = {name: at_frames(column) for name, column in zip(SPEECH, mouth.T, strict=True)}
    floats = {name: getattr(life, name).astype(np.float32) for name in ("rot", "trn", "gaze", "body")}
    tongue = np.stack([speaking.pop("tongueRaise"), speaking.pop("tongueForward")], 1)
    return Performance(
        arkit=_shapes(speaking, life), tongue=np.clip(tongue, 0, 1).astype(np.float32), shown=tuple(shown), **floats
    )


def loudness_curve(sound: NDArray[np.float32]) -> Curve:
    """[T] RATE times a second: the level over 20 ms, relative to the loudest parts, from 0 to 1.3."""
    window = SAMPLE_RATE // 50
    power = np.concatenate([[0.0], np.cumsum(sound.astype(np.float64) ** 2)])
    middles = np.arange(0, len(sound), SAMPLE_RATE // RATE)
    first, last = np.maximum(middles - window // 2, 0), np.minimum(middles + window // 2, len(sound))
    level = np.sqrt((power[last] - power[first]).clip(0) / window)
    level /= float(np.percentile(level, 97)) + 1e-6
    return np.clip(smoothed(level, 3), 0, 1.3)


def _shapes(speaking: dict[str, Curve], life: Life) -> Floats:
    """[F, 52]. A mood is read back from the right side of the mouth (`training.talk.dataset`): its dimple and its smile
    say how strong it is.
    """
    arkit = np.zeros((len(life.blink), len(SHAPES)))

    def add(name: str, curve: Curve) -> None:
        for shape in both_sides(name):
            arkit[:, INDEX[shape]] += curve

    for name, curve in speaking.items():
        add(name, curve)
    down, up = np.clip(-life.gaze[:, 1], 0, 1), np.clip(life.gaze[:, 1], 0, 1)
    add("mouthSmile", life.emotion)
    arkit[:, INDEX["mouthSmileLeft"]] -= 0.1 * life.emotion  # nobody smiles evenly
    add("mouthDimple", 0.12 * life.emotion)
    add("cheekSquint", 0.35 * life.emotion)
    add("eyeSquint", 0.30 * life.emotion)
    add("eyeBlink", life.blink + 0.8 * down)  # the upper lids follow the eyes
    add("eyeLookDown", 1.5 * down)
    add("eyeLookUp", 1.5 * up)
    add("browDown", life.brow_down)
    add("browOuterUp", life.brow_outer_up)
    add("browInnerUp", life.brow_inner_up)
    add("jawLeft", life.jaw_left)
    return np.clip(arkit, 0, 1).astype(np.float32)
