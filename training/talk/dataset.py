"""A folder of videos of talking heads, with sound, as training data for an avatar.

    anna_0001.mp4     any container and codec that PyAV reads, constant frame rate, the head where `face.FACE` says
    anna_0001.flac    its sound, where the video has none of its own
    anna_0001.npz     what moved it, where that is known (rendered heads): arkit [F, n] and names [n], rot, trn, body
                      [F, 3], gaze, tongue [F, 2]

The name before the last underscore says who it is. Of the numbers behind it those with (number // 2) % 11 == 10 are
held out for evaluation; where that holds out nobody, the last tenth of every video.
"""

from __future__ import annotations

import copy
import hashlib
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from streamgen.audio import SAMPLE_RATE, SoundError, read_sound
from streamgen.face import CURVES, LIFE, SPEECH
from training.data import HELD_OUT_SEED, SOUND_AFTER_S, SOUND_BEFORE_S, Clip, FileRecorder
from training.footage import VideoDataError, check_rate, describe, draw, pictures, videos_in

_NAME = re.compile(r"(?P<who>.+)_(?P<number>\d+)")
_GROUPS = {
    "arkit": (),
    "tongue": ("tongueRaise", "tongueForward"),
    "gaze": ("gazeYaw", "gazePitch"),
    "rot": ("headPitch", "headYaw", "headRoll"),
    "trn": ("headX", "headY", "headZ"),
    "body": ("bodyX", "bodyY", "bodyZ"),
}
"""Arrays of a ground truth, and the curves that their columns are."""
_SOUNDS = (".flac", ".wav", ".ogg", ".mp3", ".m4a")
_CYCLE, _HELD_OUT = 11, 10
_RARE = tuple(CURVES.index(name) for name in ("blink", "jawOpen", "headYaw"))
_RARE_SHARE = 0.5
"""Of scattered frames, drawn by how far one of these curves is from its mean: closed eyes are 4% of all frames."""
_COMPARED = 16
"""Frames of which a reference may be the one that moves least or most."""
_EMOTION_DIMPLE = 0.12
"""How much an emotion of 1 dimples the cheeks of a rendered head: what its dimples say of its emotion."""


@dataclass(frozen=True)
class Video:
    """curves: [F, len(CURVES)] scaled, or None where nobody knows. first, last: frames of the training part; the others
    are held out.
    """

    path: Path
    who: str
    frames: int
    curves: NDArray[np.float32] | None
    split: int

    def part(self, held_out: bool) -> tuple[int, int]:
        return (self.split, self.frames) if held_out else (0, self.split)

    def scattered(self, count: int, rng: np.random.Generator) -> NDArray[np.intp]:
        """Numbers of `count` frames to train on, from anywhere, rare ones more often."""
        if self.curves is None:
            return rng.integers(self.split, size=count)
        curves = self.curves[: self.split, _RARE].astype(np.float64)
        far = np.square(curves - curves.mean(0)) + 1e-9
        rare = (far / far.sum(0)).mean(1)
        return rng.choice(self.split, count, p=_RARE_SHARE * rare + (1 - _RARE_SHARE) / self.split)


