"""The comparison of methods: one table of a toy teacher and of what a recipe makes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from streamgen.config import AutoencoderConfig
from streamgen.models.autoencoder import Autoencoder
from streamgen.models.loading import save_autoencoder, save_transformer
from tests.toy import TWO_STEPS, toy_recipe, toy_transformer, toy_transformer_config
from tests.training.commands import refusal, streamgen
from tests.training.test_judges import write_walk
from training.compare import _loaded
from training.package import write_origin

RECIPES = Path(__file__).parents[2] / "training" / "recipes" / "compare"

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def made(tmp_path: Path) -> tuple[str | Path, ...]:
    """A teacher whose first step is its history and an autoencoder, of random weights, and two of the recipes that
    come with it, of which one makes another history.
    """
    autoencoder, teacher, recipes = (tmp_path / name for name in ("autoencoder", "teacher", "recipes"))
    config = toy_transformer_config(residual=True, history_level=1.0)
    vae = AutoencoderConfig(
        latent_channels=config.in_channels, encoder_dims=(8, 8), decoder_dims=(8, 8), decoder_blocks=(1, 1)
    )
    save_autoencoder(Autoencoder(vae), autoencoder)
    save_transformer(toy_transformer(config), teacher)
    write_origin(teacher, toy_recipe(config, autoencoder=autoencoder, clip_length=16), TWO_STEPS, 2)
    recipes.mkdir()
    for name in ("causal_consistency", "flow_map"):
        shutil.copy(RECIPES / f"{name}.yaml", recipes)
    return "--recipes", recipes, "--teacher", teacher, "--autoencoder", autoencoder


def test_methods_are_compared(made: tuple[str | Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside their teacher; asked for longer rollouts, it judges those of the same students."""
    monkeypatch.setenv("STREAMGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("training.compare._ROUNDS", 1)  # that there is a time, not which
    short = "--minutes", "0.05", "--processes", "1", "--episodes", "1", "--seconds", "4", "--long", "5"
    where = "--runs", tmp_path / "runs", "--out", tmp_path / "out", "--engine", "torch"
    smaller = "precision=fp32", "step_plans={1: [1.0], 2: [1.0, 0.5]}", "judged_clips=2", "judged_frames=32"
    said = streamgen("compare", *made, *short, *where, *smaller)
    assert "Left out, since they make another history than this teacher's: flow_map" in said
    figures = json.loads((tmp_path / "out" / "compare.json").read_text())["students"]
    assert {name: sorted(student["counts"]) for name, student in figures.items()} == {
        "teacher": ["1", "2"],
        "causal_consistency": ["1", "2"],
    }
    student = figures["causal_consistency"]
    # The budget is time; a toy's steps are few and uneven.
    assert student["training_s"] > 0.5 and student["training_steps"] >= 1
    assert student["counts"]["2"]["frame_ms"] > 0 and student["counts"]["2"]["frechet"] > 0
    assert len((tmp_path / "out" / "compare.md").read_text().splitlines()) == 2 + 4
    assert (tmp_path / "out" / "compare.png").is_file()
    with Image.open(tmp_path / "out" / "rollouts.png") as picture:
        assert picture.height == 5 * 32  # the game's row, and that of each step count
    log = tmp_path / "runs" / "compare-causal_consistency" / "log.jsonl"
    steps = log.read_text().count('"step_s"')
    streamgen("compare", *made, *short, "--long", "6", *where, *smaller)
    assert log.read_text().count('"step_s"') == steps
    again = json.loads((tmp_path / "out" / "compare.json").read_text())["students"]
    assert again["teacher"]["judged"] == {"episodes": 1, "short_s": 4, "long_s": 6}
    assert again["teacher"]["counts"]["2"]["short"] == figures["teacher"]["counts"]["2"]["short"]
    assert again["teacher"]["counts"]["2"]["long"] != figures["teacher"]["counts"]["2"]["long"]
    said = refusal("compare", *made, *short, "--minutes", "7", *where)
    assert "has a comparison of 0.05 minutes by 1 processes" in said


def test_of_a_teacher_whose_first_step_is_its_history_those_that_keep_it_are_compared(tmp_path: Path) -> None:
    given = "teacher=nowhere", "autoencoder=nowhere"
    recipes = sorted(RECIPES.glob("*.yaml"))
    every, none = _loaded(recipes, 0.0, given)
    fitting, left_out = _loaded(recipes, 1.0, given)
    assert (list(every), none) == (recipes, [])
    assert left_out == ["diagonal", "flow_map"]
    assert list(fitting) == [path for path in recipes if path.stem not in left_out]


def test_a_teacher_of_noisy_histories_is_refused(made: tuple[str | Path, ...], tmp_path: Path) -> None:
    config = toy_transformer_config(residual=True, history_level=0.5)
    save_transformer(toy_transformer(config), tmp_path / "teacher")
    said = refusal("compare", *made, "--minutes", "0.05", "--out", tmp_path / "out")
    assert "leaves a history of noise level 0.5" in said and "history_level is 0 or 1" in said


def test_clips_that_are_too_short_to_judge_by_are_refused_before_anything_is_trained(
    made: tuple[str | Path, ...], tmp_path: Path
) -> None:
    (tmp_path / "walks").mkdir()
    write_walk(tmp_path / "walks" / "walk.mp4", frames=400)
    where = "--data", tmp_path / "walks", "--runs", tmp_path / "runs", "--out", tmp_path / "out"
    said = refusal("compare", *made, *where, "--minutes", "0.05", "--seconds", "4", "--long", "10")
    assert "clips of 56 frames are wanted" in said
    assert not (tmp_path / "runs").exists()
