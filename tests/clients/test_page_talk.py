"""The page of an avatar in a real Chromium: what is said to it by microphone, text and file is seen and heard."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from server.voice import VOICE_RATE
from tests.clients.conftest import Server, chromium_with
from tests.clients.walking import DESKTOP, PHONE, Open, Walk, enter
from tests.server.harness import LiveServer
from tests.server.test_talk import as_wave

LOUD, SILENT = 0.05, 0.01
SPOKEN_S = 60.0
"""Longer than any wait of a test: what has stopped before was interrupted."""

MOUTH = """() => {
    const context = new OffscreenCanvas(128, 96).getContext('2d');
    context.drawImage(document.querySelector('.picture.shown'), 0, 0, 128, 96);
    return context.getImageData(4, 20, 1, 1).data[0] > 128;
}"""
"""Whether the picture's mouth is open: the first square of the row of keys."""

LINKS = ["webrtc", "websocket"]


def buzz(seconds: float, pause_s: float = 0.0) -> bytes:
    """A wave file with something like a voice; where there are pauses, it speaks for as long as each."""
    time_s = np.arange(round(seconds * VOICE_RATE)) / VOICE_RATE
    phase = 150 * time_s + np.sin(2 * np.pi * 5 * time_s)
    voice = sum(np.sin(2 * np.pi * k * phase) / k for k in range(1, 20))
    if pause_s:
        voice = voice * (time_s // pause_s % 2 == 0)
    return as_wave((6000 * voice).astype(np.int16))


@pytest.fixture(scope="module")
def world_server(avatar: LiveServer) -> Server:
    """Where `walk` goes."""
    return Server(avatar.url, os.getpid())


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """With a microphone that hears a file, over and over, and a person who allows it."""
    spoken = tmp_path_factory.mktemp("microphone") / "spoken.wav"
    spoken.write_bytes(buzz(8.0, pause_s=0.8))
    with chromium_with(
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={spoken}",
    ) as browser:
        yield browser


def begin(walk: Walk) -> dict[str, Any]:
    walk.page.get_by_role("button", name="Begin").click()
    return walk.plays()


def mouth(walk: Walk) -> bool:
    return bool(walk.page.evaluate(MOUTH))


def until_mouth(walk: Walk, opened: bool) -> None:
    walk.until(lambda _: mouth(walk) == opened)


def stays_silent(walk: Walk, seconds: float = 1.5) -> bool:
    """Whether for so long it is neither heard nor seen to speak."""
    for _ in range(round(seconds / 0.05)):
        if walk.stats()["audioLevel"] > SILENT or mouth(walk):
            return False
        walk.page.wait_for_timeout(50)
    return True


def give(walk: Walk, sound: bytes, name: str = "speech.wav") -> None:
    walk.page.locator("#file").set_input_files({"name": name, "mimeType": "audio/wav", "buffer": sound})


@pytest.mark.parametrize("link", LINKS)
def test_what_a_microphone_hears_is_spoken(walk: Open, link: str) -> None:
    w = walk(f"?transport={link}")
    before = begin(w)
    assert before["transport"] == link.partition("&")[0]
    assert (before["microphone"], before["heard"]) == ("off", True)
    button = w.page.get_by_role("button", name="Microphone")
    button.click()
    on = w.until(lambda stats: stats["microphone"] == "on")
    assert not on["heard"]  # it would hear itself
    expect(button).to_have_attribute("aria-pressed", "true")
    for _ in range(3):
        until_mouth(w, True)
        until_mouth(w, False)
    w.until(lambda stats: stats["audioLevel"] > LOUD)
    w.until(
        lambda _: float(w.page.evaluate("document.querySelector('#level').style.getPropertyValue('--level')")) > 0.3
    )
    w.page.get_by_role("button", name="Loudspeaker").click()
    assert w.stats()["heard"]

    w.page.keyboard.press("m")
    off = w.until(lambda stats: stats["microphone"] == "off")
    assert off["heard"]
    w.until(lambda _: stays_silent(w))
    assert w.complaints == []


@pytest.mark.parametrize("link", LINKS)
def test_sound_and_lips_go_together(walk: Open, link: str) -> None:
    """As the page draws and plays them; half a second at most, so that a busy machine passes, and nobody else."""
    w = walk(f"?transport={link}")
    begin(w)
    give(w, buzz(SPOKEN_S, pause_s=1.5))
    w.until(lambda stats: stats["audioLevel"] > LOUD)
    seen = w.page.evaluate(f"""async () => {{
        const mouth = {MOUTH}, seen = [[0, true, true]];
        for (let begun = 0; begun < 4; begun += seen.at(-1)[1] && !seen.at(-2)[1]) {{
            await new Promise((drawn) => setTimeout(drawn, 20));
            seen.push([performance.now(), streamgen.stats().audioLevel > {LOUD}, mouth()]);
        }}
        return seen;
    }}""")
    changes = [
        [now for (now, *now_is), (_, *was) in zip(seen[1:], seen, strict=False) if now_is[kind] and not was[kind]]
        for kind in (0, 1)
    ]
    apart = [min(abs(heard - shown) for shown in changes[1]) for heard in changes[0][1:-1]]
    assert apart and np.median(apart) < 500, changes


@pytest.mark.parametrize("link", LINKS)
def test_typed_text_is_spoken(walk: Open, link: str) -> None:
    w = walk(f"?transport={link}")
    before = begin(w)
    text = w.page.get_by_label("Text")
    text.click()
    w.page.keyboard.type("Imp, no!")  # letters that mean something elsewhere on the page are typed here
    expect(text).to_have_value("Imp, no!")
    w.page.keyboard.press("Enter")
    w.until(lambda stats: stats["audioLevel"] > LOUD)
    until_mouth(w, True)
    expect(text).to_have_value("")
    expect(text).to_be_focused()
    after = w.until(lambda _: stays_silent(w)) and w.stats()
    assert (after["session"], after["seed"], after["state"]) == (before["session"], before["seed"], "playing")
    assert (after["microphone"], after["heard"]) == ("off", True)
    assert w.complaints == []


def test_a_paused_avatar_goes_on_when_it_is_spoken_to(walk: Open) -> None:
    w = walk("?transport=websocket")
    begin(w)
    w.page.keyboard.press("p")
    w.until(lambda stats: stats["state"] == "paused")
    expect(w.page.get_by_text("Nobody moves until you go on.")).to_be_visible()
    w.page.get_by_label("Text").fill("Hello.")
    w.page.get_by_role("button", name="Say", exact=True).click()
    w.until(lambda stats: stats["state"] == "playing" and stats["audioLevel"] > LOUD)


def test_a_file_that_is_dropped_is_spoken(walk: Open) -> None:
    w = walk()
    begin(w)
    for kind in ("dragover", "drop"):
        w.page.evaluate(
            """([kind, sound]) => {
                const dataTransfer = new DataTransfer();
                const bytes = Uint8Array.from(atob(sound), (each) => each.charCodeAt(0));
                dataTransfer.items.add(new File([bytes], 'speech.wav', { type: 'audio/wav' }));
                const dropped = new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true });
                document.querySelector('#stage').dispatchEvent(dropped);
                if (!dropped.defaultPrevented) throw new Error('the browser would leave the page');
            }""",
            [kind, base64.b64encode(buzz(2.0)).decode()],
        )
        expect(w.page.get_by_text("Drop a sound file")).to_be_visible(visible=kind == "dragover")
    w.until(lambda stats: stats["audioLevel"] > LOUD)
    until_mouth(w, True)
    assert w.complaints == []


@pytest.mark.parametrize(("link", "how"), [(LINKS[0], "button"), (LINKS[1], "Escape")])
def test_an_interruption_silences(walk: Open, link: str, how: str) -> None:
    w = walk(f"?transport={link}")
    begin(w)
    give(w, buzz(SPOKEN_S))
    w.until(lambda stats: stats["audioLevel"] > LOUD and mouth(w))
    if how == "button":
        w.page.get_by_role("button", name="Interrupt").click()
    else:
        w.page.keyboard.press(how)
    w.until(lambda _: stays_silent(w))
    give(w, buzz(1.0))
    w.until(lambda stats: stats["audioLevel"] > LOUD and mouth(w))
    assert w.complaints == []


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (501, "no_speech", "This server has no voice for text"),
        (503, "voice_full", "It has enough to say already"),
        (422, "unspeakable", "Nothing in it can be pronounced."),
    ],
)
def test_a_text_that_is_refused_comes_back(walk: Open, status: int, code: str, said: str) -> None:
    w = walk("?transport=websocket")
    begin(w)
    error = {"code": code, "message": "nothing in it can be pronounced", "retryable": status == 503}
    w.page.route("**/say", lambda route: route.fulfill(status=status, json={"error": error}))
    w.page.get_by_label("Text").fill("Hello.")
    w.page.get_by_label("Text").press("Enter")
    expect(w.page.locator("#notice")).to_contain_text(said)
    expect(w.page.get_by_label("Text")).to_have_value("Hello.")


