"""The Python client against a real server."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from server.session import Session
from streamgen_client import (
    BadAddress,
    ServerUnreachable,
    SessionRefused,
    StreamClient,
    StreamLost,
    UnknownKey,
    read_student,
)
from streamgen_client.gym import StreamEnv
from streamgen_client.session import Session as ClientSession
from streamgen_client.webrtc import PeerLink
from tests.server.harness import LiveServer, until
from tests.server.relay import BLACKOUT, CALM, NO_PICTURES, Relay, relay
from tests.server.synthetic import START_FRAMES, make_student, read
from tests.server.viewers import Got, follow

BOTH = pytest.mark.parametrize("transport", ["webrtc", "websocket"])


async def take(stream: StreamClient, count: int) -> list[Got]:
    frames = [await stream.next() for _ in range(count)]
    return [Got(frame.generation, frame.number, frame.pts_us, read(frame.rgb)) for frame in frames]


async def to_the_end(stream: StreamClient) -> None:
    """Take frames until the stream is lost."""
    async for _ in stream:
        pass


def session_of(server: LiveServer, stream: StreamClient) -> Session:
    return server.service.sessions.find(stream._session.address.rpartition("/")[2], stream._session.token, "")


def on_server(server: LiveServer, act: Callable[..., Any], *arguments: Any) -> None:
    server.loop.call_soon_threadsafe(act, *arguments)


def cut(server: LiveServer, session: Session) -> None:
    """End every connection of a session, as a failing network does."""

    def close() -> None:
        for viewer in list(session.viewers.values()):
            viewer.transport.close(1011, "cut by the test")

    on_server(server, close)


@BOTH
async def test_frames_come_in_order_and_say_what_they_are(shared: LiveServer, transport: Any) -> None:
    misunderstood = shared.metric("streamgen_messages_dropped_total", reason="bad_message")
    async with StreamClient(shared.url, student="synthetic", seed=5, transport=transport) as stream:
        frame = await stream.next()
        assert frame.rgb.shape == (96, 128, 3) and frame.rgb.dtype == "uint8"
        frames = [Got(frame.generation, frame.number, frame.pts_us, read(frame.rgb)), *await take(stream, 15)]
        assert stream.first_frame == START_FRAMES
        assert stream.stats.frames >= 16
    assert follow(5, frames) >= 16
    for got in frames:
        assert got.generation == 0
        # A busy server may open another epoch; frames of the first one are dated exactly.
        assert got.pts_us >= round((got.frame - START_FRAMES) * 1e6 / 20)
    assert frames[0].pts_us == round((frames[0].frame - START_FRAMES) * 1e6 / 20)
    assert shared.metric("streamgen_messages_dropped_total", reason="bad_message") == misunderstood


@BOTH
async def test_an_acknowledgement_names_the_first_frame_that_shows_the_key(shared: LiveServer, transport: Any) -> None:
    async with StreamClient(shared.url, transport=transport) as stream:
        for down in (True, False):
            ack = await stream.keys("KeyW", down=down)
            shown = False
            while not shown:
                frame = await stream.next()
                shown = ack.shown_by(frame)
                assert ("KeyW" in read(frame.rgb).keys) == (shown == down)
                assert shown == (frame.number >= ack.frame)
            assert stream.stats.latency_s[-1] > (ack.server_ms - 0.001) / 1e3
        assert len(stream.stats.latency_s) == 2


async def test_keys_that_are_given_together_move_together(shared: LiveServer) -> None:
    async with StreamClient(shared.url, transport="websocket", buffer_frames=64) as stream:
        await stream.keys("KeyW", "Space", down=True)
        await stream.hold(["ArrowLeft", "KeyW"])
        last = await stream.hold([])
        sets = []
        while True:
            frame = await stream.next()
            sets.append(read(frame.rgb).keys)
            if last.shown_by(frame):
                break
    assert set(sets) <= {frozenset(), frozenset({"KeyW", "Space"}), frozenset({"ArrowLeft", "KeyW"})}
    assert sets[-1] == frozenset()


@BOTH
async def test_a_reset_begins_a_generation(shared: LiveServer, transport: Any) -> None:
    async with StreamClient(shared.url, seed=1, transport=transport) as stream:
        before = await take(stream, 5)
        await stream.reset(2)
        after: list[Got] = []
        while len(after) < 5:
            (got,) = await take(stream, 1)
            (after if got.generation else before).append(got)
    assert {got.generation for got in after} == {1}
    assert after[0].pts_us > before[-1].pts_us
    assert follow(1, before) >= 5
    assert follow(2, after) >= 5


@BOTH
async def test_a_broken_connection_is_made_again(shared: LiveServer, transport: Any) -> None:
    async with StreamClient(shared.url, transport=transport) as stream:
        await stream.keys("KeyW", down=True)
        session, last = session_of(shared, stream), (await take(stream, 3))[-1]
        for times in (1, 2):
            cut(shared, session)
            while stream.stats.reconnects < times or "KeyW" not in last.seen.keys or last.frame < START_FRAMES + 10:
                before, (last,) = last, await take(stream, 1)
                assert last.seen.frame == last.frame > before.frame
                assert last.pts_us > before.pts_us
        # The new connection says again what is held: lifted before the next frame, that would count as a tap.
        await stream.hold({"KeyW"})
        ack = await stream.keys("KeyW", down=False)
        while not ack.shown_by(frame := await stream.next()):
            pass
        assert not read(frame.rgb).keys
        assert session_of(shared, stream) is session and session.stream.generation == 0
        # The server's ends of the broken connections are gone too.
        await until(lambda: len(session.viewers) == 1, "one viewer")


async def test_the_servers_end_of_a_broken_connection_is_ended(
    shared: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def goes_nowhere() -> None:
        pass

    async with StreamClient(shared.url, transport="webrtc") as stream:
        link, session = stream._link, session_of(shared, stream)
        assert isinstance(link, PeerLink)
        close = link._peer.close
        monkeypatch.setattr(link._peer, "close", goes_nowhere)
        link._lose("broken by the test")
        await until(lambda: stream.stats.reconnects == 1, "a new connection")
        await until(lambda: len(session.viewers) == 1, "one viewer")
        await close()


@pytest.fixture
async def net(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Relay]:
    """The network between WebRTC clients and their servers."""
    offer = ClientSession.offer
    async with relay(1) as between:

        async def by_relay(session: ClientSession, sdp: str) -> tuple[str, str]:
            answer, path = await offer(session, between.hides(sdp))
            return between.stands_for(answer), path

        monkeypatch.setattr(ClientSession, "offer", by_relay)
        yield between


async def test_a_connection_whose_pictures_fall_behind_is_made_anew(shared: LiveServer, net: Relay) -> None:
    async with StreamClient(shared.url) as stream:
        await take(stream, 20)
        session = session_of(shared, stream)
        net.weather = NO_PICTURES
        await until(lambda: stream.stats.reconnects == 1, "a new connection")
        net.weather = CALM
        last = session.stream.state.frame
        while (await stream.next()).number < last:
            pass
        assert stream.stats.reconnects == 1


async def test_after_a_blackout_pictures_are_on_time_again(shared: LiveServer, net: Relay) -> None:
    async with StreamClient(shared.url) as stream:
        await take(stream, 20)
        session = session_of(shared, stream)
        for _ in range(2):
            net.weather = BLACKOUT
            await asyncio.sleep(3.0)
            net.weather, calm_s, on_time = CALM, time.monotonic(), 0
            while on_time < 20:
                number = (await stream.next()).number
                on_time = on_time + 1 if session.stream.state.frame - number <= 6 else 0
                assert time.monotonic() - calm_s < 15, "measured: 0.1 s to 0.6 s, and a second for 20 frames"


@BOTH
async def test_a_tap_whose_answer_was_lost_is_sent_again(serve: Callable[..., LiveServer], transport: Any) -> None:
    server = serve()
    async with StreamClient(server.url, transport=transport, buffer_frames=64) as stream:
        slow = server.order("slow", "1.0")
        await take(stream, 3)
        session = session_of(server, stream)
        # While a step is under way the next one's inputs wait; they are forgotten when nobody watches any more.
        tap = [asyncio.create_task(stream.keys("Space", down=down)) for down in (True, False)]
        await until(lambda: "Space" in {event.code for event in session.stream.inputs._events}, "the tap at the server")
        cut(server, session)
        await until(lambda: stream.stats.reconnects == 1, "a new connection")
        slow.unlink()
        _, up = [await each for each in tap]
        seen: list[Got] = []
        while not seen or seen[-1].frame <= up.frame:
            seen += await take(stream, 1)
    assert {got.seen.keys for got in seen} == {frozenset(), frozenset({"Space"})}
    assert not seen[-1].seen.keys


async def test_a_session_that_the_server_ends_is_lost(shared: LiveServer) -> None:
    async with StreamClient(shared.url, transport="websocket") as stream:
        await stream.next()
        waiting = asyncio.create_task(stream.keys("KeyW", down=True))
        await asyncio.sleep(0)
        session = session_of(shared, stream)
        on_server(shared, shared.service.sessions.free, session, "session_expired", "time is up")
        with pytest.raises(StreamLost, match="time is up") as lost:
            await to_the_end(stream)
        assert lost.value.code == "session_expired"
        with suppress(StreamLost):  # it may have been answered before the end
            await waiting
        with pytest.raises(StreamLost):
            await stream.hold([])
        assert session not in shared.service.sessions._sessions.values()


async def test_a_server_that_stays_away_loses_the_stream(
    serve: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamgen_client.client._RETURN_WITHIN_S", 0.5)
    server = serve()
    async with StreamClient(server.url, transport="websocket") as stream:
        await stream.next()
        await asyncio.to_thread(server.stop)
        with pytest.raises(StreamLost, match="no way back") as lost:
            await to_the_end(stream)
    assert lost.value.code == "unreachable"


class Wire:
    """A TCP proxy that can stop carrying anything without ending a connection, as a lost network does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._carries = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def freeze(self) -> None:
        """What is connected now stays so and hears nothing more; new connections work."""
        for task in self._tasks:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            self._tasks.append(asyncio.create_task(self._carry(source, sink)))

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
        sink.close()


