"""A real server's sessions on a real engine, made again from their logs: alone, what they were beside seven others."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from engines.cli import replay as command
from engines.reference import References
from engines.replay import replay
from engines.select import load_engine
from server.mailbox import _encode
from server.settings import Settings
from streamgen.session_log import LogError, read_log
from streamgen.student import Student, reference_text
from streamgen_client import StreamClient
from tests.engines.test_references import file_of, somebody
from tests.server.harness import LiveServer, Ticket, until
from tests.server.test_talk import as_wave, words
from tests.server.viewers import SocketClient

SESSIONS = 8


@pytest.fixture(scope="module")
def toy(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Student:
    """The toy student at a rate that eight of it reach on any machine."""
    folder = Path(shutil.copytree(toy_folder, tmp_path_factory.mktemp("replay") / "toy"))
    index = json.loads((folder / "model_index.json").read_text())
    index["student"]["fps"] = 8.0
    (folder / "model_index.json").write_text(json.dumps(index))
    return Student.from_pretrained(folder)


@pytest.fixture(scope="module")
def server(toy: Student, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    build = partial(load_engine, toy.path, "openvino")
    live = LiveServer(toy, tmp_path_factory.mktemp("orders"), Settings(max_sessions=SESSIONS), build=build).start()
    yield live
    live.stop()


async def play(client: SocketClient, toy: Student, seed: int) -> None:
    """Keys that no other session has, at moments of their own."""
    rng = random.Random(seed)
    for _ in range(10):
        await client.key(rng.choice(toy.config.keys), rng.random() < 0.6)
        await asyncio.sleep(rng.uniform(0.05, 0.4))


async def test_eight_sessions_at_once_are_what_each_is_alone(server: LiveServer, toy: Student, tmp_path: Path) -> None:
    """With a reset, and the worker killed in between."""
    tickets = [server.create(seed=seed) for seed in range(SESSIONS)]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(SocketClient(ticket)) for ticket in tickets]
        playing = [asyncio.create_task(play(client, toy, seed)) for seed, client in enumerate(clients)]
        await asyncio.gather(*(client.watch(4) for client in clients))
        await asyncio.to_thread(tickets[3].call, "POST", "/reset", json={"seed": 1000})
        await asyncio.gather(*(client.watch(3) for client in clients))
        restarts = server.metric("streamgen_worker_restarts_total")
        os.kill(server.worker_pid, signal.SIGKILL)
        await until(lambda: server.metric("streamgen_worker_restarts_total") > restarts, "the loss is noticed")
        await asyncio.gather(*(client.watch(8) for client in clients), *playing)
        logs = [await asyncio.to_thread(ticket.call, "GET", "/log") for ticket in tickets]
    for ticket in tickets:
        await asyncio.to_thread(ticket.call, "DELETE")

    engine = load_engine(toy.path, "openvino", streams=1)
    first_blocks = set()
    for seed, (client, response) in enumerate(zip(clients, logs, strict=True)):
        assert response.headers["Content-Disposition"] == f'attachment; filename="toy-{tickets[seed].id}.jsonl"'
        log = tmp_path / f"{seed}.jsonl"
        log.write_bytes(response.content)
        read = read_log(log)
        assert (read.header.session, read.header.left_out_blocks) == (tickets[seed].id, 0)
        assert [begun.seed for begun, _ in read.generations] == ([3, 1000] if seed == 3 else [seed])
        runs = [run for _, runs in read.generations for run in runs]
        # The start of each generation, and the other worker.
        assert sum(run.recache for run in runs) == len(read.generations) + 1
        assert len({run.keys for run in runs}) > 1
        blocks = list(replay(engine, toy, read))
        assert len(blocks) >= 15
        assert all(block.equal for block in blocks)
        made = {(block.generation, block.frame): block.frames[0] for block in blocks}
        for got in client.frames:
            # The log was read before the last frames came.
            if (got.generation, got.frame) in made:
                assert got.jpeg == _encode(made[got.generation, got.frame])
        first_blocks.add(runs[0].crc32[:8])
        shown = [json.loads(line) for line in log.read_text().splitlines() if '"input"' in line]
        acked = {message["seq"]: message["frame"] for message in client.of("ack")}
        numbered = {row["seq"]: row["frame"] for row in shown if row["seq"] is not None}
        assert len(numbered) == 10
        assert all(acked[seq] >= frame for seq, frame in numbered.items() if seed != 3)
    assert len(first_blocks) == SESSIONS


async def test_replaying_at_the_command_line(server: LiveServer, toy: Student, tmp_path: Path) -> None:
    async with StreamClient(server.url, seed=5, transport="websocket") as stream:
        await stream.keys("KeyW", down=True)
        await stream.reset(6)
        while (frame := await stream.next()).generation == 0 or frame.number < 24:
            pass
        log = tmp_path / "toy.jsonl"
        log.write_bytes(await stream.log())
    run = CliRunner().invoke
    args = [str(log), "--student", str(toy.path)]

    npz = tmp_path / "some.npz"
    made = run(command, [*args, "--generation", "1", "--from", "21", "--to", "23", "--out", str(npz)])
    assert made.exit_code == 0, made.output
    assert "4 of 4 blocks equal" in made.output
    some = np.load(npz)
    assert some["frames"].shape == (3, 32, 48, 3) and some["frames"].dtype == np.uint8
    assert (some["frame"].tolist(), some["generation"].tolist()) == ([21, 22, 23], [1, 1, 1])

    video = run(command, [*args, "--out", str(tmp_path / "all.mp4")])
    assert video.exit_code == 0, video.output
    assert (tmp_path / "all.mp4").stat().st_size > 1000

    lines = log.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if '"blocks"' in line)
    blocks = json.loads(lines[at])
    changed = [*lines[:at], json.dumps(blocks | {"keys": ["Space"]}), *lines[at + 1 :]]
    other = json.loads(lines[0]) | {"student_hash": "0" * 64}
    named = run(command, [str(log)])
    assert named.exit_code == 1 and "student toy does not come with streamgen" in named.output
    for text, complaint in (
        ("\n".join(changed), "the first that differs: frame 20 of generation 0"),
        ("\n".join([json.dumps(other), *lines[1:]]), "give the very folder that was served"),
        ("\n".join(lines[1:]), "line 1: a log has one header"),
        ("\n".join([*lines[: at + 1], json.dumps(blocks)]), "frame 20 on cannot be replayed: frame"),
        ("\n".join([lines[0], lines[1], json.dumps(blocks | {"steps": 7})]), "7 steps; student toy has plans for"),
        ("\n".join([lines[0], lines[1], json.dumps(blocks | {"keys": ["KeyQ"]})]), "unknown key KeyQ"),
        ("\n".join([lines[0], lines[1], json.dumps(blocks | {"recache": False})]), "begins with a recache"),
        ("nonsense", "line 1"),
        ("", "is empty"),
    ):
        log.write_text(text)
        failed = run(command, args)
        assert failed.exit_code == 1 and complaint in failed.output, failed.output
    assert "another.avi: give a file that ends in" in run(command, [*args, "--out", "another.avi"]).output


async def test_what_an_avatar_was_told_is_in_its_log(talker_folder: Path, tmp_path: Path) -> None:
    """The log has what drove every frame, and needs the sound no more."""
    talker = Student.from_pretrained(talker_folder)
    build = partial(load_engine, talker.path, "openvino")
    server = LiveServer(talker, tmp_path, Settings(), build=build).start()
    try:
        ticket = await asyncio.to_thread(partial(server.create, 3, identity="ben"))
        async with SocketClient(ticket, sound=True) as client:
            await client.watch(3)
            said = await asyncio.to_thread(ticket.call, "POST", "/sound", content=as_wave(words(1.0)))
            assert said.status_code == 202
            await asyncio.sleep(0.5)
            await client.send({"type": "interrupt"})
            await client.watch(8)
            await asyncio.to_thread(ticket.call, "POST", "/reset", json={"seed": 8})
            await client.watch(6)
            (tmp_path / "log.jsonl").write_bytes((await asyncio.to_thread(ticket.call, "GET", "/log")).content)
    finally:
        server.stop()
    read = read_log(tmp_path / "log.jsonl")
    assert [(begun.seed, begun.identity) for begun, _ in read.generations] == [(3, "ben"), (8, "ben")]
    blocks = list(replay(load_engine(talker.path, "openvino", streams=1), talker, read))
    assert len(blocks) >= 15 and all(block.equal for block in blocks)
    row = next(row for row in (tmp_path / "log.jsonl").read_text().splitlines() if '"actions":"' in row)
    (tmp_path / "bad.jsonl").write_text((tmp_path / "log.jsonl").read_text().replace(row, row.replace("actions", "x")))
    with pytest.raises(LogError, match="not a session's log"):
        read_log(tmp_path / "bad.jsonl")


def _wears_out(server: LiveServer) -> None:
    """Who sends many pictures that do not fit has to wait, even with one that would."""
    for _ in range(20):
        answer = server.post("/v1/sessions", json={"reference": "bm8="})
        if answer.status_code == 429:
            break
    assert answer.json()["error"]["code"] == "too_many_pictures" and answer.headers["Retry-After"] == "6"
    answer = server.post("/v1/sessions", json={"reference": base64.b64encode(file_of(somebody())).decode()})
    assert answer.status_code == 429


async def test_whom_a_picture_shows_outlives_the_server(talker_folder: Path, tmp_path: Path) -> None:
    """It is in the log, and a reset at the next server begins with it again."""
    talker = Student.from_pretrained(talker_folder)
    settings = Settings(state_dir=tmp_path / "states")
    build = partial(load_engine, talker.path, "openvino")
    old = LiveServer(talker, tmp_path, settings, build=build).start()
    try:
        ticket = await asyncio.to_thread(
            partial(old.create, 3, reference=base64.b64encode(file_of(somebody())).decode())
        )
        async with SocketClient(ticket) as client:
            await client.watch(3)
        for unfit, said in (("é", "ASCII"), ("no base64", "base64"), ("bm8=", "no picture that can be read")):
            answer = await asyncio.to_thread(partial(old.post, "/v1/sessions", json={"reference": unfit}))
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (422, "unfit_reference") and said in error["message"]
        async with StreamClient(old.url, reference=file_of(somebody()), transport="websocket") as stream:
            assert stream.student.reference and (await stream.next()).rgb.shape == (64, 64, 3)
        many = (asyncio.to_thread(partial(old.post, "/v1/sessions", json={"reference": "bm8="})) for _ in range(12))
        assert {answer.status_code for answer in await asyncio.gather(*many)} <= {422, 429, 503}
        await asyncio.to_thread(_wears_out, old)
    finally:
        old.stop()
    new = LiveServer(talker, tmp_path, settings, build=build).start()
    try:
        ticket = Ticket(new, ticket.id, ticket.token, ticket.body)
        async with SocketClient(ticket) as client:
            await client.watch(3)
            await asyncio.to_thread(ticket.call, "POST", "/reset", json={"seed": 8})
            await client.watch(6)
            (tmp_path / "log.jsonl").write_bytes((await asyncio.to_thread(ticket.call, "GET", "/log")).content)
    finally:
        new.stop()
    read = read_log(tmp_path / "log.jsonl")
    whom = reference_text(References(talker).read(file_of(somebody())))
    assert [(begun.seed, begun.reference, begun.state is None) for begun, _ in read.generations] == [
        (3, whom, False),
        (8, whom, True),
    ]
    blocks = list(replay(load_engine(talker.path, "openvino", streams=1), talker, read))
    assert len(blocks) >= 6 and all(block.equal for block in blocks)
