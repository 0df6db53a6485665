"""docs/training.md does what it says: its recipes load, its commands run in order, and what comes out is served."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from streamgen.cli import main
from training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text()
KEYS = ["KeyW", "ArrowLeft", "ArrowRight"]
# The page's recipes, small enough for a test.
TOY: dict[str, dict[str, Any]] = {
    "autoencoder": {
        "width": 64,
        "height": 48,
        "frames": 2,
        "clip_length": 8,
        "model": {"latent_channels": 4, "encoder_dims": [8, 8], "decoder_dims": [8, 8], "decoder_blocks": [1, 1]},
    },
    "teacher": {
        "model": {"in_channels": 4, "height": 6, "width": 8, "dim": 24, "ffn_dim": 48, "num_heads": 2, "num_layers": 2},
    },
    "student": {"recycle": 4},
    "bidirectional": {},
    "sharper": {"steps": 3},
    "decoder": {"clip_length": 20, "recycle": 4, "walks": 4},
}


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def _walk(path: Path, frames: int = 1000) -> list[list[int]]:
    """A bar that the arrows move; returns the keys of every frame."""
    rng = np.random.default_rng(len(path.name))
    rows, at = [], 20.0
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        stream.codec_context.gop_size = 16  # every clip is a seek
        held = [0, 0, 0]
        for number in range(frames):
            if number % 6 == 0:
                held = (rng.random(3) < 0.4).astype(int).tolist()
            at = (at + 3 * (held[2] - held[1])) % 80
            picture = np.full((72, 96, 3), 60 + 60 * held[0], np.uint8)
            picture[:, int(at) : int(at) + 12] = 230
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            rows.append(held)
        container.mux(stream.encode(None))
    return rows


def _merged(recipe: dict[str, Any], toy: dict[str, Any]) -> dict[str, Any]:
    small = {"steps": 2, "warmup": 1, "evaluate_every": 2}
    if recipe["stage"] in ("teacher_forcing", "bidirectional", "distillation"):
        small |= {"judged_clips": 2, "judged_frames": 40}
    return recipe | small | toy | ({"model": recipe.get("model", {}) | toy["model"]} if "model" in toy else {})


def test_every_recipe_of_the_page_loads(tmp_path: Path) -> None:
    recipes = _blocks("yaml")
    assert [yaml.safe_load(text)["name"] for text in recipes] == [
        "my-autoencoder",
        "my-teacher",
        "my-student",
        "my-bidirectional",
        "my-sharper",
        "my-decoder",
    ]
    for text in recipes:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        assert load_recipe(path).data == Path("my-game")


@pytest.mark.timeout(900)
def test_the_pages_commands_make_a_student_that_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STREAMGEN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "my-game").mkdir()
    for name in ("walk-01", "walk-02"):
        rows = _walk(tmp_path / "my-game" / f"{name}.mp4")
        (tmp_path / "my-game" / f"{name}.json").write_text(json.dumps({"keys": KEYS, "actions": rows}))
    for text, (stage, toy) in zip(_blocks("yaml"), TOY.items(), strict=True):
        (tmp_path / f"{stage}.yaml").write_text(yaml.safe_dump(_merged(yaml.safe_load(text), toy)))
    commands = [line for block in _blocks("sh") for line in block.splitlines()]
    assert commands[-1].startswith("streamgen serve")
    said = ""
    for command in commands[:-1]:
        if command.startswith("streamgen student check"):
            (tmp_path / "my-student" / "README.md").write_text("# my-game\n\n" + "A bar that arrows move. " * 20)
        # In this process: importing PyTorch takes longer than most of what is done here.
        result = CliRunner().invoke(main, _arguments(command))
        assert result.exit_code == 0, f"{command}\n{result.output}{result.exception!r}"
        said += result.output
    assert "2 videos, 2000 frames, 2.1 minutes at 16 frames a second, keys KeyW ArrowLeft ArrowRight" in said
    assert "parity with torch: openvino within" in said
    figures = json.loads((tmp_path / "figures" / "my-student.json").read_text())
    assert figures["teacher_forced"]["frames"] > 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve = [sys.executable, "-c", "from streamgen.cli import main; main()", *_arguments(commands[-1])]
    with subprocess.Popen([*serve, "--port", str(port)], env=os.environ | {"PYTHONPATH": str(ROOT)}) as server:
        try:
            assert _answers(f"http://127.0.0.1:{port}/readyz", server.poll)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/students") as response:
                (student,) = json.loads(response.read())["students"]
            assert (student["name"], student["fps"], student["keys"]) == ("my-game", 16.0, KEYS)
        finally:
            server.send_signal(signal.SIGTERM)


def _arguments(command: str) -> list[str]:
    name, *arguments = shlex.split(command)
    assert name == "streamgen"
    return arguments


def _answers(url: str, ended: Callable[[], int | None]) -> bool:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and ended() is None:
        try:
            with urllib.request.urlopen(url) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    return False


PAGES = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "streamgen" / "students").glob("*/README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_recipes_take_what_pages_say_of_them(page: Path) -> None:
    """Every command that trains by a recipe of the project's own, whether it is run anywhere or not."""
    for name, given in re.findall(r"\btrain ([a-z]+/\w+)((?:(?: +| *\\\n +)[a-z_.]+=\S+)*)", page.read_text()):
        overrides = tuple(word.strip("`") for word in given.split() if word != "\\")
        load_recipe(ROOT / "training" / "recipes" / f"{name}.yaml", overrides)


def test_pages_say_how_their_students_were_trained() -> None:
    found = [len(re.findall(r"\btrain [a-z]+/\w+", page.read_text())) for page in PAGES]
    assert sum(found) > 25
