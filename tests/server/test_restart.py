"""Sessions between one server and the next: what is kept, what is refused, and what viewers are told."""

from __future__ import annotations

import asyncio
import hashlib
import json
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from safetensors.numpy import save_file

from engines.replay import replay
from server.keep import SESSIONS, KeepError, KeptSession, take_sessions, write_sessions
from server.restart import drain
from streamgen.session_log import read_log
from streamgen.student import Student
from tests.server.harness import LiveServer, Ticket, until
from tests.server.synthetic import START_FRAMES, build_synthetic, make_student
from tests.server.viewers import SocketClient, follow

Serve = Callable[..., LiveServer]
KEY, OTHER_KEY = (hashlib.sha256(secret).hexdigest() for secret in (b"sg_one", b"sg_two"))
TOKEN = "token"


def again(ticket: Ticket, server: LiveServer) -> Ticket:
    """The same right, at another server."""
    return Ticket(server, ticket.id, ticket.token, ticket.body)


def told(client: SocketClient) -> list[tuple[str, bool]]:
    return [(error["code"], error["retryable"]) for error in client.of("error")]


async def test_streams_go_on_at_the_next_server(serve: Serve, tmp_path: Path, student: Student) -> None:
    settings = {"state_dir": str(tmp_path / "states")}
    other = make_student(tmp_path / "other", name="other")
    old = serve(settings=settings, others=[other])
    one, two = old.create(seed=1), old.create(seed=22)
    await until(
        lambda: old.post("/v1/sessions", json={"student": "other"}).status_code == 201, "one that nobody watches"
    )
    two.call("POST", "/pause")
    async with SocketClient(one) as before:
        await before.watch(3)
        one.call("POST", "/reset", json={"seed": 21})
        await before.key("KeyW", True)
        await until(lambda: before.frames[-1].seen.keys == {"KeyW"}, "the key in the picture")
        await before.watch(10)
        await asyncio.to_thread(old.stop)
        await until(lambda: before.closed, "the end of the connection")
        assert before.closed == (1012, "server_restarts")
        assert told(before) == [("server_restarts", True)]
    file = tmp_path / "states" / SESSIONS
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert one.token.encode() not in file.read_bytes() and one.id.encode() in file.read_bytes()

    new = serve(settings=settings, others=[other])
    assert list(file.parent.iterdir()) == []
    assert new.metric("streamgen_sessions_restored_total", outcome="restored") == 3
    assert again(two, new).state() | {"state": "paused", "seed": 22, "frame": START_FRAMES} == again(two, new).state()
    kept = again(one, new).state()
    assert (kept["state"], kept["seed"], kept["generation"]) == ("away", 21, 1)
    assert kept["expires_at"][:16] == one.body["expires_at"][:16]
    # The one of the other student has its worker again.
    await until(lambda: new.service.students.find("other").ready, "the other student")
    assert Ticket(new, one.id, two.token, {}).call("GET").status_code == 401
    async with SocketClient(again(one, new)) as after:
        await after.watch(10)
        assert after.of("ready")[0]["frame"] == after.frames[0].frame == kept["frame"]
        log = tmp_path / "log.jsonl"
        log.write_bytes(again(one, new).call("GET", "/log").content)
    assert not after.frames[0].seen.keys  # its key was let go of
    # At most what waited for the viewer when the server stopped is missing.
    assert 0 <= after.frames[0].frame - before.frames[-1].frame - 1 <= 3
    frames = [got for got in before.frames if got.generation] + after.frames
    follow(21, frames)
    # The log begins where this server took the stream up, with all that a replay needs.
    blocks = list(replay(build_synthetic(student.config, tmp_path), student, read_log(log)))
    assert blocks[0].frame == kept["frame"] and len(blocks) >= 9 and all(block.equal for block in blocks)
    assert all(b.pts_us > a.pts_us for a, b in pairwise(frames))


async def test_nobody_comes_back(serve: Serve, tmp_path: Path) -> None:
    settings = {"state_dir": str(tmp_path / "states"), "return_within_s": 1.0}
    old = serve(settings=settings)
    ticket = old.create()
    old.stop()
    new = serve(settings=settings)
    assert new.metric("streamgen_sessions_restored_total", outcome="restored") == 1
    await until(lambda: len(new.service.sessions) == 0, "it is freed")
    assert again(ticket, new).call("GET").status_code == 401


async def test_a_server_that_drains_refuses_and_tells(serve: Serve) -> None:
    server = serve()
    ticket, late = server.create(), server.create()
    async with SocketClient(ticket) as client:
        await client.watch(2)
        server.loop.call_soon_threadsafe(drain, server.service.sessions)
        await until(lambda: client.closed, "the end of the connection")
        # Without a folder for them, nothing is kept.
        assert client.closed == (1013, "server_stops")
        assert told(client) == [("server_stops", False)]
    for refused in (
        await asyncio.to_thread(server.get, "/readyz"),
        await asyncio.to_thread(server.post, "/v1/sessions"),
        await asyncio.to_thread(ticket.call, "GET"),
        await asyncio.to_thread(
            late.call, "POST", "/webrtc", content="v=0", headers={"Content-Type": "application/sdp"}
        ),
    ):
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert int(refused.headers["Retry-After"]) > 0
    async with SocketClient(late) as client:
        await until(lambda: client.closed, "the refusal")
        assert client.closed == (1013, "draining")
        assert told(client) == [("draining", True)]
    assert server.metric("streamgen_sessions_refused_total", reason="draining") == 1
    assert server.get("/healthz").status_code == 200


