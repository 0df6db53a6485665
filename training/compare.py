"""The comparison: every method from one teacher with one budget of time, at every step count, in one table.

What is there already is not done again, so an interrupted comparison goes on when it is asked for once more.
"""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from engines.protocol import Engine, StepRequest
from engines.select import load_engine
from streamgen.models.autoencoder import Autoencoder, to_float
from streamgen.models.loading import load_autoencoder, load_transformer
from streamgen.student import RANGES, WEIGHTS, Student
from training.data import Clip, ClipData, held_out
from training.evaluate import CONTEXT, judge_episode, judge_next_frame, rollout_figures, share_cores
from training.loop import CHECKPOINT, LOG
from training.metrics import frechet
from training.package import ORIGIN, package
from training.recipe import DistillationRecipe, RecipeError, load_recipe

matplotlib.use("Agg")

_TRIED = 7
"""Steps by which a recipe's own time is measured; the first is not counted, and the others are whole rounds of a critic
and its student."""
_NEXT, _NEXT_FRAMES = 8, 24
"""Held-out clips whose next frames are predicted, and how many of each."""
_PATCH = 2
_PATCHES = 4000
"""Patches of latents, of so many latent pixels a side, by which pictures are told apart."""
_TIMED, _ROUNDS = 10, 12
"""Frames of each student in a round of timing."""
_MARGIN = 150
"""Pixels beside pictures, for their names."""


@dataclass(frozen=True)
class Budget:
    """minutes: of training for each method. processes: that train. episodes: rollouts of `short_s` seconds and one of
    `long_s`.
    """

    minutes: float
    processes: int
    episodes: int
    short_s: float
    long_s: float

    @property
    def judged(self) -> dict[str, float]:
        return {"episodes": self.episodes, "short_s": self.short_s, "long_s": self.long_s}


@dataclass(frozen=True)
class Episodes:
    """Held-out clips that all are judged by: near ones for their next frames, those of `short_s`, and that of
    `long_s`.
    """

    near: list[Clip]
    short: list[Clip]
    long: Clip

    @classmethod
    def recorded(cls, data: ClipData, budget: Budget) -> Episodes:
        """Raises VideoDataError where no held-out clip is as long."""
        short_frames, long_frames = (CONTEXT + round(each * data.fps) for each in (budget.short_s, budget.long_s))
        (long,) = held_out(data, 1, long_frames, first=_NEXT + budget.episodes)
        short = held_out(data, budget.episodes, short_frames, first=_NEXT)
        return cls(held_out(data, _NEXT, CONTEXT + _NEXT_FRAMES), short, long)


@cache
def _episodes(path: Path) -> Episodes:
    """Once in each process that judges. Written by the one that started it."""
    kept: Episodes = pickle.loads(path.read_bytes())
    return kept


@dataclass(frozen=True)
class Contestant:
    """run: of training; student: the folder that is made of it; steps and training_s: of its training, none of the
    teacher; step_plans: where the run has none of its own.
    """

    name: str
    run: Path
    student: Path
    steps: int = 0
    training_s: float = 0.0
    step_plans: dict[int, tuple[float, ...]] | None = None


