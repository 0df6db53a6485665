"""A student in a real browser: what a person gets of it, by the browser's own clock."""

from __future__ import annotations

import base64
import shutil
import tempfile
import time
import wave
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from engines.generate import speak
from engines.select import load_engine
from server.bench_server import BenchServer, serving
from server.voice import VOICE_RATE
from streamgen.audio import SAMPLE_RATE
from streamgen.face import MOUTH
from streamgen.student import Student

if TYPE_CHECKING:
    from playwright.sync_api import Page

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
_READY_S = 60.0
_SETTLE_S = 2.0
_SAMPLED_WITHIN_S = 5.0
_TAP_EVERY_S = 0.7
_MARK_S, _MARK_EVERY_S = 0.5, (1.4, 1.9, 1.6)
"""A mark is a vowel; distances between the onsets of marks, over and over."""
_FORMANTS_HZ = (730, 90), (1090, 110), (2440, 170)
"""Of an "ah": each with its width."""
_MOUTH_SIZE = 32, 24
_EDGE_PIXELS = 20
"""Of the edge between upper teeth and the dark below them, which a closed mouth does not have."""
_NEAR_S = 0.6
"""A mouth that opens further than this from a sound belongs to another one."""
_WATCH = """async ([seconds, [left, top, right, bottom], [width, height]]) => {
    const context = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
    const levels = [], pictures = [];
    const end = performance.now() + 1000 * seconds;
    const look = (now) => {
        if (now > end) return;
        const picture = document.querySelector('.picture.shown');
        const w = picture.videoWidth || picture.width, h = picture.videoHeight || picture.height;
        context.drawImage(picture, left * w, top * h, (right - left) * w, (bottom - top) * h, 0, 0, width, height);
        const { data } = context.getImageData(0, 0, width, height);
        const green = String.fromCharCode(...data.filter((_, index) => index % 4 === 1));
        pictures.push([now / 1000, btoa(green)]);
        if (picture.requestVideoFrameCallback) picture.requestVideoFrameCallback(look);
        else requestAnimationFrame(look);
    };
    look(performance.now());
    while (performance.now() < end) {
        const { audioLevel, microphoneLevel } = streamgen.stats();
        levels.push([performance.now() / 1000, microphoneLevel, audioLevel]);
        await new Promise((passed) => setTimeout(passed, 10));
    }
    return [levels, pictures];
}"""
"""What a page plays every few milliseconds, and what it shows as often as that changes."""


def bench_browser(student: Student, engine: str, seconds: float) -> dict[str, Any]:
    """Play in real Chromium against a real server for `seconds`; figures are the browser's own."""
    return (_walk if student.config.speech is None else _talk)(student, engine, seconds)


@contextmanager
def _playing(server: BenchServer, begin: str, *flags: str) -> Iterator[Page]:
    """The page, a moment after it began to play."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise click.ClickException(f"--browser needs the extra `dev`: {error}") from error
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise click.ClickException("--browser needs Chromium: install it, for example with `make chromium`")
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium, args=[*BROWSER_FLAGS, *flags])
        page = chrome.new_page(viewport={"width": 1280, "height": 800})
        page.goto(server.url)
        page.get_by_role("button", name=begin).click()
        deadline = time.monotonic() + _READY_S
        while not (now := page.evaluate("streamgen.stats()"))["framesDecoded"] or now["state"] != "playing":
            if time.monotonic() > deadline:
                raise click.ClickException(f"the page did not begin to play: {now}")
            page.wait_for_timeout(100)
        page.wait_for_timeout(_SETTLE_S * 1000)
        yield page
        chrome.close()


@contextmanager
def _measured(server: BenchServer, page: Page, student: Student, figures: dict[str, Any]) -> Iterator[None]:
    """Adds to figures what every student's stream has."""
    before, start = _sampled(page)
    cpu_before = server.cpu_s()
    yield
    after, end = _sampled(page)
    cpu_after, elapsed = server.cpu_s(), end - start
    figures |= {
        "seconds": round(elapsed, 1),
        "transport": after["transport"],
        "target_fps": student.config.fps,
        "fps": round((after["framesDecoded"] - before["framesDecoded"]) / elapsed, 2),
        "freezes": after["freezes"] - before["freezes"],
        "first_frame_ms": round(after["firstFrameMs"]),
        "cpu_cores": {name: round((cpu_s - cpu_before[name]) / elapsed, 3) for name, cpu_s in cpu_after.items()},
    }