async def test_a_folder_that_went_away_does_not_keep_the_server(serve: Serve, tmp_path: Path) -> None:
    server = serve(settings={"state_dir": tmp_path / "states"})
    (tmp_path / "states").rmdir()
    async with SocketClient(server.create()) as client:
        await client.watch(2)
        await asyncio.to_thread(server.stop)
        await until(lambda: client.closed, "the end of the connection")
    assert told(client) == [("server_stops", False)]


def kept(own: Student, session_id: str, **changes: Any) -> KeptSession:
    session = KeptSession(
        id=session_id,
        token_hash=hashlib.sha256(TOKEN.encode()).hexdigest(),
        key_hash=KEY,
        student=own.config.name,
        generation=0,
        elapsed_us=0,
        paused=False,
        expires_at=datetime.now(UTC) + timedelta(hours=1),
        state=own.start(5).to_bytes(),
    )
    return session.model_copy(update=changes)


def test_what_cannot_go_on_is_refused_and_counted(
    serve: Serve, student: Student, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "states"
    folder.mkdir()
    another = make_student(tmp_path / "another", fps=30)  # of the same name
    unfit = {
        "another": kept(student, "another", state=another.start(5).to_bytes()),
        "damaged": kept(student, "damaged", state=b"SGSTATE"),
        "expired": kept(student, "expired", expires_at=datetime.now(UTC)),
        "revoked": kept(student, "revoked", key_hash=OTHER_KEY),
        "keyless": kept(student, "keyless", key_hash=None),
        "unknown": kept(student, "unknown", student="nobody"),
    }
    write_sessions(folder, [*unfit.values(), kept(student, "good"), kept(student, "many")])
    server = serve(settings={"state_dir": folder, "api_key": (f"sha256:{KEY}",), "max_sessions": 1})
    assert Ticket(server, "good", TOKEN, {}).state()["state"] == "away"
    assert [session.id for session in server.service.sessions] == ["good"]
    # The key counts as used.
    assert {session.key for session in server.service.sessions} == set(server.settings.keys)
    assert server.metric("streamgen_sessions_restored_total", outcome="refused") == 7
    reasons = {record.args[0]: str(record.args[1]) for record in caplog.records if "not taken up" in record.msg}  # type: ignore[index]
    expected = {
        "another": "belongs to student synthetic",
        "damaged": "not a stream state",
        "expired": "time is up",
        "revoked": "API key",
        "keyless": "API key",
        "unknown": "serves synthetic",
        "many": "as many as there may be",
    }
    assert reasons.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in reasons.items()), reasons


def test_a_file_that_cannot_be_read_stops_no_server(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / SESSIONS).write_bytes(b"garbage")
    server = serve(settings={"state_dir": tmp_path})
    assert server.metric("streamgen_sessions_restored_total", outcome="unreadable") == 1
    assert not (tmp_path / SESSIONS).exists()


def test_a_file_that_cannot_be_removed_stops_no_server(
    serve: Serve, tmp_path: Path, student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its sessions are lost: they would come back at every start."""
    write_sessions(tmp_path, [kept(student, "one", key_hash=None)])
    monkeypatch.setattr(Path, "unlink", Mock(side_effect=PermissionError(1, "told not to")))
    server = serve(settings={"state_dir": tmp_path})
    assert server.metric("streamgen_sessions_restored_total", outcome="unreadable") == 1
    assert len(server.service.sessions) == 0


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"version": "2", "sessions": "[]"},
        {"version": "1"},
        {"version": "1", "sessions": "[{}]"},
        {"version": "1", "sessions": "[7]"},
        {"version": "1", "sessions": json.dumps([{"id": "nowhere"}])},
        {"version": "1", "sessions": json.dumps([{"id": "here", "token_hash": "short"}])},
        {"version": "1", "sessions": "["},
    ],
)
def test_files_that_are_none(tmp_path: Path, metadata: dict[str, str]) -> None:
    save_file({"here": np.zeros(3, np.uint8)}, tmp_path / SESSIONS, metadata)
    with pytest.raises(KeepError, match=SESSIONS):
        take_sessions(tmp_path)
    assert take_sessions(tmp_path) == []


def test_what_was_written_comes_back_once(tmp_path: Path, student: Student) -> None:
    (tmp_path / "sessions.part").write_text("of a server that was killed as it wrote")
    sessions = [kept(student, "one"), kept(student, "two", paused=True, generation=3, elapsed_us=7, key_hash=None)]
    write_sessions(tmp_path, sessions)
    assert take_sessions(tmp_path) == sessions
    assert list(tmp_path.iterdir()) == []
