"""A real server with the student that comes with the project, and a real browser."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from server.settings import Settings
from tests.server.harness import LiveServer
from tests.server.synthetic import make_student

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "streamgen" / "students" / "world" / "model_index.json"
SYNTHETIC_STEP_S = 0.02
READY_WITHIN_S = 90.0
BROWSER_FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
]


@dataclass(frozen=True)
class Server:
    url: str

    def call(self, method: str, path: str, body: object = None, token: str | None = None) -> tuple[int, dict[str, Any]]:
        """Status and JSON of one HTTP request."""
        request = urllib.request.Request(self.url + path, method=method)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}")

    def ready(self) -> bool:
        try:
            return self.call("GET", "/readyz")[0] == 200
        except (OSError, ValueError):
            return False


@pytest.fixture(scope="session")
def world_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server on a free port of this machine; without a shipped student, with an engine that only paints numbers."""
    yield from (_shipped if SHIPPED.exists() else _synthetic)(tmp_path_factory.mktemp("server"))


def _synthetic(folder: Path) -> Iterator[Server]:
    live = LiveServer(make_student(folder), folder, Settings(max_sessions=4), step_s=SYNTHETIC_STEP_S).start()
    yield Server(live.url)
    live.stop()


def _shipped(folder: Path) -> Iterator[Server]:
    """In a process of its own, as people start it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(f"http://127.0.0.1:{port}")
    output = folder / "output.txt"
    command = [sys.executable, "-c", "from server.cli import serve; serve()", "--port", str(port), "--student", "world"]
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while not server.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the server did not get ready:\n{output.read_text()[-4000:]}")
            time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for one module: while Playwright's synchronous interface is open, no asyncio test can run here."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("the browser tests need Chromium: run `make chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=BROWSER_FLAGS)
        yield browser
        browser.close()
