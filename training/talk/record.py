"""Makes a folder of talking heads, or of speech alone: what `streamgen data avatar` does.

A clip is a pure function of the plan's seed and of its number, so a folder that is half done is gone on with.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, filterfalse, groupby
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamgen.say import SpeechError
from training.footage import pictures as frames_of
from training.sheets import contact_sheet
from training.talk.files import PART, is_complete, length_of, write_clip
from training.talk.gl import RendererError
from training.talk.performance import FPS, Performance, perform
from training.talk.takes import Take, Voices, draw_take

if TYPE_CHECKING:
    from training.talk.renderer import Renderer

CAST = (14, 36, 38, 3, 33, 39, 1, 11, 8, 16, 23)
"""Seeds of identities that look well, the best first."""
SIZE = 256
PLAN = "plan.json"
SHEET = "sheet.png"
_NAME = re.compile(r"id\d+_(\d+)")
_USUAL_S = 10.0
"""Length of a clip as long as none has been made."""
_SHEET_CLIPS, _SHEET_FRAMES = 8, 6
_END_S = 5.0


class RecordingError(ValueError):
    """A folder cannot be recorded into as it is planned; the message says why."""


@dataclass(frozen=True)
class Plan:
    """identities: seeds; one that is named twice gets twice as many clips. longest_s: where clips are cut."""

    folder: Path
    identities: tuple[int, ...]
    seed: int
    longest_s: float
    with_pictures: bool

    def identity(self, number: int) -> int:
        """Whose clip this is. Clips come in pairs, since which are held out goes by pairs (see
        `training.talk.dataset`), and the identities in a new order each time round, since a fixed one would hold out
        always the same or never.
        """
        turn, place = divmod(number // 2, len(self.identities))
        return int(np.random.default_rng([self.seed, turn]).permutation(self.identities)[place])

    def clip(self, number: int) -> Path:
        """The clip's path without a suffix."""
        return self.folder / f"id{self.identity(number):03d}_{number:04d}"

    def lengths(self) -> dict[int, int]:
        """Frames of each clip that is there already, by number."""
        found = {}
        for path in self.folder.glob("*.npz"):
            name = _NAME.fullmatch(path.stem)
            clip = path.with_suffix("")
            if name and clip == self.clip(int(name[1])) and is_complete(clip, self.with_pictures):
                found[int(name[1])] = length_of(clip)
        return found


def cast(wanted: str) -> tuple[int, ...]:
    """Identities from "14,36,38", or from how many of CAST there shall be. Raises RecordingError."""
    try:
        numbers = tuple(int(part) for part in wanted.split(",") if part.strip())
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0:
        raise RecordingError(f"identities are seeds such as 14,36,38 (14, for one alone) or how many, got {wanted!r}")
    if "," in wanted:
        return numbers
    if not 1 <= numbers[0] <= len(CAST):
        raise RecordingError(
            f"there are {len(CAST)} identities to choose from; for others give their seeds, as 14,36,38"
        )
    return CAST[: numbers[0]]


