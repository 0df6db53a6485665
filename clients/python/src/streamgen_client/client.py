"""The client: one session, watched and steered over one connection that is made again when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from streamgen_client.errors import (
    ClientError,
    ServerUnreachable,
    SessionRefused,
    Silent,
    StreamLost,
    TransportFailed,
    UnknownKey,
)
from streamgen_client.frames import Arrival, Buffer, Frame, Sound
from streamgen_client.inputs import Acknowledgement, Inputs
from streamgen_client.links import OPEN_TIMEOUT_S, Link, Listener, Message
from streamgen_client.session import Session, Student
from streamgen_client.stats import Meter, Stats
from streamgen_client.webrtc import PeerLink
from streamgen_client.websocket import SocketLink

Transport = Literal["webrtc", "websocket"]

_LINKS: dict[str, Callable[[Session, Listener], Awaitable[Link]]] = {
    "webrtc": PeerLink.open,
    "websocket": SocketLink.open,
}
_HEARTBEAT_S = 1.0
_SILENCE_S = 5.0
"""Every heartbeat is answered: a server that says nothing for this long is out of reach."""

_LATE_S = 1.5
"""A connection whose pictures are further behind the server's, or do not come at all, is made anew."""

_RETURN_WITHIN_S = 30.0
"""For how long the server keeps a stream that nobody watches."""

_RESTART_WITHIN_S = 120.0
"""For how long a server is waited for that said it restarts: its streams wait from when it is back."""

_LOADED_WITHIN_S = 120.0
"""For how long a server is waited for that loads the student."""

_SOUNDS = 250
"""Frames whose sound waits for the program: ten seconds at 25 a second."""

_NOTHING = -1, -1
"""Generation and number before the first frame."""

_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.2, 2.0


