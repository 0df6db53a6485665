"""The web page in a real Chromium against a real server: it plays, steers, comes back, and says what is wrong."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from server.protocol import Hello, Input, Ping, Release
from streamgen.session_log import read_log
from tests.clients.walking import ENLARGED, PHONE, SIZE, SPY, Open, Walk, enter

TRIES = 4
"""A busy machine may make one stretch of play stutter; not each one after the other."""


@pytest.mark.parametrize("link", ["webrtc", "websocket", "websocket&video=h264"])
def test_plays_and_shows_what_is_pressed(walk: Open, world_server: Any, link: str) -> None:
    w = walk(f"?transport={link}&seed=5")
    start = enter(w)
    assert start["transport"] == link.partition("&")[0] and start["seed"] == 5
    assert start["transport"] == "webrtc" or shown_width(w) == SIZE[0] * (ENLARGED if "h264" in link else 1)
    assert start["firstFrameMs"] < 5000

    w.until(lambda stats: stats["fps"] > 0)
    fps = json.loads(w.page.evaluate("sessionStorage.getItem('streamgen.session')"))["student"]["fps"]
    for _ in range(TRIES):
        before = w.stats()
        w.page.wait_for_timeout(4000)
        after = w.stats()
        if after["framesDecoded"] - before["framesDecoded"] > 4 * fps * 0.8 and after["freezes"] == before["freezes"]:
            break
    else:
        pytest.fail(f"it never played smoothly for 4 s: {after}")
    assert after["frameAgeMs"] is not None and -50 < after["frameAgeMs"] < 1000, after

    for key in ("w", "ArrowLeft", "d", "Space"):
        w.page.keyboard.down(key)
        w.page.wait_for_timeout(120)
        w.page.keyboard.up(key)
        w.page.wait_for_timeout(80)
    latencies = w.until(lambda stats: len(stats["inputToPhotonMs"]) == 8, 3)["inputToPhotonMs"]
    assert all(0 < each < 2000 for each in latencies), latencies
    assert statistics.median(latencies) < 500, latencies

    assert w.complaints == []
    assert {url for url in w.requests if not url.startswith(world_server.url)} == set()


def shown_width(walk: Walk) -> int:
    """Pixels of the picture on the canvas: JPEG comes in the student's own size, H.264 enlarged."""
    return walk.page.evaluate("document.querySelector('#canvas').width")


@pytest.mark.parametrize("codec", ["H264", "VP8"])
def test_webrtc_takes_h264_where_the_browser_has_it(walk: Open, codec: str) -> None:
    lacking = """
        const known = RTCRtpReceiver.getCapabilities.bind(RTCRtpReceiver);
        const has = ({ mimeType }) => mimeType !== 'video/H264';
        RTCRtpReceiver.getCapabilities = (kind) => ({ codecs: known(kind).codecs.filter(has) });
    """
    w = walk(script=lacking if codec == "VP8" else "")
    with w.page.expect_response(re.compile("/webrtc$")) as offered:
        enter(w)
    assert re.findall(r"a=rtpmap:\d+ (\w+)/90000", offered.value.text())[0] == codec
    w.until(lambda stats: stats["transport"] == "webrtc" and stats["framesDecoded"] > 20)


def test_where_h264_cannot_be_decoded_it_goes_on_with_jpeg(walk: Open) -> None:
    """The twentieth frame is broken, whatever comes after it too."""
    broken = """
        const Real = EncodedVideoChunk;
        let count = 0;
        window.EncodedVideoChunk = class extends Real {
            constructor(init) { super(++count < 20 ? init : { ...init, data: new Uint8Array(64).fill(255) }); }
        };
    """
    w = walk("?transport=websocket&video=h264", script=broken)
    before = enter(w)
    w.until(lambda stats: len([each for each in w.messages() if isinstance(each, Hello)]) == 2)
    after = w.until(lambda stats: stats["state"] == "playing" and stats["frame"] > before["frame"])
    assert (after["session"], after["transport"]) == (before["session"], "websocket")
    assert [each.video for each in w.messages() if isinstance(each, Hello)] == [["h264", "jpeg"], ["jpeg"]]
    assert shown_width(w) == SIZE[0]


@pytest.mark.parametrize(
    ("happens", "then"),
    [
        # The browser takes it back from a page in the background: the next one decodes again.
        (
            "decode(chunk) { this.taken ??= fail(new DOMException('', 'QuotaExceededError')) ?? true; }",
            ["h264", "jpeg"],
        ),
        ("decode(chunk) {}", ["jpeg"]),
    ],
    ids=["taken back", "silent"],
)
def test_a_decoder_of_h264_gives_nothing(walk: Open, happens: str, then: list[str]) -> None:
    script = f"""
        const Real = VideoDecoder;
        let decoders = 0;
        window.VideoDecoder = class {{
            static isConfigSupported = (config) => Real.isConfigSupported(config);
            constructor(init) {{
                if (decoders++) return new Real(init);
                const decoder = new Real(init), fail = init.error;
                return Object.assign(decoder, {{ {happens} }});
            }}
        }};
    """
    w = walk("?transport=websocket&video=h264", script=script)
    enter(w)
    assert [each.video for each in w.messages() if isinstance(each, Hello)] == [["h264", "jpeg"], then]
    assert shown_width(w) == SIZE[0] * (ENLARGED if "h264" in then else 1)


