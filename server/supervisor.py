"""The server's side of a worker process: start it, talk to it, notice when it dies or hangs, start another.

One thread spawns and reads, one writes, so that neither a large state nor a slow process ever holds up the event loop.
Everything that this class reports, it reports on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Protocol

from engines.protocol import StepResult
from server.memory import SharedFrames
from server.worker import (
    Block,
    BuildEngine,
    Close,
    Job,
    Step,
    Stepped,
    StreamFailed,
    WorkerFailed,
    WorkerReady,
    block_shape,
    run_worker,
)
from streamgen.config import StudentConfig
from streamgen.session_log import checksum
from streamgen.state import StreamState

log = logging.getLogger("streamgen.server.worker")

_RESPAWN_FIRST_S = 0.1
_RESPAWN_MOST_S = 5.0
_JOIN_S = 2.0


class WorkerState(Enum):
    STARTING = "starting"
    READY = "ready"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class StepReply:
    """A `Stepped` whose frames have been copied out of the shared memory. checksums: CRC-32 of each result's frames."""

    call: int
    results: tuple[StepResult | StreamFailed, ...]
    checksums: tuple[int, ...]
    step_s: float
    open_s: float


class WorkerListener(Protocol):
    """Called on the event loop."""

    def worker_ready(self, info: WorkerReady) -> None: ...

    def worker_replied(self, reply: StepReply) -> None: ...

    def worker_lost(self, reason: str) -> None:
        """The process is gone, or its engine could not be built; another one is being started."""
        ...


