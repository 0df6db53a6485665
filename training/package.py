"""Makes a student folder from training runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from engines.openvino import measured_ranges
from streamgen.config import StudentConfig, TransformerConfig
from streamgen.face import SPEECH
from streamgen.models.autoencoder import Autoencoder, to_float, to_uint8
from streamgen.models.export import write_student
from streamgen.models.loading import load_autoencoder, load_speech, load_transformer
from streamgen.models.transformer import CausalVideoTransformer
from streamgen.paths import cache_root
from streamgen.student import RANGES, Student
from training.clips import encode
from training.data import Clip, ClipData, open_data, recorded
from training.distributed import rank_and_size
from training.metrics import detail, frames_psnr
from training.recipe import DecoderRecipe, FaceRecipe, PoseRecipe, RecipeError, StudentRecipe, weights_hash
from training.talk.dataset import TalkDataset
from training.talk.latents import with_latents

_STARTS, _PLACES = 12, 48
"""Starts of a world, out of so many: those that end where there is most to see."""
_STARTS_EACH, _CANDIDATES = 2, 16
"""Starts of an identity, out of so many: those in which the mouth is at rest at the end."""
_START_FRAMES = 24
_STRANGER_DB = 1.0
_START_SEED = 2**30
"""Recorded for starts alone: no training run of the recipes uses this seed."""


ORIGIN = "origin.json"


def data_for(
    recipe: StudentRecipe | PoseRecipe | FaceRecipe | DecoderRecipe, config: TransformerConfig, autoencoder: Autoencoder
) -> ClipData:
    """The recipe's clips at the size of the student's frames. Raises RecipeError when their keys do not fit it."""
    side = autoencoder.config.latent_pixel
    data = open_data(recipe.data, config.width * side, config.height * side, recipe.driven_by)
    if config.action_dim != len(data.keys):
        raise RecipeError(
            f"model.action_dim is {config.action_dim}, but the clips have {len(data.keys)} keys: {data.keys}"
        )
    if isinstance(data, TalkDataset) and not isinstance(recipe, DecoderRecipe):
        kept = cache_root() / "latents" / weights_hash(recipe.autoencoder, "vae")[:16]
        data = with_latents(data, autoencoder, kept, *rank_and_size())
        data.scattered = 0.0 if isinstance(recipe, PoseRecipe) else recipe.scattered
    return data


def start_from(model: nn.Module, other: nn.Module, folder: Path) -> None:
    """Give a new model the weights of another, read from `folder`. Raises RecipeError where they do not fit."""
    own, weights = model.state_dict(), other.state_dict()
    wrong = sorted(own.keys() ^ weights.keys()) or [k for k in own if own[k].shape != weights[k].shape]
    if wrong:
        raise RecipeError(f"start: {folder} has weights that do not fit this model: {wrong[0]}, ...")
    model.load_state_dict(weights)


def write_origin(
    run: Path,
    recipe: StudentRecipe,
    step_plans: dict[int, tuple[float, ...]],
    steps: int,
    bidirectional: bool = False,
    opening: tuple[int, ...] = (),
) -> None:
    """Note in a run folder what its weights belong to: the autoencoder whose latents they know, the clips, the step
    plans, how many steps to serve with and to open a stream with, and whether they see the future, so that they can
    only teach.
    """
    origin = {"autoencoder": weights_hash(recipe.autoencoder, "vae"), "step_plans": step_plans, "steps": steps}
    origin |= {"driven_by": recipe.driven_by, "bidirectional": bidirectional, "opening": opening}
    if recipe.data is not None:
        origin["data"] = str(recipe.data)
    (run / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n")


def _origin(run: Path, autoencoder_run: Path) -> dict[str, Any]:
    try:
        origin: dict[str, Any] = json.loads((run / ORIGIN).read_text())
    except OSError as error:
        raise RecipeError(f"{run / ORIGIN} is not there: finish the run first") from error
    if origin["autoencoder"] != weights_hash(autoencoder_run, "vae"):
        raise RecipeError(f"{run} was trained on the latents of another autoencoder than {autoencoder_run}")
    return origin


def averaged(a: CausalVideoTransformer, b: CausalVideoTransformer, share: float) -> CausalVideoTransformer:
    """Weights (1 - share) a + share b, in place of a's. Both must descend from one model, or the mean is of no use.

    Raises RecipeError when they have other shapes.
    """
    if a.config != b.config:
        raise RecipeError(f"transformers of two shapes cannot be averaged: {a.config} and {b.config}")
    with torch.no_grad():
        for mine, other in zip(a.parameters(), b.parameters(), strict=True):
            mine.copy_((1 - share) * mine + share * other)
    return a


def _decoding(autoencoder: Autoencoder, other: Autoencoder, folder: Path) -> Autoencoder:
    """The other one, read from `folder`, which must have the same latents. Raises RecipeError."""
    weights = other.state_dict()
    for name, value in autoencoder.state_dict().items():
        if not name.startswith("decoder.") and not (name in weights and torch.equal(value, weights[name])):
            raise RecipeError(f"decoder: {folder} was trained on the latents of another autoencoder")
    return other


def _at_rest(data: TalkDataset) -> list[Clip]:
    """Clips that end with a closed mouth: what a stream goes on from. The reference is at rest, too: what it shows of
    teeth or lids would shine through where others are to be seen.
    """
    clips = list(recorded(data, _START_SEED, range(_CANDIDATES), _START_FRAMES))
    clips.sort(key=lambda clip: float(np.abs(clip.actions[-8:, : len(SPEECH)]).mean()))
    starts, rest = clips[:_STARTS_EACH], data.at_rest()
    if rest is not None:
        for clip in starts:
            clip.frames[0], clip.actions[0] = rest
    return starts


def _worth_seeing(data: ClipData) -> list[Clip]:
    """Clips that do not end before a wall: a start is the first that anybody sees of a world."""
    clips = list(recorded(data, _START_SEED, range(_PLACES), _START_FRAMES))
    clips.sort(key=lambda clip: detail(clip.frames[-1:]), reverse=True)
    return clips[:_STARTS]


@torch.no_grad()
def _likeness(data: TalkDataset, autoencoder: Autoencoder) -> float:
    """dB to which the autoencoder knows somebody of the clips at worst, less what a stranger may have it worse by."""
    worst = float("inf")
    for who in sorted({video.who for video in data.videos if video.split}):
        (clip,) = recorded(data.only(who), _START_SEED, range(1), 2)
        frames = torch.from_numpy(clip.frames)
        known = to_uint8(autoencoder.decode(autoencoder.encode(to_float(frames))))
        worst = min(worst, frames_psnr(known.numpy(), clip.frames))
    return round(worst - _STRANGER_DB, 1)


def package(
    run: Path,
    autoencoder_run: Path,
    out: Path,
    card: str,
    name: str,
    average: tuple[Path, float] | None = None,
    speech_run: Path | None = None,
    identities: dict[str, str] | None = None,
    steps: int | None = None,
    step_plans: dict[int, tuple[float, ...]] | None = None,
    decoder_run: Path | None = None,
    pictures: bool = False,
    sway: float = 1.0,
) -> None:
    """Write a student: transformer of `run`, autoencoder, step plans, and starts from real clips.

    average: another run, and the share of its weights in the student's. speech_run: what hears for one that speech
    drives. identities: the people of its videos that it can be, and what they are called; None: all of them. steps: how
    many to serve it with; None: as the run says. step_plans: None takes the run's own. decoder_run: of the stage
    `decoder`; None takes the autoencoder's own. pictures: whether it can be whoever a picture shows, which
    its face must have learned (`unread`). sway: as `StudentConfig.sway`.

    Raises RecipeError when a run is not finished or was trained on another autoencoder, VideoDataError when the videos
    that it was trained on are gone.
    """
    origin = _origin(run, autoencoder_run)
    if origin.get("bidirectional"):
        raise RecipeError(f"{run} sees the future: it can teach a student, not be one")
    step_plans = step_plans or {int(count): tuple(sigmas) for count, sigmas in origin["step_plans"].items()}
    if steps is not None and steps not in step_plans:
        raise RecipeError(f"{run} has no plan for {steps} steps; it has some for {sorted(step_plans)}")
    transformer, autoencoder = load_transformer(run), load_autoencoder(autoencoder_run)
    if average is not None:
        other, share = average
        _origin(other, autoencoder_run)
        transformer = averaged(transformer, load_transformer(other), share)
    if decoder_run is not None:
        autoencoder = _decoding(autoencoder, load_autoencoder(decoder_run), decoder_run)
    side = autoencoder.config.latent_pixel
    width, height = transformer.config.width * side, transformer.config.height * side
    data = open_data(Path(origin["data"]) if "data" in origin else None, width, height, origin.get("driven_by", "keys"))
    speech = likeness = None
    if isinstance(data, TalkDataset):
        if speech_run is None:
            raise RecipeError(f"{run} is driven by speech: name the run of what hears (stage `speech`)")
        speech = load_speech(speech_run)
        identities = identities or {who: who for who in data.people}
        if unknown := sorted(set(identities) - set(data.people)):
            raise RecipeError(f"no videos of {unknown[0]}; there are some of {', '.join(data.people)}")
        clips = [clip for who in identities for clip in _at_rest(data.only(who))]
        likeness = _likeness(data, autoencoder) if pictures else None
    else:
        clips = _worth_seeing(data)
    starts = encode(autoencoder, clips, transformer.config)
    config = StudentConfig(
        name=name,
        fps=data.fps,
        width=width,
        height=height,
        keys=() if speech else data.keys,
        identities=tuple((identities or {}).values()),
        likeness=likeness,
        sway=sway,
        speech=speech.config if speech else None,
        step_plans=step_plans,
        steps=steps or origin["steps"],
        opening=tuple(origin.get("opening", ())),
        transformer=transformer.config,
        vae=autoencoder.config,
    )
    shown = torch.from_numpy(np.stack([clip.frames[0] for clip in clips])) if autoencoder.config.warp_dim else None
    write_student(out, config, transformer, autoencoder, starts.latents, starts.actions, card, speech, shown)
    ranges = measured_ranges(Student.from_pretrained(out))
    (out / RANGES).write_text(json.dumps(ranges, indent=1) + "\n")
