"""`streamgen-client load`, and `streamgen bench --load` that uses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import streamgen_client.load
from server.bench import bench
from streamgen_client.cli import main
from tests.server.conftest import serve, student
from tests.server.harness import LiveServer

__all__ = ["serve", "student"]


@pytest.mark.parametrize("transport", ["webrtc", "websocket"])
def test_who_was_let_in_and_what_they_got(
    serve: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    monkeypatch.setattr(streamgen_client.load, "_ARRIVE_EVERY_S", 0.1)
    monkeypatch.setattr(streamgen_client.load, "_SETTLE_S", 0.5)
    server = serve(settings={"max_sessions": 2})
    result = CliRunner().invoke(
        main, ["load", server.url, "--viewers", "3", "--seconds", "1.5", "--transport", transport]
    )
    assert result.exit_code == 0, result.output
    arrived, got = map(json.loads, result.output.splitlines())
    assert (arrived["viewers"], arrived["admitted"], arrived["transport"]) == (3, 2, transport)
    assert arrived["refused"] == [{"code": "full", "retry_after_s": 10.0}]
    assert got["target_fps"] == 20
    assert len(got["fps_of_each"]) == 2
    assert 0 < got["fps"]["p5"] <= got["fps"]["p50"]
    assert all(0 < fps < 30 for fps in got["fps_of_each"])
    assert got["latency_ms"]["inputs"] > 2
    assert 0 < got["latency_ms"]["p50"] <= got["latency_ms"]["p99"]
    assert got["cpu_cores"] > 0 and got["reconnects"] == 0
    assert len(server.service.sessions) == 0


def test_a_bench_under_load(tmp_path: Path) -> None:
    """The shipped student, a server and a viewer, each in a process of its own."""
    figures = tmp_path / "bench.json"
    options = ["--load", "--viewers", "1", "--transport", "websocket", "--seconds", "1", "--json", str(figures)]
    result = CliRunner().invoke(bench, options)
    assert result.exit_code == 0, result.output
    row: dict[str, Any]
    [row] = json.loads(figures.read_text())["load"]
    assert (row["transport"], row["viewers"], row["admitted"], row["refused"]) == ("websocket", 1, 1, [])
    assert row["fps_of_each"][0] > 1 and row["steps"] >= 1
    assert all(row["cpu_cores"][name] > 0 for name in ("server", "worker", "viewers"))
    assert f"| websocket | 1 | 1 | {row['target_fps']}," in result.output
    refused = CliRunner().invoke(bench, ["--load", "--viewers", "2,0"])
    assert refused.exit_code == 2 and "give numbers from 1 to 64" in refused.output