class WorkerSupervisor:
    """Keeps one worker process alive.

    slots: blocks of a Step at most. hang_after_s: a Step that is not answered by then has its process killed.
    ready_within_s: the same for building the engine.
    """

    def __init__(
        self,
        build_engine: BuildEngine,
        config: StudentConfig,
        start: StreamState,
        listener: WorkerListener,
        *,
        slots: int,
        hang_after_s: float,
        ready_within_s: float,
    ) -> None:
        self.state = WorkerState.STARTING
        self.pid: int | None = None
        self.spawned = 0
        self.last_failure: str | None = None
        self._listener = listener
        self._hang_after_s, self._ready_within_s = hang_after_s, ready_within_s
        self._loop = asyncio.get_running_loop()
        self._watchdog: asyncio.TimerHandle | None = None
        self._frames = SharedFrames((slots, *block_shape(config)))
        self._job = Job(build_engine, config, start, self._frames, os.getpid())
        self._process: multiprocessing.process.BaseProcess | None = None
        self._killed_for: str | None = None
        self._outbox: SimpleQueue[tuple[int, Step | Close] | None] = SimpleQueue()
        self._pipe: tuple[int, Connection] | None = None
        self._pipe_lock = threading.Lock()
        self._closing = threading.Event()
        self._ended = asyncio.Event()
        # PR_SET_PDEATHSIG counts the death of the thread that spawned, so one thread spawns for as long as this object
        # lives.
        self._reader = threading.Thread(target=self._supervise, name="worker-supervisor", daemon=True)
        self._writer = threading.Thread(target=self._write, name="worker-writer", daemon=True)

    def start(self) -> None:
        """Spawn the first process; `worker_ready` follows."""
        self._reader.start()
        self._writer.start()

    def step(self, message: Step) -> None:
        """Send a Step; one at a time, to a worker that is ready."""
        self._outbox.put((self.spawned, message))
        self._watch(self._hang_after_s, "a step")

    def close_stream(self, stream_id: str) -> None:
        """Let the worker forget a stream."""
        self._outbox.put((self.spawned, Close(stream_id)))

    def kill(self, reason: str) -> None:
        """End the process with SIGKILL; its loss is reported and another one is started."""
        self._killed_for = reason
        process = self._process
        if process is not None:
            with contextlib.suppress(ValueError, ProcessLookupError):
                process.kill()

    async def close(self) -> None:
        """End the process and give the shared memory back."""
        if self.state is WorkerState.CLOSED:
            return
        was_ready = self.state is WorkerState.READY
        self.state = WorkerState.CLOSED
        self._unwatch()
        self._closing.set()
        if self._reader.ident is not None:
            self._outbox.put(None)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _JOIN_S if was_ready else 0)
            if not self._ended.is_set():
                self.kill("the server ends")
            await self._ended.wait()
        self._frames.close()

    # On the event loop.

    def _spawned_one(self, number: int, pid: int | None) -> None:
        self.spawned, self.pid = number, pid
        self._killed_for = None
        self._watch(self._ready_within_s, "building the engine")

    def _got(self, number: int, message: WorkerReady | WorkerFailed | StepReply) -> None:
        if self.state is WorkerState.CLOSED or number != self.spawned:
            return
        self._unwatch()
        if isinstance(message, WorkerReady):
            self.state, self.last_failure = WorkerState.READY, None
            self._job = replace(self._job, measure=False)
            self._listener.worker_ready(message)
        elif isinstance(message, WorkerFailed):
            self.last_failure = message.message.strip().splitlines()[-1]
            log.error("the engine could not be built: %s", message.message)
        else:
            self._listener.worker_replied(message)

    def _lost(self, number: int, exit_code: int | None) -> None:
        if self.state is WorkerState.CLOSED or number != self.spawned:
            return
        self._unwatch()
        self.state, self.pid = WorkerState.STARTING, None
        reason = self._killed_for or self.last_failure or f"the worker process ended with code {exit_code}"
        log.warning("worker lost: %s", reason)
        self._listener.worker_lost(reason)

    def _watch(self, within_s: float, what: str) -> None:
        self._unwatch()
        self._watchdog = self._loop.call_later(within_s, self.kill, f"{what} took more than {within_s:g} s")

    def _unwatch(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None

    # On threads of their own.

    def _supervise(self) -> None:
        context = multiprocessing.get_context("spawn")
        number, pause_s = 0, _RESPAWN_FIRST_S
        while not self._closing.is_set():
            number += 1
            ours, theirs = context.Pipe()
            process = context.Process(target=run_worker, args=(self._job, theirs), name="streamgen-worker", daemon=True)
            began_s = time.monotonic()
            process.start()
            theirs.close()
            self._process, self._pipe = process, (number, ours)
            self._report(self._spawned_one, number, process.pid)
            was_of_use = False
            if self._closing.is_set():
                process.kill()
            with contextlib.suppress(EOFError, OSError):
                while True:
                    message = ours.recv()
                    was_of_use |= isinstance(message, Stepped)
                    self._report(self._got, number, self._received(message))
            with self._pipe_lock:
                self._pipe = None
            process.join(_JOIN_S)
            if process.exitcode is None:
                process.kill()
                process.join()
            ours.close()
            self._report(self._lost, number, process.exitcode)
            # Only a worker that dies before it has done anything makes the next one wait longer.
            if was_of_use or time.monotonic() - began_s > _RESPAWN_MOST_S:
                pause_s = _RESPAWN_FIRST_S
            self._closing.wait(pause_s)
            pause_s = min(2 * pause_s, _RESPAWN_MOST_S)
        self._writer.join()
        self._report(self._ended.set)

    def _received(self, message: WorkerReady | WorkerFailed | Stepped) -> WorkerReady | WorkerFailed | StepReply:
        if not isinstance(message, Stepped):
            return message
        # The next Step is sent only after this one was reported, so the slots stand still while they are copied.
        results = tuple(
            StepResult(result.stream_id, result.frame, slot.copy(), result.latents, result.actions)
            if isinstance(result, Block)
            else result
            for slot, result in zip(self._frames.slots, message.results, strict=False)
        )
        checksums = tuple(checksum(result.frames) if isinstance(result, StepResult) else 0 for result in results)
        return StepReply(message.call, results, checksums, message.step_s, message.open_s)

    def _write(self) -> None:
        while True:
            item = self._outbox.get()
            number, message = item if item is not None else (None, None)
            # The lock keeps the pipe from being closed, and its number given to another file, while it is written to.
            with self._pipe_lock:
                # A message for a process that has died since is moot: its loss is reported, and streams are opened
                # anew.
                if self._pipe is not None and number in (None, self._pipe[0]):
                    with contextlib.suppress(OSError):
                        self._pipe[1].send(message)
            if item is None:
                return

    def _report(self, callback: Callable[..., None], *args: object) -> None:
        # RuntimeError: the loop has been closed, so nobody is left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *args)
