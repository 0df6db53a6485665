"""What a running server consists of, and how it begins and ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from server.ice import bound_ports
from server.keys import Keyring
from server.likeness import Likenesses
from server.load import EncoderPool, ShowingCosts
from server.metrics import Metrics
from server.pages import pages
from server.restart import drain, restore
from server.sessions import Sessions
from server.settings import Settings
from server.speaking import Speaking
from server.students import Offer, Students
from server.webrtc import Peers

log = logging.getLogger("streamgen.server")

_ENCODER_THREADS = 4


class Service:
    """The parts of one server; made on the event loop."""

    def __init__(self, settings: Settings, offers: Sequence[Offer], web: Path | None, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.keyring = Keyring(settings.keys)
        self.pool = EncoderPool(_ENCODER_THREADS)
        showing = ShowingCosts(lambda: time.thread_time() + self.pool.cpu_s)
        self.students = Students(offers, showing, settings, metrics)
        self.likenesses = Likenesses()
        self.speaking = Speaking(self.pool, settings.max_sound_s)
        self.sessions = Sessions(self.students, self.speaking, settings, metrics)
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
        self.students.start()
        restore(self.sessions)
        task = asyncio.create_task(self.sessions.run())
        task.add_done_callback(_report)
        try:
            yield
        finally:
            drain(self.sessions)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.peers.close()
            self.likenesses.close()
            await self.students.close()
            kept = self.sessions.kept
            log.info("the server has ended%s", f", {kept} sessions wait for the next one" if kept else "")


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a part of the server has failed", exc_info=error)
