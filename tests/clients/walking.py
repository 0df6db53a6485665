"""A page in a real browser, as tests walk in it."""

from __future__ import annotations

import io
import time
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from playwright.sync_api import BrowserContext, Page

from server.protocol import parse_client

PLAYS_WITHIN_S = 45.0
SIZE = (160, 128)
"""Of the shipped world's frames: width and height, pixels."""
ENLARGED = 2
"""What video of it is enlarged by."""
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
SMALL = {"viewport": {"width": 480, "height": 360}}
"""Less for Chromium to draw: where two pages play, it must not take the cores that the server needs to let both in."""

SPY = """
    const Real = WebSocket;
    window.sockets = [];
    window.WebSocket = class extends Real {
        constructor(...given) { super(...given); sockets.push(this); }
    };
"""
"""Tells a test the page's sockets."""

GRAB = """() => {
    const shown = document.querySelector('.picture.shown');
    const canvas = document.createElement('canvas');
    canvas.width = shown.videoWidth ?? shown.width; canvas.height = shown.videoHeight ?? shown.height;
    canvas.getContext('2d').drawImage(shown, 0, 0);
    return canvas.toDataURL('image/png').split(',')[1];
}"""

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


@dataclass
class Walk:
    """One page, and what went wrong or left it."""

    page: Page
    context: BrowserContext
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    sent: list[str] = field(default_factory=list)

    def stats(self) -> dict[str, Any]:
        return self.page.evaluate("streamgen.stats()")

    def until(self, what: Callable[[dict[str, Any]], bool], within_s: float = PLAYS_WITHIN_S) -> dict[str, Any]:
        """Waits for figures that satisfy `what`, and returns them."""
        deadline = time.monotonic() + within_s
        while not what(stats := self.stats()):
            assert time.monotonic() < deadline, stats
            self.page.wait_for_timeout(50)
        return stats

    def plays(self) -> dict[str, Any]:
        return self.until(lambda stats: stats["state"] == "playing" and stats["frame"] is not None)

    def picture(self) -> Image.Image:
        """What is on the screen, by whichever link it came."""
        return Image.open(io.BytesIO(b64decode(self.page.evaluate(GRAB)))).convert("RGB")

    def messages(self) -> list[Any]:
        """Control messages that went over the WebSocket, as the server reads them."""
        return [parse_client(text) for text in self.sent]


Open = Callable[..., Walk]


def enter(walk: Walk) -> dict[str, Any]:
    walk.page.get_by_role("button", name="Walk in").click()
    return walk.plays()