def compare(
    recipes: Sequence[Path],
    teacher: Path,
    autoencoder: Path,
    data: ClipData,
    runs: Path,
    out: Path,
    budget: Budget,
    overrides: tuple[str, ...] = (),
    engine: str = "auto",
) -> dict[str, Any]:
    """Train what the recipes say, from `teacher`, and judge it: figures in `out/compare.json`, a table, plots and
    pictures beside it.

    Raises RecipeError, and VideoDataError where no held-out clip is as long as what is to be judged.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / "compare.json"
    before: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    asked = {"minutes": budget.minutes, "processes": budget.processes}
    if any(before.get(name, value) != value for name, value in asked.items()):
        had = f"{before['minutes']:g} minutes by {before['processes']} processes"
        raise RecipeError(f"{path} has a comparison of {had}: ask for the same, or give others --runs and --out")
    level = load_transformer(teacher).config.history_level
    if 0 < level < 1:
        raise RecipeError(
            f"{teacher} leaves a history of noise level {level:g}, which the recipes' step plans do not end at: give a "
            "teacher whose model.history_level is 0 or 1"
        )
    kept: dict[str, Any] = before.get("students", {})
    # Each is packed and judged on a core or two, where training took all of them.
    cores = ProcessPoolExecutor(
        budget.processes, multiprocessing.get_context("spawn"), share_cores, (budget.processes,)
    )
    with TemporaryDirectory() as folder, cores as pool:
        # Before anything is trained: there may not be enough to judge it by.
        episodes = Path(folder) / "episodes"
        episodes.write_bytes(pickle.dumps(Episodes.recorded(data, budget)))
        given = f"teacher={teacher}", f"autoencoder={autoencoder}", *overrides
        loaded, left_out = _loaded(recipes, level, given)
        contestants = list(_contestants(loaded, given, teacher, runs, out, budget))
        judged = [
            pool.submit(_judged, c, kept.get(c.name, {}), autoencoder, episodes, out, budget, engine)
            for c in contestants
        ]
        named = dict(zip(judged, contestants, strict=True))
        for done in as_completed(judged):
            kept[named[done].name] = done.result()
            path.write_text(json.dumps(asked | {"students": kept}, indent=1) + "\n")
    students = {contestant.name: kept[contestant.name] for contestant in contestants}
    _time(contestants, students, engine)
    figures = asked | {"left_out": left_out, "students": students}
    path.write_text(json.dumps(figures, indent=1) + "\n")
    (out / "compare.md").write_text(table(students))
    _plot(students, out / "compare.png")
    _pictures(students, out)
    return figures


def _loaded(
    recipes: Sequence[Path], level: float, given: tuple[str, ...]
) -> tuple[dict[Path, DistillationRecipe], list[str]]:
    """The recipes that a teacher of this `history_level` can be distilled by, and the names of the others."""
    fitting: dict[Path, DistillationRecipe] = {}
    left_out = []
    for path in recipes:
        recipe = load_recipe(path, given)
        if not isinstance(recipe, DistillationRecipe):
            raise RecipeError(f"{path} is of the stage {recipe.stage}; methods of distillation are compared")
        # What makes a history of its own would unlearn the one that the first step leaves.
        changes = recipe.method.changes
        if level and (changes.get("history_level", level) != level or "flow_map" in changes):
            left_out.append(path.stem)
        else:
            fitting[path] = recipe
    return fitting, left_out


def _contestants(
    loaded: dict[Path, DistillationRecipe],
    given: tuple[str, ...],
    teacher: Path,
    runs: Path,
    out: Path,
    budget: Budget,
) -> Iterator[Contestant]:
    """The teacher as it is, and what becomes of it by each recipe."""
    plans: dict[int, tuple[float, ...]] = {}
    for recipe in loaded.values():
        if 1 in recipe.step_plans:
            plans |= recipe.step_plans
    yield Contestant("teacher", teacher, out / "students" / "teacher", step_plans=plans or {1: (1.0,)})
    for path, recipe in loaded.items():
        run = runs / recipe.name
        command = [str(path), *given, "--runs", str(runs)]
        if not (run / CHECKPOINT).exists():
            _train(
                command, budget, f"steps={_TRIED}", f"name={recipe.name}-tried", "judged_clips=1", "judged_frames=32"
            )
            tried = runs / f"{recipe.name}-tried"
            each = statistics.fmean(_step_times(tried)[1:])
            shutil.rmtree(tried)
            steps = max(1, round(60 * budget.minutes / each))
        else:
            started = next(e for e in _entries(run) if e["event"] == "start")
            steps = int(started["recipe"]["steps"])
        if not (run / ORIGIN).exists():  # written at the end
            _train(command, budget, f"steps={steps}")
        yield Contestant(path.stem, run, out / "students" / path.stem, steps, sum(_step_times(run)))


def _train(command: list[str], budget: Budget, *more: str) -> None:
    """Raises RecipeError when it fails; what it said is on stderr."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(budget.processes), "-m"]
    done = subprocess.run([sys.executable, *torchrun, "training", "train", *command, *more], check=False)
    if done.returncode:
        raise RecipeError(
            f"training {command[0]} ended with exit code {done.returncode}: what it said stands above; once that is "
            "mended the same command goes on from here"
        )


