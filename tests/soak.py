"""A long run under trouble, `make soak`: does memory, the number of open files or the latency grow?

The server and its synthetic engine run as processes of their own. WebRTC viewers behind bad networks and WebSocket
viewers come and go, press keys, reset, pause and reconnect; the worker is killed and stopped. What is measured goes to
a table and a JSON file; the exit code is 1 when something clearly grew or a viewer was left without an answer. A viewer
whose connection is lost comes back, and is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import click
import numpy as np
import psutil
import websockets
from aiortc import InvalidStateError

from tests.server.harness import PATIENCE_S, Ticket, until
from tests.server.process import Process
from tests.server.relay import BLACKOUT, CALM, Weather, relay
from tests.server.synthetic import make_student
from tests.server.viewers import Client, PeerClient, SocketClient

SEED = 1
VIEWERS = 2
"""Of each transport; each has a session of its own."""
SAMPLE_EVERY_S = 5.0
KILL_EVERY_S = 40.0
WEATHERS = (*(Weather(loss=loss) for loss in (0.02, 0.1, 0.2)), Weather(delay_s=0.15, jitter_s=0.05), BLACKOUT)
_ACCIDENT_LINES = 40
"""Of the server's log, from an error on."""
MOST_GROWTH = {
    "server memory, MiB": 12.0,
    "worker memory, MiB": 12.0,
    "server open files": 8.0,
    "server threads": 4.0,
    "key to picture, WebRTC, ms": 100.0,
    "key to picture, WebSocket, ms": 100.0,
}
"""From the second quarter's median to the last quarter's."""


@dataclass
class Record:
    """limits: as MOST_GROWTH. samples: by what was measured, pairs of seconds since the beginning and value."""

    ends_s: float
    limits: dict[str, float]
    began_s: float = field(default_factory=time.monotonic)
    samples: defaultdict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    did: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def over(self) -> bool:
        return time.monotonic() > self.ends_s

    def add(self, name: str, value: float) -> None:
        self.samples[name].append((time.monotonic() - self.began_s, value))

    def rows(self) -> list[dict[str, float | str]]:
        """For each measure: medians, growth, slope per hour."""
        rows: list[dict[str, float | str]] = []
        for name in self.limits:
            samples = self.samples[name]
            times, values = np.array(samples or [(0.0, 0.0)]).T
            quarters = [
                values[(times >= a * times[-1]) & (times <= b * times[-1])] for a, b in ((0.25, 0.5), (0.75, 1))
            ]
            early, late = (float(np.median(part)) if len(part) else 0.0 for part in quarters)
            settled = times >= 0.25 * times[-1]
            slope = float(np.polyfit(times[settled], values[settled], 1)[0]) * 3600 if settled.sum() > 2 else 0.0
            rows.append({"what": name, "samples": len(samples), "early": early, "late": late, "per hour": slope})
        return rows

    def grew(self) -> list[str]:
        return [str(row["what"]) for row in self.rows() if row["late"] - row["early"] > self.limits[str(row["what"])]]  # type: ignore[operator]

    def report(self, path: Path, others: list[str]) -> NoReturn:
        """Print what was measured and what went wrong, `others` too, write it as JSON, and exit."""
        rows = self.rows()
        width = max(len(str(row["what"])) for row in rows)
        click.echo(f"{'':{width}}  {'samples':>7}  {'early':>8}  {'late':>8}  {'per hour':>9}")
        for row in rows:
            figures = f"{row['early']:8.1f}  {row['late']:8.1f}  {row['per hour']:+9.1f}"
            click.echo(f"{row['what']:{width}}  {row['samples']:7}  {figures}")
        click.echo(", ".join(f"{name} {count}" for name, count in sorted(self.did.items())))
        wrong = [f"{name} grew" for name in self.grew()] + self.failures + others
        minutes = (self.ends_s - self.began_s) / 60
        path.write_text(json.dumps({"minutes": minutes, "measures": rows, "did": self.did, "wrong": wrong}, indent=2))
        for line in wrong:
            click.echo(line.strip(), err=True)
        raise SystemExit(bool(wrong))


class Lost(Exception):
    """The viewer's connection has ended."""


async def press(client: Client, record: Record, name: str) -> None:
    """A key, and how long until a picture shows it. Raises Lost."""
    if isinstance(client, PeerClient):
        pictures, lost = client.pictures, client.closed.is_set
    else:
        pictures, lost = client.frames, lambda: client.closed  # type: ignore[attr-defined]
    began_s, seq = time.monotonic(), await client.key("KeyW", "KeyW" not in client.held)

    def shown() -> bool:
        acks = [ack["frame"] for ack in client.of("ack") if ack["seq"] == seq]
        return bool(acks and pictures and pictures[-1].frame >= acks[0])

    await until(lambda: shown() or lost(), "the key in the picture")
    if lost():
        raise Lost
    record.add(name, (time.monotonic() - began_s) * 1e3)