class TalkDataset:
    """Clips from the videos of a folder, scaled to width x height (a `training.data.ClipData`).

    Whoever has more videos is drawn more often, by the square root of their length. scattered: share of the clips to
    train on whose frames come from anywhere in a video, in no order, those that are rare more often. Only latents are
    scattered; the sound is that of the frames in order.
    """

    keys = CURVES

    def __init__(self, folder: Path, width: int, height: int) -> None:
        """Raises VideoDataError."""
        self.folder, self.width, self.height = folder, width, height
        self.fps = 0.0
        self.latents: Path | None = None
        self.scattered = 0.0
        paths = videos_in(folder)
        out = {path for path in paths if is_held_out(path)}
        self.videos: list[Video] = []
        digest = hashlib.sha256()
        for path in paths:
            frames, rate = describe(path)
            if not frames:
                frames = sum(1 for _ in pictures(path, 0, 16, 16))
            self.fps = self.fps or float(rate)
            check_rate(path, rate, self.fps, paths[0])
            truth = path.with_suffix(".npz")
            curves = read_curves(truth) if truth.is_file() else None
            if curves is not None and len(curves) != frames:
                raise VideoDataError(f"{truth}: {len(curves)} rows, but {path.name} has {frames} frames")
            if out:
                split = 0 if path in out else frames
            else:
                split = frames - frames // _HELD_OUT
            name = _NAME.fullmatch(path.stem)
            self.videos.append(Video(path, name["who"] if name else path.stem, frames, curves, split))
            digest.update(
                f"{path.name} {path.stat().st_size}\n".encode() + (b"" if curves is None else curves.tobytes())
            )
        self._fingerprint = digest.hexdigest()

    def fingerprint(self) -> str:
        """Of names, sizes and curves."""
        return self._fingerprint

    def ground(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        """There is none."""

    @property
    def people(self) -> list[str]:
        """Whose videos they are, by name."""
        return sorted({video.who for video in self.videos})

    def only(self, who: str) -> Self:
        """One person's videos."""
        other = copy.copy(self)
        other.videos = [video for video in self.videos if video.who == who]
        return other

    def with_latents(self, folder: Path) -> Self:
        """The same, with the latents of every video in `folder` (see training/talk/latents.py)."""
        other = copy.copy(self)
        other.latents = folder
        return other

    def recorder(self, seed: int) -> TalkRecorder:
        return TalkRecorder(self, seed)

    def at_rest(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]] | None:
        """Of what is trained on, the frame [H, W, 3] of a face that does least, with open eyes and a closed mouth, and
        its curves [A]; None where no video says what moved it.
        """
        least, found = math.inf, None
        for video in self.videos:
            for at, curves in enumerate(() if video.curves is None else video.curves[: video.split]):
                if (moved := float(np.abs(curves).sum())) < least:
                    least, found = moved, (video.path, at, curves)
        if found is None:
            return None
        path, at, curves = found
        return next(pictures(path, at, self.width, self.height)), curves


def is_held_out(path: Path) -> bool:
    """Whether a recording is never trained on, by its number."""
    name = _NAME.fullmatch(path.stem)
    return name is not None and int(name["number"]) // 2 % _CYCLE == _HELD_OUT


