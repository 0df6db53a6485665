"""An orderly end, and the beginning after it: sessions pass from one server process to the next."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime

from server.errors import Refused
from server.keep import KeepError, KeptSession, take_sessions, write_sessions
from server.session import Session
from server.sessions import Sessions
from server.viewers import CLOSE_RESTART, CLOSE_TRY_LATER
from streamgen.state import StreamState
from streamgen.student import reference_from, reference_text

log = logging.getLogger("streamgen.server.restart")


def drain(sessions: Sessions) -> None:
    """Let nobody in any more, keep the sessions if there is a place for them, and show their viewers out."""
    if sessions.draining:
        return
    sessions.draining = True
    count = len(sessions)
    if count and sessions.settings.state_dir is not None:
        try:
            write_sessions(sessions.settings.state_dir, [_kept(session) for session in sessions])
            sessions.kept = count
        except Exception:
            # Whatever it was: the server must still end in order.
            log.exception("the sessions cannot be kept")
    log.info("draining: %d of %d sessions are kept for the next server", sessions.kept, count)
    for session in sessions:
        if sessions.kept:
            message = "the server restarts, and the stream goes on: come back with the same token"
            sessions.free(session, "server_restarts", message, CLOSE_RESTART, retryable=True)
        else:
            sessions.free(session, "server_stops", "the server stops", CLOSE_TRY_LATER)


def restore(sessions: Sessions) -> None:
    """Take up the sessions that the server before has kept; their viewers have the usual time to come back."""
    if sessions.settings.state_dir is None:
        return
    outcomes = sessions.metrics.sessions_restored
    try:
        kept = take_sessions(sessions.settings.state_dir)
    except KeepError as error:
        log.error("the sessions of the server before are lost: %s", error)
        outcomes.labels("unreadable").inc()
        return
    for each in kept:
        try:
            _restore(sessions, each)
            outcomes.labels("restored").inc()
        except (Refused, ValueError) as error:
            log.warning("session %s is not taken up again: %s", each.id, error)
            outcomes.labels("refused").inc()
    if kept:
        log.info("%d of %d sessions of the server before are taken up again", len(sessions), len(kept))


def _kept(session: Session) -> KeptSession:
    stream = session.stream
    return KeptSession(
        id=session.id,
        token_hash=session.token_hash.hex(),
        key_hash=session.key.digest.hex() if session.key else None,
        student=session.served.name,
        identity=stream.identity,
        reference=None if stream.reference is None else reference_text(stream.reference),
        generation=stream.generation,
        elapsed_us=stream.clock.elapsed_us(time.monotonic()),
        paused=session.paused,
        expires_at=session.expires_at,
        state=stream.state.to_bytes(),
    )


def _restore(sessions: Sessions, kept: KeptSession) -> None:
    """Raises Refused, ValueError."""
    settings = sessions.settings
    served = sessions.students.find(kept.student)
    state = StreamState.from_bytes(kept.state, served.student.config, served.student.hash)
    lifetime_s = (kept.expires_at - datetime.now(UTC)).total_seconds()
    if lifetime_s <= 0:
        raise ValueError("its time is up")
    key = next((key for key in settings.keys if key.digest.hex() == kept.key_hash), None)
    if settings.keys and key is None:
        raise ValueError("its API key opens no sessions any more")
    if len(sessions) >= settings.max_sessions:
        raise ValueError(f"there are {len(sessions)} sessions, as many as there may be")
    scheduler = sessions.students.load(served)
    session = Session(
        sessions,
        served,
        scheduler,
        state.seed,
        key,
        kept.id,
        bytes.fromhex(kept.token_hash),
        lifetime_s,
        kept.identity,
        None if kept.reference is None else reference_from(kept.reference, served.student.config),
    )
    session.paused = kept.paused
    session.stream.go_on(state, kept.generation, kept.elapsed_us, session.present_s)
    sessions.add(session)
