"""`streamgen-client record` against a real server."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result

from streamgen_client.cli import main
from tests.server.harness import LiveServer
from tests.server.synthetic import START_FRAMES, read

SECONDS = 1.5


def record(url: str, keys: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["record", url, "--keys", str(keys), "--out", str(out), *options])


@pytest.mark.parametrize("transport", ["webrtc", "websocket"])
def test_the_film_shows_the_walk_at_its_own_times(shared: LiveServer, tmp_path: Path, transport: str) -> None:
    sessions = len(shared.service.sessions)
    keys, out, figures_file = tmp_path / "walk.txt", tmp_path / "new" / "walk.mp4", tmp_path / "new" / "walk.json"
    keys.write_text("0.3\n1.2 KeyW\n")
    result = record(shared.url, keys, out, "--json", str(figures_file), "--transport", transport, "--seed", "4")
    assert result.exit_code == 0, result.output
    figures = json.loads(figures_file.read_text())
    assert json.loads(result.output) == figures
    with av.open(str(out)) as container:
        pictures = list(container.decode(video=0))
    seen = [read(np.asarray(picture.to_ndarray(format="rgb24"), np.uint8)) for picture in pictures]
    assert pictures[0].width == 3 * shared.student.config.width
    assert figures["frames"] == len(pictures) > 1
    assert seen[0].frame >= START_FRAMES
    # In one epoch, which a busy machine may break, frames lie as far apart as their numbers say.
    times = [picture.time or 0.0 for picture in pictures]
    assert times[0] == 0 and times[-1] < SECONDS
    for at_s, what in zip(times, seen, strict=True):
        assert at_s >= (what.frame - seen[0].frame) / 20 - 1e-3
    assert seen[0].keys == frozenset()
    assert seen[-1].keys == {"KeyW"}
    assert figures["transport"] == transport
    assert figures["reconnects"] == 0
    assert figures["target_fps"] == 20
    assert figures["frames"] / figures["seconds"] == pytest.approx(figures["fps"], rel=0.01)
    assert figures["frames"] + figures["dropped"] + figures["missed"] >= seen[-1].frame - seen[0].frame + 1
    assert figures["latency_ms"]["inputs"] == 1
    assert 0 < figures["latency_ms"]["p50"] == figures["latency_ms"]["p99"]
    assert len(shared.service.sessions) == sessions


def test_a_walk_may_be_cut_short(shared: LiveServer, tmp_path: Path) -> None:
    keys, out = tmp_path / "walk.txt", tmp_path / "walk.mp4"
    keys.write_text("60 KeyW\n")
    result = record(shared.url, keys, out, "--seconds", "0.2", "--transport", "websocket")
    assert result.exit_code == 0, result.output
    assert 1 <= json.loads(result.output)["frames"] <= 4


def test_what_cannot_be_recorded_is_said_in_one_line(shared: LiveServer, tmp_path: Path) -> None:
    keys, out = tmp_path / "walk.txt", tmp_path / "walk.mp4"
    keys.write_text("1 KeyQ\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for url, complaint in (
        (shared.url, "line 1: unknown key KeyQ"),
        (nobody, "is the server running"),
        ("nonsense", "is no server's address"),
    ):
        result = record(url, keys, out)
        assert result.exit_code == 1
        assert complaint in result.output and "Traceback" not in result.output
    assert record(shared.url, tmp_path / "none.txt", out).exit_code == 2
