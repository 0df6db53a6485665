"""A wheel built from the tree holds what an installed streamgen needs, and works away from the clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ["clients", "engines", "server", "streamgen", "training"]
NOT_SHIPPED = shutil.ignore_patterns("node_modules", "__pycache__")


def files(folder: str, *patterns: str) -> Iterator[str]:
    """Paths below a folder of the repository, as they stand in the wheel."""
    for pattern in patterns:
        for path in (ROOT / folder).rglob(pattern):
            if path.is_file() and not {"node_modules", "__pycache__"} & set(path.parts):
                yield path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=NOT_SHIPPED)
    for file in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, *offline, "--wheel-dir", tree / "dist", tree], check=True, timeout=60)
    (built,) = (tree / "dist").glob("streamgen-*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_wheel_holds_every_module(names: set[str]) -> None:
    modules = {name for package in PACKAGES if package != "clients" for name in files(package, "*.py")}
    assert {"server/cli.py", "engines/cli.py", "training/cli.py", "streamgen/cli.py"} <= modules
    assert modules | {"clients/__init__.py"} <= names


def test_wheel_holds_page_students_and_recipes(names: set[str]) -> None:
    assert {"clients/web/index.html", "streamgen/students/world/model_index.json"} <= names
    assert any(name.startswith("training/recipes/") and name.endswith(".yaml") for name in names)
    assert set(files("clients/web", "*.html", "*.css", "*.svg")) <= names
    assert {name for name in files("clients/web", "*.js") if not name.endswith(".test.js")} <= names
    assert set(files("streamgen/students", "*")) <= names
    assert set(files("training/recipes", "*")) <= names


def test_wheel_holds_nothing_else(names: set[str]) -> None:
    assert {name.split("/")[0] for name in names} == {*PACKAGES, "streamgen-0.1.0.dist-info"}
    clutter = ("tests/", "test_", ".test.", "node_modules", "package-lock", "tsconfig", "__pycache__", "clients/python")
    assert not [name for name in names if any(word in name for word in clutter)]


def test_installed_wheel_works_outside_the_clone(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)  # what installing a pure Python wheel does
    code = """
import importlib.resources, pathlib, sys
import clients, engines, server, streamgen, streamgen.cli
site = pathlib.Path(sys.argv.pop(1))
assert all(pathlib.Path(m.__file__).is_relative_to(site) for m in (clients, engines, server, streamgen)), streamgen
assert (importlib.resources.files("clients") / "web" / "index.html").is_file()
streamgen.cli.main(prog_name="streamgen")
"""
    result = subprocess.run(
        [sys.executable, "-c", code, site, "serve", "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Usage: streamgen serve")