def _entries(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / LOG).read_text().splitlines()]


def _step_times(run: Path) -> list[float]:
    """Seconds of each step, whoever learned in it."""
    steps = {e["step"]: e.get("step_s") or e["critic_step_s"] for e in _entries(run) if e["event"] == "step"}
    return [float(seconds) for _, seconds in sorted(steps.items())]


def _packed(contestant: Contestant, autoencoder: Path) -> Student:
    packed, trained = contestant.student / RANGES, contestant.run / "transformer" / WEIGHTS
    if not packed.exists() or packed.stat().st_mtime < trained.stat().st_mtime:
        plans, name = contestant.step_plans, contestant.name
        count = None if plans is None else max(plans)
        card = f"# {name}\n\nOf a comparison.\n"
        package(contestant.run, autoencoder, contestant.student, card, name, steps=count, step_plans=plans)
    return Student.from_pretrained(contestant.student)


def _judged(
    contestant: Contestant,
    before: dict[str, Any],
    autoencoder_run: Path,
    episodes: Path,
    out: Path,
    budget: Budget,
    engine_name: str,
) -> dict[str, Any]:
    """Its figures; those from `before` if they are of this student and this long."""
    student = _packed(contestant, autoencoder_run)
    if (before.get("hash"), before.get("judged")) == (student.hash, budget.judged):
        return before
    autoencoder = load_autoencoder(student.path)
    engine = load_engine(student.path, engine_name)
    real = _episodes(episodes)
    counts = {}
    for count in sorted(student.config.step_plans):
        sheets = out / "sheets" / f"{contestant.name}_{count}"
        sheets.mkdir(parents=True, exist_ok=True)
        played, minute = zip(
            *(judge_episode(student, engine, autoencoder, clip, seed, count) for seed, clip in enumerate(real.short)),
            strict=True,
        )
        _, ten = judge_episode(student, engine, autoencoder, real.long, 0, count)
        truth = np.concatenate([clip.frames[CONTEXT:] for clip in real.short])
        counts[count] = {
            "next_frame": judge_next_frame(student, autoencoder, real.near, count),
            "frechet": frechet(_patches(autoencoder, np.concatenate(played)), _patches(autoencoder, truth)),
            "short": rollout_figures(minute, sheets),
            "long": rollout_figures([ten], sheets / "long"),
        }
    return {
        "hash": student.hash,
        "judged": budget.judged,
        "training_steps": contestant.steps,
        "training_s": contestant.training_s,
        "counts": counts,
    }