def _sampled(page: Page) -> tuple[dict[str, Any], float]:
    """The page's figures and when they were taken: once a second, so the moment to look is when they have changed."""
    old: dict[str, Any] = page.evaluate("streamgen.stats()")
    now, deadline = old, time.perf_counter() + _SAMPLED_WITHIN_S
    while now["framesDecoded"] == old["framesDecoded"] and time.perf_counter() < deadline:
        page.wait_for_timeout(10)
        now = page.evaluate("streamgen.stats()")
    return now, time.perf_counter()


def _walk(student: Student, engine: str, seconds: float) -> dict[str, Any]:
    """Taps keys, and measures how long until each is seen."""
    figures: dict[str, Any] = {}
    with serving(student, engine) as server, _playing(server, "Walk in") as page:
        keys = [key for key in ("ArrowLeft", "KeyW", "ArrowRight", "Space") if key in student.config.keys]
        with _measured(server, page, student, figures):
            for index in range(max(1, round(seconds / _TAP_EVERY_S))):
                page.keyboard.press(keys[index % len(keys)], delay=120)
                page.wait_for_timeout(_TAP_EVERY_S * 1000 - 120)
        latency = page.evaluate("streamgen.stats()")["inputToPhotonMs"]
    if not latency:
        raise click.ClickException("no key press came back in a picture; is the machine too busy to play?")
    return figures | {"input_to_photon_ms": _percentiles(latency) | {"inputs": len(latency)}}


def _talk(student: Student, engine: str, seconds: float) -> dict[str, Any]:
    """Gives marks to the microphone, and measures when each is heard again, and when the mouth opens.

    A mouth does not open at the moment in which a sound begins. How far apart the two are in the student's own frames,
    where nothing was sent anywhere, is what counts as no skew; how much that varies is reported beside it.
    """
    figures: dict[str, Any] = {}
    apart_s, spread_s = _apart(student, engine)
    with tempfile.TemporaryDirectory() as folder:
        spoken = Path(folder) / "marks.wav"
        with wave.open(str(spoken), "wb") as file:
            file.setparams((1, 2, VOICE_RATE, 0, "NONE", ""))
            file.writeframes((marks(VOICE_RATE)[0] * 32767).astype("<i2").tobytes())
        devices = (
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",
            f"--use-file-for-fake-audio-capture={spoken}",
        )
        with serving(student, engine) as server, _playing(server, "Begin", *devices) as page:
            page.get_by_role("button", name="Microphone").click()
            page.wait_for_timeout(_SETTLE_S * 1000)
            with _measured(server, page, student, figures):
                levels, shown = page.evaluate(_WATCH, [seconds, MOUTH, _MOUTH_SIZE])
    times, said, heard = np.array(levels, np.float64).T
    width, height = _MOUTH_SIZE
    pictures = np.stack([np.frombuffer(base64.b64decode(picture), np.uint8) for _, picture in shown])
    pictures = pictures.reshape(-1, height, width)
    opens = onsets(np.array([time_s for time_s, _ in shown]), _openness(pictures))
    spoken_at, heard_at = onsets(times, said), onsets(times, heard)
    skew = (_after(heard_at, opens, -_NEAR_S) - apart_s) * 1e3
    delay = _after(spoken_at, opens, 0.0) * 1e3
    if len(skew) < 2 or not len(delay):
        raise click.ClickException(
            f"{len(spoken_at)} sounds in {seconds:g} s were heard again {len(heard_at)} times, and the mouth opened "
            f"{len(opens)} times: too few to measure"
        )
    half = len(skew) // 2
    return figures | {
        "skew_ms": {
            "median": round(float(np.median(skew)), 1),
            "p95": round(float(np.percentile(np.abs(skew), 95)), 1),
            "p95_of_own_frames": round(spread_s * 1e3, 1),
            "growth": round(float(np.median(skew[half:]) - np.median(skew[:half])), 1),
            "marks": len(skew),
        },
        "sound_to_lips_ms": _percentiles(delay),
        "mouth_after_sound_ms": round(apart_s * 1e3, 1),
    }


