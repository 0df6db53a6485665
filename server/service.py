"""What a running server consists of, and how it begins and ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from server.ice import bound_ports
from server.keys import Keyring
from server.load import EncoderPool
from server.metrics import Metrics
from server.pages import pages
from server.scheduler import Scheduler
from server.sessions import Sessions
from server.settings import Settings
from server.webrtc import Peers
from server.worker import BuildEngine
from streamgen.student import Student

log = logging.getLogger("streamgen.server")

_ENCODER_THREADS = 4
_MOST_SLOTS = 16


class Service:
    """The parts of one server; made on the event loop."""

    def __init__(
        self, settings: Settings, student: Student, build_engine: BuildEngine, web: Path | None, metrics: Metrics
    ) -> None:
        self.settings, self.student, self.metrics = settings, student, metrics
        self.keyring = Keyring(settings.keys)
        self.pool = EncoderPool(_ENCODER_THREADS)
        self.scheduler = Scheduler(
            student,
            build_engine,
            metrics,
            slots=min(settings.max_sessions, _MOST_SLOTS),
            hang_after_s=settings.hang_after_s,
            ready_within_s=settings.ready_within_s,
            spent_s=lambda: time.thread_time() + self.pool.cpu_s,
        )
        self.sessions = Sessions(student, self.scheduler, settings, metrics)
        self.peers = Peers(settings, metrics)
        self.pages = pages(web)

    @staticmethod
    def now_s() -> float:
        return time.monotonic()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The server while it serves; at the end no process and no shared memory is left."""
        loop = asyncio.get_running_loop()
        # aiortc encodes on the loop's default executor.
        loop.set_default_executor(self.pool)
        if self.settings.media_ports is not None:
            bound_ports(loop, self.settings.media_ports)
        tasks = [asyncio.create_task(self.scheduler.run()), asyncio.create_task(self.sessions.run())]
        for task in tasks:
            task.add_done_callback(_report)
        try:
            yield
        finally:
            self.sessions.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.peers.close()
            await self.scheduler.close()
            log.info("the server has ended")


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a part of the server has failed", exc_info=error)
