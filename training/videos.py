"""A folder of videos with per-frame actions, as training data for a student of one's own game.

    walk-01.mp4     any container and codec that PyAV reads, constant frame rate
    walk-01.json    {"keys": ["KeyW", …], "actions": [[0, 1, …], …]}: one row of 0 and 1 for every frame
    walk-02.mp4
    walk-02.npz     or the same as arrays: keys [A] of strings, actions [F, A]

Row t holds the keys that drove frame t: those held while the game went from frame t-1 to frame t. A game that knows
where its frames were seen from may add `poses`: x, y and yaw of every frame, and with them `actors`, `eyes` (by default
the eye's height above the floor) and `beats`, all as `Clip` has them, and for the whole folder what is walked over:

    ground.npz      arrays x [X] and y [Y], both rising, heights [Y, X], floors [Y, X] where they are others, eye, if it
                    is not 90, view_deg, and where something beats, fixtures and rate: as `training.data.Ground` has
                    them

All files have the same keys in the same order and the same frame rate. Every tenth video is held out for
evaluation; where there are fewer than ten, the last tenth of each.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data import HELD_OUT_SEED, Clip, FileRecorder, Ground
from training.footage import VideoDataError, check_rate, describe, draw, pictures, videos_in

_GROUND = "ground.npz"
_HELD_OUT = 10
"""One frame in so many is held out."""


@dataclass(frozen=True)
class _Video:
    """split: the frames from here on are held out."""

    path: Path
    told: Clip
    """All but the frames' pictures."""
    split: int

    def part(self, held_out: bool) -> tuple[int, int]:
        """First frame of the training or the held-out part, and the one after its last."""
        return (self.split, len(self.told.actions)) if held_out else (0, self.split)