def test_a_file_without_sound_is_refused(walk: Open) -> None:
    w = walk("?transport=websocket")
    begin(w)
    give(w, b"no sound")
    expect(w.page.locator("#notice")).to_contain_text("The file: its sound cannot be read")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "MediaDevices.prototype.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError'); }",
            "allow",
        ),
        (
            "MediaDevices.prototype.getUserMedia = async () => { throw new DOMException('', 'NotFoundError'); }",
            "no micro",
        ),
        ("delete Navigator.prototype.mediaDevices", "HTTPS"),
    ],
    ids=["refused", "none", "insecure"],
)
def test_without_a_microphone_text_still_works(walk: Open, script: str, said: str) -> None:
    w = walk(script=script)
    begin(w)
    w.page.get_by_role("button", name="Microphone").click()
    refused = w.until(lambda stats: stats["microphone"] == "refused")
    assert refused["heard"]
    expect(w.page.locator("#notice")).to_contain_text(said)
    expect(w.page.get_by_role("button", name="Microphone")).to_have_attribute("aria-pressed", "false")
    w.page.get_by_label("Text").fill("Hello.")
    w.page.get_by_label("Text").press("Enter")
    w.until(lambda stats: stats["audioLevel"] > LOUD)
    assert w.complaints == []


FAILS_THE_SECOND_TIME = """
let made = 0;
window.RTCPeerConnection = class extends RTCPeerConnection {
  number = ++made;
  setRemoteDescription(answer) {
    return this.number === 2 ? Promise.reject(new Error("it was not to be")) : super.setRemoteDescription(answer);
  }
};
"""


