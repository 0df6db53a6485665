"""The students of one server: a worker process for each, started when somebody wants it, within a memory budget.

The first student is the default: its worker starts with the server and stays. To make room for another one's, workers
that nobody uses are closed, the longest unused first. What works is not closed before its place is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from server.errors import Refused
from server.load import ShowingCosts
from server.metrics import Metrics
from server.scheduler import Scheduler
from server.settings import Settings
from server.worker import BuildEngine
from streamgen.student import Student, StudentError

log = logging.getLogger("streamgen.server.students")

StudentState = Literal["loaded", "starting", "unloaded"]

_MOST_SLOTS = 16
RETRY_STARTING_S = 2
_RETRY_MEMORY_S = 10
_AWAITS_S = 10.0
"""Who was told to come back for a student has so long before its worker may be closed again for another one's."""

_RUNTIME_BYTES = 400_000_000
_COPIES_PER_GRAPH = 2
"""A worker that was never measured: its runtime, and the weights so often for each compiled graph. The world student's,
with graphs of one step, of two and of the commit, took 634 MB in bf16, and 580 by this."""

_SHARE_OF_MACHINE = 0.75
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Offer:
    """A student to serve. build_engine is called in its worker process and must be picklable."""

    student: Student
    build_engine: BuildEngine


def open_students(names: Iterable[str]) -> list[Student]:
    """Students by name or folder.

    Raises StudentError for files that are missing or damaged, and for two students that sessions could not tell apart.
    """
    students: dict[str, Student] = {}
    for name in names:
        student = Student.from_pretrained(name)
        student.check()
        if (other := students.setdefault(student.config.name, student)) is not student:
            raise StudentError(
                f"two students are called {student.config.name}: those in {other.path} and {student.path}; "
                "serve one of them, or export it under another name"
            )
    return list(students.values())


class Served:
    """A student, and its worker while it has one.

    used_s: when a session of it was last asked for or ended. awaits_until_s: until then somebody may come back who was
    told that it is starting. Monotonic clock.
    """

    def __init__(self, offer: Offer) -> None:
        self.student, self.build_engine = offer.student, offer.build_engine
        self.scheduler: Scheduler | None = None
        self.running: asyncio.Task[None] | None = None
        self.used_s = self.awaits_until_s = float("-inf")
        self._memory_bytes = _estimate_bytes(offer.student)

    @property
    def name(self) -> str:
        return self.student.config.name

    @property
    def ready(self) -> bool:
        return self.scheduler is not None and self.scheduler.ready

    @property
    def state(self) -> StudentState:
        if self.scheduler is None:
            return "unloaded"
        return "loaded" if self.scheduler.ready else "starting"

    @property
    def memory_bytes(self) -> int:
        """What its worker takes: as measured when it was last ready, and estimated before."""
        if self.scheduler is not None and self.scheduler.info is not None:
            self._memory_bytes = self.scheduler.info.memory_bytes or self._memory_bytes
        return self._memory_bytes