async def test_a_connection_that_falls_silent_is_made_again(
    shared: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamgen_client.client._SILENCE_S", 1.0)
    wire = Wire(shared.port)
    async with wire as url, StreamClient(url, transport="websocket") as stream:
        last = await stream.next()
        wire.freeze()
        while stream.stats.reconnects == 0:
            last = await stream.next()
        assert (await stream.next()).number > last.number


async def test_frames_that_nobody_takes_are_dropped_and_counted(shared: LiveServer) -> None:
    async with StreamClient(shared.url, transport="websocket", buffer_frames=3) as stream:
        await until(lambda: stream.stats.frames >= 10, "frames")
        stats = stream.stats
        assert stats.dropped == stats.frames - 3
        first = await stream.next()
        assert first.number - START_FRAMES == stats.dropped + stats.missed
        assert (await stream.next()).number > first.number


async def test_refusals_carry_the_servers_code_and_when_to_try_again(serve: Callable[..., LiveServer]) -> None:
    server = serve(settings={"max_sessions": 1})
    with pytest.raises(SessionRefused, match="serves synthetic") as refused:
        await StreamClient(server.url, student="avatar").__aenter__()
    assert (refused.value.code, refused.value.retryable, refused.value.retry_after_s) == (
        "unknown_student",
        False,
        None,
    )
    async with StreamClient(server.url, transport="websocket"):
        with pytest.raises(SessionRefused, match="try again in 10 s") as refused:
            await StreamClient(server.url).__aenter__()
        assert (refused.value.code, refused.value.retryable, refused.value.retry_after_s) == ("full", True, 10.0)
    # The room is given back at once.
    async with StreamClient(server.url, transport="websocket"):
        pass


async def test_another_student_is_waited_for_while_it_is_loaded(
    serve: Callable[..., LiveServer], tmp_path: Path
) -> None:
    other = make_student(tmp_path / "other", fps=10, name="other")
    server = serve(others=[other])
    assert (await read_student(server.url)).name == "synthetic"
    assert (await read_student(server.url, "other")).fps == 10
    with pytest.raises(SessionRefused, match="serves synthetic, other"):
        await read_student(server.url, "nobody")
    async with StreamClient(server.url, student="other", seed=6, transport="websocket") as stream:
        assert stream.student.name == "other"
        frames = await take(stream, 5)
    follow(6, frames)
    env = StreamEnv(server.url, student="other")
    try:
        assert env.student.name == "other"
        await asyncio.to_thread(env.reset, seed=6)
        (session,) = server.service.sessions
        assert session.served.name == "other"
    finally:
        await asyncio.to_thread(env.close)


async def test_a_server_with_keys_lets_in_who_has_one(serve: Callable[..., LiveServer]) -> None:
    server = serve(settings={"api_key": ("sha256:" + hashlib.sha256(b"sg_one").hexdigest(),)})
    for given, code in (("", "key_needed"), ("sg_two", "key_unknown")):
        with pytest.raises(SessionRefused) as refused:
            await StreamClient(server.url, api_key=given).__aenter__()
        assert refused.value.code == code
    async with StreamClient(server.url, api_key="sg_one", transport="websocket") as stream:
        assert (await stream.next()).number >= START_FRAMES


@BOTH
async def test_a_connection_that_is_refused_gives_the_session_back(
    serve: Callable[..., LiveServer], transport: Any
) -> None:
    server = serve()
    # Settings refuse such a limit: it stands for a session whose places are all taken.
    sessions = server.service.sessions
    sessions.settings = sessions.settings.model_copy(update={"max_viewers": 0})
    with pytest.raises(SessionRefused) as refused:
        await StreamClient(server.url, transport=transport).__aenter__()
    assert refused.value.code == "too_many_viewers"
    assert len(sessions) == 0


async def test_addresses_that_are_none_and_servers_that_are_not_there() -> None:
    for url in ("localhost:8000", "ws://127.0.0.1:8000", "http://", "http://127.0.0.1:99999", "http://a/?b=c"):
        with pytest.raises(BadAddress, match="such as http"):
            await StreamClient(url).__aenter__()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ServerUnreachable, match="is the server running"):
        await StreamClient(f"http://127.0.0.1:{port}").__aenter__()


async def test_wrong_arguments_say_what_is_right(shared: LiveServer) -> None:
    with pytest.raises(ValueError, match="webrtc, websocket"):
        StreamClient(shared.url, transport="pigeon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 or more"):
        StreamClient(shared.url, buffer_frames=0)
    async with StreamClient(shared.url + "/", transport="websocket") as stream:
        with pytest.raises(UnknownKey, match="knows KeyW, KeyS"):
            await stream.keys("KeyQ", down=True)
        with pytest.raises(UnknownKey):
            await stream.hold(["KeyW", "KeyQ"])
        with pytest.raises(ValueError, match="no key"):
            await stream.keys(down=True)
        ack = await stream.hold([])
        while not ack.shown_by(frame := await stream.next()):
            pass
        assert not read(frame.rgb).keys
    with pytest.raises(StreamLost) as lost:
        await to_the_end(stream)
    assert lost.value.code == "closed"


async def test_the_student_can_be_asked_for_alone(shared: LiveServer) -> None:
    student, config = await read_student(shared.url), shared.student.config
    assert (student.name, student.fps, student.width, student.height, student.keys) == (
        config.name,
        config.fps,
        config.width,
        config.height,
        config.keys,
    )
