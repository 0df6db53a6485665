"""Presence, return, expiry, and places that come back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.server.harness import LiveServer, until
from tests.server.viewers import SocketClient, follow


async def test_a_silent_viewer_is_away_and_its_return_keeps_the_stream(serve: Callable[..., LiveServer]) -> None:
    server = serve(settings={"away_after_s": 1.5})
    ticket = server.create(seed=61)
    async with SocketClient(ticket, beats=False) as client:
        await client.key("KeyW", True)
        await client.watch(5)
        await until(lambda: ticket.state()["state"] == "away", "away")
        await asyncio.sleep(0.2)
        stopped = ticket.state()["frame"]
        await asyncio.sleep(0.5)
        assert ticket.state()["frame"] == stopped
    async with SocketClient(ticket) as again:
        await again.watch(10)
        assert ticket.state()["state"] == "playing"
    fresh = [got for got in again.frames if got.frame >= stopped]
    # Its keys were released while it was away, and nothing is skipped.
    assert fresh[0].frame == stopped
    assert not fresh[0].seen.keys
    follow(61, client.frames + [got for got in again.frames if got.frame > client.frames[-1].frame])


async def test_bye_is_away_without_waiting_for_silence(serve: Callable[..., LiveServer]) -> None:
    ticket = serve(settings={"away_after_s": 3600.0}).create()
    async with SocketClient(ticket, beats=False) as client:
        await client.watch(2)
        await client.send({"type": "bye"})
        await until(lambda: ticket.state()["state"] == "away", "away")


async def test_release_lets_go_of_all_keys(shared: LiveServer) -> None:
    ticket = shared.create()
    async with SocketClient(ticket) as client:
        await client.key("KeyW", True)
        await client.key("Space", True)
        await until(lambda: client.frames and client.frames[-1].seen.keys == {"KeyW", "Space"}, "both keys")
        client.held.clear()
        client.last_seq = next(client.seqs)
        await client.send({"type": "release", "seq": client.last_seq, "t": 5.0})
        ack = await client.ack(client.last_seq)
        assert ack["t"] == 5.0
        await until(lambda: client.frames[-1].frame >= ack["frame"], "the frame")
        assert all(not got.seen.keys for got in client.frames if got.frame >= ack["frame"])
    ticket.call("DELETE")


async def test_places_come_back(serve: Callable[..., LiveServer]) -> None:
    server = serve(settings={"max_sessions": 2, "away_after_s": 1.0, "return_within_s": 1.5}, streams=2)
    for _ in range(2):
        tickets = [server.create(), server.create()]
        refused = server.post("/v1/sessions")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "full")
        # Nobody has come for these two yet, and they are kept for 1.5 s.
        assert int(refused.headers["Retry-After"]) in (1, 2)
        async with SocketClient(tickets[0], beats=False) as client:
            await client.watch(2)
            await until(lambda: len(server.service.sessions) == 0, "both are freed")
            await until(lambda: client.closed, "its viewer is shown out")
            assert client.closed == (1008, "session_expired")
        assert tickets[0].call("GET").status_code == 401
    assert server.metric("streamgen_viewers", transport="websocket") == 0
    await until(lambda: (server.orders / "open").read_text() == "0", "the engine has room again")


async def test_a_deleted_session_ends_for_its_viewers(shared: LiveServer) -> None:
    ticket = shared.create()
    async with SocketClient(ticket) as client:
        await client.watch(2)
        assert (await asyncio.to_thread(ticket.call, "DELETE")).status_code == 204
        await until(lambda: client.closed, "the end")
        assert client.closed == (1000, "session_deleted")
        assert client.of("error")[-1]["code"] == "session_deleted"


async def test_sessions_expire(serve: Callable[..., LiveServer]) -> None:
    server = serve(settings={"session_lifetime_s": 1.0})
    async with SocketClient(server.create()) as client:
        await until(lambda: client.closed, "the end")
        assert client.closed == (1008, "session_expired")


async def test_no_stream_is_let_in_that_would_starve_the_others(serve: Callable[..., LiveServer]) -> None:
    server = serve(step_s=0.03)  # 0.6 of every second at 20 frames a second
    ticket = server.create()
    refused = server.post("/v1/sessions")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "full")
    assert server.metric("streamgen_sessions_refused_total", reason="full") == 1
    ticket.call("DELETE")
    server.create()
