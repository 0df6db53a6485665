"""`streamgen student check` passes what can be served and names what cannot."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from engines.check import check_student
from engines.cli import student as command
from streamgen.student import WEIGHTS, Student

CARD = "# A toy\n\n" + "It was trained on nothing and knows nothing. " * 10


@pytest.fixture(scope="module")
def sound(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(toy_folder, tmp_path_factory.mktemp("check") / "toy"))
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "toy"))


def test_a_sound_student_passes(sound: Path) -> None:
    findings = {finding.what: finding for finding in check_student(sound)}
    assert all(finding.ok for finding in findings.values()), findings
    assert list(findings) == [
        "configuration",
        "hash",
        "files",
        "starts",
        "card",
        "weights",
        "rollout, 1 steps",
        "rollout, 2 steps",
        "parity with torch",
    ]
    result = CliRunner().invoke(command, ["check", str(sound)])
    assert result.exit_code == 0
    assert "FAILED" not in result.output


@pytest.mark.parametrize("name", ["world", "avatar", "anybody"])
def test_a_shipped_student_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.check._BLOCKS", 10)
    findings = list(check_student(Student.from_pretrained(name).path))
    assert findings[-1].what == "parity with torch"
    assert all(finding.ok for finding in findings), findings


def test_without_torch_it_says_what_was_not_checked(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.check.find_spec", lambda name: None)
    findings = {finding.what: finding for finding in check_student(sound)}
    assert {what for what, finding in findings.items() if finding.ok is None} == {"weights", "parity with torch"}
    result = CliRunner().invoke(command, ["check", str(sound)])
    assert result.exit_code == 0
    assert "not checked  parity with torch: needs PyTorch" in result.output


def _pickle(folder: Path) -> None:
    (folder / "vae" / "weights.bin").write_bytes(b"\x80")


def _no_card(folder: Path) -> None:
    (folder / "README.md").write_text("# toy\n")


def _nan(folder: Path) -> None:
    path = folder / "transformer" / WEIGHTS
    weights = load_file(path)
    weights["head.head.bias"][0] = float("nan")
    save_file(weights, path)


def _no_graph(folder: Path) -> None:
    (folder / "step_2.onnx").unlink()


def _other_weights(folder: Path) -> None:
    """Weights of other shapes than the configuration and the graphs say."""
    path = folder / "transformer" / WEIGHTS
    weights = load_file(path)
    weights["head.head.bias"] = weights["head.head.bias"][:-1].clone()
    save_file(weights, path)


@pytest.mark.parametrize(
    ("damage", "what", "said"),
    [
        (_pickle, "files", "vae/weights.bin"),
        (_no_card, "card", "says too little"),
        (_nan, "weights", "head.head.bias has values that are not finite"),
        (_nan, "rollout, 1 steps", "has values that are not finite"),
        (_no_graph, "files", "step_2.onnx is missing"),
        (_other_weights, "weights", "head.head.bias"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, damage: Callable[[Path], None], what: str, said: str) -> None:
    damage(folder)
    finding = next(finding for finding in check_student(folder) if finding.what == what)
    assert finding.ok is False
    assert said in finding.detail


def test_no_student_at_all(tmp_path: Path) -> None:
    (finding,) = check_student(tmp_path)
    assert finding.ok is False
    assert "no student at" in finding.detail
    assert CliRunner().invoke(command, ["check", str(tmp_path)]).exit_code == 1
