"""Judges a student folder on held-out play of what it learned from: figures, a contact sheet and plots.

PSNR rewards blur, so it stands beside high-frequency energy and the pictures. All PSNRs are pooled: the mean squared
error is averaged over all frames before the logarithm.
"""

from __future__ import annotations

import math
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engines.protocol import Engine, StepRequest
from engines.select import load_engine
from streamgen.models.autoencoder import Autoencoder
from streamgen.models.loading import load_autoencoder, load_transformer
from streamgen.models.transformer import CausalVideoTransformer
from streamgen.state import StreamState
from streamgen.student import Student
from training.clips import LatentClips, encode
from training.data import Clip, ClipData, held_out
from training.judges import Judges, recognised, turn_accuracy, yaw_difference
from training.metrics import decode, detail, frames_psnr, other_actions, ssim, teacher_forced
from training.recipe import RecipeError
from training.sheets import contact_sheet

matplotlib.use("Agg")

_T = TypeVar("_T")

CONTEXT = 16
"""True frames before what is judged."""
_JUDGED = 32
_CLIPS = 12
_SEGMENT_S = 2.0
_MARKS_S = (5, 30, 60, 600)
_END_S = 60.0
"""By the last minute of play one sees whether it has collapsed."""
_COLLAPSED = 4.0
"""Detail of that many times the game's, or of so small a part, and so little motion, is a collapse."""
_NAMED = 10
"""Episodes whose colours in a plot have names; more would hide it."""
_SHOWN_S = (0, 1, 2, 5, 10, 20, 30, 45, 60, 120, 300, 600)
_CONTROLLED = 20
_CONTROLLED_S = 10.0
_DRIFT_S = (1, 5, 10)


