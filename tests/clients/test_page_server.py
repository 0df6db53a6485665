"""The page and its server in a real browser: links that are lost, servers that are full, gone, locked or restarted."""

from __future__ import annotations

import hashlib
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Response, expect

from server.settings import Settings
from streamgen.student import Student
from tests.clients.walking import DESKTOP, SPY, Open, Walk, enter
from tests.server.harness import LiveServer, make_certificate
from tests.server.process import process
from tests.server.synthetic import make_student

KEY = "sg_friend"


def test_a_lost_websocket_is_opened_again(walk: Open) -> None:
    w = walk("?transport=websocket", script=SPY)
    before = enter(w)
    w.page.evaluate("sockets[0].close()")
    w.until(lambda stats: stats["state"] != "playing", 3)
    after = w.until(lambda stats: stats["state"] == "playing" and stats["frame"] > before["frame"])
    assert after["session"] == before["session"]
    assert w.page.evaluate("sockets.length") == 2


def test_a_lost_peer_is_connected_again(walk: Open, world_server: Any) -> None:
    """Behind a proxy that serves everything below a path of its own."""
    w = walk()
    w.page.route("**/below/**", lambda route: route.continue_(url=route.request.url.replace("/below/", "/")))
    w.page.goto(f"{world_server.url}/below/")
    w.requests.clear()
    with w.page.expect_response(re.compile("/webrtc$")) as offered:
        before = enter(w)
    assert before["transport"] == "webrtc"
    end_peer(w, world_server, offered.value)
    w.until(lambda stats: stats["state"] != "playing", 8)
    after = w.until(lambda stats: stats["state"] == "playing" and stats["frame"] > before["frame"])
    assert (after["session"], after["transport"]) == (before["session"], "webrtc")
    assert len(after["broke"]) == 1, after
    assert {url for url in w.requests if not url.startswith(f"{world_server.url}/below/")} == set()
    assert f"{world_server.url}/below{offered.value.headers['location']}" in w.requests  # it ended its peer


def test_where_only_webrtc_gets_through_it_comes_back(walk: Open, world_server: Any) -> None:
    """Behind a proxy without WebSockets: WebRTC that failed once, as on a machine that is busy, is tried again."""
    w = walk(script="window.WebSocket = class extends WebSocket { constructor() { super('ws://127.0.0.1:9/'); } }")
    with w.page.expect_response(re.compile("/webrtc$")) as offered:
        before = enter(w)
    w.page.route("**/webrtc", lambda route: route.fulfill(status=200, body="no answer"), times=1)
    end_peer(w, world_server, offered.value)
    w.until(lambda stats: stats["state"] != "playing", 8)
    after = w.plays()
    assert (after["session"], after["transport"]) == (before["session"], "webrtc")
    assert [way.split(":")[0] for way in after["broke"]] == ["webrtc", "webrtc", "websocket"]


def end_peer(walk: Walk, server: Any, offered: Response) -> None:
    token = json.loads(walk.page.evaluate("sessionStorage.getItem('streamgen.session')"))["token"]
    assert server.call("DELETE", offered.headers["location"], token=token)[0] == 204


def test_a_paused_world_keeps_its_picture(walk: Open, world_server: Any) -> None:
    """Where the new connection has none, as after a restart of the server."""
    w = walk()
    with w.page.expect_response(re.compile("/webrtc$")) as offered:
        enter(w)
    w.page.keyboard.press("p")
    w.until(lambda stats: stats["state"] == "paused")
    w.page.evaluate("HTMLVideoElement.prototype.requestVideoFrameCallback = () => 0")
    with w.page.expect_response(re.compile("/webrtc$")):
        end_peer(w, world_server, offered.value)
    w.until(lambda stats: stats["state"] == "paused")
    expect(w.page.locator("#canvas")).to_be_visible()
    expect(w.page.locator("#video")).to_be_hidden()


@pytest.mark.parametrize("lacking", ["browser", "server", "port"])
def test_without_webrtc_it_takes_the_websocket(walk: Open, lacking: str) -> None:
    w = walk(script="delete window.RTCPeerConnection" if lacking == "browser" else "")
    status, code = (503, "no_media_port") if lacking == "port" else (422, "invalid_sdp")
    error = {"code": code, "message": "the offer cannot be answered", "retryable": lacking == "port"}
    w.page.route("**/webrtc", lambda route: route.fulfill(status=status, json={"error": error}))
    assert enter(w)["transport"] == "websocket"
    expect(w.page.locator("#notice")).to_contain_text("WebSocket")


def test_a_full_server_is_waited_for(walk: Open, world_server: Any) -> None:
    others = []
    while (opened := world_server.call("POST", "/v1/sessions", {}))[0] == 201:
        others.append(opened[1])
        assert len(others) < 64
    try:
        assert opened[0] == 503, opened
        w = walk()
        w.page.get_by_role("button", name="Walk in").click()
        expect(w.page.get_by_role("heading", name="Every place is taken")).to_be_visible()
        expect(w.page.locator("#detail")).to_have_text(re.compile(r"Trying again in \d+ s"))
    finally:
        for session in others:
            world_server.call("DELETE", f"/v1/sessions/{session['id']}", token=session["token"])
    w.page.get_by_role("button", name="Try now").click()
    w.plays()


def test_a_server_that_does_not_answer_is_waited_for(walk: Open) -> None:
    w = walk()
    w.page.route("**/v1/**", lambda route: route.abort())
    w.page.get_by_role("button", name="Walk in").click()
    expect(w.page.get_by_role("heading", name="The server does not answer")).to_be_visible()
    w.page.unroute("**/v1/**")
    w.plays()


