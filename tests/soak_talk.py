"""Ten minutes of replayed conversation with the shipped avatar, the second half of `make soak`: does memory grow, do
lips and sound part, does the face become somebody else?

A program lets it say held-out recordings, one after another with pauses between them, and interrupts some. What it sees
and hears is judged as the evaluation does; the exit code is 1 when something clearly grew.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from server.bench_server import BenchServer, serving
from streamgen.audio import SAMPLE_RATE
from streamgen.face import FACE
from streamgen.student import Student
from streamgen_client import SOUND_RATE, Frame, Sound, StreamClient
from tests.server.harness import until
from tests.server.test_talk import as_wave
from tests.soak import SEED, Record
from training.metrics import detail, inside
from training.talk.dataset import sound_of
from training.talk.evaluate import HELD_OUT, envelope_at, lag_ms
from training.talk.judge import FaceJudge, load_face_judge, opening

PIECE_S = 12.0
"""Of each recording."""
INTERRUPTED = 0.25
"""Share of the turns."""
MOST_GROWTH = {
    "server memory, MB": 12.0,
    "worker memory, MB": 12.0,
    "lips after sound, ms": 40.0,
    "colour of the face, grey levels": 4.0,
    "detail of the face, % off": 15.0,
    "interruption to silence, ms": 100.0,
}
"""From the second quarter's median to the last quarter's."""


class Listener:
    """All that came since the last turn."""

    def __init__(self, stream: StreamClient) -> None:
        self.frames: list[Frame] = []
        self.sounds: list[Sound] = []
        self._tasks = [asyncio.create_task(self._see(stream)), asyncio.create_task(self._hear(stream))]

    async def _see(self, stream: StreamClient) -> None:
        while True:
            self.frames.append(await stream.next())

    async def _hear(self, stream: StreamClient) -> None:
        while True:
            self.sounds.append(await stream.next_sound())

    def failed(self) -> None:
        """Raises what has ended it."""
        for task in self._tasks:
            if task.done():
                task.result()

    def take(self) -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
        """Pictures [F, H, W, 3] and the sound [T] in [-1, 1] that belongs to each. Raises AssertionError where
        the two have other times.
        """
        heard = {sound.number: sound for sound in self.sounds}
        both = [(frame, heard[frame.number]) for frame in self.frames if frame.number in heard]
        self.frames, self.sounds = [], []
        assert all(frame.pts_us == sound.pts_us for frame, sound in both), "a frame and its sound have other times"
        return np.stack([frame.rgb for frame, _ in both]), [s.samples / np.float32(32768) for _, s in both]

    def end(self) -> None:
        for task in self._tasks:
            task.cancel()


async def converse(server: BenchServer, record: Record, judge: FaceJudge) -> None:
    rng = random.Random(SEED)
    recordings = [sound_of(path)[: round(PIECE_S * SAMPLE_RATE)] for path in sorted(HELD_OUT.glob("id014*.mp4"))]
    first: NDArray[np.uint8] | None = None
    async with StreamClient(server.url.rstrip("/"), seed=SEED, student="avatar", transport="websocket") as stream:
        listener = Listener(stream)
        while not record.over:
            sound = recordings[record.did["turns"] % len(recordings)]
            record.did["turns"] += 1
            await stream.play(as_wave((sound * 32767).astype(np.int16), SAMPLE_RATE))
            if interrupted := rng.random() < INTERRUPTED:
                await asyncio.sleep(rng.uniform(2.0, 6.0))
                await stream.interrupt()
                record.did["interruptions"] += 1
                asked_s, speaks = time.monotonic(), listener.sounds[-1].samples.any()
                await until(lambda: not listener.sounds[-1].samples.any(), "silence")
                if speaks:
                    record.add("interruption to silence, ms", (time.monotonic() - asked_s) * 1e3)
            else:
                await asyncio.sleep(len(sound) / SAMPLE_RATE)
            await asyncio.sleep(rng.uniform(1.0, 3.0))
            listener.failed()
            for name, value in server.memory_mb().items():
                record.add(f"{name} memory, MB", value)
            pictures, heard = listener.take()
            first = pictures if first is None else first
            if len(set(map(len, heard))) > 1:
                record.did["turns in which the rate changed"] += 1
            elif not interrupted:
                await asyncio.to_thread(look, record, judge, pictures, np.concatenate(heard), first)
        listener.end()
        record.did["frames dropped"] += stream.stats.dropped


def look(
    record: Record,
    judge: FaceJudge,
    pictures: NDArray[np.uint8],
    heard: NDArray[np.float32],
    first: NDArray[np.uint8],
) -> None:
    """What a turn looked like, beside the first one."""
    fps = SOUND_RATE * len(pictures) / len(heard)
    step = SOUND_RATE // SAMPLE_RATE
    sound = heard[: len(heard) // step * step].reshape(-1, step).mean(1)
    lag = lag_ms([opening(judge.curves_of(pictures))], [envelope_at(sound, len(pictures), fps)], fps)
    record.add("lips after sound, ms", lag)
    now, then = (inside(frames, FACE) for frames in (pictures, first))
    record.add("colour of the face, grey levels", float(np.abs(now.mean((0, 1, 2)) - then.mean((0, 1, 2))).max()))
    record.add("detail of the face, % off", abs(1 - detail(now) / detail(then)) * 100)


@click.command()
@click.option("--minutes", type=float, default=10.0, show_default=True, envvar="SOAK_TALK_MINUTES")
@click.option("--json", "path", type=click.Path(path_type=Path), default=Path("soak_talk.json"), show_default=True)
def soak(minutes: float, path: Path) -> None:
    """Run it and report."""
    with serving(Student.from_pretrained("avatar"), "auto") as server:
        record = Record(time.monotonic() + 60 * minutes, MOST_GROWTH)
        try:
            asyncio.run(converse(server, record, load_face_judge(HELD_OUT)))
        except Exception as error:
            record.failures.append(repr(error))
    record.report(path, [])


if __name__ == "__main__":
    soak()
