"""Where clips come from: any recorder, wrapped as an endless stream for training and as clips that training never sees.

A recorder is a pure function of (seed, episode, length). Training seeds lie below HELD_OUT_SEED, which is for
evaluation only.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

HELD_OUT_SEED = 2**31
"""Seeds below are for training, this one is for evaluation only."""
SOUND_BEFORE_S, SOUND_AFTER_S = 0.7, 0.12
"""Sound that a clip has before its first frame begins and after its last one ends."""
_JOIN_S = 5.0


@dataclass(frozen=True)
class Clip:
    """F successive frames of one episode.

    `actions[t]` are the keys held while the world went from frame t-1 to frame t: the keys that drove frame t.
    """

    frames: NDArray[np.uint8]
    """[F, H, W, 3] RGB."""
    actions: NDArray[np.uint8] | NDArray[np.float32]
    """[F, A] in the order of the data's keys: 0 or 1, or how far a curve of `streamgen.face` has gone."""
    poses: NDArray[np.float32]
    """[F, 3] x and y in map units, yaw in degrees in [0, 360), counter-clockwise from east; NaN: not known."""
    sound: NDArray[np.float32] | None = None
    """[T] mono at `streamgen.audio.SAMPLE_RATE`, from SOUND_BEFORE_S before the first frame to SOUND_AFTER_S after the
    last; None where the data have none."""
    latents: NDArray[np.float16] | None = None
    """[F, C, h, w], normalised, where the data keep them; the frames may then be empty [F, 0, 0, 3]."""
    actors: NDArray[np.float32] | None = None
    """[F, T, 3] x and y in map units of what goes its own way, and how far what a hit began has gone: above 0 until 1,
    then 0; None where the data do not say."""
    eyes: NDArray[np.float32] | None = None
    """[F] heights of the camera, in map units; None where the data do not say."""
    beats: NDArray[np.float32] | None = None
    """[F] in [0, 1), how far in its cycle is what stays in place and moves; None where nothing does."""

    def cut(self, some: slice) -> Clip:
        """Some of its frames, without the sound."""
        told = {each.name: getattr(self, each.name) for each in fields(self)} | {"sound": None}
        part: dict[str, Any] = {name: rows if rows is None else rows[some] for name, rows in told.items()}
        return replace(self, **part)


@dataclass(frozen=True)
class Ground:
    """What a viewer walks over, how the camera sees it, and what burns there.

    All in map units that are as long upwards as sideways.
    """

    heights: NDArray[np.float32]
    """[Y, X]; walls, and whatever else a look ends at, are ground."""
    floors: NDArray[np.float32]
    """[Y, X]; how high a viewer's feet are who stands there: at the edge of a step, on it."""
    eye: float
    """Height of the camera above the feet."""
    view_deg: float = 90.0
    """The width of a frame."""
    fixtures: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 3), np.float32))
    """[K, 3] x, y and height of the middles of what stays in place and moves to a beat, as flames do."""
    rate: float = 0.0
    """How much of their cycle a frame takes."""


class Recorder(Protocol):
    """Makes clips, one at a time. A context manager."""

    def record(self, num_frames: int, episode: int) -> Clip: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class FileRecorder:
    """What recorders of files share: they hold nothing open between two clips."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class ClipData(Protocol):
    """A kind of clips: what a student is trained on and judged by. Can be pickled."""

    @property
    def keys(self) -> tuple[str, ...]:
        """KeyboardEvent.code of each action, or the names of the curves."""
        ...

    @property
    def fps(self) -> float: ...

    def fingerprint(self) -> str:
        """Changes when the clips do."""
        ...

    def recorder(self, seed: int) -> Recorder: ...

    def ground(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> Ground | None:
        """At x [X] and y [Y] in map units; None where the data do not say."""
        ...


def open_data(folder: Path | None, width: int, height: int, driven_by: str = "keys") -> ClipData:
    """The videos of a folder, of play or (driven_by "speech") of talk, or without one the recorder of the world, in
    frames of width x height.

    Raises VideoDataError.
    """
    if folder is None:
        from training.world.recorder import WorldData

        return WorldData(width, height)
    if driven_by == "speech":
        from training.talk.dataset import TalkDataset

        return TalkDataset(folder, width, height)
    from training.videos import VideoActionDataset

    return VideoActionDataset(folder, width, height)


def recorded(data: ClipData, seed: int, episodes: range, length: int) -> Iterator[Clip]:
    """The clips of these numbers that `ClipSource(data, seed, length)` yields, recorded here and now."""
    with data.recorder(seed) as recorder:
        for episode in episodes:
            yield recorder.record(length, episode)


def held_out(data: ClipData, count: int, length: int, first: int = 0) -> list[Clip]:
    """`count` clips of `length` frames from episode `first` of the seed that no ClipSource accepts; always the same."""
    return list(recorded(data, HELD_OUT_SEED, range(first, first + count), length))


@dataclass(frozen=True)
class Share:
    """Which clips of an endless stream a process gets: `take` in a row, then those of the others are skipped.

    The `k`-th is number first + (k // take) * stride + k % take.
    """

    first: int = 0
    take: int = 1
    stride: int = 1

    def number(self, k: int) -> int:
        return self.first + k // self.take * self.stride + k % self.take


class ClipSource:
    """Yields a share of the clips of `seed`, each of `length` frames, recorded by `workers` processes.

    Worker k records every `workers`-th clip, so the order does not depend on who is faster. Each worker is at most one
    clip ahead: it waits with that clip at its pipe. A pipe, since a worker notices when its reader is gone.
    """

    def __init__(self, data: ClipData, seed: int, length: int, workers: int = 1, share: Share | None = None) -> None:
        """share: None takes all. Raises ValueError for a seed out of range or no workers."""
        if not 0 <= seed < HELD_OUT_SEED:
            raise ValueError(f"a training seed lies in 0..{HELD_OUT_SEED - 1}, got {seed}")
        if workers < 1:
            raise ValueError(f"workers must be 1 or more, got {workers}")
        self._share = share or Share()
        self._given = 0
        self._readers: list[Connection] = []
        context = multiprocessing.get_context("spawn")
        self._processes: list[multiprocessing.process.BaseProcess] = []
        for worker in range(workers):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(writer, data, seed, length, self._share, worker, workers), daemon=True
            )
            process.start()
            writer.close()  # only the worker holds it now: its end is our end of file
            self._readers.append(reader)
            self._processes.append(process)

    def __iter__(self) -> Iterator[Clip]:
        return self

    def __next__(self) -> Clip:
        """The next clip; StopIteration once closed, RuntimeError when the worker has died."""
        if not self._readers:
            raise StopIteration
        worker = self._given % len(self._readers)
        try:
            clip: Clip = self._readers[worker].recv()
        except EOFError:
            process = self._processes[worker]
            process.join(_JOIN_S)
            raise RuntimeError(
                f"recording worker {worker} ended with exit code {process.exitcode} before clip "
                f"{self._share.number(self._given)}; its own message is on stderr"
            ) from None
        self._given += 1
        return clip

    def close(self) -> None:
        """End the workers; may be called any number of times."""
        for reader in self._readers:
            reader.close()
        for process in self._processes:
            process.join(_JOIN_S)
            if process.is_alive():
                process.kill()
                process.join()
        self._readers, self._processes = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _work(writer: Connection, data: ClipData, seed: int, length: int, share: Share, first: int, step: int) -> None:
    with data.recorder(seed) as recorder:
        k = first
        try:
            while True:
                writer.send(recorder.record(length, share.number(k)))
                k += step
        except BrokenPipeError:
            return  # the reader is gone