def test_another_person_keeps_the_transport_that_worked(walk: Open, avatar: LiveServer) -> None:
    """If the first try to connect to their session fails, too."""
    w = walk("?transport=webrtc", script=FAILS_THE_SECOND_TIME)
    before = begin(w)
    w.page.get_by_role("combobox", name="Person").select_option("ben")
    after = w.until(lambda stats: stats["state"] == "playing" and stats["session"] not in (before["session"], None))
    assert after["transport"] == "webrtc"
    assert [session.stream.identity for session in avatar.service.sessions] == ["ben"]


@pytest.mark.parametrize("link", LINKS[:1])
def test_another_person_begins_anew(walk: Open, avatar: LiveServer, link: str) -> None:
    """Whoever talks goes on talking."""
    w = walk(f"?transport={link}")
    choice = w.page.get_by_role("combobox", name="Person")
    expect(choice).to_have_value("anna")
    before = begin(w)
    w.page.get_by_role("button", name="Microphone").click()
    w.until(lambda stats: stats["microphone"] == "on")
    choice.select_option("ben")
    after = w.until(lambda stats: stats["state"] == "playing" and stats["session"] not in (before["session"], None))
    assert [session.stream.identity for session in avatar.service.sessions] == ["ben"]
    expect(w.page).to_have_url(re.compile("identity=ben"))
    assert after["transport"] == link and (after["microphone"], after["heard"]) == ("on", False)
    until_mouth(w, True)
    w.page.reload()
    assert w.plays()["session"] == after["session"]
    expect(choice).to_have_value("ben")
    # Its link and its session end at the same time: one may be gone when the other is asked for.
    assert all(each.startswith("Failed to load resource") for each in w.complaints)


