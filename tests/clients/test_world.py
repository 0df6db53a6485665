"""The shipped world in a real browser: keys move the picture as they should, walkers do not disturb each other, and the
stream outlives its worker."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image
from websockets.sync.client import connect

from engines.protocol import StepRequest
from engines.select import load_engine
from streamgen.session_log import read_log
from streamgen.student import Student
from tests.clients.walking import SIZE, SMALL, Open, Walk, enter


def picture(walk: Walk) -> NDArray[np.float32]:
    """The frame on the screen, [height, width, 3] in 0 .. 255, averaged down to the student's own size."""
    return np.asarray(walk.picture().resize(SIZE, Image.Resampling.BOX), np.float32)


def psnr(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(10 * np.log10(255**2 / max(np.square(a - b).mean(), 1e-9)))


def shift(before: NDArray[np.float32], after: NDArray[np.float32], reach: int = 40) -> int:
    """Pixels by which the scene moved to the right: the best overlap of the upper half, without the lantern."""
    a, b = (x[: SIZE[1] // 2].mean(2) for x in (before, after))
    errors = {}
    for by in range(-reach, reach + 1):
        left, right = max(0, by), min(SIZE[0], SIZE[0] + by)
        errors[by] = float(np.square(b[:, left:right] - a[:, left - by : right - by]).mean())
    return min(errors, key=lambda by: errors[by])


def frames_later(walk: Walk, count: int) -> None:
    goal = walk.stats()["frame"] + count
    walk.until(lambda stats: stats["frame"] >= goal)


def turned(walk: Walk, key: str) -> int:
    """How far the scene moves while a key is held for about a quarter of a second."""
    walk.page.keyboard.down(key)
    walk.page.wait_for_timeout(200)
    before = picture(walk)
    walk.page.wait_for_timeout(230)
    after = picture(walk)
    walk.page.keyboard.up(key)
    walk.page.wait_for_timeout(300)
    return shift(before, after)


def test_a_held_key_moves_the_picture_as_it_should(walk: Open) -> None:
    """Turning left moves the scene to the right, turning right to the left; walking makes it grow, not slide."""
    w = walk("?seed=2")
    enter(w)
    w.page.wait_for_timeout(1000)
    left = [turned(w, "ArrowLeft") for _ in range(5)]
    right = [turned(w, "ArrowRight") for _ in range(5)]
    assert np.median(left) >= 3, (left, right)
    assert np.median(right) <= -3, (left, right)
    still = picture(w)
    w.page.keyboard.down("w")
    w.page.wait_for_timeout(1200)
    w.page.keyboard.up("w")
    assert psnr(still, picture(w)) < 30


@pytest.mark.parametrize("link", ["webrtc", "websocket"])
def test_taps_shorter_than_a_frame_show(walk: Open, link: str) -> None:
    """Each key is up again before the next frame begins, and still turns the view by its five degrees."""
    w = walk(f"?seed=2&transport={link}")
    enter(w)
    w.page.wait_for_timeout(1000)

    def tapped(code: str) -> int:
        before = picture(w)
        for _ in range(4):
            w.page.evaluate(
                "(code) => { for (const type of ['keydown', 'keyup']) document.body.dispatchEvent("
                "new KeyboardEvent(type, { code, bubbles: true, cancelable: true })) }",
                code,
            )
            w.page.wait_for_timeout(120)
        w.page.wait_for_timeout(150)
        return shift(before, picture(w))

    left = [tapped("ArrowLeft") for _ in range(4)]
    right = [tapped("ArrowRight") for _ in range(4)]
    assert np.median(left) - np.median(right) >= 6, (left, right)


def test_two_walkers_see_two_undisturbed_worlds(walk: Open) -> None:
    """One turns, and the world of the other, who stands, does not turn with him."""
    a, b = walk("?seed=1", device=SMALL), walk("?seed=4", device=SMALL)
    enter(a)
    enter(b)
    a.page.wait_for_timeout(700)
    before = a.stats(), b.stats()
    assert psnr(picture(a), picture(b)) < 25
    turns, stands = [], []
    for _ in range(4):
        a.page.keyboard.down("ArrowLeft")
        a.page.wait_for_timeout(200)
        mine, other = picture(a), picture(b)
        a.page.wait_for_timeout(200)
        turns.append(shift(mine, picture(a)))
        stands.append(shift(other, picture(b)))
        a.page.keyboard.up("ArrowLeft")
        a.page.wait_for_timeout(200)
    assert np.median(turns) >= 3, (turns, stands)
    assert abs(np.median(stands)) <= 2, (turns, stands)
    for w, earlier in zip((a, b), before, strict=True):
        assert w.stats()["framesDecoded"] > earlier["framesDecoded"] + 10
        assert w.complaints == []


def idle_frames(student: Student, seed: int, steps: list[int]) -> list[NDArray[np.float32]]:
    """The first frames of a stream whose keys nobody touches, each in so many steps."""
    engine, idle = load_engine(student.path), np.zeros((1, len(student.config.keys)), np.float32)
    engine.open("idle", student.start(seed))
    return [engine.step([StepRequest("idle", idle, count)])[0].frames[0].astype(np.float32) for count in steps]


def steps_taken(server: Any, session: dict[str, Any], folder: Path) -> list[int]:
    """Of every frame since the session began, by its log: a busy server takes fewer."""
    headers = {"Authorization": f"Bearer {session['token']}"}
    log = urllib.request.Request(f"{server.url}/v1/sessions/{session['id']}/log", headers=headers)
    with urllib.request.urlopen(log, timeout=10) as answer:
        (folder / "log").write_bytes(answer.read())
    ((_, runs),) = read_log(folder / "log").generations
    return [run.steps for run in runs for _ in run.checksums]


def test_both_streams_survive_kill_9_of_the_worker(walk: Open, world_server: Any, tmp_path: Path) -> None:
    a, b = walk("?seed=1", device=SMALL), walk("?seed=4&transport=websocket", device=SMALL)
    sessions = enter(a)["session"], enter(b)["session"]
    frames_later(a, 20)
    before = a.stats(), b.stats()
    workers = [
        child for child in psutil.Process(world_server.pid).children() if "spawn_main" in " ".join(child.cmdline())
    ]
    assert len(workers) == 1
    os.kill(workers[0].pid, signal.SIGKILL)
    frames_later(a, 20)
    number, after = a.stats()["frame"], picture(a)
    frames_later(b, 20)
    assert (a.stats()["session"], b.stats()["session"]) == sessions
    assert a.stats()["frame"] > before[0]["frame"] and b.stats()["frame"] > before[1]["frame"]
    # While there is no worker, a page may be told so (503).
    assert [said for w in (a, b) for said in w.complaints if "503" not in said] == []
    tickets = [json.loads(w.page.evaluate("sessionStorage.getItem('streamgen.session')")) for w in (a, b)]
    for ticket in tickets:
        # What comes now wants the processor for itself.
        world_server.call("POST", f"/v1/sessions/{ticket['id']}/pause", token=ticket["token"])
    # Nobody touched a key: the world after the worker's death is the one that an undisturbed engine makes.
    student = Student.from_pretrained("world")
    steps = steps_taken(world_server, tickets[0], tmp_path)
    made = idle_frames(student, 1, steps[: number - student.start(1).frame + 4])
    agreements = [psnr(frame, after) for frame in made]
    assert max(agreements[-8:]) > 22, agreements
    assert max(agreements[:4]) < max(agreements[-8:])


def test_the_picture_in_the_readme(walk: Open, tmp_path: Path) -> None:
    """The page during play; `STREAMGEN_PICTURE=docs/play.png` renews the README's."""
    w = walk("?seed=7")
    enter(w)
    w.page.wait_for_timeout(3000)  # the rate that the page shows is of the last seconds
    w.page.keyboard.down("w")
    w.page.wait_for_timeout(900)
    file = Path(os.environ.get("STREAMGEN_PICTURE") or tmp_path / "play.png")
    w.page.screenshot(path=file)
    w.page.keyboard.up("w")
    shown = np.asarray(Image.open(file).convert("RGB"), np.float32)
    stage = w.page.locator("#stage").bounding_box()
    assert stage is not None
    x, y, width, height = (round(stage[side]) for side in ("x", "y", "width", "height"))
    inside = shown[y + 10 : y + height - 10, x + 10 : x + width - 10]
    assert inside.std() > 15, "the stage shows a flat picture"
    assert w.page.get_by_text("Every frame is generated by a neural network on").is_visible()


def test_an_engine_elsewhere_makes_the_frames_that_the_server_sends(world_server: Any, tmp_path: Path) -> None:
    """Nobody presses a key; the first frames over the WebSocket are those of another engine, up to JPEG."""
    student = Student.from_pretrained("world")
    status, session = world_server.call("POST", "/v1/sessions", {"seed": 11})
    assert status == 201
    url = f"{world_server.url.replace('http', 'ws')}/v1/sessions/{session['id']}/stream"
    sent: dict[int, NDArray[np.float32]] = {}
    with connect(url) as socket:
        socket.send(json.dumps({"type": "hello", "version": 1, "token": session["token"]}))
        while len(sent) < 6:
            message = socket.recv(timeout=20)
            if isinstance(message, bytes):
                *_, frame, _ = struct.unpack_from("<2sBBIQq", message)
                sent[frame] = np.asarray(Image.open(io.BytesIO(message[24:])).convert("RGB"), np.float32)
    steps = steps_taken(world_server, session, tmp_path)
    world_server.call("DELETE", f"/v1/sessions/{session['id']}", token=session["token"])
    first = student.start(11).frame
    made = idle_frames(student, 11, steps[: max(sent) - first + 1])
    assert min(psnr(made[frame - first], shown) for frame, shown in sent.items()) > 32
