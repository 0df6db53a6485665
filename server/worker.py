"""The worker process: it owns an engine and its caches, and nothing that could not be rebuilt.

The server sends `Step` and `Close` through a pipe and gets one `Stepped` for each `Step`. Frames come back in shared
memory that the server created; everything else is small and comes through the pipe. No lock is shared, so the server
may kill this process at any moment. This module is what a spawned process imports: keep it light.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.protocol import Capacity, Engine, StepRequest, StepResult
from engines.select import fallbacks
from engines.store import ArtefactStore
from server.memory import SharedFrames
from streamgen.config import StudentConfig
from streamgen.state import StreamState

BuildEngine = Callable[[], Engine]

WARM_UP_STREAM = "warm-up"
_WARM_UP_STEPS = 4
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is started with.

    frames: shared slots, one block each. measure: time the steps before saying ready; a worker that replaces another
    one does not, people are waiting for it.
    """

    build_engine: BuildEngine
    config: StudentConfig
    start: StreamState
    frames: SharedFrames
    server_pid: int
    measure: bool = True


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The engine stands.

    cost_s: measured seconds of a step by step count, empty if the job did not ask. memory_bytes: what is resident of
    this process now, None where the system does not say. refused: compiled artefacts that the disk did not take.
    fallbacks: engines that would have been better and could not be had.
    """

    engine: str
    precision: str
    device: str
    capacity: Capacity
    cost_s: dict[int, float]
    memory_bytes: int | None = None
    refused: int = 0
    fallbacks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """The engine could not be built; the process ends."""

    message: str


@dataclass(frozen=True, slots=True)
class Step:
    """One block for each request, after opening the streams in `opens`. At most as many requests as there are slots."""

    call: int
    opens: tuple[tuple[str, StreamState], ...]
    requests: tuple[StepRequest, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """Forget a stream. Has no answer."""

    stream_id: str


@dataclass(frozen=True, slots=True)
class Block:
    """A generated block; its frames lie in the shared-memory slot of the request's position.

    latents: float16 [F, C, h, w]. actions: float32 [F, A], what drove it.
    """

    stream_id: str
    frame: int
    latents: NDArray[np.float16]
    actions: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StreamFailed:
    """A stream's open or step raised. alone: False when it shared a batch, so it may be another stream's fault."""

    stream_id: str
    message: str
    alone: bool


@dataclass(frozen=True, slots=True)
class Stepped:
    """Answer to a Step: one result for each request, in order. step_s leaves out the opens, which took open_s."""

    call: int
    results: tuple[Block | StreamFailed, ...]
    step_s: float
    open_s: float


def block_shape(config: StudentConfig) -> tuple[int, int, int, int]:
    """[F, H, W, 3] of one block of RGB frames."""
    return config.transformer.block_size, config.height, config.width, 3


def run_worker(job: Job, pipe: Connection) -> None:
    """The process's main function; returns when the server sends None or is gone."""
    _die_with(job.server_pid)
    try:
        try:
            engine = job.build_engine()
            cost_s = _warm_up(engine, job.config, job.start) if job.measure else {}
            about = engine.name, engine.precision, engine.device, engine.capacity
            ready = WorkerReady(*about, cost_s, _resident_bytes(), ArtefactStore.refused, tuple(fallbacks))
        except Exception:
            # Any reason why an engine cannot be built goes to the server, which reports it in /readyz.
            pipe.send(WorkerFailed(traceback.format_exc()))
            sys.exit(1)
        pipe.send(ready)
        while True:
            message = pipe.recv()
            if message is None:
                return
            if isinstance(message, Close):
                _guard(engine.close, message.stream_id)
            else:
                pipe.send(_step(engine, message, job.frames.slots))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


def _step(engine: Engine, message: Step, slots: NDArray[np.uint8]) -> Stepped:
    """Never raises for what a stream does: its error is its own result."""
    started = time.perf_counter()
    errors = [(stream_id, _guard(engine.open, stream_id, state)) for stream_id, state in message.opens]
    unopened = {stream_id: error for stream_id, error in errors if error is not None}
    opened = time.perf_counter()
    live = [request for request in message.requests if request.stream_id not in unopened]
    blocks: dict[str, StepResult] = {}
    raised = "the engine returned no block for the stream"
    try:
        blocks = {result.stream_id: result for result in (engine.step(live) if live else ())}
    except Exception as error:
        raised = _describe(error)
    results: list[Block | StreamFailed] = []
    for slot, request in zip(slots, message.requests, strict=False):
        stream_id = request.stream_id
        block = blocks.get(stream_id)
        if stream_id in unopened:
            results.append(StreamFailed(stream_id, unopened[stream_id], alone=True))
        elif block is None:
            results.append(StreamFailed(stream_id, raised, alone=len(live) == 1))
        elif block.frames.shape != slot.shape:
            reason = f"the engine returned frames of shape {block.frames.shape}; the student makes {slot.shape}"
            results.append(StreamFailed(stream_id, reason, alone=True))
        else:
            slot[:] = block.frames
            results.append(Block(stream_id, block.frame, block.latents, block.actions))
    return Stepped(message.call, tuple(results), time.perf_counter() - opened, opened - started)


def _warm_up(engine: Engine, config: StudentConfig, start: StreamState) -> dict[int, float]:
    """Measure a step of every plan that is served; the first one of each is left out, it may compile.

    The quickest counts: other students may play on these cores meanwhile, and their load is counted by itself.
    """
    engine.open(WARM_UP_STREAM, start)
    actions = np.zeros((config.transformer.block_size, config.action_dim), np.float32)
    cost_s = {}
    for steps in config.served:
        times = []
        for _ in range(_WARM_UP_STEPS):
            began = time.perf_counter()
            engine.step([StepRequest(WARM_UP_STREAM, actions, steps)])
            times.append(time.perf_counter() - began)
        cost_s[steps] = min(times[1:])
    engine.close(WARM_UP_STREAM)
    return cost_s


def _resident_bytes() -> int | None:
    if sys.platform != "linux":
        return None
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _guard(call: Callable[..., None], *args: object) -> str | None:
    """Call; the error's description if it raised."""
    try:
        call(*args)
    except Exception as error:
        return _describe(error)
    return None


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _die_with(server_pid: int) -> None:
    """End when the server does, and only then: its terminal's Ctrl-C reaches this process too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server_pid:
        sys.exit(0)
