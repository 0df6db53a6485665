"""What a student would reach on a GPU, on paper."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from engines.cli import plan as command
from engines.plan import CARDS, LAYOUTS, Card, plan, planned
from streamgen.student import WEIGHTS, Student
from streamgen.work import frame_flops


def test_a_student_s_figures_follow_from_its_work_and_the_card() -> None:
    """Of the avatar by hand: all of it is limited by the one term, where the other costs nothing."""
    avatar = Student.from_pretrained("avatar").config
    flops, endless = frame_flops(avatar, 1), 1e12
    computes = plan(planned("avatar"), Card("sm_00", 1.0, 24, endless))
    (first, *_, last) = computes["rows"]
    assert first["block_ms"] == pytest.approx(1e3 * flops / 1e12, rel=1e-3)
    assert last["fps_total"] == pytest.approx(first["fps_total"], rel=1e-2) and last["limit"] == "operations"
    assert computes["rows_at_that"] == int(1e12 / flops / 25)
    assert computes["limit"] == "operations"
    moves = plan(planned("avatar"), Card("sm_00", endless, 24, 1.0))
    block = moves["block"]
    megabytes = block["weight_mb"] + block["activation_mb_a_row"] + block["cache_mb_a_row"]
    assert moves["rows"][0]["block_ms"] == pytest.approx(megabytes, rel=1e-3)  # a megabyte a millisecond
    assert moves["limit"] == "bandwidth"
    # Weights are read once for all rows.
    assert moves["rows"][1]["block_ms"] == pytest.approx(2 * megabytes - block["weight_mb"], rel=1e-3)
    # As stored, in bf16: all weights but those of the encoder, which no block needs.
    folder = Student.from_pretrained("avatar").path
    stored = sum((folder / part / WEIGHTS).stat().st_size for part in ("transformer", "vae"))
    assert 0.7 * stored < 1e6 * moves["memory"]["weights_mb"] < stored


def test_two_steps_cost_more_than_one_and_less_than_two() -> None:
    one, two = (plan(planned("wan-1.3b", steps), CARDS["rtx-4090"])["rows"][0]["block_ms"] for steps in (1, 2))
    assert one < two < 2 * one


@pytest.mark.parametrize(("layout", "parameters"), [("wan-1.3b", 1.42e9), ("wan-14b", 14.3e9)])
def test_public_layouts(layout: str, parameters: float) -> None:
    figures = plan(planned(layout), CARDS["b200"])
    assert figures["memory"]["weights_mb"] * 1e6 / 2 == pytest.approx(parameters, rel=0.01)
    assert figures["limit"] == "operations" and figures["memory"]["rows"] >= 1
    config = planned(layout).transformer
    raw_and_both = 2 * (3 + 18 - 3) + 3
    cache = 2 * raw_and_both * 1560 * config.dim * config.num_layers / 1e6
    assert figures["memory"]["row_mb"] == pytest.approx(cache, rel=0.06)


def test_the_command(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    done = CliRunner().invoke(command, ["--student", "avatar", "--gpu", "rtx-4090", "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert "on paper" in done.output and "rows get 25 latent frames a second" in done.output
    assert json.loads(file.read_text())["card"]["module"] == "sm_89"
    full = CliRunner().invoke(command, ["--student", "wan-14b", "--gpu", "rtx-4090"])
    assert full.exit_code == 0 and "Not even one row fits." in full.output
    for wrong, why in (
        (["--student", "world", "--gpu", "voodoo"], "'rtx-4090'"),
        (["--student", "world", "--gpu", "l4", "--steps", "7"], "no plan for 7 steps; it has some for [1, 2, 4]"),
        (["--student", "nobody", "--gpu", "l4"], "nobody"),
    ):
        refused = CliRunner().invoke(command, wrong)
        assert refused.exit_code != 0 and why in refused.output
    assert sorted(LAYOUTS) == ["wan-1.3b", "wan-14b"]
