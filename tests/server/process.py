"""`serve` as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from streamgen.student import Student
from tests.server.harness import PATIENCE_S, Ticket, bearer, trusting
from tests.server.synthetic import ORDERS


class Process:
    """A server process; `url`, `trust` and `create` as in LiveServer."""

    def __init__(self, student: Student, orders: Path, *arguments: str, certificate: Path | None = None) -> None:
        self.trust = trusting(certificate)
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tests.server.served", "--student", str(student.path), *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "STREAMGEN_SERVE_PORT": "0", ORDERS: str(orders)},
            start_new_session=True,
        )
        assert self.popen.stderr is not None
        self.log: list[str] = []
        self.url = ""
        for line in self.popen.stderr:
            self.log.append(line)
            if found := re.search(r"https?://[\d.:]+", line):
                self.url = found[0].rstrip("/")
                break
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                if httpx.get(self.url + "/readyz", verify=self.trust).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError("the server did not become ready")

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.popen.pid).children(recursive=True)

    def post(self, key: str | None) -> httpx.Response:
        return httpx.post(self.url + "/v1/sessions", json={"seed": 1}, headers=bearer(key), verify=self.trust)

    def create(self, key: str | None = None) -> Ticket:
        body = self.post(key).json()
        return Ticket(self, body["id"], body["token"], body)  # type: ignore[arg-type]

    def wait(self) -> int:
        assert self.popen.stderr is not None
        self.log += self.popen.stderr.read().splitlines()
        return self.popen.wait(PATIENCE_S)


@contextmanager
def process(student: Student, orders: Path, *arguments: str, certificate: Path | None = None) -> Iterator[Process]:
    """A server that is checked, once it has ended, to have left neither a process nor shared memory."""
    server = Process(student, orders, *arguments, certificate=certificate)
    family = server.family()
    assert any("multiprocessing.spawn" in " ".join(child.cmdline()) for child in family)
    if (maps := Path(f"/proc/{server.popen.pid}/maps")).exists():
        # Frames are shared in memory without a name, which cannot be left behind.
        assert "memfd:streamgen-frames (deleted)" in maps.read_text()
        assert not re.search(r"/dev/shm/(psm|sem)", maps.read_text())
    try:
        yield server
    finally:
        if server.popen.poll() is None:
            server.popen.kill()
        server.popen.wait()
    _, alive = psutil.wait_procs(family, PATIENCE_S)
    assert not alive
