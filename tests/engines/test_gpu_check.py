"""What `make gpu-check` finds on a machine without a GPU, and that it finds what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from engines.batches import Batches
from engines.gpu_check import main
from engines.kernels.measure import measure
from engines.protocol import StepResult
from streamgen.student import Student


def _run(student: Student, file: Path) -> tuple[int, dict[str, dict[str, object]], list[str]]:
    arguments = ["--student", str(student.path), "--frames", "16", "--seconds", "0.1", "--json", str(file)]
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    report = json.loads(file.read_text())
    assert all(found["what"] in result.output for found in report["findings"])
    return result.exit_code, {found["what"]: found for found in report["findings"]}, report["left_out"]


def test_engines_of_a_cpu_are_proved_and_the_rest_is_named(talker: Student, tmp_path: Path) -> None:
    code, found, left_out = _run(talker, tmp_path / "check.json")
    assert code == 0
    parity = {what: each for what, each in found.items() if what.startswith("parity")}
    assert {what.split(" on ")[1] for what in parity} == {"openvino in fp32", "onnxruntime in fp32"}
    assert all(each["ok"] for each in parity.values())
    name = talker.config.name
    speed = found[f"speed: {name} on onnxruntime in fp32, 4 rows"]["figures"]
    assert isinstance(speed, dict) and speed["fps"] > speed["fps a row"] > 0 and speed["first frame s"] > 0
    assert "one row at a time" in str(found[f"speed: {name} on openvino in fp32, 4 rows"])
    assert any("openvino in int8" in each for each in left_out)
    assert any("no GPU" in each and "tensorrt" in each for each in left_out)
    assert any(each.startswith("Triton kernels") for each in left_out)


@pytest.mark.parametrize("factor", [1.1, np.nan])
def test_an_engine_that_is_wrong_fails_the_check(
    factor: float, plain_student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Batches.step

    def off(self: Batches, requests: object) -> list[StepResult]:
        return [replace(each, latents=each.latents * np.float16(factor)) for each in step(self, requests)]  # type: ignore[arg-type]

    monkeypatch.setattr(Batches, "step", off)
    code, found, _ = _run(plain_student, tmp_path / "check.json")
    assert code == 1
    assert [what for what, each in found.items() if each["ok"] is False] == ["parity: toy on onnxruntime in fp32"]


def test_kernels_are_measured_against_plain_torch() -> None:
    """On a CPU, where the operators are plain torch: what is compared, not how fast it is."""
    found = list(measure({"small": (2, 2, 8, 2, 24, 5)}, "cpu"))
    assert {name.partition(",")[0] for name, _, _ in found} == {"ring_attention", "write_block", "gate_modulate"}
    assert all(ok and figures["apart"] < 0.03 and figures["ms"] > 0 for _, ok, figures in found)
