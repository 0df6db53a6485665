from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from server.settings import Settings
from streamgen.student import Student
from tests.server.harness import LiveServer, until
from tests.server.synthetic import make_student
from tests.server.viewers import SocketClient


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return make_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="session")
def shared(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server for the tests that leave it as it was. It admits whoever comes: what else this process does, the
    measuring of loads included, is no reason to refuse.
    """
    server = LiveServer(
        student, tmp_path_factory.mktemp("orders"), Settings(max_sessions=32, max_load=100.0), streams=32
    ).start()
    yield server
    server.stop()


@pytest.fixture
def serve(student: Student, tmp_path: Path) -> Iterator[Callable[..., LiveServer]]:
    """Start a server of one's own: serve(wait_ready=…, settings=dict(…), **engine)."""
    servers: list[LiveServer] = []

    def start(
        wait_ready: bool = True,
        settings: dict[str, Any] | None = None,
        own: Student | None = None,
        web: Path | None = None,
        others: Sequence[Student] = (),
        **engine: Any,
    ) -> LiveServer:
        server = LiveServer(own or student, tmp_path, Settings(**(settings or {})), web, others, **engine)
        servers.append(server)
        return server.start(wait_ready)

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def avatar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server of a student that speech drives, for one module: 8 MB a file, and 70 s to say, are the most it takes."""
    own = make_student(tmp_path_factory.mktemp("avatar"), fps=25.0, name="avatar", talks=True)
    settings = Settings(max_sessions=8, max_load=100.0, max_sound_s=70.0, max_sound_bytes=8_000_000)
    server = LiveServer(own, tmp_path_factory.mktemp("orders"), settings).start()
    yield server
    server.stop()


@pytest.fixture
async def viewer(avatar: LiveServer) -> AsyncIterator[SocketClient]:
    """Of an avatar of its own, that hears it too."""
    ticket = await asyncio.to_thread(avatar.create, 3)
    async with SocketClient(ticket, sound=True) as client:
        await until(lambda: client.frames and client.sounds, "a frame with its sound")
        yield client
    await asyncio.to_thread(ticket.call, "DELETE")
