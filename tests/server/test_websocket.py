"""WebSocket viewers of a real server."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import websockets
from starlette.websockets import WebSocketDisconnect, WebSocketDisconnected

from server.protocol import HEADER, KIND_H264_DELTA, KIND_H264_KEY, KIND_JPEG
from server.websocket import SocketTransport, run_socket
from tests.server.harness import LiveServer, Ticket, until
from tests.server.synthetic import START_FRAMES, make_student
from tests.server.viewers import Client, SocketClient, follow


async def test_frames_come_in_order_and_say_what_they_are(shared: LiveServer) -> None:
    ticket = shared.create(seed=5)
    async with SocketClient(ticket) as client:
        await client.watch(20)
        ready, epoch = client.of("ready")[0], client.of("epoch")[0]
        await until(lambda: client.of("status"), "status")
        await until(lambda: client.of("pong"), "pong")
    config = shared.student.config
    assert ready["keys"] == list(config.keys)
    assert (ready["width"], ready["height"], ready["frame"]) == (config.width, config.height, START_FRAMES)
    assert epoch == {"type": "epoch", "n0": START_FRAMES, "t0_us": 0, "fps": config.fps, "generation": 0}
    assert follow(5, client.frames) >= 20
    for got in client.frames[:3]:
        assert got.pts_us == round((got.frame - START_FRAMES) * 1e6 / config.fps)
    ticket.call("DELETE")


def later_than(frame: int, shown: Callable[[], dict[int, frozenset[str]]]) -> bool:
    return max(shown()) > frame


async def shows_a_tap(client: Client, shown: Callable[[], dict[int, frozenset[str]]]) -> None:
    """Tap until a frame with a tap arrives (a busy machine may drop one): it is the acknowledged one, and only it."""
    for _ in range(5):
        ack = await client.ack(await client.tap("Space"))
        frame = int(ack["frame"])
        await until(partial(later_than, frame + 1, shown), "frames after the tap")
        frames = [shown_in for shown_in, keys in shown().items() if "Space" in keys]
        if frames:
            assert frames == [frame]
            return
    raise AssertionError("no tap was ever seen")


async def test_a_tap_shorter_than_a_frame_shows_and_is_acknowledged(shared: LiveServer) -> None:
    ticket = shared.create()
    async with SocketClient(ticket) as client:
        await client.watch(3)
        await shows_a_tap(client, lambda: {got.frame: got.seen.keys for got in client.frames})
        for ack in client.of("ack"):
            assert ack["rtp"] is None
            assert ack["pts_us"] in {got.pts_us for got in client.frames}
            assert ack["server_ms"] >= 0
    ticket.call("DELETE")


async def test_a_lost_key_up_heals_with_the_next_heartbeat(shared: LiveServer) -> None:
    ticket = shared.create()
    async with SocketClient(ticket) as client:
        await client.key("KeyW", True)
        await until(lambda: client.frames and client.frames[-1].seen.keys == {"KeyW"}, "the key in the picture")
        client.held.clear()  # the key-up itself never leaves
        await until(lambda: not client.frames[-1].seen.keys, "the key is up again")
    ticket.call("DELETE")


async def test_two_sessions_at_once_are_what_each_would_be_alone(shared: LiveServer) -> None:
    tickets = [shared.create(seed=seed) for seed in (11, 12)]
    async with SocketClient(tickets[0]) as one, SocketClient(tickets[1]) as two:
        for key in ("KeyW", "ArrowLeft", "Space"):
            await one.key(key, True)
            await two.tap(key)
            await asyncio.sleep(0.15)
            await one.key(key, False)
        await one.watch(10)
        await two.watch(10)
    for seed, client, ticket in ((11, one, tickets[0]), (12, two, tickets[1])):
        assert follow(seed, client.frames) >= 10
        ticket.call("DELETE")


async def test_two_viewers_of_one_session_see_the_same_and_both_steer(shared: LiveServer) -> None:
    ticket = shared.create(seed=3)
    async with SocketClient(ticket) as one, SocketClient(ticket) as two:
        await two.watch(3)
        await one.key("KeyW", True)
        await two.key("Space", True)
        await until(lambda: one.frames[-1].seen.keys == {"KeyW", "Space"}, "both keys")
        await two.watch(3)
    seen = {got.frame: got.seen for got in one.frames}
    common = [got for got in two.frames if got.frame in seen]
    assert len(common) >= 3
    assert all(seen[got.frame] == got.seen for got in common)
    ticket.call("DELETE")


async def test_reset_begins_anew_and_older_frames_never_follow(shared: LiveServer) -> None:
    ticket = shared.create(seed=1)
    async with SocketClient(ticket) as client:
        await client.watch(10)
        body = (await asyncio.to_thread(ticket.call, "POST", "/reset", json={"seed": 8})).json()
        assert (body["seed"], body["generation"], body["frame"]) == (8, 1, START_FRAMES)
        await until(lambda: sum(got.generation == 1 for got in client.frames) > 10, "the new generation")
    generations = [got.generation for got in client.frames]
    assert generations == sorted(generations)
    follow(8, [got for got in client.frames if got.generation == 1])
    assert all(b.pts_us > a.pts_us for a, b in pairwise(client.frames))
    ticket.call("DELETE")


async def test_h264_begins_with_a_key_frame_and_again_after_a_reset(shared: LiveServer) -> None:
    ticket = shared.create(seed=1)
    # What a client names that this server has not is passed over.
    async with SocketClient(ticket, video=["av1", "h264", "jpeg"]) as client, SocketClient(ticket) as plain:
        await client.watch(10)
        await asyncio.to_thread(ticket.call, "POST", "/reset", json={"seed": 8})
        await until(lambda: sum(got.generation == 1 for got in client.frames) > 10, "the new generation")
    generations = [got.generation for got in client.frames]
    keys = [i for i, kind in enumerate(client.kinds) if kind == KIND_H264_KEY]
    assert set(client.kinds) == {KIND_H264_KEY, KIND_H264_DELTA}
    assert keys == [0, generations.index(1)]
    follow(1, [got for got in client.frames if got.generation == 0])
    follow(8, [got for got in client.frames if got.generation == 1])
    assert set(plain.kinds) == {KIND_JPEG}
    ticket.call("DELETE")


async def test_pause_and_resume_open_a_new_epoch(shared: LiveServer) -> None:
    ticket = shared.create(seed=2)
    async with SocketClient(ticket) as client:
        await client.watch(5)
        await client.send({"type": "pause"})
        await until(lambda: client.of("paused"), "paused")
        await asyncio.sleep(0.3)
        count = len(client.frames)
        await asyncio.sleep(0.3)
        assert len(client.frames) == count
        assert ticket.state()["state"] == "paused"
        assert (await asyncio.to_thread(ticket.call, "POST", "/resume")).json()["state"] == "playing"
        await client.watch(5)
        assert client.of("resumed")
        assert len(client.of("epoch")) >= 2
        gap_us = client.frames[count].pts_us - client.frames[count - 1].pts_us
    assert gap_us > 400_000
    follow(2, client.frames)
    ticket.call("DELETE")


async def test_a_slow_reader_loses_frames_but_not_their_order(serve: Callable[..., LiveServer], tmp_path: Path) -> None:
    server = serve(own=make_student(tmp_path / "fast", fps=100.0))
    ticket = server.create(seed=4)
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    raw.connect(("127.0.0.1", server.port))
    async with (
        SocketClient(ticket) as other,
        websockets.connect(
            ticket.url.replace("http", "ws") + "/stream", sock=raw, max_queue=1, close_timeout=1
        ) as slow,
    ):
        await slow.send(hello(ticket))

        async def beat() -> None:
            while True:
                await slow.send(json.dumps({"type": "ping", "seq": 0, "t": 0, "held": []}))
                await asyncio.sleep(0.3)

        beating = asyncio.create_task(beat())
        dropped = {"transport": "websocket", "reason": "slow_viewer"}
        await until(lambda: server.metric("streamgen_frames_dropped_total", **dropped) > 100, "frames are dropped")
        frames: list[int] = []
        while len(frames) < 400:
            data = await slow.recv()
            if isinstance(data, bytes):
                frames.append(HEADER.unpack_from(data)[4])
        beating.cancel()
        assert all(b > a for a, b in pairwise(frames))
        assert max(b - a for a, b in pairwise(frames)) > 20, "the frames of the pause were queued, not dropped"
        await other.watch(20)
    follow(4, other.frames)


async def closed_with(ticket: Ticket, *messages: str | bytes) -> tuple[list[str], int]:
    """Send messages; returns the codes of the errors that come and the code of the close."""
    errors = []
    async with websockets.connect(ticket.url.replace("http", "ws") + "/stream") as socket_:
        for message in messages:
            await socket_.send(message)
        try:
            async for data in socket_:
                told = json.loads(data) if isinstance(data, str) else {}
                errors += [told["code"]] if told.get("type") == "error" else []
        except websockets.ConnectionClosed:
            pass  # that is what is waited for
        return errors, socket_.close_code or 0


def hello(ticket: Ticket, **changed: object) -> str:
    return json.dumps({"type": "hello", "version": 1, "token": ticket.token} | changed)


async def test_strangers_are_told_why_and_shown_out(shared: LiveServer) -> None:
    ticket = shared.create()
    assert await closed_with(ticket, hello(ticket, token="wrong")) == (["unauthorized"], 1008)
    assert await closed_with(ticket, hello(ticket, version=2)) == (["unsupported_version"], 1008)
    assert await closed_with(ticket, hello(ticket, video=["av1"])) == (["unknown_encoding"], 1008)
    assert await closed_with(ticket, '{"type": "pause"}') == (["unauthorized"], 1008)
    assert await closed_with(ticket, "{") == (["bad_message"], 1008)
    assert await closed_with(ticket, b"\xff\xfe") == (["bad_message"], 1008)
    assert await closed_with(ticket, "x" * 5000) == (["message_too_large"], 1008)
    assert await closed_with(ticket, hello(ticket), "x" * 5000) == (["message_too_large"], 1008)
    assert (await closed_with(ticket, hello(ticket), "x" * 300_000))[1] == 1009
    elsewhere = Ticket(shared, "nowhere", ticket.token, {})
    assert await closed_with(elsewhere, hello(ticket)) == (["unauthorized"], 1008)
    ticket.call("DELETE")


async def test_who_says_nothing_is_shown_out(serve: Callable[..., LiveServer]) -> None:
    server = serve(settings={"hello_within_s": 0.3})
    assert await closed_with(server.create()) == (["hello_timeout"], 1008)


async def test_bad_and_too_many_messages_disturb_nobody_else(shared: LiveServer) -> None:
    good, bad = shared.create(seed=21), shared.create(seed=22)
    async with SocketClient(good) as client, SocketClient(bad) as rude:
        await client.watch(2)
        await rude.socket.send("{")
        await until(lambda: [e["code"] for e in rude.of("error")] == ["bad_message"], "an error")
        for _ in range(350):
            await rude.send({"type": "ping", "seq": 0, "t": 0, "held": []})
        await until(lambda: "rate_limited" in [e["code"] for e in rude.of("error")], "the rate limit")
        assert rude.closed is None
        with suppress(websockets.ConnectionClosed):
            for _ in range(2000):
                await rude.socket.send("{")
        await until(lambda: rude.closed, "the end of it")
        assert rude.closed is not None
        assert rude.closed[0] == 1008
        await client.watch(10)
    follow(21, client.frames)
    for ticket in (good, bad):
        ticket.call("DELETE")


async def test_viewers_are_limited_and_their_places_come_back(shared: LiveServer) -> None:
    ticket = shared.create()
    clients = [SocketClient(ticket) for _ in range(shared.settings.max_viewers)]
    for client in clients:
        await client.__aenter__()
    await until(lambda: all(client.of("ready") for client in clients), "all viewers")
    assert await closed_with(ticket, hello(ticket)) == (["too_many_viewers"], 1013)
    for client in clients:
        await client.__aexit__()
    await until(lambda: ticket.state()["viewers"] == 0, "no viewer")
    async with SocketClient(ticket) as client:
        await client.watch(2)
    ticket.call("DELETE")


async def test_several_parts_that_find_the_connection_broken_are_no_accident(caplog: pytest.LogCaptureFixture) -> None:
    """The first send that fails says so; another, before it is cancelled, is refused for the same reason."""

    class Broken:
        async def close(self, code: int, reason: str) -> None:
            raise RuntimeError("it is closed")

    async def first() -> None:
        raise WebSocketDisconnect(1006)

    async def second() -> None:
        raise WebSocketDisconnected('Cannot call "send" once a close message has been sent.')

    await run_socket(Broken(), SocketTransport(), first(), second())  # type: ignore[arg-type]
    assert "failed" not in caplog.text
    await run_socket(Broken(), SocketTransport(), first(), _fails())  # type: ignore[arg-type]
    assert "a WebSocket viewer failed" in caplog.text


async def _fails() -> None:
    raise ValueError("a fault of ours")
