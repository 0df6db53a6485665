"""WebSocket viewers: JSON control messages both ways, frames out as JPEG or H.264."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from functools import partial

from fastapi import WebSocket
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect, WebSocketDisconnected

from server.control import receive
from server.errors import Refused
from server.mailbox import Frame, Mailbox, MailboxClosed
from server.metrics import Metrics
from server.protocol import (
    KIND_H264_DELTA,
    KIND_H264_KEY,
    KIND_JPEG,
    KIND_SOUND,
    VERSION,
    Error,
    Hello,
    pack_frame,
    parse_client,
)
from server.security import client_address
from server.session import Session
from server.sessions import Sessions
from server.settings import Settings
from server.video import H264, VideoEncoder, encoder_for, to_picture
from server.viewers import CLOSE_NORMAL, CLOSE_POLICY, CLOSE_TRY_LATER, Viewer
from server.voice import MOST_SOUND_BYTES, Microphone

log = logging.getLogger("streamgen.server.websocket")

_MOST_WAITING_MESSAGES = 64
_MORE_FOR_IMPORTANT = 16
_FAREWELL_S = 1.0
"""How long a client may take to read the last messages."""

_KEY_EVERY_US = 5_000_000
"""A decoder that has stumbled has this long to wait."""

_ENDS = WebSocketDisconnect, WebSocketDisconnected, MailboxClosed
"""How a viewer ends. Of several parts that send, the first learns that it was disconnected, and another that it is."""

Encode = Callable[[Frame], Awaitable[tuple[int, bytes]]]
"""Turns a frame into a kind of binary message and its payload."""


class SocketTransport:
    """Messages that wait for the socket, few of them, and its end (a `viewers.Transport`)."""

    kind = "websocket"
    has_rtp = False
    rtp_origin = None
    present = False

    def __init__(self) -> None:
        self.ended: tuple[int, str] | None = None
        self._waiting: deque[str] = deque()
        self._changed = asyncio.Event()
        self._asked_to_end = asyncio.Event()

    def send(self, text: str, important: bool) -> bool:
        if len(self._waiting) >= _MOST_WAITING_MESSAGES + important * _MORE_FOR_IMPORTANT:
            return False
        self._waiting.append(text)
        self._changed.set()
        return True

    def close(self, code: int, reason: str) -> None:
        if self.ended is None:
            self.ended = code, reason
            self._asked_to_end.set()
            self._changed.set()

    async def pump(self, socket: WebSocket) -> None:
        """Send what waits, until the end."""
        while True:
            while self._waiting:
                await socket.send_text(self._waiting.popleft())
            if self.ended is not None:
                return
            self._changed.clear()
            await self._changed.wait()

    async def overdue(self) -> None:
        """Return when the end was asked for a while ago, and the client still takes nothing."""
        await self._asked_to_end.wait()
        await asyncio.sleep(_FAREWELL_S)


async def serve_socket(
    socket: WebSocket, session_id: str, sessions: Sessions, settings: Settings, metrics: Metrics, pool: Executor
) -> None:
    """One viewer from its hello to its end."""
    await socket.accept()
    transport = SocketTransport()
    try:
        hello = await _hello(socket, settings)
        session = sessions.find(session_id, hello.token, client_address(socket))
        encode = _encoding(hello, session, settings, pool)
        viewer = session.attach(transport)
    except WebSocketDisconnect:
        return
    except Refused as refused:
        metrics.requests_refused.labels(refused.code).inc()
        transport.send(
            Error(code=refused.code, message=refused.message, retryable=refused.retryable).model_dump_json(),
            important=True,
        )
        transport.close(CLOSE_TRY_LATER if refused.retryable else CLOSE_POLICY, refused.code)
        await run_socket(socket, transport)
        return
    session.greet(viewer)
    try:
        await run_socket(
            socket,
            transport,
            _frames(socket, session, viewer, metrics, encode),
            _messages(socket, session, viewer, settings, hello.microphone_hz),
            *([_sounds(socket, session, viewer.listen())] if hello.sound else ()),
        )
    finally:
        session.detach(viewer)


async def run_socket(socket: WebSocket, transport: SocketTransport, *parts: Coroutine[None, None, None]) -> None:
    """Until the first part ends; then the others end too, and the socket is closed."""
    tasks = [asyncio.create_task(part) for part in (transport.pump(socket), transport.overdue(), *parts)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if any(isinstance(task.exception(), MailboxClosed) for task in done):
            # The session ended; what it said about it still waits.
            await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for error in results:
        if isinstance(error, Exception) and not isinstance(error, _ENDS):
            log.error("a WebSocket viewer failed", exc_info=error)
    code, reason = transport.ended or (CLOSE_NORMAL, "")
    with contextlib.suppress(RuntimeError, WebSocketDisconnect, TimeoutError):
        async with asyncio.timeout(_FAREWELL_S):
            await socket.close(code, reason)


async def _hello(socket: WebSocket, settings: Settings) -> Hello:
    """The first message. Raises Refused, WebSocketDisconnect."""
    try:
        async with asyncio.timeout(settings.hello_within_s):
            data = await receive_message(socket)
    except TimeoutError:
        raise Refused(408, "hello_timeout", f"no hello within {settings.hello_within_s:g} s") from None
    if len(data) > settings.max_message_bytes:
        raise Refused(
            413, "message_too_large", f"a hello of {len(data)} characters; the limit is {settings.max_message_bytes}"
        )
    try:
        hello = parse_client(data)
    except ValidationError:
        raise Refused(400, "bad_message", "not a control message") from None
    if not isinstance(hello, Hello):
        raise Refused(401, "unauthorized", "the first message is hello, with the session's token")
    if hello.version != VERSION:
        raise Refused(400, "unsupported_version", f"protocol version {hello.version}; this server speaks {VERSION}")
    return hello


def _encoding(hello: Hello, session: Session, settings: Settings, pool: Executor) -> Encode:
    """The first of the client's encodings that this server has. Raises Refused."""
    for name in hello.video:
        if name == "jpeg":
            return partial(_jpeg, pool)
        if name == "h264":
            return _H264(encoder_for(session.stream, H264, settings.upscale), pool)
    given = ", ".join(hello.video)
    raise Refused(400, "unknown_encoding", f"the client takes video as {given or 'nothing'}; there is jpeg and h264")


