"""What tests of several folders share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all processes of a test session."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def written_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Path]], Path]:
    """A student's folder by a name, written by whichever process of the session needs it first: exporting takes long.
    Whoever changes it copies it first.
    """
    root = shared_folder(tmp_path_factory)

    def get(name: str, write: Callable[[Path], Path]) -> Path:
        folder = root / "students" / name
        folder.parent.mkdir(exist_ok=True)
        with FileLock(f"{folder}.lock"):
            return folder if folder.exists() else write(tmp_path_factory.mktemp("student") / name).rename(folder)

    return get


@pytest.fixture(scope="session")
def toy_folder(written_once: Callable[[str, Callable[[Path], Path]], Path]) -> Path:
    """The toy student as it is."""
    from tests.toy import toy_student  # PyTorch, which most tests do without

    return written_once("toy", toy_student)


@pytest.fixture(scope="session")
def talker_folder(written_once: Callable[[str, Callable[[Path], Path]], Path]) -> Path:
    """The toy student that speech drives, as it is."""
    from tests.toy import toy_talker

    return written_once("talker", toy_talker)
