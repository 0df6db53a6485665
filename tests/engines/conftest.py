"""One toy student of each cache policy for the engines' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from streamgen.student import Student
from tests.conftest import shared_folder
from tests.toy import WITH_ACTORS, toy_student

WrittenOnce = Callable[[str, Callable[[Path], Path]], Path]


@pytest.fixture(scope="session")
def plain_student(toy_folder: Path) -> Student:
    """Sink 0, one frame a block, as the world student."""
    return Student.from_pretrained(toy_folder)


@pytest.fixture(scope="session")
def sink_student(written_once: WrittenOnce) -> Student:
    """Sink 2, two frames a block, with a pose and actors."""

    def write(folder: Path) -> Path:
        return toy_student(folder, sink=2, block_size=2, **WITH_ACTORS)

    return Student.from_pretrained(written_once("sink", write))


@pytest.fixture(scope="session")
def noisy_student(written_once: WrittenOnce) -> Student:
    """Without a commit: its history is what the last of two or three steps made."""

    def write(folder: Path) -> Path:
        return toy_student(folder, step_plans={2: (1.0, 0.5), 3: (1.0, 0.75, 0.5)}, history_level=0.5, sink=2)

    return Student.from_pretrained(written_once("noisy", write))


@pytest.fixture(scope="session")
def talker(talker_folder: Path) -> Student:
    """Driven by speech, with an autoencoder of three levels."""
    return Student.from_pretrained(talker_folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Compiled artefacts of a test session, of all its processes, stay out of the user's cache."""
    root = shared_folder(tmp_path_factory) / "artefacts"
    monkeypatch.setenv("STREAMGEN_CACHE", str(root))
    return root
