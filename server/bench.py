"""`streamgen bench`: how fast an engine is, and what a person in a browser gets of it."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from engines.bench import bench as bench_engine
from engines.protocol import EngineError
from engines.select import ENGINES
from server.settings import ENV_PREFIX
from streamgen.student import Student, StudentError

_READY_S = 60.0
_SETTLE_S = 2.0
_TAP_EVERY_S = 0.7
BROWSER_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
)


@click.command()
@click.option("--student", default="world", help="Shipped student or folder.")
@click.option("--engine", type=click.Choice(ENGINES), default="auto")
@click.option("--streams", type=click.IntRange(1, 64), default=1, help="Streams on the engine, stepped in turn.")
@click.option("--seconds", type=click.FloatRange(min=0.5), default=10.0)
@click.option("--steps", type=click.IntRange(1), default=None, help="Denoising steps; default: the student's own.")
@click.option("--browser", is_flag=True, help="Also start a server and play in headless Chromium (extra `dev`).")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="File for the figures.")
def bench(
    student: str, engine: str, streams: int, seconds: float, steps: int | None, browser: bool, json_file: Path | None
) -> None:
    """Measure a student on an engine; all figures come from this run on this machine."""
    try:
        opened = Student.from_pretrained(student)
        if steps is not None and steps not in opened.config.step_plans:
            plans = sorted(opened.config.step_plans)
            raise click.ClickException(f"{steps} steps; student {opened.config.name} has plans for {plans}")
        if json_file is not None:
            json_file.parent.mkdir(parents=True, exist_ok=True)
        figures = bench_engine(opened, engine, streams, seconds, steps)
    except (EngineError, StudentError) as error:
        raise click.ClickException(str(error)) from error
    if browser:
        figures["browser"] = bench_browser(opened, engine, seconds)
    text = json.dumps(figures, indent=2)
    if json_file is not None:
        json_file.write_text(text + "\n")
    click.echo(text)


def bench_browser(student: Student, engine: str, seconds: float) -> dict[str, Any]:
    """Play in real Chromium against a real server for `seconds`, tapping keys; figures are the browser's own."""
    try:
        import psutil
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise click.ClickException(f"--browser needs the extra `dev`: {error}") from error
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise click.ClickException("--browser needs Chromium: install it, for example with `make chromium`")
    with _server(student, engine) as (process, url), sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium, args=BROWSER_FLAGS)
        page = chrome.new_page(viewport={"width": 1280, "height": 800})
        page.goto(url)
        page.get_by_role("button", name="Walk in").click()
        deadline = time.monotonic() + _READY_S
        while not (now := page.evaluate("streamgen.stats()"))["framesDecoded"] or now["state"] != "playing":
            if time.monotonic() > deadline:
                raise click.ClickException(f"the page did not begin to play: {now}")
            page.wait_for_timeout(100)
        page.wait_for_timeout(_SETTLE_S * 1000)
        server = psutil.Process(process.pid)
        family = {
            "server": [server],
            "worker": [child for child in server.children() if "spawn_main" in " ".join(child.cmdline())],
        }
        before = page.evaluate("streamgen.stats()")
        cpu_before = {name: _cpu_s(members) for name, members in family.items()}
        start = time.perf_counter()
        keys = [key for key in ("ArrowLeft", "KeyW", "ArrowRight", "Space") if key in student.config.keys]
        for index in range(max(1, round(seconds / _TAP_EVERY_S))):
            page.keyboard.press(keys[index % len(keys)], delay=120)
            page.wait_for_timeout(_TAP_EVERY_S * 1000 - 120)
        after = page.evaluate("streamgen.stats()")
        elapsed = time.perf_counter() - start
        cpu = {name: round((_cpu_s(members) - cpu_before[name]) / elapsed, 3) for name, members in family.items()}
        chrome.close()
    latency = after["inputToPhotonMs"]
    if not latency:
        raise click.ClickException("no key press came back in a picture; is the machine too busy to play?")
    return {
        "seconds": round(elapsed, 1),
        "transport": after["transport"],
        "target_fps": student.config.fps,
        "fps": round((after["framesDecoded"] - before["framesDecoded"]) / elapsed, 2),
        "freezes": after["freezes"] - before["freezes"],
        "first_frame_ms": round(after["firstFrameMs"]),
        "input_to_photon_ms": {
            "p50": round(float(np.percentile(latency, 50)), 1),
            "p99": round(float(np.percentile(latency, 99)), 1),
            "inputs": len(latency),
        },
        "cpu_cores": cpu,
    }


def _cpu_s(processes: list[Any]) -> float:
    return float(sum(times.user + times.system for times in (process.cpu_times() for process in processes)))


@contextmanager
def _server(student: Student, engine: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`streamgen serve` on a free port, ready."""
    command = [sys.executable, "-c", "from server.cli import serve; serve()", "--port", "0", "--engine", engine]
    # With the settings of a fresh installation, whatever this shell has set for a server of its own.
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(ENV_PREFIX)}
    process = subprocess.Popen(
        [*command, "--student", str(student.path)], stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        lines: queue.Queue[str] = queue.Queue()
        stream = process.stderr
        assert stream is not None
        # A thread reads the server's log to its end, so that the pipe never fills.
        threading.Thread(target=deque, args=(map(lines.put, stream), 0), daemon=True).start()
        deadline = time.monotonic() + _READY_S
        url = None
        while url is None:
            try:
                line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise click.ClickException("the server did not start") from None
            if match := re.search(r"http://\S+", line):
                url = match.group()
        _until_ready(url, deadline)
        yield process, url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_ready(url: str, deadline: float) -> None:
    import urllib.error
    import urllib.request

    while True:
        try:
            with urllib.request.urlopen(f"{url}readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise click.ClickException(f"the server did not get ready: {error}") from error
            time.sleep(0.1)