def _patches(autoencoder: Autoencoder, frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Patches of latents [N, features] from frames spread over all of them: features of a network trained here."""
    some = frames[:: max(1, len(frames) // 200)]
    with torch.no_grad():
        latents = torch.cat([autoencoder.encode(part) for part in to_float(torch.from_numpy(some)).split(32)])
    patches = latents.unfold(2, _PATCH, _PATCH).unfold(3, _PATCH, _PATCH)  # [F, C, h/p, w/p, p, p]
    rows = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    return rows[:: max(1, len(rows) // _PATCHES)].double().numpy()


def _time(contestants: Sequence[Contestant], students: dict[str, Any], engine_name: str) -> None:
    """Median milliseconds of a frame, all students in turns: what else goes on falls on all alike."""
    engines: list[tuple[str, Student, Engine]] = []
    for contestant in contestants:
        student = Student.from_pretrained(contestant.student)
        engines.append((contestant.name, student, load_engine(student.path, engine_name)))
    spent: dict[tuple[str, int], list[float]] = {}
    for number in range(_ROUNDS):
        for name, student, engine in engines:
            for count in student.config.step_plans:
                engine.open("timed", student.start(number))
                still = np.zeros((student.config.transformer.block_size, student.config.action_dim), np.float32)
                for _ in range(_TIMED):
                    began = time.perf_counter()
                    engine.step([StepRequest("timed", still, count)])
                    spent.setdefault((name, count), []).append(time.perf_counter() - began)
    for (name, count), seconds in spent.items():
        counts = students[name]["counts"]
        counts[count if count in counts else str(count)]["frame_ms"] = 1000 * statistics.median(seconds)


def table(students: dict[str, Any]) -> str:
    """Markdown: a line for each student and step count."""
    head = (
        "method",
        "steps",
        "next frame, dB",
        "its detail",
        "Fréchet",
        "detail, minute (worst)",
        "motion",
        "detail, to the end (worst)",
        "colour drift",
        "ms a frame",
        "training, min (steps)",
    )
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for name, student in students.items():
        for count, figures in student["counts"].items():
            near, short, long = figures["next_frame"], _last(figures["short"]), _last(figures["long"])
            cells = (
                name,
                str(count),
                f"{near['psnr']:.2f}",
                f"{near['detail']:.2f}",
                f"{figures['frechet']:.1f}",
                f"{short['detail_mean']:.2f} ({short['detail_worst']:.2f})",
                f"{short['motion_ratio']:.2f}",
                f"{long['detail_mean']:.2f} ({long['detail_worst']:.2f})",
                f"{long['colour_drift_worst']:.0f}",
                f"{figures['frame_ms']:.1f}",
                f"{student['training_s'] / 60:.1f} ({student['training_steps']})",
            )
            lines.append(" | ".join(cells))
    return "".join(f"| {line} |\n" for line in lines)


def _last(rollouts: dict[str, Any]) -> dict[str, Any]:
    """Of the longest stretch from the start that was judged."""
    marks = [name for name, value in rollouts.items() if name.endswith("_s") and isinstance(value, dict)]
    longest: dict[str, Any] = rollouts[max(marks, key=lambda name: int(name.removesuffix("_s")))]
    return longest


def _pictures(students: dict[str, Any], out: Path) -> None:
    """What each student makes of the same minute, in one picture: `out/rollouts.png`."""
    rows: list[tuple[str, Image.Image]] = []
    for name, student in students.items():
        for count in student["counts"]:
            # Two rows an episode: the game's, and the student's.
            sheet = Image.open(out / "sheets" / f"{name}_{count}" / "rollout.png")
            height = sheet.height // (2 * student["judged"]["episodes"])
            game, made = (sheet.crop((0, at, sheet.width, at + height)) for at in (0, height))
            rows += [(f"{name}, {count}", made)] if rows else [("the game", game), (f"{name}, {count}", made)]
    width, height = rows[0][1].size
    picture = Image.new("RGB", (_MARGIN + width, height * len(rows)), "white")
    draw = ImageDraw.Draw(picture)
    for number, (name, row) in enumerate(rows):
        picture.paste(row, (_MARGIN, number * height))
        draw.text((4, (number + 0.5) * height), name, "black", anchor="lm")
    picture.save(out / "rollouts.png")


def _plot(students: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    quality, steady = figure.subplots(1, 2)
    for index, (name, student) in enumerate(students.items()):
        every = list(student["counts"].values())
        ms = [figures["frame_ms"] for figures in every]
        quality.plot(ms, [figures["frechet"] for figures in every], f"C{index}o-", label=name)
        steady.plot(ms, [_last(figures["long"])["detail_mean"] for figures in every], f"C{index}o-")
    quality.set(xlabel="ms a frame", ylabel="Fréchet distance of latent patches, a minute")
    steady.set(xlabel="ms a frame", ylabel="detail / real, to the end")
    steady.axhline(1, color="grey", linestyle=":")
    figure.legend(loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=90)