class TalkRecorder(FileRecorder):
    """Draws clips from a data set's videos, at random (a `training.data.Recorder`)."""

    def __init__(self, data: TalkDataset, seed: int) -> None:
        """`seed` HELD_OUT_SEED draws from what is held out, all others from the rest."""
        self._data, self._seed = data, seed
        self._sounds: dict[Path, NDArray[np.float32]] = {}

    def record(self, num_frames: int, episode: int) -> Clip:
        """A reference, which is a frame of the same person at another time, and `num_frames` - 1 successive frames; a
        pure function of (seed, episode, num_frames). The sound goes on behind the reference. Raises VideoDataError.
        """
        data = self._data
        rng = np.random.default_rng([self._seed, episode])
        parts = [video.part(self._seed == HELD_OUT_SEED) for video in data.videos]
        places = parts if self._seed == HELD_OUT_SEED else self._of_one(parts, num_frames, rng)
        place = draw(places, num_frames, rng)
        if place is None:
            longest = max(last - first for first, last in parts)
            raise VideoDataError(
                f"{data.folder}: clips of {num_frames} frames are wanted, but the longest video to draw from has "
                f"{longest}; use longer videos or shorter clips"
            )
        index, first = place
        video = data.videos[index]
        reference, at = self._reference(video, episode)
        rng = np.random.default_rng([self._seed, episode, 2])
        shown = np.arange(first + 1, first + num_frames)
        if data.latents is not None and self._seed != HELD_OUT_SEED and rng.random() < data.scattered:
            shown = video.scattered(num_frames - 1, rng)
        curves = np.zeros((num_frames, len(CURVES)), np.float32)
        if video.curves is not None and reference.curves is not None:
            curves = np.concatenate([reference.curves[at : at + 1], video.curves[shown]])
        latents = None
        if data.latents is not None:
            latents = np.concatenate([self._latents(reference)[at : at + 1], self._latents(video)[shown]])
        frames = np.zeros((num_frames, 0, 0, 3), np.uint8)
        if data.latents is None or self._seed == HELD_OUT_SEED:
            frames = np.concatenate([self._read(reference, at, 1), self._read(video, first + 1, num_frames - 1)])
        unknown = np.full((num_frames, 3), np.nan, np.float32)
        if video.path not in self._sounds:
            self._sounds[video.path] = sound_of(video.path)
        sound = around(self._sounds[video.path], first / data.fps, num_frames / data.fps)
        return Clip(frames, curves, unknown, sound, latents)

    def _of_one(self, parts: list[tuple[int, int]], count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
        """The parts of one person who has any of `count` frames; nothing is left of the others'."""
        whose = [video.who for video in self._data.videos]
        room: dict[str, int] = defaultdict(int)
        for who, (first, last) in zip(whose, parts, strict=True):
            room[who] += max(0, last - first - count + 1)
        shares = np.sqrt(list(room.values()))
        if not shares.any():
            return parts
        one = rng.choice(list(room), p=shares / shares.sum())
        return [part if who == one else (0, 0) for who, part in zip(whose, parts, strict=True)]

    def _reference(self, video: Video, episode: int) -> tuple[Video, int]:
        """Another video of the same person, or this one where there is no other, and the number of a frame of it. To
        train on, a third are faces at rest, as streams begin with, and a third are those that do most, as a laughing
        picture does.
        """
        rng = np.random.default_rng([self._seed, episode, 1])
        same = [other for other in self._data.videos if other.who == video.who and other is not video] or [video]
        if self._seed != HELD_OUT_SEED:
            same = [other for other in same if other.split] or [video]
        other = same[int(rng.integers(len(same)))]
        if self._seed == HELD_OUT_SEED:
            return other, int(rng.integers(other.frames))
        some = rng.integers(other.split, size=_COMPARED)
        moved = np.zeros(_COMPARED) if other.curves is None else np.abs(other.curves[some]).sum(1)
        return other, int(some[(0, moved.argmin(), moved.argmax())[rng.integers(3)]])

    def _read(self, video: Video, first: int, count: int) -> NDArray[np.uint8]:
        data = self._data
        found = list(islice(pictures(video.path, first, data.width, data.height), count))
        if len(found) < count:
            raise VideoDataError(f"{video.path}: it ends before frame {first + len(found)} of {video.frames}")
        return np.stack(found)

    def _latents(self, video: Video) -> NDArray[np.float16]:
        assert self._data.latents is not None
        stored: NDArray[np.float16] = np.load(self._data.latents / f"{video.path.stem}.npy", mmap_mode="r")
        return stored


def around(sound: NDArray[np.float32], start_s: float, seconds: float) -> NDArray[np.float32]:
    """A clip's sound as `Clip` has it: from some time on, silent where the recording has not begun or is over."""
    begin = round((start_s - SOUND_BEFORE_S) * SAMPLE_RATE)
    length = round((seconds + SOUND_BEFORE_S + SOUND_AFTER_S) * SAMPLE_RATE)
    inside = sound[max(0, begin) : max(0, begin + length)]
    lead = min(length, max(0, -begin))
    return np.pad(inside, (lead, length - lead - len(inside)))


def sound_of(video: Path) -> NDArray[np.float32]:
    """A video's own sound, or that of the file beside it. Raises VideoDataError."""
    why = f"{video}: it is not there"
    for path in (video, *(video.with_suffix(suffix) for suffix in _SOUNDS)):
        if path.is_file():
            try:
                return read_sound(path)
            except SoundError as error:
                why = str(error)
    raise VideoDataError(f"{why}; nor is there a {video.stem} with {', '.join(_SOUNDS)} beside it")


def read_curves(path: Path) -> NDArray[np.float32]:
    """[F, len(CURVES)], scaled, of a rendered head's ground truth. Raises VideoDataError."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            truth = {name: np.asarray(stored[name], np.float32) for name in _GROUPS}
            shapes = dict(zip(map(str, stored["names"]), truth["arkit"].T, strict=True))
        emotion = shapes["mouthDimpleRight"] / _EMOTION_DIMPLE
        columns = {"emotion": emotion, "mouthSmile": shapes["mouthSmileRight"] - emotion}
        columns["blink"] = shapes["eyeBlinkRight"]
        for group, parts in _GROUPS.items():
            columns |= dict(zip(parts, truth[group].T, strict=False))
        for name in set(CURVES) - set(columns):
            columns[name] = shapes[name] if name in shapes else shapes[name + "Right"]
    except (OSError, KeyError, ValueError) as error:
        raise VideoDataError(f"{path}: it needs {', '.join(_GROUPS)} and names: {error!r}") from error
    scales = SPEECH | LIFE
    return np.stack([columns[name] * scales[name] for name in CURVES], 1).astype(np.float32)