class VideoActionDataset:
    """Clips from the videos of a folder, scaled to width x height (a `training.data.ClipData`).

    Everything but the pictures is checked at once; `check` decodes every frame.
    """

    def __init__(self, folder: Path, width: int, height: int) -> None:
        """Raises VideoDataError."""
        self.folder, self.width, self.height = folder, width, height
        paths = videos_in(folder)
        self.videos: list[_Video] = []
        self.keys: tuple[str, ...] = ()
        self.fps = 0.0
        digest = hashlib.sha256()
        for index, path in enumerate(paths):
            sidecar = _sidecar(path)
            keys, told = _read_sidecar(sidecar)
            frames, rate = describe(path)
            if frames and frames != len(told.actions):
                raise VideoDataError(
                    f"{sidecar}: {len(told.actions)} rows of actions, but {path.name} has {frames} frames"
                )
            if not self.videos:
                self.keys, self.fps = keys, float(rate)
            if keys != self.keys:
                raise VideoDataError(
                    f"{sidecar}: keys {list(keys)}, but {self.videos[0].path.name} has {list(self.keys)}"
                )
            check_rate(path, rate, self.fps, paths[0])
            if self.videos and _count(told.actors) != _count(self.videos[0].told.actors):
                raise VideoDataError(
                    f"{sidecar}: {_count(told.actors)} actors, but {self.videos[0].path.name} has "
                    f"{_count(self.videos[0].told.actors)}: all videos need the same ones"
                )
            if len(paths) < _HELD_OUT:
                split = len(told.actions) - len(told.actions) // _HELD_OUT
            else:
                split = 0 if index % _HELD_OUT == 0 else len(told.actions)
            self.videos.append(_Video(path, told, split))
            digest.update(f"{path.name} {path.stat().st_size}\n".encode() + sidecar.read_bytes())
        self._ground = _read_ground(folder / _GROUND)
        if self._ground is not None:
            digest.update((folder / _GROUND).read_bytes())
            self.videos = [replace(video, told=self._on_foot(video.told)) for video in self.videos]
        self._fingerprint = digest.hexdigest()

    def fingerprint(self) -> str:
        """Of names, sizes and actions, and the ground."""
        return self._fingerprint

    def ground(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> Ground | None:
        """That of the folder, between the points that it knows; beyond them, as at its edge."""
        if self._ground is None:
            return None
        known_x, known_y, ground = self._ground
        at = known_x, known_y, x, y[:, None]
        return replace(ground, heights=_between(ground.heights, *at), floors=_between(ground.floors, *at))

    def _on_foot(self, told: Clip) -> Clip:
        """Who does not say how high the camera is has both feet on the ground."""
        assert self._ground is not None
        if told.eyes is not None or not np.isfinite(told.poses).all():
            return told
        known_x, known_y, ground = self._ground
        x, y, _ = told.poses.astype(np.float64).T
        return replace(told, eyes=ground.eye + _between(ground.floors, known_x, known_y, x, y))

    def recorder(self, seed: int) -> VideoRecorder:
        return VideoRecorder(self, seed)

    def check(self) -> int:
        """Decode every frame of every video; returns how many there are. Raises VideoDataError for the first bad
        one.
        """
        for video in self.videos:
            found = sum(1 for _ in pictures(video.path, 0, self.width, self.height))
            if found != len(video.told.actions):
                raise VideoDataError(f"{video.path}: {found} frames, but {len(video.told.actions)} rows of actions")
        return sum(len(video.told.actions) for video in self.videos)

    def read(self, video: _Video, first: int, count: int) -> NDArray[np.uint8]:
        """Frames first, first + 1, … [count, height, width, 3] of a video. Raises VideoDataError."""
        found = list(islice(pictures(video.path, first, self.width, self.height), count))
        if len(found) < count:
            raise VideoDataError(
                f"{video.path}: it ends before frame {first + len(found)}; its actions go on to "
                f"{len(video.told.actions) - 1}"
            )
        return np.stack(found)


class VideoRecorder(FileRecorder):
    """Draws clips from a data set's videos, at random (a `training.data.Recorder`)."""

    def __init__(self, data: VideoActionDataset, seed: int) -> None:
        """`seed` HELD_OUT_SEED draws from what is held out, all others from the rest."""
        self._data, self._seed = data, seed

    def record(self, num_frames: int, episode: int) -> Clip:
        """`num_frames` successive frames; a pure function of (seed, episode, num_frames). Raises VideoDataError."""
        videos = self._data.videos
        parts = [video.part(self._seed == HELD_OUT_SEED) for video in videos]
        place = draw(parts, num_frames, np.random.default_rng([self._seed, episode]))
        if place is None:
            what = "held-out part" if self._seed == HELD_OUT_SEED else "training part"
            longest = max(last - first for first, last in parts)
            raise VideoDataError(
                f"{self._data.folder}: clips of {num_frames} frames are wanted, but the longest {what} of a video has "
                f"{longest}; use longer videos or shorter clips"
            )
        index, first = place
        video = videos[index]
        frames = self._data.read(video, first, num_frames)
        return replace(video.told.cut(slice(first, first + num_frames)), frames=frames)


def _sidecar(path: Path) -> Path:
    for suffix in (".json", ".npz"):
        if path.with_suffix(suffix).is_file():
            return path.with_suffix(suffix)
    raise VideoDataError(f"{path}: no {path.stem}.json or {path.stem}.npz with its actions beside it")


def _read_sidecar(
    path: Path,
) -> tuple[tuple[str, ...], Clip]:
    """Keys, and all but the pictures of a video; poses are NaN where it has none."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                content = dict(stored)
        else:
            content = json.loads(path.read_text())
        keys, actions = tuple(str(key) for key in content["keys"]), _rows(path, content["actions"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, VideoDataError):
            raise
        raise VideoDataError(f"{path}: it needs `keys` and `actions`: {error!r}") from error
    if len(set(keys)) != len(keys) or not keys:
        raise VideoDataError(f"{path}: keys {list(keys)} are none, or one is there twice")
    if actions.ndim != 2 or actions.shape[1] != len(keys):
        raise VideoDataError(f"{path}: actions of shape {actions.shape}; {len(keys)} keys need (frames, {len(keys)})")
    bad = np.flatnonzero(~np.isin(actions, (0, 1)).all(1))
    if len(bad):
        raise VideoDataError(f"{path}: frame {bad[0]}: actions {actions[bad[0]].tolist()} are not 0 or 1")
    poses = np.full((len(actions), 3), np.nan, np.float32)
    if content.get("poses") is not None:
        poses = _numbers(path, "poses", "x, y and yaw", content["poses"])
    if poses.shape != (len(actions), 3):
        raise VideoDataError(f"{path}: poses of shape {poses.shape}; {len(actions)} frames need ({len(actions)}, 3)")
    actors = None
    if content.get("actors") is not None:
        actors = _numbers(path, "actors", "x, y and clock", content["actors"])
        if actors.ndim != 3 or actors.shape[::2] != (len(actions), 3):
            needed = f"({len(actions)}, actors, 3)"
            raise VideoDataError(f"{path}: actors of shape {actors.shape}; {len(actions)} frames need {needed}")
        wrong = np.argwhere((actors[..., 2] < 0) | (actors[..., 2] >= 1))
        if len(wrong):
            frame, actor = wrong[0]
            clock = actors[frame, actor, 2]
            raise VideoDataError(f"{path}: frame {frame}: the clock of actor {actor} is {clock}, not in [0, 1)")
    eyes, beats = (
        None if content.get(name) is None else _numbers(path, name, "one number", content[name])
        for name in ("eyes", "beats")
    )
    for name, each in (("eyes", eyes), ("beats", beats)):
        if each is not None and each.shape != (len(actions),):
            raise VideoDataError(f"{path}: {name} of shape {each.shape}; {len(actions)} frames need ({len(actions)},)")
    if beats is not None and (outside := np.flatnonzero((beats < 0) | (beats >= 1))).size:
        raise VideoDataError(f"{path}: frame {outside[0]}: its beat is {beats[outside[0]]}, not in [0, 1)")
    frames = np.zeros((len(actions), 0, 0, 3), np.uint8)
    return keys, Clip(frames, actions.astype(np.uint8), poses, actors=actors, eyes=eyes, beats=beats)


def _read_ground(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], Ground] | None:
    """x [X], y [Y] and the ground at these points; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            told = {"floors": stored["heights"], "view_deg": 90.0, "fixtures": np.zeros((0, 3)), "rate": 0.0}
            told |= stored
        x, y = (np.asarray(told[name], np.float64) for name in ("x", "y"))
        heights, floors, fixtures = (np.asarray(told[name], np.float32) for name in ("heights", "floors", "fixtures"))
        eye, view_deg, rate = float(told["eye"]), float(told["view_deg"]), float(told["rate"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise VideoDataError(f"{path}: it needs `x`, `y`, `heights` and `eye`: {error!r}") from error
    for name, each in (("heights", heights), ("floors", floors)):
        if x.ndim != 1 or y.ndim != 1 or each.shape != (len(y), len(x)) or not each.size:
            shapes = f"{each.shape} for x of {x.shape} and y of {y.shape}"
            raise VideoDataError(f"{path}: {name} of shape {shapes}; they must be [Y, X]")
    if fixtures.ndim != 2 or fixtures.shape[1] != 3:
        raise VideoDataError(
            f"{path}: fixtures of shape {fixtures.shape}; they must be [K, 3], x, y and height of each"
        )
    finite = all(np.isfinite(each).all() for each in (x, y, heights, floors, fixtures))
    if not finite or (np.diff(x) <= 0).any() or (np.diff(y) <= 0).any():
        raise VideoDataError(f"{path}: x and y must rise, and all numbers must be finite")
    if not (eye > 0 and 0 < view_deg < 180):
        raise VideoDataError(f"{path}: eye {eye} must be above the ground, and view_deg {view_deg} between 0 and 180")
    if not 0 <= rate < 1:
        raise VideoDataError(
            f"{path}: rate {rate} must be the part of a cycle that a frame takes, 0 or more and below 1"
        )
    return x, y, Ground(heights, floors, eye, view_deg, fixtures, rate)


def _between(
    known: NDArray[np.float32],
    known_x: NDArray[np.float64],
    known_y: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Of values [Y, X] those at places whose x and y broadcast; beyond the known ones, as at their edge."""
    column, row = (np.interp(at, points, np.arange(len(points))) for at, points in ((x, known_x), (y, known_y)))
    west, south = column.astype(np.int64), row.astype(np.int64)
    east, north = np.minimum(west + 1, len(known_x) - 1), np.minimum(south + 1, len(known_y) - 1)
    lower, upper = (known[at, west] + (column - west) * (known[at, east] - known[at, west]) for at in (south, north))
    return (lower + (row - south) * (upper - lower)).astype(np.float32)


def _count(actors: NDArray[np.float32] | None) -> int:
    return 0 if actors is None else actors.shape[1]


def _numbers(path: Path, name: str, what: str, rows: object) -> NDArray[np.float32]:
    try:
        numbers = np.asarray(rows, np.float32)
    except (TypeError, ValueError) as error:
        raise VideoDataError(f"{path}: {name} must be rows of {what}: {error}") from error
    unknown = np.argwhere(~np.isfinite(numbers))
    if len(unknown):
        raise VideoDataError(
            f"{path}: frame {unknown[0][0]}: one of its {name} is not finite; leave all `{name}` out, or fill it"
        )
    return numbers


def _rows(path: Path, rows: list[list[int]]) -> NDArray[Any]:
    for number, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise VideoDataError(f"{path}: frame {number}: {len(row)} actions, the first frame has {len(rows[0])}")
    return np.array(rows)
