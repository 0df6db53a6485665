"""The session over HTTP."""

from __future__ import annotations

import asyncio
import base64
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from typing import Any, Self
from urllib.parse import quote, urlsplit

from streamgen_client.errors import BadAddress, ServerUnreachable, SessionRefused

_TIMEOUT_S = 10.0
_SPEECH_TIMEOUT_S = 120.0
"""Texts and files may wait behind those of others."""


@dataclass(frozen=True, slots=True)
class Student:
    """The model behind the stream. width, height: of its frames. keys: KeyboardEvent.code of those it understands.

    speech: whether it is an avatar, which is driven by sound and has a voice. identities: who it can be. reference:
    whether it can be whoever a picture shows.
    """

    name: str
    fps: float
    width: int
    height: int
    keys: tuple[str, ...]
    speech: bool = False
    identities: tuple[str, ...] = ()
    reference: bool = False

    @classmethod
    def read(cls, body: dict[str, Any]) -> Self:
        shape = body["name"], body["fps"], body["width"], body["height"]
        return cls(*shape, tuple(body["keys"]), body["speech"], tuple(body["identities"]), body["reference"])


@dataclass(frozen=True, slots=True)
class Session:
    """The right to a stream. address: of the session, without a slash at the end. token: proof of the right."""

    address: str
    token: str
    seed: int
    student: Student

    @property
    def socket_address(self) -> str:
        """Where its WebSocket is."""
        return "ws" + self.address.removeprefix("http") + "/stream"

    @classmethod
    async def create(
        cls,
        url: str,
        student: str | None,
        seed: int | None,
        api_key: str,
        identity: str | None = None,
        reference: bytes | None = None,
    ) -> Self:
        """A new session on the server at `url`. Raises BadAddress, ServerUnreachable, SessionRefused."""
        base = _base(url)
        picture = None if reference is None else base64.b64encode(reference).decode()
        wished = {"student": student, "seed": seed, "identity": identity, "reference": picture}
        wish = {name: value for name, value in wished.items() if value is not None}
        _, text = await _request("POST", f"{base}/v1/sessions", json.dumps(wish).encode(), "application/json", api_key)
        body = json.loads(text)
        address = f"{base}/v1/sessions/{quote(body['id'], safe='')}"
        return cls(address, body["token"], body["seed"], Student.read(body["student"]))

    async def offer(self, sdp: str) -> tuple[str, str]:
        """The answer to a WebRTC offer, and the address of the server's end of the connection."""
        headers, answer = await self._call("POST", "/webrtc", sdp.encode(), "application/sdp")
        peer = (headers["Location"] or "").rpartition("/")[2]
        return answer.decode(), f"/webrtc/{peer}"

    async def end(self, path: str = "") -> None:
        """End the session, or what stands below it under `path`."""
        await self._call("DELETE", path)

    async def reset(self, seed: int) -> None:
        """Begin the stream anew."""
        await self._call("POST", "/reset", json.dumps({"seed": seed}).encode(), "application/json")

    async def say(self, text: str) -> float:
        """Let it say a text; returns its seconds."""
        _, answer = await self._call(
            "POST", "/say", json.dumps({"text": text}).encode(), "application/json", _SPEECH_TIMEOUT_S
        )
        return float(json.loads(answer)["seconds"])

    async def play(self, file: bytes) -> float:
        """Let it say the sound of a file; returns its seconds."""
        _, answer = await self._call("POST", "/sound", file, "application/octet-stream", _SPEECH_TIMEOUT_S)
        return float(json.loads(answer)["seconds"])

    async def interrupt(self) -> None:
        """Let it fall silent."""
        await self._call("POST", "/interrupt")

    async def log(self) -> bytes:
        """The session's log."""
        _, log = await self._call("GET", "/log")
        return log

    async def _call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        media_type: str = "",
        timeout_s: float = _TIMEOUT_S,
    ) -> tuple[Message, bytes]:
        return await _request(method, self.address + path, body, media_type, self.token, timeout_s)


async def read_student(url: str, name: str | None = None) -> Student:
    """A student of the server at `url`, None: the one that a session gets which names none.

    Raises BadAddress, ServerUnreachable, SessionRefused.

    >>> asyncio.run(read_student(url)).keys
    ('KeyW', 'KeyS', 'ArrowLeft', 'ArrowRight', 'Space')
    """
    _, text = await _request("GET", f"{_base(url)}/v1/students")
    students = [Student.read(each) for each in json.loads(text)["students"]]
    for student in students:
        if name in (None, student.name):
            return student
    known = ", ".join(student.name for student in students)
    raise SessionRefused("unknown_student", f"there is no student {name!r}; it serves {known}")


def _base(url: str) -> str:
    """The server's address without a slash at the end. Raises BadAddress."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        raise BadAddress(url) from None
    if not good or parts.query or parts.fragment:
        raise BadAddress(url)
    return url.rstrip("/")


async def _request(
    method: str,
    address: str,
    body: bytes | None = None,
    media_type: str = "",
    bearer: str = "",
    timeout_s: float = _TIMEOUT_S,
) -> tuple[Message, bytes]:
    headers = {"Content-Type": media_type} if media_type else {}
    if bearer:
        headers["Authorization"] = f"Bearer {bearer}"
    request = urllib.request.Request(address, body, headers, method=method)
    return await asyncio.to_thread(_exchange, request, timeout_s)


def _exchange(request: urllib.request.Request, timeout_s: float) -> tuple[Message, bytes]:
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return response.headers, response.read()
    except urllib.error.HTTPError as error:
        raise _refusal(error) from None
    except (OSError, ValueError, HTTPException) as error:
        raise ServerUnreachable(request.full_url, getattr(error, "reason", error)) from error


def _refusal(error: urllib.error.HTTPError) -> SessionRefused:
    """The server's own words where it has some: something between may have answered in its place."""
    with error:
        try:
            body = json.loads(error.read())["error"]
            code, message, retryable = str(body["code"]), str(body["message"]), bool(body["retryable"])
        except (OSError, ValueError, KeyError, TypeError):
            code, message, retryable = f"http_{error.code}", str(error.reason), error.code >= 500
    after = error.headers.get("Retry-After", "")
    return SessionRefused(code, message, retryable, float(after) if after.isdecimal() else None)
