"""A long conversation, the second half of `make soak`: does memory grow, do the lips fall behind, does the face drift?

The shipped avatar on its own engine, in a server as people start it, says held-out speech to a WebSocket viewer, and is
interrupted now and then. What a judge of faces reads from the frames that arrive is held against the sound that arrives
with them, minute by minute.
"""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import click
import numpy as np
import psutil

from server.bench_server import BenchServer, serving
from streamgen.face import FACE
from streamgen.student import Student
from streamgen_client import StreamClient
from training.metrics import detail, inside
from training.talk.evaluate import HELD_OUT, envelope_at, lag_ms
from training.talk.judge import load_face_judge, opening

SEED = 1
INTERRUPTED = 0.25
"""Share of what it is given to say that it does not say to the end."""
WINDOW_S = 30.0
MOST_GROWTH = {
    "server memory, MiB": 12.0,
    "worker memory, MiB": 12.0,
    "lips behind the sound, ms": 20.0,
    "colour of the face, of 255": 6.0,
    "detail of the face, of its first": 0.15,
}
"""Between the medians of the second quarter and of the last."""


async def talk(server: BenchServer, student: Student, seconds: float) -> list[dict[str, float]]:
    """One row of measures for each window."""
    judge = load_face_judge(HELD_OUT)
    rng = random.Random(SEED)
    files = sorted(HELD_OUT.glob("*.flac"))
    rows: list[dict[str, float]] = []
    first: np.ndarray | None = None
    main = psutil.Process(server.pid)
    async with StreamClient(server.url, transport="websocket", seed=SEED, buffer_frames=50) as stream:

        async def speak() -> None:
            while True:
                length_s = await stream.play(rng.choice(files))
                if rng.random() < INTERRUPTED:
                    await asyncio.sleep(length_s * rng.random())
                    await stream.interrupt()
                else:
                    await asyncio.sleep(length_s)
                await asyncio.sleep(rng.uniform(0.2, 3.0))

        speaking = asyncio.create_task(speak())
        try:
            while len(rows) * WINDOW_S < seconds and not speaking.done():
                frames, sounds = await _window(stream, round(WINDOW_S * student.config.fps))
                curve = opening(await asyncio.to_thread(judge.curves_of, frames))
                loud = envelope_at(sounds[::3].astype(np.float32) / 32768, len(frames), student.config.fps)
                face = inside(frames[-50:], FACE)
                first = face if first is None else first
                away = np.abs(face.mean((0, 1, 2)) - first.mean((0, 1, 2))).max()
                worker = [child for child in main.children() if "spawn_main" in " ".join(child.cmdline())]
                values = (
                    main.memory_info().rss / 2**20,
                    worker[0].memory_info().rss / 2**20,
                    lag_ms([curve], [loud], student.config.fps),
                    float(away),
                    detail(face) / detail(first),
                )
                rows.append(dict(zip(MOST_GROWTH, values, strict=True)))
        finally:
            speaking.cancel()
            results = await asyncio.gather(speaking, return_exceptions=True)
    for error in results:
        if isinstance(error, Exception):
            raise error
    return rows


async def _window(stream: StreamClient, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames that came with their sound, in order; a lost one is the one before it again."""
    frames: list[np.ndarray] = []
    sounds: list[np.ndarray] = []
    frame = await stream.next()
    while len(frames) < count:
        sound = await stream.next_sound()
        while frame.number < sound.number:
            frame = await stream.next()
        if frame.number == sound.number or frames:
            frames.append(frame.rgb if frame.number == sound.number else frames[-1])
            sounds.append(sound.samples)
    return np.stack(frames), np.concatenate(sounds)


@click.command()
@click.option("--minutes", type=click.FloatRange(min=5), default=10.0, show_default=True, envvar="SOAK_TALK_MINUTES")
@click.option("--json", "path", type=click.Path(path_type=Path), default=Path("soak-talk.json"), show_default=True)
def soak(minutes: float, path: Path) -> None:
    """Run it and report."""
    student = Student.from_pretrained("avatar")
    with serving(student, "auto") as server:
        rows = asyncio.run(talk(server, student, 60 * minutes))
    wrong = []
    width = max(map(len, MOST_GROWTH))
    click.echo(f"{'':{width}}  {'early':>8}  {'late':>8}")
    figures = {}
    for name, most in MOST_GROWTH.items():
        values = np.array([row[name] for row in rows])
        quarter = len(values) // 4
        early, late = (float(np.median(part)) for part in (values[quarter : 2 * quarter], values[-quarter:]))
        figures[name] = {"early": early, "late": late, "all": values.tolist()}
        click.echo(f"{name:{width}}  {early:8.2f}  {late:8.2f}")
        if not abs(late - early) <= most:  # nothing measured is not good either
            wrong.append(f"{name}: from {early:.2f} to {late:.2f}")
    path.write_text(json.dumps({"minutes": minutes, "measures": figures, "wrong": wrong}, indent=2))
    for line in wrong:
        click.echo(line, err=True)
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    soak()
