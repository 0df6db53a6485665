"""The Python client over a restart of a real server."""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from streamgen.student import Student
from streamgen_client import StreamClient
from tests.server.harness import until
from tests.server.process import Process, process
from tests.server.synthetic import read
from tests.server.viewers import Got, follow


async def take(stream: StreamClient, frames: list[Got], enough: Any) -> None:
    """Take frames until one satisfies `enough`."""
    while not frames or not enough(frames[-1]):
        frame = await stream.next()
        frames.append(Got(frame.generation, frame.number, frame.pts_us, read(frame.rgb)))


async def test_streams_go_on_after_a_restart(student: Student, tmp_path: Path) -> None:
    """Over both transports the same streams go on; a server that is told twice to end does so at once."""
    states = ("--state-dir", str(tmp_path / "states"))
    with process(student, tmp_path, *states) as old:
        one = StreamClient(old.url, seed=1, transport="webrtc", buffer_frames=64)
        two = StreamClient(old.url, seed=2, transport="websocket", buffer_frames=64)
        async with one, two:
            seen: dict[StreamClient, list[Got]] = {one: [], two: []}
            await one.keys("KeyW", down=True)
            await two.keys("ArrowLeft", down=True)
            for stream, frames in seen.items():
                await take(stream, frames, lambda got: got.seen.keys)
            last = {stream: frames[-1].frame for stream, frames in seen.items()}
            old.popen.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(old.wait) == 0
            assert "draining: 2 of 2 sessions are kept" in "".join(old.log)
            assert "2 sessions wait for the next one" in "".join(old.log)

            with ExitStack() as stack:
                same_port = process(student, tmp_path, *states, "--port", old.url.rpartition(":")[2])
                new = await asyncio.to_thread(stack.enter_context, same_port)
                for stream, frames in seen.items():
                    await take(stream, frames, lambda got, stream=stream: got.seen.keys and stream.stats.reconnects)
                    await take(stream, frames, lambda got, last=last[stream]: got.frame > last + 30)
                    assert stream.stats.reconnects == 1
                # Told again while it waits for its worker to end.
                (tmp_path / "hang").touch()
                await until(lambda: not (tmp_path / "hang").exists(), "the hanging step")
                new.popen.send_signal(signal.SIGTERM)
                await asyncio.to_thread(until_logged, new, "draining: 2 of 2")
                new.popen.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(new.wait) == -signal.SIGTERM
                assert "the server has ended" not in "".join(new.log)
                assert (tmp_path / "states" / "sessions.safetensors").exists()
    for stream, seed in ((one, 1), (two, 2)):
        assert follow(seed, seen[stream]) > 30


def until_logged(server: Process, text: str) -> None:
    assert server.popen.stderr is not None
    while text not in server.log[-1]:
        line = server.popen.stderr.readline()
        assert line, f"the server ended without saying {text!r}"
        server.log.append(line)