@pytest.mark.parametrize(
    "script",
    [
        "Object.defineProperty(navigator, 'userActivation', { value: { hasBeenActive: false } })",
        """
        const play = HTMLMediaElement.prototype.play;
        HTMLMediaElement.prototype.play = async function () {
            if (!this.muted && !window.clicked) throw new DOMException('', 'NotAllowedError');
            return play.call(this);
        };
        """,
    ],
    ids=["untouched", "strict"],
)
def test_a_page_that_may_not_be_heard_is_seen(walk: Open, script: str) -> None:
    """After a reload, and where each sound wants its own click."""
    w = walk(script=script)
    begin(w)
    w.until(lambda stats: not stats["heard"])
    assert w.page.evaluate("document.querySelector('#video').muted")
    w.page.evaluate("window.clicked = true")
    w.page.get_by_role("button", name="Loudspeaker").click()
    assert w.stats()["heard"]
    assert not w.page.evaluate("document.querySelector('#video').muted")


def test_on_a_phone_all_is_there(walk: Open) -> None:
    w = walk(device=PHONE)
    begin(w)
    stage, button, text = (w.page.locator(name).bounding_box() for name in ("#stage", "#microphone", "#text"))
    assert stage and button and text
    assert stage["width"] > 350 and stage["y"] + stage["height"] < text["y"] < button["y"]
    assert button["width"] > 60 and abs(button["x"] + button["width"] / 2 - 195) < 2
    assert w.page.evaluate("document.documentElement.scrollWidth <= innerWidth && scrollY === 0")
    for part in w.page.locator("#talk button, .buttons button:not(.only-keyboard):not(#full)").all():
        box = part.bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["y"] + box["height"] <= 844
    expect(w.page.locator("#pad")).to_be_hidden()


def test_a_world_has_no_microphone(browser: Browser, shared: LiveServer) -> None:
    context = browser.new_context(**DESKTOP)
    walk = Walk(context.new_page(), context)
    walk.page.goto(shared.url)
    with walk.page.expect_request(re.compile("/webrtc$")) as offered:
        enter(walk)
    assert "m=video" in (offered.value.post_data or "") and "m=audio" not in (offered.value.post_data or "")
    expect(walk.page.get_by_role("button", name="Microphone")).to_be_hidden()
    expect(walk.page.locator("#talk")).to_be_hidden()
    expect(walk.page.locator(".hints")).to_be_visible()
    walk.page.keyboard.press("m")
    stats = walk.stats()
    assert (stats["transport"], stats["microphone"], stats["audioLevel"]) == ("webrtc", "off", 0)
    context.close()


def test_worlds_and_avatars_are_chosen_from_one_list(
    browser: Browser, shared: LiveServer, avatar: LiveServer, tmp_path: Any
) -> None:
    server = LiveServer(shared.student, tmp_path, others=[avatar.student]).start()
    try:
        context = browser.new_context(**DESKTOP)
        walk = Walk(context.new_page(), context)
        walk.page.goto(server.url)
        choice = walk.page.get_by_role("combobox", name="Show")
        expect(choice).to_have_value("synthetic")
        expect(walk.page.get_by_role("button", name="Walk in")).to_be_visible()
        expect(walk.page.get_by_role("combobox", name="Person")).to_be_hidden()
        choice.select_option("avatar")
        expect(walk.page).to_have_url(f"{server.url}/?student=avatar")
        expect(walk.page).to_have_title("streamgen – talk")
        with walk.page.expect_request(re.compile("/webrtc$")) as offered:
            begin(walk)
        assert "m=audio" in (offered.value.post_data or "")
        context.close()
    finally:
        server.stop()