def _after(begins: NDArray[np.float64], ends: NDArray[np.float64], least_s: float) -> NDArray[np.float64]:
    """From each beginning to the first end that comes at least `least_s` after it and belongs to it."""
    apart = [ends[ends >= begin + least_s][:1] - begin for begin in begins]
    return np.array([each[0] for each in apart if len(each) and each[0] < _NEAR_S])


def _percentiles(values: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
    return {name: round(float(np.percentile(values, q)), 1) for name, q in (("p50", 50), ("p99", 99))}


def marks(rate: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Samples of an "ah" that comes again and again, and when it does: a row of harmonics under the formants of an open
    vowel, its pitch falling as in speech, so that nothing takes it for noise.
    """
    begins = np.cumsum((1.0, *_MARK_EVERY_S * 3))
    sound = np.zeros(round((begins[-1] + _MARK_S) * rate), np.float32)
    time_s = np.arange(round(_MARK_S * rate)) / rate
    pitch_hz = 140 - 40 * time_s / _MARK_S
    phase = 2 * np.pi * np.cumsum(pitch_hz) / rate
    vowel = np.zeros(len(time_s))
    for number in range(1, 30):
        gain = sum(1 / (1 + ((number * pitch_hz - hz) / width) ** 2) for hz, width in _FORMANTS_HZ)
        vowel += gain / number * np.sin(number * phase)
    vowel *= np.minimum(1, np.minimum(time_s, time_s[::-1]) / 0.02) * 0.5 / np.abs(vowel).max()
    for begin in begins:
        sound[round(begin * rate) :][: len(vowel)] += vowel
    return sound, begins


def onsets(times: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """When values [T] rise through the middle between what they are when low and when high."""
    low, high = np.percentile(values, (5, 95))
    middle = (low + high) / 2
    (at,) = np.nonzero((values[:-1] < middle) & (values[1:] >= middle))
    share = (middle - values[at]) / (values[at + 1] - values[at])
    crossed: NDArray[np.float64] = times[at] + share * (times[at + 1] - times[at])
    return crossed


def _openness(mouths: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How steeply each picture [T, height, width] of a mouth falls from light to dark, downwards: share of its median.

    How much of it is dark would tell of noses, too, and of heads that turn out of the light.
    """
    falls = -np.diff(mouths.astype(np.float64), axis=1).reshape(len(mouths), -1)
    edge = np.sort(falls, axis=1)[:, -_EDGE_PIXELS:].mean(axis=1)
    return np.asarray(edge / np.median(mouths, axis=(1, 2)), np.float64)


def _apart(student: Student, engine_name: str) -> tuple[float, float]:
    """Seconds from a mark's onset to the mouth's in the student's own frames: the median, and what 95% of them stay
    within of it. No receiver can be found to keep sound and lips closer together than that.
    """
    sound, begins = marks(SAMPLE_RATE)
    left, top, right, bottom = MOUTH
    columns = np.linspace(left, right, _MOUTH_SIZE[0]) * student.config.width
    rows = np.linspace(top, bottom, _MOUTH_SIZE[1]) * student.config.height
    inside = np.ix_(rows.astype(int), columns.astype(int))
    frames = speak(load_engine(student.path, engine_name), student, sound, seed=0)
    pictures = np.stack([frame[..., 1][inside] for frame in frames])
    opens = onsets(np.arange(len(pictures)) / student.config.fps, _openness(pictures))
    near = _after(begins, opens, -_NEAR_S)
    if len(near) < len(begins) / 2:
        raise click.ClickException(
            f"student {student.config.name} opened its mouth at {len(near)} of {len(begins)} sounds"
        )
    median = float(np.median(near))
    return median, float(np.percentile(np.abs(near - median), 95))
