"""Compiled artefacts: a changed student never meets a stale one, a corrupt one is rebuilt."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from engines.openvino import OpenVINOEngine
from engines.protocol import StepRequest
from engines.store import ArtefactStore
from streamgen.student import Student


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path / "cache")
    assert store.get("a", "b") is None
    assert store.put(b"compiled", "a", "b")
    assert store.get("a", "b") == b"compiled"
    assert store.get("ab") is None
    assert store.get("a", "b", "") is None


def test_a_damaged_artefact_counts_as_none(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path)
    store.put(b"compiled", "a")
    path = store.path("a")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert store.get("a") is None
    assert not path.exists()


def test_a_disk_that_refuses_is_no_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert ArtefactStore(blocked / "cache").put(b"compiled", "a") is False


def test_the_oldest_go_when_the_store_is_full(tmp_path: Path) -> None:
    store = ArtefactStore(tmp_path, most_bytes=3000)
    for index in range(5):
        assert store.put(bytes(1000), str(index))
        os.utime(store.path(str(index)), (index, index))
    kept = [index for index in range(5) if store.get(str(index)) is not None]
    assert kept == [3, 4]


def test_engine_reuses_rebuilds_and_never_mixes(
    plain_student: Student, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "engines.openvino")
    store = ArtefactStore(tmp_path / "cache")

    def compiled() -> int:
        count = sum("compiled" in record.message and "in" in record.message for record in caplog.records)
        caplog.clear()
        return count

    def first_latents(student: Student) -> np.ndarray:
        engine = OpenVINOEngine(student, precision="fp32", store=store)
        engine.open("s", student.start(0))
        return engine.step([StepRequest("s", np.zeros((1, 5), np.float32), 2)])[0].latents

    fresh = first_latents(plain_student)
    assert compiled() == 3
    assert np.array_equal(first_latents(plain_student), fresh)
    assert compiled() == 0
    for path in store.root.iterdir():
        path.write_bytes(b"rubbish" * 20)
    assert np.array_equal(first_latents(plain_student), fresh)
    assert compiled() == 3
    # Other weights in the same place: another hash, so nothing of the old student is used.
    changed = tmp_path / "changed"
    shutil.copytree(plain_student.path, changed)
    weights = changed / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    for at in range(len(data) - 4000, len(data), 2):
        data[at + 1] ^= 0x80  # the sign of a bf16 value
    weights.write_bytes(bytes(data))
    other = Student.from_pretrained(changed)
    assert other.hash != plain_student.hash
    assert not np.array_equal(first_latents(other), fresh)
    assert compiled() == 3
