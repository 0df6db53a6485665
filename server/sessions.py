"""Sessions: a client's right to a stream, and the viewers through which it watches and steers it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import math
import secrets
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from server.clock import Epoch
from server.codes import ErrorCode
from server.errors import Refused
from server.inputs import Event
from server.keys import ApiKey
from server.limits import ONE_MORE_GUESS_AFTER_S, Guesses
from server.mailbox import Frame
from server.metrics import Metrics
from server.protocol import EpochOpened, Error, Paused, Ready, Resumed, ServerMessage, Status
from server.scheduler import Scheduler
from server.settings import Settings
from server.streams import Stream
from server.students import Served, Students
from server.viewers import CLOSE_NORMAL, CLOSE_POLICY, CLOSE_TRY_LATER, Transport, Viewer
from streamgen.session_log import Header

log = logging.getLogger("streamgen.server.sessions")

SWEEP_EVERY_S = 0.25
STATUS_EVERY_S = 1.0
_RETRY_FULL_S = 10
_RETRY_STARTING_S = 2
_RETRY_DRAINING_S = 5


class Session:
    """One stream with its viewers. It plays while it is not paused and some viewer is present.

    token_hash: SHA-256 of the bearer's proof, which only the bearer keeps: it is random enough to need no salt.
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
    ) -> None:
        now_s = time.monotonic()
        self.id, self.token_hash = session_id, token_hash
        self.served, self.scheduler = served, scheduler
        self.seed, self.key = seed, key
        self.paused = False
        self.viewers: dict[str, Viewer] = {}
        self.stream = Stream(self.id, served.student, seed, self)
        self.expires_s = now_s + lifetime_s
        self.expires_at = datetime.now(UTC) + timedelta(seconds=lifetime_s)
        self.present_s = now_s
        self._owner = owner
        self._last_frame: Frame | None = None

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
        return hmac.compare_digest(_hash(token), self.token_hash)

    # Viewers.

    def attach(self, transport: Transport) -> Viewer:
        """A new viewer. Raises Refused when there are too many."""
        owner, now_s = self._owner, time.monotonic()
        if len(self.viewers) >= owner.settings.max_viewers:
            raise Refused(
                503, "too_many_viewers", "the session has as many viewers as it may", retry_after_s=_RETRY_FULL_S
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
        viewer.mailbox.close()
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
            viewer.mailbox.clear()
        self.scheduler.wake()

    def log(self) -> bytes:
        """What determined the frames until now, as JSON Lines: `streamgen replay` makes them again. Raises Refused."""
        info, stream = self.scheduler.info, self.stream
        if info is None:
            raise Refused(503, "starting", "the engine is not ready yet", retry_after_s=_RETRY_STARTING_S)
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
        return stream.log.to_bytes(header)

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

    def stream_ended(self, code: ErrorCode, message: str) -> None:
        log.error("session %s: %s", self.id, message)
        asyncio.get_running_loop().call_soon(self._owner.free, self, code, message, CLOSE_TRY_LATER)

    def _hand_over(self, frame: Frame) -> None:
        if frame.generation != self.stream.generation:
            return
        self._last_frame = frame
        for viewer in self.viewers.values():
            if not viewer.away:
                viewer.feed(frame)

    def _epoch_message(self, epoch: Epoch) -> EpochOpened:
        stream = self.stream
        return EpochOpened(n0=epoch.n0, t0_us=epoch.pts0_us, fps=stream.clock.fps, generation=stream.generation)


class Sessions:
    """All sessions of a server. A session that nobody returns to, or whose time is up, is freed by `run`.

    draining: the server ends, and lets nobody in any more. kept: of its sessions, those that wait for the next server.
    """

    def __init__(self, students: Students, settings: Settings, metrics: Metrics) -> None:
        self.students, self.settings, self.metrics = students, settings, metrics
        self.draining = False
        self.kept = 0
        self._sessions: dict[str, Session] = {}
        self._guesses = Guesses()

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def create(self, student: str | None, seed: int | None, key: ApiKey | None) -> tuple[Session, str]:
        """A new session of the named student (None: the default) and its token.

        Raises Refused when there is no such student, when its worker is not ready or has no memory, when another stream
        would starve those that run, or when the key has as many as it may.
        """
        try:
            served, scheduler = self._admit(student, key)
        except Refused as refused:
            self.metrics.sessions_refused.labels(refused.code).inc()
            raise
        seed = secrets.randbits(32) if seed is None else seed
        token = secrets.token_urlsafe(32)
        session = Session(
            self,
            served,
            scheduler,
            seed,
            key,
            session_id=secrets.token_urlsafe(12),
            token_hash=_hash(token),
            lifetime_s=self.settings.session_lifetime_s,
        )
        self.add(session)
        log.info(
            "session %s opened, student %s, seed %d, key %s", session.id, served.name, seed, key.name if key else "none"
        )
        return session, token

    def _room_in_s(self, key: ApiKey | None = None) -> int:
        """When to ask again: once the first session (of this key) ends that nobody returns to, but soon in any case,
        since people leave without notice.
        """
        now_s = time.monotonic()
        ends_s = (session.ends_s for session in self._sessions.values() if key in (None, session.key))
        return max(1, min(_RETRY_FULL_S, math.ceil(min(ends_s, default=now_s) - now_s)))

    def find(self, session_id: str, token: str, address: str) -> Session:
        """The session, for the bearer of its token, who speaks from this IP address.

        Raises Refused, and does not say which of the two was wrong. Guesses count for each session by itself: a page
        that keeps asking for one that has ended must not lock out its neighbours behind the same address.
        """
        self.refuse_while_draining()
        now_s = time.monotonic()
        guesses = self._guesses.left(address, now_s, session_id)
        if not guesses.left(now_s):
            message = "too many wrong tokens for this session came from this address: wait a little"
            raise Refused(429, "too_many_wrong_tokens", message, retry_after_s=math.ceil(ONE_MORE_GUESS_AFTER_S))
        session = self._sessions.get(session_id)
        if session is None or not session.may(token):
            guesses.take(now_s)
            raise Refused(401, "unauthorized", "no such session, or not its token")
        return session

    def add(self, session: Session) -> None:
        """Let the session's stream play, on a worker that has room for it."""
        self._sessions[session.id] = session
        session.scheduler.add(session.stream)

    def free(
        self,
        session: Session,
        code: ErrorCode,
        message: str,
        close_code: int = CLOSE_NORMAL,
        retryable: bool = False,
    ) -> None:
        """End the session: its viewers are told why and closed, its stream leaves the engine."""
        if self._sessions.pop(session.id, None) is None:
            return
        log.info("session %s ended: %s", session.id, message)
        session.scheduler.remove(session.stream)
        session.served.used_s = time.monotonic()
        for viewer in list(session.viewers.values()):
            viewer.send(Error(code=code, message=message, retryable=retryable))
            viewer.transport.close(close_code, code)
            session.detach(viewer)
        self._count()

    def refuse_while_draining(self) -> None:
        """Raises Refused."""
        if self.draining:
            raise Refused(503, "draining", "the server restarts or stops: try again soon", _RETRY_DRAINING_S)

    async def run(self) -> None:
        """Watch presence, expiry and the event loop's lag until cancelled."""
        next_status_s = time.monotonic()
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(SWEEP_EVERY_S)
            now_s = time.monotonic()
            self.metrics.loop_lag.observe(max(0.0, now_s - before_s - SWEEP_EVERY_S))
            status = now_s >= next_status_s
            if status:
                next_status_s = now_s + STATUS_EVERY_S
            for session in self:
                self._sweep(session, now_s, status)
            self._count()

    def _admit(self, student: str | None, key: ApiKey | None) -> tuple[Served, Scheduler]:
        """Raises Refused."""
        self.refuse_while_draining()
        served = self.students.find(student)
        if key is not None:
            most = key.sessions or self.settings.max_sessions_per_key
            if sum(session.key == key for session in self) >= most:
                message = f"this key has {most} sessions, as many as it may: end one"
                raise Refused(429, "key_full", message, retry_after_s=self._room_in_s(key))
        scheduler = self.students.admit(served) if len(self) < self.settings.max_sessions else None
        if scheduler is None:
            raise Refused(
                503, "full", "no room for another stream now: try again later", retry_after_s=self._room_in_s()
            )
        return served, scheduler

    def _sweep(self, session: Session, now_s: float, status: bool) -> None:
        session.refresh(now_s)
        if now_s > session.ends_s:
            up = now_s > session.expires_s
            why = "the session's time is up: open a new one" if up else "nobody came back to the session"
            self.free(session, "session_expired", why, CLOSE_POLICY)
        elif status:
            session.send_status(now_s)
        self.metrics.inputs_lost.inc(session.stream.inputs.take_lost())
        self.metrics.log_left_out.inc(session.stream.log.take_left_out())

    def _count(self) -> None:
        for served in self.students.all:
            own = [session.state for session in self if session.served is served]
            for state in ("playing", "paused", "away"):
                self.metrics.sessions.labels(served.name, state).set(own.count(state))
            self.metrics.worker_ready.labels(served.name).set(served.ready)
            self.metrics.worker_memory.labels(served.name).set(served.memory_bytes if served.scheduler else 0)
            self.metrics.steps.labels(served.name).set(served.scheduler.steps if served.scheduler else 0)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
