"""One toy student of each cache policy for the engines' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamgen.student import Student
from tests.toy import WITH_POSE, toy_student, toy_talker


@pytest.fixture(scope="session")
def plain_student(toy_folder: Path) -> Student:
    """Sink 0, one frame a block, as the world student."""
    return Student.from_pretrained(toy_folder)


@pytest.fixture(scope="session")
def sink_student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """Sink 2, two frames a block, with a pose."""
    folder = tmp_path_factory.mktemp("students") / "sink"
    return Student.from_pretrained(toy_student(folder, sink=2, block_size=2, **WITH_POSE))


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Student:
    """Driven by speech, with an autoencoder of three levels."""
    return Student.from_pretrained(toy_talker(tmp_path_factory.mktemp("students") / "talker"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Compiled artefacts of a test session stay out of the user's cache."""
    root = tmp_path_factory.getbasetemp() / "artefacts"
    monkeypatch.setenv("STREAMGEN_CACHE", str(root))
    return root
