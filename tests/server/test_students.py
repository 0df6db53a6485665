"""Several students on one server: loaded on demand, within a memory budget, on the same cores."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from server import students
from server.students import open_students
from streamgen.student import Student, StudentError
from tests.server.harness import LiveServer, Ticket, until
from tests.server.synthetic import make_student
from tests.server.viewers import SocketClient, follow

Serve = Callable[..., LiveServer]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Student]:
    return [make_student(tmp_path_factory.mktemp(name), name=name) for name in ("second", "third", "fourth")]


def states(server: LiveServer) -> dict[str, str]:
    return {each["name"]: each["state"] for each in server.get("/v1/students").json()["students"]}


def ask(server: LiveServer, student: str) -> httpx.Response:
    return server.post("/v1/sessions", json={"student": student, "seed": 1})


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


async def play(server: LiveServer, student: str) -> Ticket:
    """A session of a student that may have to be loaded first."""
    opened: list[Any] = []

    def created() -> bool:
        opened.append(ask(server, student))
        return bool(opened[-1].status_code == 201)

    await until(created, f"a session of {student}")
    body = opened[-1].json()
    return Ticket(server, body["id"], body["token"], body)


def workers(server: LiveServer) -> int:
    """Worker processes of this test's process that live, other servers' included."""
    return sum("multiprocessing.spawn" in " ".join(child.cmdline()) for child in psutil.Process().children())


async def test_a_student_is_loaded_when_somebody_asks_for_it(serve: Serve, others: list[Student]) -> None:
    server = serve(others=others[:2])
    assert states(server) == {"synthetic": "loaded", "second": "unloaded", "third": "unloaded"}
    early = ask(server, "second")
    assert refusal(early) == (503, "starting")
    assert int(early.headers["Retry-After"]) > 0
    assert states(server)["second"] == "starting"
    assert server.get("/readyz").json()["students"]["second"] in ("starting", "loaded")
    second, first = await play(server, "second"), server.create(seed=2)
    assert (second.body["student"]["name"], first.body["student"]["name"]) == ("second", "synthetic")
    async with SocketClient(second) as one, SocketClient(first) as two:
        await one.key("KeyW", True)
        await one.watch(5)
        await two.watch(5)
        assert (one.of("ready")[0]["student"], two.of("ready")[0]["student"]) == ("second", "synthetic")
    follow(1, one.frames)
    follow(2, two.frames)
    assert server.metric("streamgen_frames_generated_total", student="second") >= 5
    assert server.metric("streamgen_frames_generated_total", student="third") == 0
    assert states(server) == {"synthetic": "loaded", "second": "loaded", "third": "unloaded"}
    unknown = ask(server, "nobody")
    assert refusal(unknown) == (404, "unknown_student")
    assert "synthetic, second, third" in unknown.json()["error"]["message"]


async def test_idle_workers_make_room_the_longest_unused_first(
    serve: Serve, others: list[Student], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever was told to come back has been given up on.
    monkeypatch.setattr(students, "_AWAITS_S", 0.0)
    server = serve(others=others)
    before = workers(server)
    pool = server.service.students
    measured = pool.default.memory_bytes
    estimate = pool.find("second").memory_bytes
    assert 20e6 < measured < estimate
    assert estimate == pytest.approx(400e6, rel=1e-4)  # its folder has empty weights
    # Room for the default, one that was measured, and not for one that is estimated beside them.
    pool.budget_bytes = measured + estimate + 10**6
    second = await play(server, "second")
    refused = ask(server, "third")
    assert refusal(refused) == (503, "no_memory")
    assert "third takes about 400 MB" in refused.json()["error"]["message"]
    assert int(refused.headers["Retry-After"]) > 0
    assert server.metric("streamgen_sessions_refused_total", reason="no_memory") == 1
    second.call("DELETE")
    third = await play(server, "third")
    assert states(server) == {"synthetic": "loaded", "second": "unloaded", "third": "loaded", "fourth": "unloaded"}
    await until(lambda: workers(server) == before + 1, "one worker has ended for the other")
    # Measured, all fit.
    again = await play(server, "second")
    assert states(server) == {"synthetic": "loaded", "second": "loaded", "third": "loaded", "fourth": "unloaded"}
    for ticket in (third, again):
        ticket.call("DELETE")
    # The longest unused one goes, and never the default.
    pool.default.used_s = 0.0
    (await play(server, "third")).call("DELETE")
    fourth = pool.find("fourth")
    pool.budget_bytes = sum(served.memory_bytes for served in pool.all) - 10**6
    await play(server, "fourth")
    assert states(server) == {"synthetic": "loaded", "second": "unloaded", "third": "loaded", "fourth": "loaded"}
    assert fourth.memory_bytes < estimate


async def test_who_was_told_to_come_back_finds_the_student(serve: Serve, others: list[Student]) -> None:
    server = serve(others=others)
    pool = server.service.students
    pool.budget_bytes = pool.default.memory_bytes + pool.find("second").memory_bytes + 10**6
    assert refusal(ask(server, "second")) == (503, "starting")
    assert refusal(ask(server, "third")) == (503, "no_memory")
    await until(lambda: states(server)["second"] == "loaded", "the second")
    assert refusal(ask(server, "third")) == (503, "no_memory")
    assert ask(server, "second").status_code == 201


async def test_the_load_of_all_students_counts(serve: Serve, others: list[Student]) -> None:
    server = serve(others=others[:2], step_s=0.03)  # each stream takes 0.6 of every second
    second = await play(server, "second")
    full = server.post("/v1/sessions")
    assert refusal(full) == (503, "full")
    second.call("DELETE")
    first = server.create()
    assert refusal(ask(server, "second")) == (503, "full")
    first.call("DELETE")
    second = await play(server, "second")
    # One is not even loaded where the others leave it nothing.
    second.call("DELETE")
    server.create()
    scheduler = server.service.students.default.scheduler
    assert scheduler is not None and scheduler.governor is not None
    for _ in range(100):
        scheduler.governor.costs.add(1, 0.06)
    assert refusal(ask(server, "third")) == (503, "full")
    assert states(server)["third"] == "unloaded"


async def test_a_student_that_cannot_be_loaded_harms_no_other(
    serve: Serve, others: list[Student], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(students, "_AWAITS_S", 1.0)
    server = serve(others=others[:1])
    server.service.students.find("second").build_engine = _fails
    ticket = server.create(seed=3)
    async with SocketClient(ticket) as client:
        await until(lambda: "told to fail" in ask(server, "second").text, "the reason")
        assert refusal(ask(server, "second")) == (503, "starting")
        await client.watch(5)
        assert server.get("/readyz").status_code == 200
        await until(lambda: states(server)["second"] == "unloaded", "it is given up, when nobody asks any more")
    follow(3, client.frames)


def _fails() -> Any:
    raise RuntimeError("told to fail")


def test_names_are_told_apart(student: Student, tmp_path: Path) -> None:
    assert [each.config.name for each in open_students([str(student.path), "world"])] == ["synthetic", "world"]
    shutil.copytree(student.path, tmp_path / "copy")
    with pytest.raises(StudentError, match="two students are called synthetic"):
        open_students([str(student.path), str(tmp_path / "copy")])


def test_the_estimate_follows_the_weights() -> None:
    """Of the step counts that are served."""
    # Measured on OpenVINO in bf16: 634 MB.
    (world,) = open_students(["world"])
    assert world.config.served == (1, 2) and 4 in world.config.step_plans
    assert students._estimate_bytes(world) == pytest.approx(580e6, rel=0.02)