def prepare(plan: Plan) -> None:
    """Make the folder, and clear it of what an interrupted run left. Raises RecordingError when it holds clips that
    were planned otherwise.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    path = plan.folder / PLAN
    now = {"seed": plan.seed, "longest_s": plan.longest_s}
    if path.is_file():
        before = json.loads(path.read_text())
        if before != now:
            raise RecordingError(f"{plan.folder} was begun with {before}, and now it is {now}; use another folder")
    path.write_text(json.dumps(now) + "\n")
    for left_over in plan.folder.glob(f"*{PART}"):
        left_over.unlink()


class Studio:
    """What makes clips: voices, and a renderer where there are pictures."""

    def __init__(self, plan: Plan) -> None:
        """Raises SpeechError, RendererError and RecordingError when something is not installed."""
        self._plan = plan
        self._voices = Voices()
        self._renderer: Renderer | None = None
        if plan.with_pictures:
            try:
                from training.talk.renderer import Renderer
            except ImportError as error:
                raise RecordingError(
                    f"pictures need moderngl and scipy: install streamgen with the extra `avatar-data` ({error})"
                ) from error
            self._renderer = Renderer(SIZE)

    def make(self, number: int) -> int:
        """Write a clip; its frames."""
        take, played = rehearse(self._plan, number, self._voices)
        identity = self._plan.identity(number)
        pictures = None if self._renderer is None else self._render(self._renderer, identity, played)
        write_clip(self._plan.clip(number), take, played, identity, pictures)
        return len(played)

    def _render(self, renderer: Renderer, identity: int, played: Performance) -> Iterator[NDArray[np.uint8]]:
        renderer.load(identity)
        for frame in range(len(played)):
            yield renderer.render(played.pose(frame))


def rehearse(plan: Plan, number: int, voices: Voices) -> tuple[Take, Performance]:
    """What a clip sounds like and what its head does."""
    rng = np.random.default_rng([plan.seed, number])
    take = draw_take(rng, voices, plan.longest_s)
    return take, perform(take.speech, rng)


def record(plan: Plan, frames: int, workers: int) -> Iterator[int]:
    """Make clips until there are `frames` of them in all, in `workers` processes; yields the frames of each.

    Close it to stop early: clips under way are given up. Raises what `Studio` does, and RecordingError when a process
    ended unexpectedly.
    """
    lengths = plan.lengths()
    missing = filterfalse(frozenset(lengths).__contains__, count())
    # Pairs, since loading an identity takes as long as many frames.
    pairs = (list(pair) for _, pair in groupby(missing, key=lambda number: number // 2))
    done = sum(lengths.values())
    if done >= frames:
        return
    crew = [_Worker(plan) for _ in range(workers)]
    try:
        while done < frames:
            mean = done / len(lengths) if lengths else min(_USUAL_S, plan.longest_s) * FPS
            for worker in crew:
                expected = done + mean * sum(other.number is not None for other in crew)
                if worker.number is None and expected < frames:
                    worker.next = worker.next or next(pairs)
                    worker.begin(worker.next.pop(0))
            ready = wait([worker.pipe for worker in crew if worker.number is not None])
            for worker in crew:
                if worker.number is not None and worker.pipe in ready:
                    number = worker.number
                    lengths[number] = worker.finish()
                    done += lengths[number]
                    yield lengths[number]
    finally:
        for worker in crew:
            worker.end()


class _Worker:
    """A process that makes clips, one at a time."""

    def __init__(self, plan: Plan) -> None:
        context = multiprocessing.get_context("spawn")
        self.number: int | None = None
        """Of the clip that it makes now."""
        self.next: list[int] = []
        """Numbers of those that are its own afterwards."""
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, plan), daemon=True)
        self._process.start()
        theirs.close()  # only the process holds it now: its end is our end of file

    def begin(self, number: int) -> None:
        self.number = number
        with suppress(BrokenPipeError):  # what it left in the pipe says why
            self.pipe.send(number)

    def finish(self) -> int:
        """Wait for the clip; its frames. Raises what ended the process."""
        try:
            answer = self.pipe.recv()
        except EOFError:
            self._process.join(_END_S)
            raise RecordingError(
                f"a process ended with exit code {self._process.exitcode} at clip {self.number}; its own message is on "
                "stderr"
            ) from None
        if isinstance(answer, Exception):
            raise answer
        self.number = None
        frames: int = answer
        return frames

    def end(self) -> None:
        self.pipe.close()
        self._process.terminate()
        self._process.join()


def _work(pipe: Connection, plan: Plan) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who holds the other end decides
    try:
        studio = Studio(plan)
        while True:
            pipe.send(studio.make(pipe.recv()))
    except (SpeechError, RendererError, RecordingError) as error:
        pipe.send(error)
    except (EOFError, BrokenPipeError):
        return


def draw_sheet(plan: Plan) -> Path:
    """Write pictures of some clips, a row each, into the folder."""
    numbers = sorted(plan.lengths().items())
    chosen = [numbers[k] for k in sorted({round(k) for k in np.linspace(0, len(numbers) - 1, _SHEET_CLIPS)})]
    rows = []
    for number, length in chosen:
        video = plan.clip(number).with_name(plan.clip(number).name + ".mp4")
        places = np.linspace(0, length - 1, _SHEET_FRAMES).astype(int)
        rows.append(np.stack([next(frames_of(video, int(place), SIZE, SIZE)) for place in places]))
    path = plan.folder / SHEET
    contact_sheet(rows, path)
    return path
