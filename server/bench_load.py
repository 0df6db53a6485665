"""What many people get of a server: real viewers, in a process of their own, on the same machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import click

from server.bench_server import BenchServer, serving
from streamgen.student import Student


def bench_load(
    student: Student, engine: str, viewers: Sequence[int], transports: Iterable[str], seconds: float
) -> list[dict[str, Any]]:
    """One row for each transport and number of viewers, each on a fresh server."""
    if find_spec("streamgen_client") is None:
        raise click.ClickException("--load needs the Python client: pip install ./clients/python")
    rows = []
    for transport in transports:
        for count in viewers:
            with serving(student, engine, "--max-sessions", str(count)) as server:
                rows.append(_row(server, count, transport, seconds))
    return rows


def _row(server: BenchServer, viewers: int, transport: str, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-c", "from streamgen_client.cli import main; main()", "load", server.url]
    options = ["--viewers", str(viewers), "--transport", transport, "--seconds", str(seconds)]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        arrived = process.stdout.readline()
        before, start_s = server.cpu_s(), time.monotonic()
        got = process.stdout.readline()
        after, elapsed_s = server.cpu_s(), time.monotonic() - start_s
        steps = round(server.metric("streamgen_denoising_steps"))
    if process.returncode or not got:
        raise click.ClickException(f"the viewers ended with code {process.returncode}; what they said is above")
    figures: dict[str, Any] = json.loads(arrived) | json.loads(got)
    cpu = {name: round((after[name] - before[name]) / elapsed_s, 3) for name in after}
    return figures | {"steps": steps, "cpu_cores": cpu | {"viewers": figures["cpu_cores"]}}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for people."""
    columns = ("transport", "viewers", "let in", "frames/s asked, p5, median", "key to picture", "steps", "CPU cores")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        fps, latency, cpu = row["fps"], row["latency_ms"], row["cpu_cores"]
        delay = (
            f"p50 {latency['p50']:.0f} ms, p99 {latency['p99']:.0f} ms" if latency["inputs"] else "no input came back"
        )
        lines.append(
            f"| {row['transport']} | {row['viewers']} | {row['admitted']} "
            f"| {row['target_fps']}, {fps.get('p5', 0):.1f}, {fps.get('p50', 0):.1f} "
            f"| {delay} | {row['steps']} "
            f"| server {cpu['server']:.2f}, worker {cpu['worker']:.2f}, viewers {cpu['viewers']:.2f} |"
        )
    return "\n".join(lines)
