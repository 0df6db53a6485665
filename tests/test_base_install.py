"""Serving works with the base dependencies alone: no torch, no training, nothing that only the tests need."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
SERVING = {
    "streamgen": ["actions", "cache", "cli", "config", "noise", "state", "student"],
    "engines": ["check", "cli", "openvino", "protocol", "select"],
    "server": sorted(path.stem for path in (ROOT / "server").glob("*.py")),
}

# Makes the modules named first look as if they were not installed, then runs the code that follows.
HIDE = """
import json, sys
hidden = set(json.loads(sys.argv.pop(1)))
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r} (hidden by the test)", name=name)
sys.meta_path.insert(0, Hide())
"""


def closure(*extras: str) -> set[str]:
    """Names of the distributions that installing streamgen with these extras brings, itself left out."""
    found: set[tuple[str, str]] = set()
    todo = [("streamgen", extra) for extra in ("", *extras)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for line in distribution(name).requires or ():
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(need.name), e) for e in ("", *need.extras)]
    return {name for name, _ in found} - {"streamgen"}


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / file).read_text().splitlines()
    pinned = (line.split("==") for line in lines if re.match(r"\w", line))
    return {canonicalize_name(name): version for name, version in pinned}


def without_extras(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process that sees the base dependencies only."""
    base = closure() | {"streamgen"}
    hidden = [
        module
        for module, names in packages_distributions().items()
        if base.isdisjoint(canonicalize_name(name) for name in names)
    ]
    assert {"torch", "onnx", "vizdoom", "pytest"} <= set(hidden)
    command = [sys.executable, "-c", HIDE + code, json.dumps(hidden), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("package", SERVING)
def test_serving_modules_import_without_extras(package: str) -> None:
    imports = "".join(f"import {package}.{module}\n" for module in SERVING[package])
    result = without_extras(
        imports + "assert not {'torch', 'openvino_telemetry.main', 'opentelemetry.sdk'} & set(sys.modules)"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["serve", "--help"],
        ["key", "--help"],
        ["generate", "--help"],
        ["replay", "--help"],
        ["bench", "--help"],
    ],
)
def test_commands_explain_themselves_without_extras(arguments: list[str]) -> None:
    result = without_extras("from streamgen.cli import main\nmain(prog_name='streamgen')", *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Usage: streamgen")


def test_constraints_pin_everything_that_is_installed() -> None:
    base, dev, tensorrt = pins("base.txt"), pins("dev.txt"), pins("tensorrt.txt")
    assert closure("speech") <= base.keys()
    assert closure("tensorrt") <= base.keys() | tensorrt.keys()
    assert closure("train", "dev") <= base.keys() | dev.keys() | tensorrt.keys()
    assert base.keys().isdisjoint(dev.keys() | tensorrt.keys()) and dev.keys().isdisjoint(tensorrt.keys())
    assert dev["torch"] == "2.13.0"