class StreamClient:
    """A stream of one's own on the server at `url`; an asynchronous context manager, good for one use.

    Iterating gives the frames as they come; a program that is slower than the stream skips frames.

    >>> async def walk() -> tuple[int, ...]:
    ...     async with StreamClient(url, transport="websocket") as stream:
    ...         ack = await stream.keys("KeyW", down=True)
    ...         async for frame in stream:
    ...             if ack.shown_by(frame):
    ...                 return frame.rgb.shape
    >>> asyncio.run(walk())
    (96, 128, 3)

    api_key: what a server that is not open to everybody asks for; "": none.
    student: the one that is wanted, None: the first that the server has. One that nobody watches may have to be loaded
    first; opening waits for it (2 min at most). seed: of the stream, None: the server's choice.
    identity: who an avatar is, of the student's identities; None: the first. reference: whom it is to be instead: a
    picture in PNG, JPEG or WebP, for a student of which `Student.reference` says that it can.
    buffer_frames: how many frames wait for the program before the oldest is dropped.

    An avatar says what `say`, `play` and `speak` give it; `next_sound` is what it is heard saying, over a WebSocket.

    A connection that breaks is made again, for as long as the server keeps the stream (30 s; 2 min when it says that it
    restarts); the stream goes on where it was, with the same keys held. An input whose acknowledgement was under way is
    sent again: a short tap may then show twice, and is never lost.

    Opening raises BadAddress, ServerUnreachable, SessionRefused or TransportFailed.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        student: str | None = None,
        seed: int | None = None,
        identity: str | None = None,
        reference: bytes | None = None,
        transport: Transport = "webrtc",
        buffer_frames: int = 2,
    ) -> None:
        if transport not in _LINKS:
            raise ValueError(f"transport {transport!r}: give one of {', '.join(_LINKS)}")
        if buffer_frames < 1:
            raise ValueError(f"a buffer of {buffer_frames} frames: give 1 or more")
        self._url, self._transport = url, transport
        self._wish = student, seed, api_key, identity, reference
        self._buffer = Buffer[Arrival](buffer_frames)
        self._sounds = Buffer[Sound](_SOUNDS)
        self._meter = Meter()
        self._inputs = Inputs()
        self._heard_s = 0.0
        self._first_frame: int | None = None
        self._last_words: tuple[str, str] | None = None
        self._return_within_s = _RETURN_WITHIN_S
        self._shown = _NOTHING
        self._behind = 0
        self._over: Exception | None = None
        self._session: Session
        self._link: Link
        self._ready: asyncio.Future[SessionRefused | None]
        self._keeping: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._session = await self._open()
        try:
            await self._connect()
        except BaseException:
            await self._give_back()
            raise
        self._keeping = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)
        self._end(StreamLost("closed", "this client was closed"))
        await self._give_back()
        await self._link.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        return await self.next()

    @property
    def student(self) -> Student:
        """What generates the stream: its size, rate and keys."""
        return self._session.student

    @property
    def first_frame(self) -> int:
        """The number that the stream began with."""
        assert self._first_frame is not None
        return self._first_frame

    @property
    def stats(self) -> Stats:
        """Figures since the client was opened."""
        return self._meter.read(self._buffer.dropped)

    async def next(self) -> Frame:
        """The next frame, when there is one. Raises StreamLost."""
        arrival = await self._buffer.get()
        return await asyncio.to_thread(arrival.decoded, self.student.width, self.student.height)

    async def keys(self, *codes: str, down: bool) -> Acknowledgement:
        """Press or lift keys, all at once, and wait until the server says which frame shows it first.

        Raises UnknownKey, StreamLost.
        """
        if not codes:
            raise ValueError("keys() was given no key: name one of the student's, or use hold() to lift all")
        held = self._inputs.held | set(codes) if down else self._inputs.held - set(codes)
        return await self._input(codes[0], down, held, codes)

    async def hold(self, codes: Iterable[str]) -> Acknowledgement:
        """Hold exactly these keys, lift all others, and wait until the server says which frame shows it first.

        Raises UnknownKey, StreamLost.

        >>> async def turn_then_stand() -> bool:
        ...     async with StreamClient(url, transport="websocket") as stream:
        ...         turning = await stream.hold({"KeyW", "ArrowLeft"})
        ...         standing = await stream.hold([])
        ...         return turning.frame < standing.frame
        >>> asyncio.run(turn_then_stand())
        True
        """
        held = frozenset(codes)
        code = min((held ^ self._inputs.held) or held or self.student.keys)
        return await self._input(code, code in held, held, held)

    async def reset(self, seed: int) -> None:
        """Begin the stream anew from this seed, in a new generation. Raises SessionRefused, ServerUnreachable."""
        await self._session.reset(seed)

    # An avatar's voice.

    async def say(self, text: str) -> float:
        """Let the avatar say a text, after all that it still has to say; returns its seconds.

        Raises SessionRefused, ServerUnreachable.
        """
        return await self._session.say(text)

    async def play(self, file: Path | bytes) -> float:
        """Let the avatar say the sound of a file, at its own pace; returns its seconds.

        Raises OSError, SessionRefused, ServerUnreachable.
        """
        return await self._session.play(file if isinstance(file, bytes) else await asyncio.to_thread(file.read_bytes))

    async def speak(self, samples: NDArray[np.int16]) -> None:
        """Let the avatar say the next samples [T] of a microphone, mono at SOUND_RATE: as they come, not ahead of time,
        and a tenth of a second or less at once. The server keeps no more than the last 0.3 s that it has not used.

        Raises Silent.
        """
        await self._voice().speak(samples)

    async def interrupt(self) -> None:
        """Let the avatar fall silent at once, and forget what it still had to say. Raises SessionRefused,
        ServerUnreachable.
        """
        await self._session.interrupt()

    async def next_sound(self) -> Sound:
        """What is heard with the next frame, frame by frame; kept for some seconds. Raises Silent, StreamLost."""
        self._voice()
        return await self._sounds.get()

    def _voice(self) -> SocketLink:
        if not self.student.speech:
            raise Silent(f"student {self.student.name} is driven by keys and has no voice")
        if not isinstance(self._link, SocketLink):
            raise Silent('sound comes and goes over a WebSocket here: open the client with transport="websocket"')
        return self._link

    async def log(self) -> bytes:
        """All that determined the frames so far, as JSON Lines, from which `streamgen replay` makes the same ones.

        Raises SessionRefused, ServerUnreachable.
        """
        return await self._session.log()

    # What the link brings (a `links.Listener`).

    def heard(self, message: Message) -> None:
        self._heard_s = time.monotonic()
        match message["type"]:
            case "ready":
                if self._first_frame is None:
                    self._first_frame = message["frame"]
                self._answer_ready(None)
            case "ack":
                for answer, sent_s in self._inputs.acknowledged(message):
                    self._meter.acknowledged(answer.pts_us, sent_s)
            case "status":
                now = message["generation"], message["frame"]
                if now[0] != self._shown[0]:
                    self._shown = now
                self._behind = now[1] - self._shown[1]
            case "error":
                if message["code"] == "server_restarts":
                    self._return_within_s = _RESTART_WITHIN_S
                elif not message["retryable"]:
                    self._last_words = message["code"], message["message"]
                self._answer_ready(SessionRefused(message["code"], message["message"], message["retryable"]))

    def arrived(self, arrival: Arrival) -> None:
        self._heard_s = time.monotonic()
        self._shown = max(self._shown, (arrival.generation, arrival.number))
        if self._meter.arrived(arrival.generation, arrival.number, arrival.pts_us):
            self._buffer.put(arrival)

    def sounded(self, sound: Sound) -> None:
        self._heard_s = time.monotonic()
        self._sounds.put(sound)

    async def _input(self, code: str, down: bool, held: Iterable[str], given: Iterable[str]) -> Acknowledgement:
        for each in given:
            if each not in self.student.keys:
                raise UnknownKey(each, self.student.keys)
        if self._over is not None:
            raise self._over
        pending = self._inputs.edge(code, down, held)
        try:
            await self._link.send(pending.message)
            return await pending.answer
        finally:
            self._inputs.forget(pending)

    # The connection.

    async def _open(self) -> Session:
        """Raises BadAddress, ServerUnreachable, SessionRefused."""
        deadline_s = time.monotonic() + _LOADED_WITHIN_S
        while True:
            try:
                return await Session.create(self._url, *self._wish)
            except SessionRefused as refused:
                wait_s = refused.retry_after_s
                if refused.code != "starting" or wait_s is None or time.monotonic() + wait_s > deadline_s:
                    raise
            await asyncio.sleep(wait_s)

    async def _connect(self) -> None:
        """A new link that the server is ready on, with the keys told. Raises ClientError."""
        self._ready = asyncio.get_running_loop().create_future()
        self._shown, self._behind = _NOTHING, 0
        self._last_words = None
        link = await _LINKS[self._transport](self._session, self)
        try:
            either: set[asyncio.Future[Any]] = {self._ready, link.lost}
            await asyncio.wait(either, timeout=OPEN_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            if not self._ready.done():
                why = link.lost.result() if link.lost.done() else "the server did not say that it is ready"
                raise TransportFailed(self._transport, why)
            if (refused := self._ready.result()) is not None:
                raise refused
            sent = 0
            while (unanswered := self._inputs.next_unanswered(sent)) is not None:
                sent = unanswered.seq
                await link.send(unanswered.message)
        except BaseException:
            await link.close()
            raise
        self._link = link
        self._return_within_s = _RETURN_WITHIN_S
        self._heard_s = time.monotonic()
        # It heals what was lost; and its acknowledgement ties the RTP clock to the stream's.
        await link.send(self._inputs.assertion())

    def _answer_ready(self, refused: SessionRefused | None) -> None:
        if not self._ready.done():
            self._ready.set_result(refused)

    async def _keep(self) -> None:
        """Hold the connection, and make it again, until the stream is lost."""
        try:
            while True:
                why = await self._beat()
                await self._link.close()
                await self._return(why)
                self._meter.reconnects += 1
        except Exception as error:
            # Whatever it was: those who wait for frames must hear of it.
            self._end(error)

    async def _beat(self) -> str:
        """Heartbeats, until the connection is lost; returns why."""
        link = self._link
        while not link.lost.done():
            if time.monotonic() - self._heard_s > _SILENCE_S:
                return f"the server said nothing for {_SILENCE_S:g} s"
            if self._behind > _LATE_S * self.student.fps:
                return f"the pictures are {self._behind} frames behind"
            await link.send(self._inputs.ping())
            await asyncio.wait({link.lost}, timeout=_HEARTBEAT_S)
        return link.lost.result()

    async def _return(self, why: str) -> None:
        """Connect to the same session. Raises StreamLost."""
        if self._last_words is not None:
            why = f"{why}: {self._last_words[1]}"
        code = self._last_words[0] if self._last_words else "unauthorized"
        within_s, wait_s = self._return_within_s, _FIRST_RETRY_S
        deadline_s = time.monotonic() + within_s
        while True:
            try:
                return await self._connect()
            except SessionRefused as refused:
                if refused.code == "unauthorized":
                    raise StreamLost(code, f"{why}; the session is no more: open another client") from refused
                error: ClientError = refused
            except (ServerUnreachable, TransportFailed) as failed:
                error = failed
            if time.monotonic() + wait_s > deadline_s:
                raise StreamLost("unreachable", f"{why}; no way back within {within_s:g} s: {error}") from error
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_RETRY_S)

    # The end.

    def _end(self, error: Exception) -> None:
        if self._over is None:
            self._over = error
            self._buffer.fail(error)
            self._sounds.fail(error)
        self._inputs.fail(error)

    async def _give_back(self) -> None:
        """Make room on the server at once; where it is out of reach, it notices by itself."""
        with contextlib.suppress(ClientError):
            await self._session.end()
