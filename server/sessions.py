"""All sessions of a server: who is let in, who may come back, who is freed."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Iterator

from server.codes import ErrorCode
from server.errors import Refused
from server.keys import ApiKey
from server.limits import ONE_MORE_GUESS_AFTER_S, Guesses
from server.metrics import Metrics
from server.protocol import Error
from server.scheduler import Scheduler
from server.session import RETRY_FULL_S, Session, hash_token
from server.settings import Settings
from server.speaking import Speaking
from server.students import Served, Students
from server.viewers import CLOSE_NORMAL, CLOSE_POLICY
from streamgen.student import Reference

log = logging.getLogger("streamgen.server.sessions")

SWEEP_EVERY_S = 0.25
STATUS_EVERY_S = 1.0
_RETRY_DRAINING_S = 5


class Sessions:
    """All sessions of a server. A session that nobody returns to, or whose time is up, is freed by `run`.

    draining: the server ends, and lets nobody in any more. kept: of its sessions, those that wait for the next server.
    """

    def __init__(self, students: Students, speaking: Speaking, settings: Settings, metrics: Metrics) -> None:
        self.students, self.speaking = students, speaking
        self.settings, self.metrics = settings, metrics
        self.draining = False
        self.kept = 0
        self._sessions: dict[str, Session] = {}
        self._guesses = Guesses()

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def create(
        self,
        student: str | None,
        seed: int | None,
        key: ApiKey | None,
        identity: str | None = None,
        reference: Reference | None = None,
    ) -> tuple[Session, str]:
        """A new session of the named student (None: the default) and its token. identity: one of the student's.
        reference: of whom it is to be instead. Raises Refused as `admit` does.
        """
        served, scheduler = self.admit(student, key, identity)
        seed = secrets.randbits(32) if seed is None else seed
        token = secrets.token_urlsafe(32)
        session = Session(
            self,
            served,
            scheduler,
            seed,
            key,
            session_id=secrets.token_urlsafe(12),
            token_hash=hash_token(token),
            lifetime_s=self.settings.session_lifetime_s,
            identity=identity,
            reference=reference,
        )
        self.add(session)
        log.info(
            "session %s opened, student %s, seed %d, key %s", session.id, served.name, seed, key.name if key else "none"
        )
        return session, token

    def admit(self, student: str | None, key: ApiKey | None, identity: str | None = None) -> tuple[Served, Scheduler]:
        """Whom a new session would be served by.

        Raises Refused when there is no such student or identity, when its worker is not ready or has no memory, when
        another stream would starve those that run, or when the key has as many as it may.
        """
        try:
            return self._admit(student, key, identity)
        except Refused as refused:
            self.metrics.sessions_refused.labels(refused.code).inc()
            raise

    def _room_in_s(self, key: ApiKey | None = None) -> int:
        """When to ask again: once the first session (of this key) ends that nobody returns to, but soon in any case,
        since people leave without notice.
        """
        now_s = time.monotonic()
        ends_s = (session.ends_s for session in self._sessions.values() if key in (None, session.key))
        return max(1, min(RETRY_FULL_S, math.ceil(min(ends_s, default=now_s) - now_s)))

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
        for agent in session.agents:
            agent.close(close_code, code)
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
                try:
                    self._sweep(session, now_s, status)
                except Exception:
                    # Whatever it was: the other sessions' ends hang on this loop.
                    log.exception("session %s cannot be looked after", session.id)
            self.students.tidy()
            self._count()

    def _admit(self, student: str | None, key: ApiKey | None, identity: str | None) -> tuple[Served, Scheduler]:
        self.refuse_while_draining()
        served = self.students.find(student)
        known = served.student.config.identities
        if identity is not None and identity not in known:
            message = f"student {served.name} cannot be that person: {', '.join(known) or 'there is nobody to choose'}"
            raise Refused(404, "unknown_identity", message)
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
        if session.stream.voice is not None:
            dropped_s, gaps = session.stream.voice.take_losses()
            self.metrics.microphone_dropped.inc(dropped_s)
            self.metrics.microphone_gaps.inc(gaps)

    def _count(self) -> None:
        for served in self.students.all:
            own = [session.state for session in self if session.served is served]
            for state in ("playing", "paused", "away"):
                self.metrics.sessions.labels(served.name, state).set(own.count(state))
            self.metrics.worker_ready.labels(served.name).set(served.ready)
            self.metrics.worker_memory.labels(served.name).set(served.memory_bytes if served.scheduler else 0)
            self.metrics.steps.labels(served.name).set(served.scheduler.steps if served.scheduler else 0)