def test_a_session_that_is_gone_is_replaced(walk: Open, world_server: Any) -> None:
    w = walk()
    old = enter(w)["session"]
    token = json.loads(w.page.evaluate("sessionStorage.getItem('streamgen.session')"))["token"]
    assert world_server.call("DELETE", f"/v1/sessions/{old}", token=token)[0] in (200, 204)
    w.until(lambda stats: stats["state"] == "playing" and stats["session"] not in (old, None))
    expect(w.page.locator("#notice")).to_contain_text("has ended")


def test_a_key_is_asked_for_over_https(browser: Browser, keyed_server: LiveServer) -> None:
    page = browser.new_context(ignore_https_errors=True, **DESKTOP).new_page()
    page.goto(keyed_server.url)
    page.get_by_role("button", name="Walk in").click()
    field = page.get_by_label("API key")
    expect(field).to_be_focused()
    page.keyboard.type("sg_wrong pn")  # letters that mean something elsewhere on the page are typed here
    expect(field).to_have_value("sg_wrong pn")
    field.fill("sg_wrong")
    field.press("Enter")
    expect(page.locator("#detail")).to_have_text("The server does not know this API key.")
    field.fill(f" {KEY} ")
    page.get_by_role("button", name="Walk in").click()
    walk = Walk(page, page.context)
    first = walk.plays()
    assert first["transport"] == "webrtc"
    expect(field).to_be_hidden()
    # The tab remembers: neither a reload nor another session asks again.
    assert page.evaluate("sessionStorage.getItem('streamgen.key')") == KEY
    page.goto(f"{keyed_server.url}/?seed=6&transport=websocket")
    page.get_by_role("button", name="Walk in").click()
    assert walk.plays()["transport"] == "websocket"
    # No other tab and no address knows it.
    assert KEY not in page.url
    page.context.close()


@pytest.fixture
def keyed_server(tmp_path: Path) -> Iterator[LiveServer]:
    """HTTPS and one key, on the engine without a model."""
    known = "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()
    settings = Settings(api_key=(known,), **make_certificate(tmp_path))  # type: ignore[arg-type]
    server = LiveServer(make_student(tmp_path / "student"), tmp_path, settings).start()
    yield server
    server.stop()


def test_of_several_students_one_is_chosen(browser: Browser, tmp_path: Path) -> None:
    first, second = (make_student(tmp_path / name, name=name) for name in ("first", "second"))
    server = LiveServer(first, tmp_path, others=[second]).start()
    try:
        context = browser.new_context(**DESKTOP)
        page = context.new_page()
        page.goto(f"{server.url}/?transport=websocket")
        choice = page.get_by_role("combobox", name="World")
        expect(choice).to_have_value("first")
        choice.focus()
        page.keyboard.press("s")  # chooses by its first letter, and does not walk in
        expect(page).to_have_url(f"{server.url}/?transport=websocket&student=second")
        expect(choice).to_have_value("second")
        walk = Walk(page, context)
        enter(walk)  # once it is loaded
        served = [session.served.name for session in server.service.sessions]
        assert served == ["second"]
        expect(choice).to_be_disabled()  # a key that steers would choose
        page.keyboard.press("p")
        # Another choice gives the place back at once, and for good, however long the other page takes.
        page.route("**/*student=first", lambda route: route.fulfill(status=204))
        choice.select_option("first")
        page.wait_for_timeout(1500)
        assert not server.service.sessions
        page.unroute("**/*student=first")
        choice.dispatch_event("change")
        # The page that is left shows the same button until the other one is there.
        expect(page).to_have_url(f"{server.url}/?transport=websocket&student=first")
        expect(choice).to_have_value("first")
        enter(walk)
        assert [session.served.name for session in server.service.sessions] == ["first"]
        # A page that the browser's history kept, and whose session has ended since, begins anew.
        page.evaluate("""
            dispatchEvent(new Event('pagehide'));
            sessionStorage.clear();
            dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }));
        """)
        expect(page.get_by_role("button", name="Walk in")).to_be_visible()
        context.close()
    finally:
        server.stop()


def test_one_student_leaves_no_choice(walk: Open) -> None:
    w = walk()
    with w.page.expect_response("**/v1/students"):
        w.page.reload()
    expect(w.page.get_by_role("button", name="Walk in")).to_be_visible()
    expect(w.page.locator("#student")).to_be_hidden()


def test_the_world_goes_on_after_a_restart(browser: Browser, student: Student, tmp_path: Path) -> None:
    states = ("--state-dir", str(tmp_path / "states"))
    context = browser.new_context(**DESKTOP)
    page = context.new_page()
    walk = Walk(page, context)
    with process(student, tmp_path, *states) as old:
        page.goto(old.url)
        enter(walk)
        before = walk.until(lambda stats: stats["frame"] > 30)
        old.popen.send_signal(signal.SIGTERM)
        expect(page.get_by_role("heading", name="The server restarts")).to_be_visible()
        assert old.wait() == 0
    # What a proxy says while the server is away.
    page.route("**/v1/**", lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"))
    for _ in range(2):
        page.wait_for_event("response", lambda response: response.status == 502)
    expect(page.get_by_role("heading", name="The server restarts")).to_be_visible()
    page.unroute("**/v1/**")
    with process(student, tmp_path, *states, "--port", old.url.rpartition(":")[2]):
        after = walk.until(lambda stats: stats["state"] == "playing" and stats["frame"] > before["frame"] + 30)
        context.close()
    assert (after["session"], after["seed"]) == (before["session"], before["seed"])
    assert (before["transport"], after["transport"]) == ("webrtc", "webrtc")
