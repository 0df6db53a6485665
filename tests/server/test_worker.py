"""A worker that dies, hangs, or has a stream that it cannot continue; seen from the viewers' side."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import pytest

from engines.protocol import Capacity, EngineFull, StepRequest
from server.supervisor import _RESPAWN_FIRST_S
from server.worker import Block, Step, StreamFailed, _step, block_shape
from streamgen.state import StreamState
from streamgen.student import Student
from tests.server.harness import LiveServer, until
from tests.server.synthetic import START_FRAMES, SyntheticEngine, read
from tests.server.viewers import SocketClient, follow


def test_a_stream_that_cannot_be_opened_does_not_spoil_its_batch(student: Student, tmp_path: Path) -> None:
    class Picky(SyntheticEngine):
        def open(self, stream_id: str, state: StreamState) -> None:
            if stream_id == "b":
                raise EngineFull("no room for b")
            super().open(stream_id, state)

    config, state = student.config, student.start(1)
    engine = Picky(config, tmp_path, 0.0, 0.0, Capacity(2, (1, 2)))
    slots = np.zeros((3, *block_shape(config)), np.uint8)
    idle = np.zeros((1, len(config.keys)), np.float32)
    requests = tuple(StepRequest(name, idle, 2) for name in "abc")
    answer = _step(engine, Step(7, tuple((name, state) for name in "abc"), requests), slots)
    assert answer.call == 7
    a, b, c = answer.results
    assert b == StreamFailed("b", "EngineFull: no room for b", alone=True)
    assert isinstance(a, Block)
    assert isinstance(c, Block)
    assert read(slots[0, 0]) == read(slots[2, 0])
    assert read(slots[0, 0]).frame == a.frame == state.frame
    # One that raises in the batch leaves open who it was.
    (tmp_path / "raise-1").touch()
    failed = _step(engine, Step(8, (), (requests[0], requests[2])), slots)
    assert failed.results == tuple(StreamFailed(name, "RuntimeError: told to raise", alone=False) for name in "ac")


async def goes_on_after(server: LiveServer, harm: Callable[[], object]) -> None:
    """Two streams play, keys held, while the worker is harmed: both go on where they were, undisturbed."""
    tickets = [server.create(seed=seed) for seed in (31, 32)]
    async with SocketClient(tickets[0]) as one, SocketClient(tickets[1]) as two:
        await one.key("KeyW", True)
        await two.key("ArrowLeft", True)
        await one.watch(10)
        await two.watch(10)
        restarts = server.metric("streamgen_worker_restarts_total")
        harm()
        await until(lambda: server.metric("streamgen_worker_restarts_total") > restarts, "the loss is noticed")
        await one.watch(15)
        await two.watch(15)
        assert one.frames[-1].seen.keys == {"KeyW"}
        assert two.frames[-1].seen.keys == {"ArrowLeft"}
    follow(31, one.frames)
    follow(32, two.frames)


async def test_kill_9_in_mid_play(serve: Callable[..., LiveServer]) -> None:
    server = serve()

    def kill() -> None:
        scheduler = server.service.students.default.scheduler
        assert scheduler is not None and scheduler.worker.pid is not None
        os.kill(scheduler.worker.pid, signal.SIGKILL)

    await goes_on_after(server, kill)


async def test_thirty_kills_in_a_row(serve: Callable[..., LiveServer]) -> None:
    """Each as soon as both streams go on: they stay what they are, and nothing piles up in the server."""
    server = serve()
    tickets = [server.create(seed=seed) for seed in (33, 34)]

    def lost(count: int) -> bool:
        return server.metric("streamgen_worker_restarts_total") == count

    closing = server.service.students.default.scheduler.worker._closing
    this = psutil.Process()

    def held() -> tuple[int, int, int]:
        return this.num_fds(), this.num_threads(), len(this.children())

    async with SocketClient(tickets[0]) as one, SocketClient(tickets[1]) as two:
        await one.key("KeyW", True)
        with patch.object(closing, "wait", wraps=closing.wait) as paused:
            for kills in range(31):
                await asyncio.gather(one.watch(2), two.watch(2))
                if kills == 1:
                    once = held()
                if kills < 30:
                    os.kill(server.worker_pid, signal.SIGKILL)
                    await until(partial(lost, kills + 1), "the loss is noticed")
        assert [call.args for call in paused.call_args_list] == 30 * [(_RESPAWN_FIRST_S,)], "they had done their work"
        await one.ack(await one.key("KeyW", False))
        # The system takes its time to bury the last one, and a pool of threads may grow to its size; what a kill left
        # behind would be there 28 times.
        await until(
            lambda: all(now < before + 7 for now, before in zip(held(), once, strict=True)), f"hardly more than {once}"
        )
    for client, seed in ((one, 33), (two, 34)):
        frames = [got.frame for got in client.frames]
        assert frames == list(range(START_FRAMES, START_FRAMES + len(frames)))
        follow(seed, client.frames)


async def test_a_worker_that_ends_itself(serve: Callable[..., LiveServer]) -> None:
    server = serve()
    await goes_on_after(server, lambda: server.order("exit"))


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_worker_that_hangs(serve: Callable[..., LiveServer], stopped: bool) -> None:
    server = serve(settings={"hang_after_s": 1.5})

    def hang() -> None:
        if stopped:
            os.kill(server.worker_pid, signal.SIGSTOP)
        else:
            server.order("hang")

    await goes_on_after(server, hang)


async def test_a_streams_error_is_its_own(serve: Callable[..., LiveServer]) -> None:
    server = serve()
    good, bad = server.create(seed=41), server.create(seed=42)
    async with SocketClient(good) as one, SocketClient(bad) as two:
        await one.watch(5)
        await two.watch(5)
        server.order("raise-42")
        await until(lambda: two.closed, "the end of the stream")
        assert [e["code"] for e in two.of("error")] == ["stream_failed"]
        assert two.closed == (1008, "stream_failed")
        await one.watch(10)
    follow(41, one.frames)
    follow(42, two.frames)
    assert bad.call("GET").status_code == 401
    assert server.metric("streamgen_worker_restarts_total") == 0
    assert len(server.service.sessions) == 1


async def test_a_stream_that_runs_away_begins_anew(serve: Callable[..., LiveServer]) -> None:
    """It was black for ever."""
    server = serve()
    good, bad = server.create(seed=41), server.create(seed=42)
    async with SocketClient(good) as one, SocketClient(bad) as two:
        await one.watch(5)
        await two.watch(5)
        await two.key("KeyW", True)
        server.order("nothing-42")
        await until(lambda: two.frames[-1].generation == 1, "the stream anew")
        await two.watch(10)
        await one.watch(10)
    assert [(e["code"], e["retryable"]) for e in two.of("error")] == [("ran_away", True)]
    follow(41, one.frames)
    again = [got for got in two.frames if got.generation]
    assert again[0].frame == START_FRAMES and again[-1].seen.keys == {"KeyW"}
    follow(43, again)
    assert (bad.state()["seed"], bad.state()["generation"]) == (43, 1)
    assert server.metric("streamgen_streams_ran_away_total", student="synthetic") == 1


async def test_a_student_that_makes_nothing_is_given_up(serve: Callable[..., LiveServer]) -> None:
    server = serve()
    for seed in range(6, 10):
        server.order(f"nothing-{seed}")
    async with SocketClient(server.create(seed=6)) as client:
        await until(lambda: client.closed, "the end of the stream")
    assert client.closed == (1008, "stream_failed") and not client.frames
    assert server.metric("streamgen_streams_ran_away_total", student="synthetic") == 2


async def test_an_error_that_passes_is_overcome(serve: Callable[..., LiveServer]) -> None:
    server = serve()
    ticket = server.create(seed=43)
    async with SocketClient(ticket) as client:
        await client.watch(5)

        def once(reason: str) -> None:
            order.unlink(missing_ok=True)
            failed(reason)

        stream = server.service.sessions.find(ticket.id, ticket.token, "").stream
        failed, stream.failed = stream.failed, once  # type: ignore[method-assign]
        order = server.order("raise-43")
        await until(lambda: server.metric("streamgen_stream_errors_total") >= 1, "the error")
        await client.watch(10)
    follow(43, client.frames)


async def test_readyz_and_sessions_wait_for_the_engine(serve: Callable[..., LiveServer]) -> None:
    server = serve(wait_ready=False, build_s=1.5)
    early = server.get("/readyz")
    assert (early.status_code, early.json()["error"]["code"]) == (503, "starting")
    refused = server.post("/v1/sessions", json={})
    assert (refused.status_code, refused.json()["error"]["retryable"]) == (503, True)
    assert int(refused.headers["Retry-After"]) > 0
    assert server.get("/healthz").status_code == 200
    await until(lambda: server.get("/readyz").status_code == 200, "ready")
    body = server.get("/readyz").json()
    assert body["device"] == "paint"
    assert body["engine"] == "synthetic"
    assert set(body["step_ms"]) == {"1", "2"}


async def test_an_engine_that_cannot_be_built_is_reported(serve: Callable[..., LiveServer]) -> None:
    server = serve(wait_ready=False, fails=True)
    await until(lambda: "told not to build" in server.get("/readyz").text, "the reason")
    assert server.get("/readyz").status_code == 503


async def test_streams_in_one_batch_are_what_each_would_be_alone(serve: Callable[..., LiveServer]) -> None:
    server = serve(rows=(1, 2, 4))
    clients = [SocketClient(server.create(seed=seed)) for seed in (51, 52, 53)]
    for client in clients:
        await client.__aenter__()
    for client, key in zip(clients, ("KeyW", "KeyS", "Space"), strict=True):
        await client.tap(key)
        await asyncio.sleep(0.1)
    for client in clients:
        await client.watch(10)
        await client.__aexit__()
    for seed, client in zip((51, 52, 53), clients, strict=True):
        follow(seed, client.frames)
