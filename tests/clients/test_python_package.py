"""What the Python client's package says about itself is true: examples run, the wheel is whole, it needs little."""

from __future__ import annotations

import asyncio
import doctest
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import streamgen_client
from tests.server.harness import LiveServer

PACKAGE = Path(__file__).parents[2] / "clients" / "python"
MODULES = [f"streamgen_client.{module.name}" for module in pkgutil.iter_modules(streamgen_client.__path__)]


@pytest.mark.parametrize("name", ["session", "client", "gym"])
def test_examples_in_docstrings(shared: LiveServer, name: str) -> None:
    module = importlib.import_module(f"streamgen_client.{name}")
    results = doctest.testmod(module, extraglobs={"url": shared.url, "asyncio": asyncio}, raise_on_error=True)
    assert results.attempted > 0


def test_every_example_is_among_those_that_run() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    with_examples = [
        name for name in MODULES if any(test.examples for test in finder.find(importlib.import_module(name)))
    ]
    assert with_examples == ["streamgen_client.client", "streamgen_client.gym", "streamgen_client.session"]


def test_examples_in_the_readme(shared: LiveServer, capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        assert "http://127.0.0.1:8000" in example
        exec(example.replace("http://127.0.0.1:8000", shared.url), {})
    assert "(96, 128, 3)" in capsys.readouterr().out


def test_the_wheel_is_whole(tmp_path: Path) -> None:
    tree = shutil.copytree(
        PACKAGE, tmp_path / "tree", ignore=shutil.ignore_patterns("*.egg-info", "build", "__pycache__")
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, *offline, "--wheel-dir", tmp_path, tree], check=True, timeout=60)
    (built,) = tmp_path.glob("streamgen_client-*.whl")
    names = {name for name in zipfile.ZipFile(built).namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert names == {
        "streamgen_client/py.typed",
        "streamgen_client/__init__.py",
        *(name.replace(".", "/") + ".py" for name in MODULES),
    }


def test_importing_it_needs_nothing_of_the_project_and_no_gymnasium() -> None:
    code = """
import sys
import streamgen_client, streamgen_client.cli
others = {"streamgen", "engines", "server", "training", "clients", "gymnasium", "torch", "fastapi", "pydantic", "PIL"}
print(sorted(others & {name.partition(".")[0] for name in sys.modules}))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"
