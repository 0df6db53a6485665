"""The page becomes whom a picture shows, and goes on as who it was where a picture shows nobody."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import expect

from tests.clients.conftest import Server, served
from tests.clients.test_avatar import SIZE, begin, picture
from tests.clients.walking import Open, Walk
from training.footage import pictures
from training.metrics import frames_psnr
from training.talk.evaluate import STRANGERS


@pytest.fixture(scope="module")
def world_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Where `walk` goes."""
    with served(tmp_path_factory.mktemp("server"), "anybody") as server:
        yield server


@pytest.fixture(scope="module")
def stranger() -> NDArray[np.uint8]:
    """A picture [H, W, 3] of somebody whom the student has never seen."""
    return next(pictures(STRANGERS / "id564_0064.mp4", 0, SIZE, SIZE))


def give(walk: Walk, shown: NDArray[np.uint8]) -> None:
    file = io.BytesIO()
    Image.fromarray(shown).save(file, "PNG")
    walk.page.locator("#picture").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": file.getvalue()})


def alike(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Two pictures from afar, in dB: heads move."""
    far = (np.asarray(Image.fromarray(each).resize((16, 16), Image.Resampling.BOX)) for each in (a, b))
    return frames_psnr(*far)


def until_shown(walk: Walk, whom: NDArray[np.uint8], other: NDArray[np.uint8]) -> None:
    deadline = time.monotonic() + 30
    while alike(shown := picture(walk), whom) < alike(shown, other) + 3:
        assert time.monotonic() < deadline, "it is still somebody else"
        walk.page.wait_for_timeout(200)


def test_the_page_becomes_whom_a_picture_shows(walk: Open, stranger: NDArray[np.uint8]) -> None:
    """And that outlives a reload."""
    w = walk("?identity=sol")
    before = begin(w)
    sol = picture(w)
    give(w, stranger)
    after = w.until(lambda stats: stats["state"] == "playing" and stats["session"] not in (before["session"], None))
    until_shown(w, stranger, sol)
    assert "identity" not in w.page.url
    w.page.reload()
    assert w.plays()["session"] == after["session"]
    w.page.get_by_role("combobox", name="Person").select_option("sol")
    w.until(lambda stats: stats["session"] not in (after["session"], None))
    until_shown(w, sol, stranger)


def test_a_picture_of_nobody_leaves_who_it_was(walk: Open, stranger: NDArray[np.uint8]) -> None:
    w = walk("?identity=ken")
    begin(w)
    ken = picture(w)
    notice = w.page.locator("#notice")
    w.page.locator("#picture").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"})
    expect(notice).to_contain_text("no picture that the browser can read")
    assert w.stats()["state"] == "playing"
    give(w, np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8))
    expect(notice).to_contain_text("knows no such pictures", timeout=30_000)
    w.plays()
    expect(w.page.get_by_role("combobox", name="Person")).to_have_value("ken")
    until_shown(w, ken, stranger)
