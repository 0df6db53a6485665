"""`streamgen bench`: how fast an engine is, what a person in a browser gets of it, and what many people get."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from engines.bench import bench as bench_engine
from engines.protocol import EngineError
from engines.select import ENGINES
from server.bench_load import bench_load, table
from server.bench_server import serving
from streamgen.student import Student, StudentError

_READY_S = 60.0
_SETTLE_S = 2.0
_TAP_EVERY_S = 0.7
_MOST_VIEWERS = 64
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


def _counts(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    counts = text.split(",")
    if not all(count.isdecimal() and 1 <= int(count) <= _MOST_VIEWERS for count in counts):
        raise click.BadParameter(f"{text!r}: give numbers from 1 to {_MOST_VIEWERS}, such as 1,2,4")
    return [int(count) for count in counts]


@click.command()
@click.option("--student", default="world", help="Shipped student or folder.")
@click.option("--engine", type=click.Choice(ENGINES), default="auto")
@click.option("--streams", type=click.IntRange(1, 64), default=1, help="Streams on the engine, stepped in turn.")
@click.option("--seconds", type=click.FloatRange(min=0.5), default=10.0)
@click.option("--steps", type=click.IntRange(1), default=None, help="Denoising steps; default: the student's own.")
@click.option("--browser", is_flag=True, help="Also start a server and play in headless Chromium (extra `dev`).")
@click.option("--load", is_flag=True, help="Also start servers and have many watch at once (extra `dev`).")
@click.option(
    "--viewers", callback=_counts, metavar="N[,N…]", default="1,2,4,8", help="With --load: how many want to watch."
)
@click.option("--transport", type=click.Choice(["webrtc", "websocket", "both"]), default="both", help="With --load.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="File for the figures.")
def bench(
    student: str,
    engine: str,
    streams: int,
    seconds: float,
    steps: int | None,
    browser: bool,
    load: bool,
    viewers: list[int],
    transport: str,
    json_file: Path | None,
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
    if load:
        transports = ("webrtc", "websocket") if transport == "both" else (transport,)
        figures["load"] = bench_load(opened, engine, viewers, transports, seconds)
        click.echo(table(figures["load"]), err=True)
    text = json.dumps(figures, indent=2)
    if json_file is not None:
        json_file.write_text(text + "\n")
    click.echo(text)


def bench_browser(student: Student, engine: str, seconds: float) -> dict[str, Any]:
    """Play in real Chromium against a real server for `seconds`, tapping keys; figures are the browser's own."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise click.ClickException(f"--browser needs the extra `dev`: {error}") from error
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise click.ClickException("--browser needs Chromium: install it, for example with `make chromium`")
    with serving(student, engine) as server, sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium, args=BROWSER_FLAGS)
        page = chrome.new_page(viewport={"width": 1280, "height": 800})
        page.goto(server.url)
        page.get_by_role("button", name="Walk in").click()
        deadline = time.monotonic() + _READY_S
        while not (now := page.evaluate("streamgen.stats()"))["framesDecoded"] or now["state"] != "playing":
            if time.monotonic() > deadline:
                raise click.ClickException(f"the page did not begin to play: {now}")
            page.wait_for_timeout(100)
        page.wait_for_timeout(_SETTLE_S * 1000)
        before = page.evaluate("streamgen.stats()")
        cpu_before = server.cpu_s()
        start = time.perf_counter()
        keys = [key for key in ("ArrowLeft", "KeyW", "ArrowRight", "Space") if key in student.config.keys]
        for index in range(max(1, round(seconds / _TAP_EVERY_S))):
            page.keyboard.press(keys[index % len(keys)], delay=120)
            page.wait_for_timeout(_TAP_EVERY_S * 1000 - 120)
        after = page.evaluate("streamgen.stats()")
        elapsed = time.perf_counter() - start
        cpu = {name: round((cpu_s - cpu_before[name]) / elapsed, 3) for name, cpu_s in server.cpu_s().items()}
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