def test_a_gamepad_steers(walk: Open) -> None:
    """As far as the server: what is held there is what the page says, and every edge is acknowledged."""
    fake = """
        const lifted = () => Array.from({ length: 17 }, () => ({ pressed: false }));
        window.plug = (buttons, ...axes) => {
            window.pad = buttons && { index: 0, mapping: 'standard', buttons: lifted(), axes: [...axes, 0, 0, 0, 0] };
            for (const button of buttons ?? []) pad.buttons[button].pressed = true;
        };
        navigator.getGamepads = () => [null, window.pad ?? null];
    """
    w = walk("?transport=websocket", script=fake)
    hint = w.page.locator("#gamepad")
    expect(hint).to_be_hidden()

    def pad(state: str, *held: str) -> None:
        w.page.evaluate(f"plug({state})")
        expect(w.page.locator(".hints .held")).to_have_count(len(held))
        assert {part.get_attribute("data-code") for part in w.page.locator(".hints .held").all()} == set(held)

    w.page.evaluate("plug([]); dispatchEvent(new Event('gamepadconnected'))")
    expect(hint).to_be_visible()
    w.page.evaluate("plug([0])")  # walks in
    w.plays()
    pad("[]")
    w.until(lambda stats: len(stats["inputToPhotonMs"]) == 1)  # it was read
    pad("[], 0, -0.45")
    pad("[], 0, -0.6", "KeyW")
    pad("[], 0, -0.4", "KeyW")  # it trembles
    pad("[12], 0.9, -0.3", "KeyW", "ArrowRight")  # the cross goes on with what the stick held
    pad("[12, 7], 0, 0, -1", "KeyW", "ArrowLeft", "Space")
    # Who leaves the window lets go of all; what is still down on return counts anew.
    w.page.evaluate("document.hasFocus = () => false; dispatchEvent(new Event('blur'))")
    expect(w.page.locator(".hints .held")).to_have_count(0)
    w.page.evaluate("document.hasFocus = () => true")
    expect(w.page.locator(".hints .held")).to_have_count(3)
    w.page.evaluate("plug(null)")
    expect(w.page.locator(".hints .held")).to_have_count(0)
    expect(hint).to_be_hidden()
    w.until(lambda stats: len(stats["inputToPhotonMs"]) == 12)
    first, *said = [each for each in w.messages() if isinstance(each, Input)]
    assert (first.code, first.down) == ("Space", False)  # the button that walked in
    assert [(each.code, each.down) for each in said[:2]] == [("KeyW", True), ("ArrowRight", True)]
    assert {(each.code, each.down) for each in said[2:5]} == {
        ("ArrowLeft", True), ("ArrowRight", False), ("Space", True),
    }  # fmt: skip
    assert {(each.code, each.down) for each in said[5:8]} == {("KeyW", True), ("ArrowLeft", True), ("Space", True)}
    assert {(each.code, each.down) for each in said[8:]} == {("KeyW", False), ("ArrowLeft", False), ("Space", False)}
    assert said[-1].held == []
    assert w.complaints == []


def test_what_it_says_is_what_the_server_reads(walk: Open) -> None:
    """Two keys that mean one code are one press; leaving the window releases all; unknown keys are not told."""
    w = walk("?transport=websocket")
    enter(w)
    w.sent.clear()
    w.page.keyboard.down("w")
    w.page.keyboard.down("ArrowUp")
    w.page.keyboard.down("a")
    w.page.keyboard.press("q")
    w.page.keyboard.up("w")
    expect(w.page.locator(".hints .held")).to_have_count(2)
    w.page.evaluate("window.dispatchEvent(new Event('blur'))")
    expect(w.page.locator(".hints .held")).to_have_count(0)
    w.page.wait_for_timeout(1500)

    said = w.messages()
    edges = [(message.code, message.down, sorted(message.held)) for message in said if isinstance(message, Input)]
    assert edges == [("KeyW", True, ["KeyW"]), ("ArrowLeft", True, ["ArrowLeft", "KeyW"])]
    after = said[max(i for i, message in enumerate(said) if isinstance(message, Input)) + 1 :]
    released = next(i for i, message in enumerate(after) if isinstance(message, Release))
    later = [message for message in after[released:] if isinstance(message, Ping)]
    assert later and all(message.held == [] for message in later)
    numbered = [message.seq for message in said if isinstance(message, Input | Release)]
    assert numbered == sorted(set(numbered))


