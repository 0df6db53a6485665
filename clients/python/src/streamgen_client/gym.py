"""A stream as a Gymnasium environment: an agent acts in a generated world (extra `gym`).

The server does not wait for the agent: the world goes on at its own rate while the agent thinks. One step is therefore
the first frame that shows the action, and `info` says how many frames went by unseen. An agent that keeps its action
gets the next frame; one that is slower than the stream skips frames, so that what it sees is never older than two.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, MultiBinary
from numpy.typing import NDArray

from streamgen_client.client import StreamClient, Transport
from streamgen_client.errors import StreamLost
from streamgen_client.frames import Frame
from streamgen_client.session import read_student

_SEED_LIMIT = 2**32
_MOST_TRIES = 5

T = TypeVar("T")
Picture = NDArray[np.uint8]


class StreamEnv(gymnasium.Env[Picture, NDArray[np.int8]]):
    """A stream of the server at `url`.

    Observation: the frame, uint8 [H, W, 3]. Action: one bit for each of `keys`, 1 where it is held. The reward is
    always 0, and no step terminates: wrap it to give the agent a task, and TimeLimit to end it.

    info: `frame`, the observation's number; `generation`; `pts_s`, its presentation time; `skipped`, the frames between
    the last observation and this one.

    reset() opens a new session and gives back the old one. Its observation is the stream's first frame, the same for
    the same seed. What follows depends on when the agent acts: Gymnasium is told that it is nondeterministic.

    api_key: what a server that is not open to everybody asks for; "": none.
    student: the one that is wanted, None: the first that the server has.
    transport: a WebSocket's frames are sharper than WebRTC's, and the same each time; WebRTC suits bad networks.

    Raises what StreamClient raises. Needs closing.

    >>> env = gymnasium.make("streamgen_client.gym:streamgen/Stream-v0", url=url)
    >>> picture, info = env.reset(seed=7)
    >>> action = env.action_space.sample()
    >>> picture, reward, terminated, truncated, info = env.step(action)
    >>> picture.shape, info["frame"] - info["skipped"]
    ((96, 128, 3), 4)
    >>> env.close()
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - Gymnasium declares it so

    def __init__(
        self,
        url: str,
        transport: Transport = "websocket",
        render_mode: str | None = None,
        api_key: str = "",
        student: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render mode {render_mode!r}: give rgb_array or None")
        self.render_mode = render_mode
        self._url, self._transport, self._api_key = url, transport, api_key
        self._loop = _LoopThread()
        self.student = self._loop.run(read_student(url, student))
        self.keys = self.student.keys
        self.metadata = {**self.metadata, "render_fps": self.student.fps}
        self.observation_space = Box(0, 255, (self.student.height, self.student.width, 3), np.uint8)
        self.action_space = MultiBinary(len(self.keys))
        self._stream: StreamClient | None = None
        self._held: frozenset[str] = frozenset()
        self._frame: Frame | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Picture, dict[str, Any]]:
        """Begin a new stream from this seed, or from one drawn by `np_random`. There are no options."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(_SEED_LIMIT)) if seed is None else seed
        self._frame = None
        return self._observe(self._loop.run(self._begin(drawn)))

    def step(self, action: NDArray[np.int8]) -> tuple[Picture, float, bool, bool, dict[str, Any]]:
        """Hold these keys; the first frame that shows them."""
        held = frozenset(code for code, down in zip(self.keys, action, strict=True) if down)
        picture, info = self._observe(self._loop.run(self._show(held)))
        return picture, 0.0, False, False, info

    def render(self) -> Picture | None:
        """The last observation, in render mode rgb_array."""
        return None if self.render_mode is None or self._frame is None else self._frame.rgb.copy()

    def close(self) -> None:
        """Give the session back. May be called again."""
        if self._loop.running:
            self._loop.run(self._leave())
            self._loop.stop()

    def _observe(self, frame: Frame) -> tuple[Picture, dict[str, Any]]:
        skipped = 0 if self._frame is None else frame.number - self._frame.number - 1
        self._frame = frame
        info = {"frame": frame.number, "generation": frame.generation, "pts_s": frame.pts_s, "skipped": skipped}
        return frame.rgb.copy(), info

    # On the loop's thread.

    async def _begin(self, seed: int) -> Frame:
        for _ in range(_MOST_TRIES):
            await self._leave()
            stream = StreamClient(
                self._url,
                api_key=self._api_key,
                student=self.student.name,
                seed=seed,
                transport=self._transport,
            )
            self._stream = await stream.__aenter__()
            frame = await stream.next()
            # Another would make what an agent starts from depend on how busy the machine was.
            if frame.number == stream.first_frame:
                return frame
        raise StreamLost("too_slow", f"the first frame was lost {_MOST_TRIES} times: is this machine overloaded?")

    async def _show(self, held: frozenset[str]) -> Frame:
        stream = self._stream
        if stream is None:
            raise gymnasium.error.ResetNeeded("step() before reset(): the environment has no stream yet")
        if held == self._held:
            return await stream.next()
        ack = await stream.hold(held)
        self._held = held
        while not ack.shown_by(frame := await stream.next()):
            pass
        return frame

    async def _leave(self) -> None:
        self._held = frozenset()
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.__aexit__()


class _LoopThread:
    """An event loop on a thread of its own, for callers that have none."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon: an environment that nobody closed does not keep the program from ending.
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do this on the loop and wait for it; an interrupt cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


gymnasium.register("streamgen/Stream-v0", "streamgen_client.gym:StreamEnv", nondeterministic=True)
