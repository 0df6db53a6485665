"""Voice agents: what a program gives a stream to say, piece by piece, in the events of OpenAI's Realtime interface.

A program that talks with a model over that interface passes the model's events on as they are; those that say nothing
about sound are ignored. Text-to-speech of any other kind sends its PCM as binary messages.
Event names and fields: OpenAI's "Realtime server events" (GA names, and those of the beta before).
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

from fastapi import WebSocket

from server.codes import ErrorCode
from server.errors import Refused
from server.metrics import Metrics
from server.security import client_address
from server.session import Session
from server.sessions import Sessions
from server.settings import Settings
from server.speaking import queue, voice_of
from server.viewers import CLOSE_POLICY, CLOSE_TRY_LATER
from server.voice import Pcm
from server.websocket import SocketTransport, receive_message, run_socket

AGENT_HZ = 24_000
"""Rate of the Realtime interface's PCM."""
EVENTS = {
    "response.output_audio.delta": "`delta`, PCM in base64, is said after what waits to be said",
    "response.audio.delta": "the same, by its older name",
    "response.output_audio.done": "that was all of it",
    "response.audio.done": "the same, by its older name",
    "input_audio_buffer.speech_started": "silence at once: the person begins to speak",
    "output_audio_buffer.clear": "silence at once",
}
"""What is taken, and what it does."""
_LOOK_EVERY_S = 0.02
_PAUSE_S = 0.5
"""Between pieces of sound, after which the next one is a new utterance."""


class _Agent:
    """One agent's turn: it says something until that is said to its end or somebody interrupts it."""

    def __init__(self, session: Session, transport: SocketTransport, settings: Settings, rate: int) -> None:
        """Raises Refused for a student that says nothing."""
        voice_of(session.stream)
        self._session, self._stream, self._transport = session, session.stream, transport
        self._most_s, self._rate, self._pcm = settings.max_sound_s, rate, Pcm(rate)
        self._utterance = self._stream.utterance
        self._response = ""
        """Which; "" for sound that does not say of what it is a part."""
        self._heard_s = float("-inf")
        self._saying = self._complete = self._overtaken = False

    def take(self, data: str | bytes) -> None:
        """One message. Raises Refused when it cannot be used."""
        self.look()
        if isinstance(data, bytes):
            return self._say(data, self._response)
        event = _parsed(data)
        kind = event["type"]
        if kind in ("response.output_audio.delta", "response.audio.delta"):
            self._say(_decoded(event), str(event.get("response_id", "")))
        elif kind in ("response.output_audio.done", "response.audio.done"):
            self._complete, self._overtaken = True, False
        elif kind in EVENTS:
            self._session.interrupt()
            self.look()
            # Whoever wanted silence says what comes next, where it does not say of what that is a part.
            self._overtaken = self._overtaken and self._response != ""
        return None

    def _say(self, pcm: bytes, response: str) -> None:
        """What still comes of a response that was interrupted is not said. Sound that belongs to none goes on after a
        pause: what was under way comes at once.
        """
        now_s = time.monotonic()
        paused, self._heard_s = now_s - self._heard_s > _PAUSE_S, now_s
        if self._overtaken and response == self._response and (response or not paused):
            return
        self._response, self._overtaken, self._complete = response, False, False
        queue(voice_of(self._stream), self._pcm.push(pcm), self._most_s)
        if not self._saying:
            self._saying = True
            self._tell("output_audio_buffer.started")

    def look(self) -> None:
        """Tell the agent when it was interrupted, by itself or anybody else, and when all is said."""
        if self._stream.utterance != self._utterance:
            self._utterance, self._pcm = self._stream.utterance, Pcm(self._rate)
            if self._saying:
                self._saying, self._overtaken = False, not self._complete
                self._tell("output_audio_buffer.cleared")
        elif self._saying and self._complete and not voice_of(self._stream).queued_s:
            self._saying = False
            self._tell("output_audio_buffer.stopped")

    def _tell(self, kind: str) -> None:
        _send(self._transport, {"type": kind, "response_id": self._response})


async def serve_agent(
    socket: WebSocket, session_id: str, token: str, rate: int, sessions: Sessions, settings: Settings, metrics: Metrics
) -> None:
    """One voice agent to its end. rate: of its PCM, in Hz."""
    await socket.accept()
    transport = SocketTransport()

    def refuse(refused: Refused) -> None:
        metrics.requests_refused.labels(refused.code).inc()
        _send(transport, _error(refused.code, refused.message))

    try:
        session = sessions.find(session_id, token, client_address(socket))
        agent = _Agent(session, transport, settings, rate)
    except Refused as refused:
        refuse(refused)
        transport.close(CLOSE_TRY_LATER if refused.retryable else CLOSE_POLICY, refused.code)
        await run_socket(socket, transport)
        return

    async def take() -> None:
        while True:
            try:
                agent.take(await receive_message(socket))
            except Refused as refused:
                refuse(refused)

    async def look() -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            agent.look()

    session.agents.add(transport)
    try:
        await run_socket(socket, transport, take(), look())
    finally:
        session.agents.discard(transport)


def _parsed(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise Refused(400, "bad_message", "not an event: a JSON object with a type")
    return event


def _decoded(event: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(event["delta"], validate=True)
    except (KeyError, TypeError, ValueError):
        raise Refused(400, "bad_message", f"{event['type']}: delta is PCM s16le in base64") from None


def _error(code: ErrorCode, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": "invalid_request_error", "code": code, "message": message}}


def _send(transport: SocketTransport, event: dict[str, Any]) -> None:
    transport.send(json.dumps(event), important=event["type"] == "error")
