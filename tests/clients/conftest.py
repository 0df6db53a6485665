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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, WebSocket, sync_playwright

from server.bench_browser import BROWSER_FLAGS
from tests.clients.walking import DESKTOP, Open, Walk
from tests.server.conftest import avatar, serve, shared, student

__all__ = ["avatar", "serve", "shared", "student"]
ROOT = Path(__file__).parents[2]
READY_WITHIN_S = 90.0


@dataclass(frozen=True)
class Server:
    url: str
    pid: int

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
    """With the shipped world."""
    with served(tmp_path_factory.mktemp("server"), "world") as server:
        yield server


@contextmanager
def served(folder: Path, *students: str) -> Iterator[Server]:
    """A server on a free port of this machine, in a process of its own, as people start it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    output = folder / "output.txt"
    command = [sys.executable, "-c", "from server.cli import serve; serve()", "--port", str(port)]
    command += [part for name in students for part in ("--student", name)]
    # The browsers share the machine with the server, and what is seen in them is judged, not how many would fit.
    command += ["--max-load", "4"]
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
    server = Server(f"http://127.0.0.1:{port}", process.pid)
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


@contextmanager
def chromium_with(*flags: str) -> Iterator[Browser]:
    """Chromium with more flags than those of every test."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("the browser tests need Chromium: run `make chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=[*BROWSER_FLAGS, *flags])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, for one module: while Playwright's synchronous interface is open, no asyncio test can run here."""
    with chromium_with() as browser:
        yield browser


@pytest.fixture
def walk(browser: Browser, world_server: Any) -> Iterator[Open]:
    """Opens the page with a query; at the end its session is given back and nothing may have gone wrong unseen."""
    walks: list[Walk] = []

    def open_page(query: str = "", *, device: dict[str, Any] = DESKTOP, script: str = "") -> Walk:
        context = browser.new_context(**device)
        if script:
            context.add_init_script(script)
        walk = Walk(context.new_page(), context)
        walks.append(walk)
        walk.page.on("pageerror", lambda error: walk.complaints.append(str(error)))

        def said(message: ConsoleMessage) -> None:
            if message.type == "error":
                walk.complaints.append(f"{message.text} {message.location['url']}")

        walk.page.on("console", said)
        walk.page.on("request", lambda request: walk.requests.append(request.url))

        def opened(socket: WebSocket) -> None:
            walk.requests.append(socket.url.replace("ws:", "http:"))
            socket.on("framesent", lambda text: walk.sent.append(str(text)))

        walk.page.on("websocket", opened)
        walk.page.goto(f"{world_server.url}/{query}")
        return walk

    yield open_page
    for walk in walks:
        stored = walk.page.evaluate("sessionStorage.getItem('streamgen.session')")
        walk.context.close()
        if stored:
            session = json.loads(stored)
            world_server.call("DELETE", f"/v1/sessions/{session['id']}", token=session["token"])
