"""Makes a student folder from training runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from streamgen.config import LATENT_PIXEL, StudentConfig, TransformerConfig
from streamgen.models.export import write_student
from streamgen.models.loading import load_autoencoder, load_transformer
from streamgen.models.transformer import CausalVideoTransformer
from training.clips import encode
from training.data import ClipData, open_data, recorded
from training.recipe import BaseRecipe, RecipeError, StudentRecipe, weights_hash

_STARTS = 12
_START_FRAMES = 24
_START_SEED = 2**30
"""Recorded for starts alone: no training run of the recipes uses this seed."""


ORIGIN = "origin.json"


def data_for(recipe: BaseRecipe, config: TransformerConfig) -> ClipData:
    """The recipe's clips at the size of the student's frames. Raises RecipeError when their keys do not fit it."""
    data = open_data(recipe.data, config.width * LATENT_PIXEL, config.height * LATENT_PIXEL)
    if config.action_dim != len(data.keys):
        raise RecipeError(
            f"model.action_dim is {config.action_dim}, but the clips have {len(data.keys)} keys: {data.keys}"
        )
    return data


def write_origin(run: Path, recipe: StudentRecipe, step_plans: dict[int, tuple[float, ...]], steps: int) -> None:
    """Note in a run folder what its weights belong to: the autoencoder whose latents they know, the clips, the step
    plans, and how many steps to serve with.
    """
    origin = {"autoencoder": weights_hash(recipe.autoencoder, "vae"), "step_plans": step_plans, "steps": steps}
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


def package(
    run: Path, autoencoder_run: Path, out: Path, card: str, name: str, average: tuple[Path, float] | None = None
) -> None:
    """Write a student: transformer of `run`, autoencoder, step plans, and starts from real clips.

    average: another run, and the share of its weights in the student's. Raises RecipeError when a run is not finished
    or was trained on another autoencoder, VideoDataError when the videos that it was trained on are gone.
    """
    origin = _origin(run, autoencoder_run)
    step_plans = {int(count): tuple(sigmas) for count, sigmas in origin["step_plans"].items()}
    transformer, autoencoder = load_transformer(run), load_autoencoder(autoencoder_run)
    if average is not None:
        other, share = average
        _origin(other, autoencoder_run)
        transformer = averaged(transformer, load_transformer(other), share)
    width, height = transformer.config.width * LATENT_PIXEL, transformer.config.height * LATENT_PIXEL
    data = open_data(Path(origin["data"]) if "data" in origin else None, width, height)
    starts = encode(autoencoder, list(recorded(data, _START_SEED, range(_STARTS), _START_FRAMES)), transformer.config)
    config = StudentConfig(
        name=name,
        fps=data.fps,
        width=width,
        height=height,
        keys=data.keys,
        step_plans=step_plans,
        steps=origin["steps"],
        transformer=transformer.config,
        vae=autoencoder.config,
    )
    write_student(out, config, transformer, autoencoder, starts.latents, starts.actions, card)