async def _jpeg(pool: Executor, frame: Frame) -> tuple[int, bytes]:
    return KIND_JPEG, await frame.jpeg(pool)


class _H264:
    """One viewer's encoder. Frames are dropped before they come here, so every delta has what it refers to."""

    def __init__(self, encoder: VideoEncoder, pool: Executor) -> None:
        self._encoder, self._pool = encoder, pool
        self._key: Frame | None = None

    async def __call__(self, frame: Frame) -> tuple[int, bytes]:
        key = self._key
        began = (frame.generation, frame.utterance)
        wanted = key is None or began != (key.generation, key.utterance) or frame.pts_us - key.pts_us >= _KEY_EVERY_US
        loop = asyncio.get_running_loop()
        packet = await loop.run_in_executor(self._pool, self._encoder.encode, to_picture(frame), wanted)
        if packet.is_keyframe:
            self._key = frame
        return KIND_H264_KEY if packet.is_keyframe else KIND_H264_DELTA, bytes(packet)


async def _messages(
    socket: WebSocket, session: Session, viewer: Viewer, settings: Settings, microphone_hz: int
) -> None:
    voice = session.stream.voice
    microphone = Microphone(voice, viewer.id, microphone_hz) if voice is not None else None
    while True:
        data = await receive_message(socket)
        if not isinstance(viewer.transport, SocketTransport) or viewer.transport.ended is not None:
            continue
        if isinstance(data, bytes) and microphone is not None and 0 < len(data) <= MOST_SOUND_BYTES:
            session.heard(viewer, time.monotonic())
            microphone.push(data)
        else:
            receive(session, viewer, data, settings.max_message_bytes)


async def _frames(socket: WebSocket, session: Session, viewer: Viewer, metrics: Metrics, encode: Encode) -> None:
    while True:
        frame = await viewer.mailbox.get()
        viewer.taken(frame, time.monotonic())
        kind, payload = await encode(frame)
        encoded_s = time.monotonic()
        if not session.stream.shows(frame):
            # The stream was reset or interrupted meanwhile: what it showed before no longer leaves the server.
            metrics.frames_dropped.labels(SocketTransport.kind, "reset").inc()
            continue
        await socket.send_bytes(pack_frame(kind, frame.generation, frame.index, frame.pts_us, payload))
        metrics.frames_sent.labels(SocketTransport.kind).inc()
        viewer.sent(frame, encoded_s, time.monotonic())


async def _sounds(socket: WebSocket, session: Session, sounds: Mailbox) -> None:
    while True:
        frame = await sounds.get()
        if frame.sound is not None and session.stream.shows(frame):
            payload = frame.sound.astype("<i2").tobytes()
            await socket.send_bytes(pack_frame(KIND_SOUND, frame.generation, frame.index, frame.pts_us, payload))


async def receive_message(socket: WebSocket) -> str | bytes:
    """The next message. Raises WebSocketDisconnect."""
    message = await socket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    text: str | None = message.get("text")
    return text if text is not None else bytes(message["bytes"])