@pytest.mark.parametrize("transport", ["webrtc", "websocket"])
def test_reload_returns_to_the_stream(walk: Open, transport: str) -> None:
    w = walk(f"?transport={transport}")
    session = enter(w)["session"]
    before = w.until(lambda stats: stats["frame"] > 20)["frame"]
    w.page.reload()
    after = w.plays()
    assert after["session"] == session
    assert after["transport"] == transport
    assert after["frame"] >= before
    w.until(lambda stats: stats["frame"] > after["frame"])
    assert w.complaints == []


def test_a_key_walks_in_and_the_world_pauses(walk: Open) -> None:
    w = walk()
    w.page.keyboard.press("w")
    w.plays()
    w.page.keyboard.press("p")
    w.until(lambda stats: stats["state"] == "paused")
    expect(w.page.get_by_role("heading", name="Paused")).to_be_visible()
    w.page.wait_for_timeout(1200)
    still = w.stats()
    w.page.wait_for_timeout(1200)
    assert w.stats()["framesDecoded"] == still["framesDecoded"]
    w.page.keyboard.press("w")
    w.until(lambda stats: stats["state"] == "playing" and stats["framesDecoded"] > still["framesDecoded"] + 20)
    assert w.stats()["freezes"] == still["freezes"], "a pause is no freeze"


def test_a_world_that_nobody_sees_waits(walk: Open) -> None:
    """Until somebody does, even if that is while there is no connection."""
    see = """window.see = (visible) => {
        Object.defineProperty(document, 'hidden', { value: !visible, configurable: true });
        document.dispatchEvent(new Event('visibilitychange', { bubbles: true }));
    };"""
    w = walk("?transport=websocket", script=SPY + see)
    enter(w)
    close = "sockets[0].addEventListener('close', () => setTimeout(see, 0, true)); sockets[0].close()"
    for back in ("see(true)", close):
        w.page.evaluate("see(false)")
        w.until(lambda stats: stats["state"] == "paused")
        w.page.evaluate(back)
        w.until(lambda stats: stats["state"] == "playing")
    assert w.page.evaluate("sockets.length") == 2


def test_new_world(walk: Open) -> None:
    w = walk("?transport=websocket&seed=3")
    session = enter(w)["session"]
    w.until(lambda stats: stats["frame"] > 60)
    w.page.get_by_role("button", name="New world").click()
    new = w.until(lambda stats: stats["seed"] != 3 and stats["frame"] < 60)
    assert new["session"] == session
    w.until(lambda stats: stats["frame"] > new["frame"] and stats["frameAgeMs"] is not None)
    expect(w.page.locator("#seed")).to_have_text(str(new["seed"]))


def test_the_log_of_what_was_seen_can_be_saved(walk: Open) -> None:
    w = walk("?transport=websocket&seed=4")
    session = enter(w)["session"]
    with w.page.expect_download() as download:
        w.page.get_by_role("button", name="Save log").click()
    assert download.value.suggested_filename == f"world-{session}.jsonl"
    [(begun, runs)] = read_log(Path(download.value.path())).generations
    assert begun.seed == 4 and runs[0].frame == begun.frame
    assert w.complaints == []


def test_it_says_what_generates_the_frames(walk: Open) -> None:
    w = walk()
    w.page.route("**/readyz", lambda route: route.fulfill(json={"status": "ready", "device": "Quill(R) 7 CPU"}))
    w.page.reload()
    expect(w.page.get_by_text("generated by a neural network on Quill 7 CPU.")).to_be_visible()


def test_on_a_phone_two_thumbs_steer(walk: Open) -> None:
    w = walk(device=PHONE)
    enter(w)
    stage, cross, fire = (w.page.locator(name).bounding_box() for name in ("#stage", ".cross", ".alone"))
    assert stage and cross and fire
    assert stage["width"] > 350 and stage["y"] + stage["height"] < cross["y"]
    assert cross["x"] + cross["width"] < fire["x"] and fire["x"] + fire["width"] <= 390
    assert cross["y"] + cross["height"] < 844
    assert w.page.evaluate("document.documentElement.scrollWidth <= innerWidth && scrollY === 0")

    touch = w.context.new_cdp_session(w.page)

    def fingers(kind: str, *points: tuple[float, float]) -> None:
        touches = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    def held() -> set[str]:
        return set(w.page.evaluate("[...document.querySelectorAll('.pad .held')].map((each) => each.dataset.code)"))

    up_left = (cross["x"] + cross["width"] * 0.2, cross["y"] + cross["height"] * 0.2)
    up = (cross["x"] + cross["width"] * 0.5, cross["y"] + cross["height"] * 0.12)
    on_fire = (fire["x"] + fire["width"] / 2, fire["y"] + fire["height"] / 2)
    fingers("touchStart", up_left)
    assert held() == {"KeyW", "ArrowLeft"}
    fingers("touchStart", up_left, on_fire)
    assert held() == {"KeyW", "ArrowLeft", "Space"}
    fingers("touchMove", up, on_fire)
    assert held() == {"KeyW", "Space"}
    fingers("touchEnd")
    assert held() == set()
    # Down: forward, left, fire; up: left, forward, fire.
    w.until(lambda stats: len(stats["inputToPhotonMs"]) == 6, 3)
    assert w.complaints == []