async def watch(server: Process, record: Record, rng: random.Random, webrtc: bool) -> None:
    """One viewer after another, some on the session of the one before."""
    ticket: Ticket | None = None
    while not record.over:
        if ticket is None:
            answer = await asyncio.to_thread(server.post, None)
            if answer.status_code == 503:  # while a worker starts, say
                record.did["refused"] += 1
                await asyncio.sleep(1.0)
                continue
            body = answer.raise_for_status().json()
            ticket = Ticket(server, body["id"], body["token"], body)
        record.did["viewers"] += 1
        try:
            await visit(ticket, record, rng, webrtc)
        except (Lost, ConnectionError, InvalidStateError, websockets.ConnectionClosed):
            record.did["connections lost"] += 1
        if rng.random() < 0.5:
            await asyncio.to_thread(ticket.call, "DELETE")
            ticket = None


async def visit(ticket: Ticket, record: Record, rng: random.Random, webrtc: bool) -> None:
    async with contextlib.AsyncExitStack() as stack:
        if webrtc:
            net = await stack.enter_async_context(relay(rng.randrange(2**32)))
            client: Client = await stack.enter_async_context(PeerClient(ticket, relay=net))
        else:
            client = await stack.enter_async_context(SocketClient(ticket))
        for _ in range(rng.randint(5, 15)):
            if record.over:
                return
            for _ in range(3):
                await press(client, record, f"key to picture, {'WebRTC' if webrtc else 'WebSocket'}, ms")
                await asyncio.sleep(0.3)
            await trouble(client, ticket, record, rng)
            if webrtc:
                net.weather = rng.choice(WEATHERS)
                record.did[net.weather.name] += 1
                await asyncio.sleep(rng.uniform(1.0, 3.0))
                net.weather = CALM
                await asyncio.sleep(2.0)


async def trouble(client: Client, ticket: Ticket, record: Record, rng: random.Random) -> None:
    what = rng.choice(("reset", "pause", "garbage", "nothing"))
    record.did[what] += 1
    if what == "reset":
        await asyncio.to_thread(ticket.call, "POST", "/reset", json={"seed": rng.randrange(100)})
        if isinstance(client, PeerClient):
            client.pictures.clear()
        await asyncio.sleep(1.0)
    elif what == "pause":
        await client.send({"type": "pause"})
        await asyncio.sleep(0.5)
        await client.send({"type": "resume"})
    elif what == "garbage":
        await client.send({"type": "input", "seq": "x"})


async def harm(server: Process, record: Record, rng: random.Random) -> None:
    """Kill the worker now and then; stop it every fourth time, until the watchdog comes."""
    while not record.over:
        await asyncio.sleep(rng.uniform(0.5, 1.5) * KILL_EVERY_S)
        for worker in workers(server):
            number = signal.SIGSTOP if rng.random() < 0.25 else signal.SIGKILL
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, number)
            record.did[number.name] += 1


def workers(server: Process) -> list[psutil.Process]:
    return [child for child in server.family() if "spawn_main" in " ".join(child.cmdline())]


async def sample(server: Process, record: Record) -> None:
    main = psutil.Process(server.popen.pid)
    while not record.over:
        await asyncio.sleep(SAMPLE_EVERY_S)
        record.add("server memory, MiB", main.memory_info().rss / 2**20)
        record.add("server open files", main.num_fds())
        record.add("server threads", main.num_threads())
        with contextlib.suppress(psutil.NoSuchProcess):
            for worker in workers(server):
                record.add("worker memory, MiB", worker.memory_info().rss / 2**20)


async def run(server: Process, minutes: float) -> Record:
    record = Record(time.monotonic() + 60 * minutes, MOST_GROWTH)

    async def guarded(name: str, part: asyncio.Future[None]) -> None:
        try:
            await part
        except Exception as error:
            record.failures.append(f"{name}, {time.monotonic() - record.began_s:.0f} s: {error!r}")

    rng = random.Random(SEED)
    parts = [sample(server, record), harm(server, record, random.Random(SEED))]
    parts += [watch(server, record, random.Random(rng.random()), webrtc) for webrtc in (True, False) * VIEWERS]
    await asyncio.gather(*(guarded(part.__name__, asyncio.ensure_future(part)) for part in parts))
    return record


@click.command()
@click.option("--minutes", type=float, default=30.0, show_default=True, envvar="SOAK_MINUTES")
@click.option("--json", "path", type=click.Path(path_type=Path), default=Path("soak.json"), show_default=True)
def soak(minutes: float, path: Path) -> None:
    """Run it and report."""
    with tempfile.TemporaryDirectory() as folder:
        student = make_student(Path(folder) / "student")
        server = Process(student, Path(folder), "--hang-after-s", "2")
        # A pipe that nobody reads would stop the server in the middle of a log line.
        reading = threading.Thread(target=lambda: server.log.extend(server.popen.stderr or ()), daemon=True)
        reading.start()
        try:
            record = asyncio.run(run(server, minutes))
        finally:
            server.popen.terminate()
            code = server.popen.wait(PATIENCE_S)
            reading.join(PATIENCE_S)
    accidents = [
        "".join(server.log[at : at + _ACCIDENT_LINES])
        for at, line in enumerate(server.log)
        if " ERROR " in line or ("Traceback" in line and " ERROR " not in "".join(server.log[max(0, at - 2) : at]))
    ]
    record.report(path, accidents + [f"the server ended with code {code}"] * (code != 0))


if __name__ == "__main__":
    soak()