class Students:
    """All students of a server, the default first. Its methods run on the event loop."""

    def __init__(self, offers: Sequence[Offer], showing: ShowingCosts, settings: Settings, metrics: Metrics) -> None:
        self.all = [Served(offer) for offer in offers]
        self.budget_bytes = settings.memory_budget_mb * 10**6 if settings.memory_budget_mb else _default_budget_bytes()
        self._showing, self._settings, self._metrics = showing, settings, metrics
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def default(self) -> Served:
        return self.all[0]

    def find(self, name: str | None) -> Served:
        """The student of that name, None: the default. Raises Refused."""
        for served in self.all:
            if name in (None, served.name):
                return served
        known = ", ".join(served.name for served in self.all)
        raise Refused(404, "unknown_student", f"the server has no such student; it serves {known}")

    def load(self, served: Served) -> Scheduler:
        """The student's scheduler; its worker is started if it has none. Raises Refused if it has no memory."""
        served.used_s = time.monotonic()
        return served.scheduler or self._start(served, self._make_room(served))

    def admit(self, served: Served) -> Scheduler | None:
        """The same for one more stream, to begin now; None: it would starve those that play, of whatever student.

        Raises Refused also while the worker is starting.
        """
        others = [other.scheduler for other in self.all if other.scheduler and other is not served]
        load = sum(other.load for other in others)
        unknown = any(other.governor is None and not other.empty for other in others)
        full = served.scheduler is None and load >= self._settings.max_load
        if unknown or full or any(other.starved for other in others):
            return None
        scheduler = self.load(served)
        served.awaits_until_s = served.used_s + (0 if scheduler.ready else _AWAITS_S)
        self.ready(served)
        return scheduler if scheduler.admits_another(load) else None

    def ready(self, served: Served) -> Scheduler:
        """The student's scheduler, if its worker is ready. Raises Refused."""
        scheduler = served.scheduler
        if scheduler is None or not scheduler.ready:
            failure = scheduler.worker.last_failure if scheduler else None
            why = f": {failure}" if failure else " yet"
            raise Refused(503, "starting", f"the engine is not ready{why}", retry_after_s=RETRY_STARTING_S)
        return scheduler

    def start(self) -> None:
        """Start the default student's worker, whatever it takes."""
        for served in self.all:
            least_bytes = sum(each.memory_bytes for each in {served, self.default})
            if least_bytes > self.budget_bytes:
                log.warning("student %s may need more than the memory budget", served.name)
        self._start(self.default, [])

    def tidy(self) -> None:
        """Give up workers that cannot be loaded and that nobody uses, instead of starting them again for ever."""
        for served in self.all:
            if served.scheduler is not None and served.scheduler.worker.last_failure and self._unused(served):
                self._unload(served)

    async def close(self) -> None:
        """End all workers."""
        for served in self.all:
            self._unload(served)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _make_room(self, served: Served) -> list[Served]:
        """Whom to close so that the student's worker has room. Raises Refused."""
        loaded = [other for other in self.all if other.scheduler is not None]
        missing = sum(other.memory_bytes for other in loaded) + served.memory_bytes - self.budget_bytes
        leaving: list[Served] = []
        for other in sorted(filter(self._unused, loaded), key=lambda other: other.used_s):
            if missing > 0:
                leaving.append(other)
                missing -= other.memory_bytes
        if missing > 0:
            raise Refused(
                503,
                "no_memory",
                f"student {served.name} takes about {served.memory_bytes // 10**6} MB, "
                f"{missing // 10**6} more than the others leave it: try again later",
                retry_after_s=_RETRY_MEMORY_S,
            )
        return leaving

    def _unused(self, served: Served) -> bool:
        assert served.scheduler is not None
        awaits = time.monotonic() < served.awaits_until_s
        return served is not self.default and served.scheduler.empty and not awaits

    def _start(self, served: Served, leaving: Iterable[Served]) -> Scheduler:
        """Start a worker, once those of `leaving` have ended."""
        for other in leaving:
            log.info("student %s makes room for %s", other.name, served.name)
            self._unload(other)
        log.info("student %s is being loaded", served.name)
        served.scheduler = Scheduler(
            served.student,
            served.build_engine,
            self._metrics,
            slots=min(self._settings.max_sessions, _MOST_SLOTS),
            hang_after_s=self._settings.hang_after_s,
            ready_within_s=self._settings.ready_within_s,
            showing=self._showing,
            most_load=self._settings.max_load,
        )
        ending = [task for task in self._tasks if task.cancelling()]
        served.running = asyncio.create_task(_run(served.scheduler, ending))
        self._tasks.add(served.running)
        served.running.add_done_callback(self._ended)
        return served.scheduler

    def _unload(self, served: Served) -> None:
        if served.running is not None:
            served.running.cancel()
        served.scheduler = served.running = None

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("a student's scheduler has failed", exc_info=error)


async def _run(scheduler: Scheduler, ending: Sequence[asyncio.Task[None]]) -> None:
    """A scheduler and its worker until cancelled, after the workers that are ending have given their memory back."""
    try:
        if ending:
            await asyncio.wait(ending)
        await scheduler.run()
    finally:
        await scheduler.close()


def _estimate_bytes(student: Student) -> int:
    weights = sum(path.stat().st_size for path in student.path.rglob("diffusion_pytorch_model*.safetensors"))
    graphs = len(student.config.served) + 1
    return _RUNTIME_BYTES + _COPIES_PER_GRAPH * graphs * weights


def _default_budget_bytes() -> int:
    """A share of the machine's memory, or of what its container may use."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # not in one, or it has no limit ("max")
        machine = min(machine, int(_CONTAINER_LIMIT.read_text()))
    return int(machine * _SHARE_OF_MACHINE)