def evaluate(
    student: Student,
    data: ClipData,
    folder: Path,
    engine_name: str = "auto",
    rollouts: int = 3,
    rollout_s: float = 60.0,
    judges: Judges | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """All figures of a student on held-out clips, its rollouts in so many processes; `folder` gets contact sheets and
    plots. Control and drift need judges. Raises RecipeError when the clips have other keys than the student, or the
    judges were trained on other ones or on frames of another size.
    """
    config = student.config
    if data.keys != config.keys:
        raise RecipeError(
            f"the clips have the keys {' '.join(data.keys)}, but {config.name} has {' '.join(config.keys)}: "
            "judge it on what it learned from (`--data`)"
        )
    if judges is not None and (judges.keys, judges.width, judges.height) != (config.keys, config.width, config.height):
        raise RecipeError(
            f"the judges know the keys {' '.join(judges.keys)} in frames of {judges.width}x{judges.height}, but "
            f"{config.name} has {' '.join(config.keys)} in {config.width}x{config.height}: train judges for it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    model, autoencoder = load_transformer(student.path), load_autoencoder(student.path)
    real = held_out(data, _CLIPS, CONTEXT + _JUDGED)
    figures: dict[str, Any] = {"student": config.name, "student_hash": student.hash}
    figures["teacher_forced"] = _teacher_forced(student, model, autoencoder, real, folder)
    length = CONTEXT + round(rollout_s * config.fps)
    episode = partial(_held_out_episode, student.path, engine_name, data, length)
    figures["rollout"] = rollout_figures(side_by_side(episode, rollouts, processes), folder)
    if judges is not None:
        blocks = math.ceil(_CONTROLLED_S * config.fps / config.transformer.block_size)
        frames = CONTEXT + blocks * config.transformer.block_size
        episodes = held_out(data, _CONTROLLED, frames, first=_CLIPS + rollouts)
        figures["control"] = _control(student, load_engine(student.path, engine_name), autoencoder, episodes, judges)
    return figures


def _teacher_forced(
    student: Student, model: CausalVideoTransformer, autoencoder: Autoencoder, real: list[Clip], folder: Path
) -> dict[str, Any]:
    clips = encode(autoencoder, real, model.config)
    truth = np.stack([clip.frames for clip in real])
    judged = truth[:, CONTEXT:].reshape(-1, *truth.shape[2:])
    last = truth[:, CONTEXT - 1 : -1].reshape(judged.shape)

    def judge(latents: Tensor) -> tuple[NDArray[np.uint8], dict[str, float]]:
        made = decode(autoencoder, latents[:, CONTEXT:]).reshape(judged.shape)
        return made, {
            "psnr": frames_psnr(made, judged),
            "ssim": ssim(made, judged),
            "detail": detail(made) / detail(judged),
        }

    figures: dict[str, Any] = {
        "frames": len(judged),
        "copy_last": {"psnr": frames_psnr(last, judged), "ssim": ssim(last, judged)},
    }
    rebuilt, figures["autoencoder"] = judge(clips.latents)
    rows = [judged[:: _JUDGED * 2][:6], rebuilt[:: _JUDGED * 2][:6]]
    for count, sigmas in sorted(student.config.step_plans.items()):
        made, figures[f"steps_{count}"] = judge(teacher_forced(model, clips, sigmas))
        rows.append(made[:: _JUDGED * 2][:6])
    # The fewest: of several, those after the first may see its keys, which the true actions made.
    fewest = min(student.config.step_plans)
    sigmas = student.config.step_plans[fewest]
    wrong, figures["other_actions"] = judge(teacher_forced(model, clips, sigmas, other_actions(clips.actions)))
    own = figures[f"steps_{fewest}"]["psnr"]
    figures["gain_over_copy_last_db"] = own - figures["copy_last"]["psnr"]
    figures["gain_of_true_actions_db"] = own - figures["other_actions"]["psnr"]
    contact_sheet([*rows, wrong[:: _JUDGED * 2][:6]], folder / "teacher_forced.png", scale=2)
    return figures


def judge_next_frame(student: Student, autoencoder: Autoencoder, real: list[Clip], steps: int) -> dict[str, float]:
    """PSNR and detail of next frames of real clips, from their true past."""
    model = load_transformer(student.path)
    clips = encode(autoencoder, real, model.config)
    truth = np.concatenate([clip.frames[CONTEXT:] for clip in real])
    made = decode(autoencoder, teacher_forced(model, clips, student.config.step_plans[steps])[:, CONTEXT:])
    made = made.reshape(truth.shape)
    return {"psnr": frames_psnr(made, truth), "detail": detail(made) / detail(truth)}


def roll(
    engine: Engine, student: Student, state: StreamState, actions: NDArray[np.float32], steps: int | None = None
) -> NDArray[np.uint8]:
    """Frames [F, H, W, 3] that the engine generates from a state under actions [F, A]."""
    size = student.config.transformer.block_size
    engine.open("evaluate", state)
    frames = [
        engine.step([StepRequest("evaluate", actions[at : at + size], student.config.steps_of(at // size, steps))])[
            0
        ].frames
        for at in range(0, len(actions) // size * size, size)
    ]
    engine.close("evaluate")
    return np.concatenate(frames)


def _play(
    student: Student, engine: Engine, autoencoder: Autoencoder, clip: Clip, seed: int, steps: int | None = None
) -> NDArray[np.uint8]:
    """Frames [F, H, W, 3] that the student makes of a real episode's keys after its first frames."""
    start: LatentClips = encode(autoencoder, [clip.cut(slice(CONTEXT))], student.config.transformer)
    latents, actions = start.latents[0].half().numpy(), start.actions[0].numpy()
    state = StreamState.begin(student.config, student.hash, seed, latents, actions)
    return roll(engine, student, state, clip.actions[CONTEXT:].astype(np.float32), steps)


def _control(
    student: Student, engine: Engine, autoencoder: Autoencoder, real: list[Clip], judges: Judges
) -> dict[str, Any]:
    """Whether the keys can be recognised in what they brought about, and how far the view drifts from the real one.

    Each figure stands beside the judge's own on the real frames: its ceiling.
    """
    made = [_play(student, engine, autoencoder, clip, seed) for seed, clip in enumerate(real)]
    truth = [clip.frames[CONTEXT:] for clip in real]
    keys = np.concatenate([clip.actions[CONTEXT + 1 :] for clip in real])
    codes = student.config.keys
    figures: dict[str, Any] = {"episodes": len(real), "seconds": _CONTROLLED_S}
    for name, frames in (("generated", made), ("ceiling", truth)):
        said = np.concatenate([judges.keys_of(part) for part in frames])
        figures[name] = {"recognised": recognised(said, keys, codes)}
        if {"ArrowLeft", "ArrowRight"} <= set(codes):
            figures[name]["turn_accuracy"] = turn_accuracy(
                said, keys, codes.index("ArrowLeft"), codes.index("ArrowRight")
            )
        for after_s in _DRIFT_S:
            at = round(after_s * student.config.fps) - 1
            poses = np.stack([clip.poses[CONTEXT + at] for clip in real])
            if np.isfinite(poses).all():
                seen = np.concatenate([judges.poses_of(part[at : at + 1]) for part in frames])
                figures[name][f"{after_s}_s"] = {
                    "yaw_deg_median": float(np.median(yaw_difference(seen[:, 2], poses[:, 2]))),
                    "distance_median": float(np.median(np.hypot(*(seen[:, :2] - poses[:, :2]).T))),
                }
    return figures


@dataclass(frozen=True)
class Episode:
    """What an episode of free play was like, a value every `_SEGMENT_S`, and pictures [2, N, H, W, 3] of the game and
    of the student.
    """

    curves: dict[str, list[float]]
    shown: NDArray[np.uint8]


def judge_episode(
    student: Student, engine: Engine, autoencoder: Autoencoder, clip: Clip, seed: int, steps: int | None = None
) -> tuple[NDArray[np.uint8], Episode]:
    """Free-running play under the keys of a real episode: its frames [F, H, W, 3], and what they are like beside that.
    steps: None takes the student's own.
    """
    fps = student.config.fps
    made = _play(student, engine, autoencoder, clip, seed, steps)
    truth = clip.frames[CONTEXT:]
    picks = [min(round(t * fps), len(made) - 1) for t in _SHOWN_S if round(t * fps) <= len(made)]
    return made, Episode(_curves(made, truth, round(_SEGMENT_S * fps)), np.stack([truth[picks], made[picks]]))


def side_by_side(function: Callable[[int], _T], count: int, processes: int) -> list[_T]:
    """What a function makes of each number below `count`, in so many processes that share the cores, or in this one."""
    if processes == 1:
        return [function(number) for number in range(count)]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), share_cores, (processes,)) as pool:
        return list(pool.map(function, range(count)))


def share_cores(processes: int) -> None:
    """Take this process's part of those that it may have."""
    each = max(1, torch.get_num_threads() // processes)
    torch.set_num_threads(each)
    os.environ["OMP_NUM_THREADS"] = str(each)  # for engines


@cache
def _loaded(path: Path, engine_name: str) -> tuple[Student, Engine, Autoencoder]:
    student = Student.from_pretrained(path)
    return student, load_engine(path, engine_name), load_autoencoder(path)


def _held_out_episode(path: Path, engine_name: str, data: ClipData, length: int, number: int) -> Episode:
    """Without its frames: ten minutes of them are half a gigabyte."""
    (clip,) = held_out(data, 1, length, first=_CLIPS + number)
    return judge_episode(*_loaded(path, engine_name), clip, number)[1]


def rollout_figures(episodes: Sequence[Episode], folder: Path) -> dict[str, Any]:
    """Of episodes of one length, by how many seconds from the start they count, and of their end. `folder` gets a sheet
    and curves.
    """
    curves = [episode.curves for episode in episodes]
    contact_sheet([row for episode in episodes for row in episode.shown], folder / "rollout.png")
    _plot(curves, folder / "rollout_curves.png")
    reached_s = len(curves[0]["detail"]) * _SEGMENT_S
    figures: dict[str, Any] = {"episodes": len(curves), "seconds": reached_s, "segment_s": _SEGMENT_S}
    for mark in sorted({min(mark, int(reached_s)) for mark in _MARKS_S}):
        upto = max(1, round(mark / _SEGMENT_S))
        ratios = [value for curve in curves for value in curve["detail"][:upto]]
        figures[f"{mark}_s"] = {
            # Of the same seconds: episodes begin at places with more to see, or less, than the rest of them has.
            "detail_mean": sum(ratios) / sum(value for curve in curves for value in curve["real_detail"][:upto]),
            "detail_worst": max(ratios, key=lambda r: abs(np.log(max(r, 1e-6)))),
            "real_detail": [
                min(min(c["real_detail"][:upto]) for c in curves),
                max(max(c["real_detail"][:upto]) for c in curves),
            ],
            # Against the game itself under the same keys, now and half of the episode away: do places stay in place?
            **{
                name: 10 * math.log10(255**2 / np.mean([value for curve in curves for value in curve[error][:upto]]))
                for name, error in (("psnr", "error"), ("psnr_elsewhere", "error_elsewhere"))
            },
            "colour_drift_worst": max(value for curve in curves for value in curve["colour"][:upto]),
            "real_colour_drift_worst": max(value for curve in curves for value in curve["real_colour"][:upto]),
            "motion_ratio": float(
                sum(sum(c["motion"][:upto]) for c in curves) / sum(sum(c["real_motion"][:upto]) for c in curves)
            ),
        }
    figures["end"] = end_of_play(curves)
    return figures


def _curves(made: NDArray[np.uint8], truth: NDArray[np.uint8], size: int) -> dict[str, list[float]]:
    """What every `size` frames of an episode are like, and those of the game."""
    typical, colour = detail(truth), _colour(truth)
    elsewhere = np.roll(truth, len(truth) // 2, 0)
    segments = [slice(at, at + size) for at in range(0, len(made) - size + 1, size)]
    return {
        "detail": [detail(made[s]) / typical for s in segments],
        "real_detail": [detail(truth[s]) / typical for s in segments],
        "error": [_error(made[s], truth[s]) for s in segments],
        "error_elsewhere": [_error(made[s], elsewhere[s]) for s in segments],
        "colour": [float(np.abs(_colour(made[s]) - colour).max()) for s in segments],
        "real_colour": [float(np.abs(_colour(truth[s]) - colour).max()) for s in segments],
        "motion": [_motion(made[s]) for s in segments],
        "real_motion": [_motion(truth[s]) for s in segments],
    }


def end_of_play(curves: list[dict[str, list[float]]]) -> dict[str, Any]:
    """Of each episode's last minute, against the game's: a collapse shows there, and means over all would hide it."""
    last = slice(-round(_END_S / _SEGMENT_S), None)
    share = {
        what: [sum(curve[what][last]) / max(sum(curve[f"real_{what}"][last]), 1e-9) for curve in curves]
        for what in ("detail", "motion")
    }
    collapsed = sum(
        not 1 / _COLLAPSED < sharp < _COLLAPSED or moved < 1 / _COLLAPSED
        for sharp, moved in zip(share["detail"], share["motion"], strict=True)
    )
    return {"seconds": min(_END_S, len(curves[0]["detail"]) * _SEGMENT_S)} | share | {"collapsed": collapsed}


def _colour(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The mean [3] of frames [F, H, W, 3], each colour on its own: seven times as fast as all at once."""
    return np.array([frames[..., colour].mean() for colour in range(frames.shape[-1])])


def _error(made: NDArray[np.uint8], real: NDArray[np.uint8]) -> float:
    """Mean squared difference, in grey levels squared."""
    return float(np.square(made.astype(np.float32) - real).mean())


def _motion(frames: NDArray[np.uint8]) -> float:
    """Mean difference of neighbours, in grey levels."""
    return float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean())


def _plot(curves: list[dict[str, list[float]]], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.4), constrained_layout=True)
    for axis, key, title in zip(
        axes,
        ("detail", "colour", "motion"),
        ("high-frequency energy / real", "colour drift, grey levels", "motion, grey levels a frame"),
        strict=True,
    ):
        seconds = np.arange(1, len(curves[0][key]) + 1) * _SEGMENT_S
        for index, curve in enumerate(curves):
            axis.plot(seconds, curve[key], f"C{index}-", label=f"episode {index}")
            axis.plot(seconds, curve[f"real_{key}"], f"C{index}:", alpha=0.6)
        axis.set(title=title, xlabel="seconds (dotted: the real game)")
    if len(curves) <= _NAMED:
        axes[0].legend()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)
