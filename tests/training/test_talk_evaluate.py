"""The judge of faces, and what it says of an avatar."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from streamgen.face import SPEECH
from tests.training.talking import write_talk
from training.cli import evaluate
from training.recipe import FaceJudgeRecipe
from training.stages import build_stage
from training.talk import evaluate as judging
from training.talk.judge import SAID, FaceJudge, load_face_judge, opening, save_face_judge


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("talk")
    for number in (1, 2, 20, 21):
        write_talk(path, f"anna_{number:04d}", frames=100, seed=number)
    return path


def test_a_late_picture_is_told_by_how_much() -> None:
    rng = np.random.default_rng(0)
    truth = [np.convolve(rng.standard_normal(300), np.ones(4) / 4, "same").astype(np.float32) for _ in range(3)]
    for late in (-2, 0, 3):
        said = [np.roll(curve, late) for curve in truth]
        assert judging.lag_ms(said, truth, 25.0) == pytest.approx(40.0 * late, abs=4)
    between = [(curve + np.roll(curve, 1)) / 2 for curve in truth]
    assert judging.lag_ms(between, truth, 25.0) == pytest.approx(20, abs=6)


def test_true_curves_agree_with_themselves_and_shuffled_ones_do_not() -> None:
    rng = np.random.default_rng(1)
    truth = []
    for _ in range(4):
        curves = np.zeros((250, len(SAID)), np.float32)
        curves[:, 0] = 3 * np.abs(np.convolve(rng.standard_normal(250), np.ones(5) / 3, "same"))
        for at in range(20, 200, 30):  # a closure of the lips
            curves[at : at + 3, 0] = 0.4
            curves[at : at + 3, list(SPEECH).index("mouthPress")] = 3.0
        curves[210:] = 0
        truth.append(curves)
    figures = judging._agreement(truth, truth, 25.0)
    assert figures["correlation"] == pytest.approx(1) and figures["lag_ms"] == pytest.approx(0, abs=1)
    assert figures["closures"] == 1 and figures["open_vowels"] == 1 and figures["still_in_silence"] == 1
    frozen = [np.zeros_like(curves) + curves.mean(0) + 1e-3 * rng.standard_normal(curves.shape) for curves in truth]
    dumb = judging._agreement([curves.astype(np.float32) for curves in frozen], truth, 25.0)
    assert abs(dumb["correlation"]) < 0.2 and dumb["closures"] + dumb["open_vowels"] < 1.5
    openings = [opening(curves) for curves in truth]
    assert abs(judging._correlation(openings, judging._shuffled(openings))) < 0.5


def test_blinks_are_counted() -> None:
    curves = np.zeros((750, len(SAID)), np.float32)
    for at in range(10, 740, 73):
        curves[at : at + 4, -1] = 4.0
    assert judging._blinks([curves], 25.0) == pytest.approx(10 / 0.5)


def test_a_turned_head_is_still_whose_it_is() -> None:
    """Nearest to the same person turned as far, not to whoever looks ahead as it does on average."""
    across = np.arange(64)[None, :, None]

    def faces(colour: int, turns: list[int]) -> np.ndarray:
        disc = [np.where(abs(across - 32 - turn) < 12, colour, 60) for turn in turns]
        return np.stack([np.broadcast_to(each, (32, 64, 3)) for each in disc]).astype(np.uint8)

    first = [faces(200, [0, 0, 0, 16]), faces(170, [0, 8, 12, 16]), faces(200, [0, 2, 0, -2])]
    known, people = [judging._small(each) for each in first], [0, 1, 0]
    for colour, who in ((200, 0), (170, 1)):
        for turns in ([0, 0, 1], [16, 15, 17]):
            assert judging._like(judging._small(faces(colour, turns)), known, people) == who
    # By their means the turned head would be the other one.
    assert judging._nearest([faces(200, [16, 15, 17]).mean(0)], [each.mean(0) for each in first]) == [1]


def test_the_judge_learns_from_faces_and_is_kept(folder: Path, tmp_path: Path) -> None:
    recipe = FaceJudgeRecipe(
        stage="face_judge", name="judge", data=folder, steps=2, learning_rate=1e-3, warmup=1, frames=12,
        width=64, height=64,
    )  # fmt: skip
    stage = build_stage(recipe)
    batch = stage.batch([], 0)
    assert [tuple(part.shape) for part in batch] == [(12, 3, 48, 64), (12, 3, 32, 64), (12, len(SAID))]
    judge = stage.model
    assert isinstance(judge, FaceJudge)
    figures = stage.evaluate(judge, tmp_path / "sheet.png")
    assert set(figures) == {"opening", "opening_error", "blink"}
    stage.finish(judge, tmp_path)
    frames = stage.data.recorder(1).record(12, 0).frames
    assert np.array_equal(load_face_judge(tmp_path).curves_of(frames), judge.curves_of(frames))


def test_an_avatar_is_judged(folder: Path, talker_folder: Path, tmp_path: Path) -> None:
    save_face_judge(FaceJudge(), tmp_path / "judge")
    options = [
        "--student",
        str(talker_folder),
        "--data",
        str(folder),
        "--judges",
        str(tmp_path / "judge"),
        "--seconds",
        "12",
        "--rollouts",
        "2",
    ]
    options += ["--speech", str(folder), "--strangers", str(folder), "--json", str(tmp_path / "out.json")]
    result = CliRunner().invoke(evaluate, options)
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "out.json").read_text())
    assert {"copy_last", "autoencoder", "steps_1", "steps_1_other_curves"} < set(figures["teacher_forced"])
    assert figures["lips"]["videos"] == 2 and -1 <= figures["lips"]["student"]["correlation"] <= 1
    drift = figures["drift"]
    assert drift.keys() == {"talks", "10 s", "real"} and drift["talks"] == 2
    # Real frames get brighter by two grey levels each.
    assert drift["real"]["pairs"] == 2 and drift["real"]["colour"] == pytest.approx(100, abs=8)
    assert drift["10 s"]["detail"] > 0 and drift["10 s"]["themselves"] in range(3)
    assert figures["real_speech"]["recordings"] == 4
    strangers = figures["strangers"]
    assert (strangers["people"], strangers["refused"]) == (1, 0) and 0 <= strangers["recognised"] <= 1
    assert -1 <= strangers["student"]["correlation"] <= 1
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "next.png", "talk_0.png", "talk_1.png", "lips.png", "drift.png", "strangers.png",
    }  # fmt: skip


def test_one_that_takes_no_pictures_is_judged_without_strangers(
    folder: Path, talker_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless they are asked for: the shipped avatar was refused by the command on its own card."""
    student = tmp_path / "avatar"
    shutil.copytree(talker_folder, student)
    index = json.loads((student / "model_index.json").read_text())
    index["student"]["likeness"] = None
    (student / "model_index.json").write_text(json.dumps(index))
    save_face_judge(FaceJudge(), tmp_path / "judge")
    for part in ("_teacher_forced", "_lips", "_drift"):
        monkeypatch.setattr(judging, part, lambda *_: {})
    options = ["--student", student, "--data", folder, "--judges", tmp_path / "judge", "--json", tmp_path / "out.json"]
    result = CliRunner().invoke(evaluate, list(map(str, options)))
    assert result.exit_code == 0, result.output
    assert "strangers" not in json.loads((tmp_path / "out.json").read_text())
    result = CliRunner().invoke(evaluate, [*map(str, options), "--strangers", str(folder)])
    assert result.exit_code == 1 and "leave out the strangers" in result.output


def test_a_folder_without_a_judge_is_refused(folder: Path, talker_folder: Path, tmp_path: Path) -> None:
    command = ["--student", str(talker_folder), "--json", str(tmp_path / "out.json")]
    result = CliRunner().invoke(evaluate, [*command, "--data", str(folder), "--judges", str(tmp_path)])
    assert result.exit_code == 1 and "no judge of faces" in result.output


def test_a_student_of_keys_is_no_avatar(folder: Path, toy_folder: Path, tmp_path: Path) -> None:
    from streamgen.student import Student
    from training.recipe import RecipeError
    from training.talk.dataset import TalkDataset

    student = Student.from_pretrained(toy_folder)
    with pytest.raises(RecipeError, match="driven by keys"):
        judging.evaluate(student, TalkDataset(folder, 64, 64), FaceJudge(), tmp_path)
