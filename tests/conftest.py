"""What tests of several folders share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy student as it is, written once, since exporting takes long; whoever changes it copies it first."""
    from tests.toy import toy_student  # PyTorch, which most tests do without

    return toy_student(tmp_path_factory.mktemp("students") / "toy")
