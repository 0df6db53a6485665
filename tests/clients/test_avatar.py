"""The shipped avatar in a real browser, with a microphone that hears a file: the mouth opens with the sound, an
interruption closes it, two avatars keep to themselves, and a talk outlives its worker.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import expect

from server.bench_browser import bench_browser
from streamgen.audio import SAMPLE_RATE
from streamgen.student import Student
from tests.clients.conftest import Server, served
from tests.clients.walking import SMALL, Open, Walk
from tests.server.test_talk import as_wave
from training.talk.dataset import sound_of
from training.talk.evaluate import HELD_OUT
from training.talk.judge import FaceJudge, load_face_judge, opening

LOUD, SILENT = 0.05, 0.01
SIZE = 256


@pytest.fixture(scope="module")
def world_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Where `walk` goes: one with the shipped avatar."""
    with served(tmp_path_factory.mktemp("server"), "avatar") as server:
        yield server


@pytest.fixture(scope="module")
def judge() -> FaceJudge:
    return load_face_judge(HELD_OUT)


def spoken(seconds: float) -> bytes:
    """A wave file of held-out speech, over and over."""
    samples = np.resize(sound_of(HELD_OUT / "id014_0020.mp4")[: 12 * SAMPLE_RATE], round(seconds * SAMPLE_RATE))
    return as_wave((samples * 32767).astype(np.int16), SAMPLE_RATE)


def give(walk: Walk, sound: bytes) -> None:
    walk.page.locator("#file").set_input_files({"name": "speech.wav", "mimeType": "audio/wav", "buffer": sound})


def begin(walk: Walk) -> dict[str, Any]:
    walk.page.get_by_role("button", name="Begin").click()
    return walk.plays()


def picture(walk: Walk) -> NDArray[np.uint8]:
    """The frame on the screen, [256, 256, 3]."""
    return np.asarray(walk.picture().resize((SIZE, SIZE), Image.Resampling.BOX))


def backdrop(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean colour of the upper corners, which no head reaches: everybody sits before another wall."""
    corner = SIZE // 10
    return np.concatenate([picture[:corner, :corner], picture[:corner, -corner:]]).mean((0, 1), dtype=np.float32)


def mouths(walk: Walk, judge: FaceJudge, count: int = 12) -> NDArray[np.float32]:
    """How far the mouth is open in so many pictures, of two or three seconds."""
    pictures = []
    for _ in range(count):
        pictures.append(picture(walk))
        walk.page.wait_for_timeout(150)
    return opening(judge.curves_of(np.stack(pictures)))


def test_the_mouth_opens_with_what_a_microphone_hears() -> None:
    """Marks that a fake microphone plays, by the browser's own clock. The limits are far wider than the aims, which
    `streamgen bench` is for.
    """
    figures = bench_browser(Student.from_pretrained("avatar"), "auto", 12.0)
    assert figures["transport"] == "webrtc"
    assert figures["skew_ms"]["marks"] >= 4
    assert abs(figures["skew_ms"]["median"]) < 250, figures
    assert figures["sound_to_lips_ms"]["p50"] < 600, figures


def test_a_file_is_spoken_and_an_interruption_closes_the_mouth(walk: Open, judge: FaceJudge) -> None:
    w = walk()
    begin(w)
    still = mouths(w, judge)
    give(w, spoken(60.0))
    w.until(lambda stats: stats["audioLevel"] > LOUD)
    talks = mouths(w, judge, 24)
    assert talks.std() > 2 * still.std() and talks.max() > still.max() + 0.15, (still, talks)
    w.page.get_by_role("button", name="Interrupt").click()
    w.until(lambda stats: stats["audioLevel"] < SILENT)
    w.page.wait_for_timeout(500)
    shut = mouths(w, judge)
    # A shut mouth is read as up to a quarter open, as a head turns; one that talks opens wide and moves.
    assert shut.max() < (still.max() + talks.max()) / 2 and shut.std() < talks.std() / 2, (talks, shut)
    assert w.stats()["audioLevel"] < SILENT
    assert w.complaints == []


def test_two_avatars_keep_to_themselves(walk: Open, judge: FaceJudge) -> None:
    """Of two people at once, one is given something to say; the other is silent, and somebody else."""
    names = Student.from_pretrained("avatar").config.identities
    a, b = (walk(f"?identity={name}", device=SMALL) for name in names[:2])
    assert begin(a)["session"] != begin(b)["session"]
    give(a, spoken(30.0))
    a.until(lambda stats: stats["audioLevel"] > LOUD)
    for _ in range(8):
        assert b.stats()["audioLevel"] < SILENT
        b.page.wait_for_timeout(200)
    quiet = mouths(b, judge)
    assert mouths(a, judge, 24).std() > 2 * quiet.std()
    assert np.abs(backdrop(picture(a)) - backdrop(picture(b))).max() > 12
    assert [said for w in (a, b) for said in w.complaints] == []


def test_a_talk_survives_kill_9_of_its_worker(walk: Open, world_server: Server) -> None:
    w = walk("?seed=1")
    session = begin(w)["session"]
    w.until(lambda stats: stats["frame"] > 30)
    before, number = picture(w), w.stats()["frame"]
    (worker,) = (
        child for child in psutil.Process(world_server.pid).children() if "spawn_main" in " ".join(child.cmdline())
    )
    os.kill(worker.pid, signal.SIGKILL)
    w.until(lambda stats: stats["frame"] > number + 50)
    assert w.stats()["session"] == session
    assert np.abs(backdrop(picture(w)) - backdrop(before)).max() < 12, "it is somebody else"
    give(w, spoken(4.0))
    w.until(lambda stats: stats["audioLevel"] > LOUD)


def test_the_picture_in_the_readme(walk: Open, tmp_path: Path) -> None:
    """The page of somebody who talks; `STREAMGEN_PICTURE=docs/talk.png` renews the README's."""
    w = walk("?seed=4")
    begin(w)
    give(w, spoken(20.0))
    w.until(lambda stats: stats["audioLevel"] > LOUD)
    w.page.wait_for_timeout(2500)
    file = Path(os.environ.get("STREAMGEN_PICTURE") or tmp_path / "talk.png")
    w.page.screenshot(path=file)
    assert Image.open(file).size == (1280, 800)
    expect(w.page.get_by_text("Every frame is generated by a neural network on")).to_be_visible()
