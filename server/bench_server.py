"""A server of its own for a benchmark, as people start it, and what it costs."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from prometheus_client.parser import text_string_to_metric_families

from server.settings import ENV_PREFIX
from streamgen.student import Student

_READY_S = 60.0


class BenchServer:
    """url: with a slash at the end."""

    def __init__(self, url: str, pid: int) -> None:
        try:
            import psutil
        except ImportError as error:
            raise click.ClickException(f"measuring a server needs the extra `dev`: {error}") from error
        self.url = url
        self._process = psutil.Process(pid)

    def _processes(self) -> dict[str, list[Any]]:
        workers = [child for child in self._process.children() if "spawn_main" in " ".join(child.cmdline())]
        return {"server": [self._process], "worker": workers}

    def cpu_s(self) -> dict[str, float]:
        """Processor time that its processes have used."""
        times = {name: [each.cpu_times() for each in them] for name, them in self._processes().items()}
        return {name: float(sum(each.user + each.system for each in members)) for name, members in times.items()}

    def memory_mb(self) -> dict[str, float]:
        """Memory that its processes hold."""
        return {name: sum(each.memory_info().rss for each in them) / 1e6 for name, them in self._processes().items()}

    def metric(self, name: str) -> float:
        """Its only sample: one student is served."""
        with urllib.request.urlopen(f"{self.url}metrics", timeout=5) as response:
            families = text_string_to_metric_families(response.read().decode())
        (value,) = (sample.value for family in families for sample in family.samples if sample.name == name)
        return value


@contextmanager
def serving(student: Student, engine: str, *options: str) -> Iterator[BenchServer]:
    """`streamgen serve` on a free port, ready."""
    command = [sys.executable, "-c", "from server.cli import serve; serve()", "--port", "0", "--engine", engine]
    # With the settings of a fresh installation, whatever this shell has set for a server of its own.
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith(ENV_PREFIX)}
    process = subprocess.Popen(
        [*command, "--student", str(student.path), *options], stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        lines: queue.Queue[str] = queue.Queue()
        stream = process.stderr
        assert stream is not None
        # A thread reads the server's log to its end, so that the pipe never fills.
        threading.Thread(target=deque, args=(map(lines.put, stream), 0), daemon=True).start()
        deadline = time.monotonic() + _READY_S
        url, said = None, deque[str](maxlen=5)
        while url is None:
            try:
                said.append(lines.get(timeout=0.2))
            except queue.Empty:
                if process.poll() is None and time.monotonic() < deadline:
                    continue
                raise click.ClickException(f"the server did not start: {''.join(said).strip()}") from None
            if match := re.search(r"http://\S+", said[-1]):
                url = match.group()
        _until_ready(url, deadline)
        yield BenchServer(url, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until_ready(url: str, deadline: float) -> None:
    while True:
        try:
            with urllib.request.urlopen(f"{url}readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise click.ClickException(f"the server did not get ready: {error}") from error
            time.sleep(0.1)
