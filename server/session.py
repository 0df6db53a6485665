"""A session: a client's right to a stream, and the viewers through which it watches and steers it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from server.clock import Epoch
from server.codes import ErrorCode
from server.errors import Refused
from server.inputs import Event
from server.keys import ApiKey
from server.mailbox import Frame
from server.protocol import EpochOpened, Error, Paused, Ready, Resumed, ServerMessage, Status
from server.scheduler import Scheduler
from server.streams import Stream
from server.students import RETRY_STARTING_S, Served
from server.viewers import CLOSE_POLICY, Transport, Viewer
from streamgen.noise import SEED_LIMIT
from streamgen.session_log import Header
from streamgen.student import Reference

if TYPE_CHECKING:
    from server.sessions import Sessions

log = logging.getLogger("streamgen.server.session")

RETRY_FULL_S = 10


class Session:
    """One stream with its viewers. It plays while it is not paused and some viewer is present.

    token_hash: SHA-256 of the bearer's proof, which only the bearer keeps: it is random enough to need no salt.
    agents: connections that say something and watch nothing; they end with the session.
    lifetime_s: from now to the end of the session. key: the API key that it was opened with.
    """

    def __init__(
        self,
        owner: Sessions,
        served: Served,
        scheduler: Scheduler,
        seed: int,
        key: ApiKey | None,
        session_id: str,
        token_hash: bytes,
        lifetime_s: float,
        identity: str | None = None,
        reference: Reference | None = None,
    ) -> None:
        now_s = time.monotonic()
        self.id, self.token_hash = session_id, token_hash
        self.served, self.scheduler = served, scheduler
        self.seed, self.key = seed, key
        self.paused = False
        self.viewers: dict[str, Viewer] = {}
        self.agents: set[Transport] = set()
        self.stream = Stream(self.id, served.student, seed, self, identity, reference)
        self.expires_s = now_s + lifetime_s
        self.expires_at = datetime.now(UTC) + timedelta(seconds=lifetime_s)
        self.present_s = now_s
        self._owner = owner
        self._last_frame: Frame | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> str:
        if self.paused:
            return "paused"
        return "playing" if self.stream.playing else "away"

    @property
    def ends_s(self) -> float:
        """When it is freed if nobody comes back to it, or its time is up before."""
        return min(self.expires_s, self.present_s + self._owner.settings.return_within_s)

    def may(self, token: str) -> bool:
        """Whether this is the session's token; takes the same time whatever the answer."""
        return hmac.compare_digest(hash_token(token), self.token_hash)

    # Viewers.

    def attach(self, transport: Transport) -> Viewer:
        """A new viewer. Raises Refused when there are too many."""
        owner, now_s = self._owner, time.monotonic()
        if len(self.viewers) >= owner.settings.max_viewers:
            raise Refused(
                503, "too_many_viewers", "the session has as many viewers as it may", retry_after_s=RETRY_FULL_S
            )
        viewer = Viewer(transport, owner.settings, owner.metrics, now_s)
        self.viewers[viewer.id] = viewer
        owner.metrics.viewers.labels(transport.kind).inc()
        if self._last_frame is not None:
            viewer.mailbox.put(self._last_frame)
        return viewer

    def detach(self, viewer: Viewer) -> None:
        """The viewer's connection has ended."""
        if self.viewers.pop(viewer.id, None) is None:
            return
        now_s = time.monotonic()
        viewer.close()
        if self.stream.voice is not None:
            self.stream.voice.forget(viewer.id)
        self._owner.metrics.viewers.labels(viewer.transport.kind).dec()
        self.stream.inputs.forget(viewer.id, now_s)
        self.refresh(now_s)

    def greet(self, viewer: Viewer) -> None:
        """The viewer can be spoken to, and is present: say what it watches."""
        self.heard(viewer, time.monotonic())
        config = self.stream.student.config
        viewer.send(
            Ready(
                session=self.id,
                student=config.name,
                fps=config.fps,
                width=config.width,
                height=config.height,
                keys=list(config.keys),
                frame=self.stream.state.frame,
                generation=self.stream.generation,
            )
        )
        if self.stream.clock.epoch is not None:
            viewer.send(self._epoch_message(self.stream.clock.epoch))
        if self.paused:
            viewer.send(Paused())

    def heard(self, viewer: Viewer, now_s: float) -> None:
        """A message came: the viewer is present."""
        viewer.last_heard_s = now_s
        if viewer.away:
            self.refresh(now_s)

    def leave(self, viewer: Viewer) -> None:
        """The viewer said goodbye; its connection may still stand for a moment."""
        viewer.last_heard_s = float("-inf")
        self.refresh(time.monotonic())

    def refresh(self, now_s: float) -> None:
        """Play or stop, as the viewers' presence and pause ask for."""
        for viewer in self.viewers.values():
            silent = now_s - viewer.last_heard_s > self._owner.settings.away_after_s
            viewer.away = silent and not viewer.transport.present
            if viewer.away:
                self.stream.inputs.silence(viewer.id, now_s)
        if any(not viewer.away for viewer in self.viewers.values()):
            self.present_s = now_s
            wanted = not self.paused
        else:
            wanted = False
        if wanted and not self.stream.playing and not self.stream.ended:
            self.stream.play()
            self.scheduler.wake()
        elif not wanted:
            self.stream.stop()

    # What clients ask for.

    def pause(self) -> None:
        if not self.paused:
            self.paused = True
            self.refresh(time.monotonic())
            self.broadcast(Paused())

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            self.refresh(time.monotonic())
            self.broadcast(Resumed())

    def reset(self, seed: int) -> None:
        """Begin the stream anew; older frames no longer leave the server."""
        self.seed = seed
        self._last_frame = None
        self.stream.reset(seed)
        for viewer in self.viewers.values():
            viewer.forget()
        self.scheduler.wake()

    def say(self, viewer: Viewer, text: str) -> None:
        """Let the stream say a text; the viewer is told what stands against it."""
        task = asyncio.create_task(self._say(viewer, text, self.stream.utterance))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _say(self, viewer: Viewer, text: str, utterance: int) -> None:
        try:
            await self._owner.speaking.say(self.stream, text, utterance)
        except Refused as refused:
            viewer.send(Error(code=refused.code, message=refused.message, retryable=refused.retryable))
        except Exception:
            # Of the voice's own making: nobody else would hear of it.
            log.exception("session %s: a text was not said", self.id)
            viewer.send(Error(code="internal", message="the text could not be said", retryable=True))

    def interrupt(self) -> None:
        """The voice falls silent at once; what waits for the viewers is not heard or seen any more."""
        self.stream.interrupt()
        if self._last_frame is not None:
            # For those who come while nothing new is generated.
            self._last_frame = replace(self._last_frame, sound=None, utterance=self.stream.utterance)
        for viewer in self.viewers.values():
            viewer.forget()

    def log(self) -> Iterator[bytes]:
        """What determined the frames since the stream began or was taken up by this server, as JSON Lines in pieces:
        `streamgen replay` makes them again. Raises Refused.
        """
        info, stream = self.scheduler.info, self.stream
        if info is None:
            raise Refused(503, "starting", "the engine is not ready yet", retry_after_s=RETRY_STARTING_S)
        header = Header(
            session=self.id,
            student=stream.student.config.name,
            student_hash=stream.student.hash,
            engine=info.engine,
            precision=info.precision,
            device=info.device,
            left_out_blocks=stream.log.left_out_blocks,
            left_out_inputs=stream.log.left_out_inputs,
        )
        return stream.log.parts(header)

    def broadcast(self, message: ServerMessage) -> None:
        for viewer in list(self.viewers.values()):
            viewer.send(message)

    def send_status(self, now_s: float) -> None:
        """The once-a-second report to every viewer."""
        stream = self.stream
        for viewer in list(self.viewers.values()):
            viewer.send(
                Status(
                    frame=stream.state.frame,
                    fps=round(stream.measured_fps(now_s), 2),
                    step_ms=round(stream.step_s * 1e3, 2),
                    steps=stream.steps,
                    dropped=viewer.mailbox.dropped,
                    epoch=stream.clock.epochs,
                    generation=stream.generation,
                )
            )

    # What the stream reports.

    def block_ready(self, frames: Sequence[Frame], shown: Sequence[Event], period_s: float) -> None:
        for event in shown:
            viewer = self.viewers.get(event.viewer)
            if viewer is not None and event.seq is not None:
                viewer.expect(event, frames[0])
        self._hand_over(frames[0])
        for i, frame in enumerate(frames[1:], 1):
            asyncio.get_running_loop().call_later(i * period_s, self._hand_over, frame)

    def epoch_opened(self, epoch: Epoch) -> None:
        self.broadcast(self._epoch_message(epoch))

    def stream_ran_away(self) -> None:
        self._owner.metrics.streams_ran_away.labels(self.served.name).inc()
        log.warning("session %s: the latents of seed %d are no numbers any more", self.id, self.seed)
        self.broadcast(Error(code="ran_away", message="the picture came apart: it begins anew", retryable=True))
        self.reset((self.seed + 1) % SEED_LIMIT)

    def stream_ended(self, code: ErrorCode, message: str) -> None:
        log.error("session %s: %s", self.id, message)
        asyncio.get_running_loop().call_soon(self._owner.free, self, code, message, CLOSE_POLICY)

    def _hand_over(self, frame: Frame) -> None:
        if not self.stream.shows(frame):
            return
        self._last_frame = frame
        for viewer in self.viewers.values():
            if not viewer.away:
                viewer.feed(frame)

    def _epoch_message(self, epoch: Epoch) -> EpochOpened:
        stream = self.stream
        return EpochOpened(n0=epoch.n0, t0_us=epoch.pts0_us, fps=stream.clock.fps, generation=stream.generation)


def hash_token(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
