"""What a client's control message does, whichever transport brought it."""

from __future__ import annotations

import time

from pydantic import ValidationError

from server import protocol
from server.codes import ErrorCode
from server.session import Session
from server.viewers import CLOSE_POLICY, Viewer


def receive(session: Session, viewer: Viewer, data: str | bytes, most_bytes: int) -> None:
    """Act on one message of the viewer. Bad ones are answered with an error and disturb nobody else."""
    now_s = time.monotonic()
    if len(data) > most_bytes:
        viewer.send(
            _error("message_too_large", f"a control message of {len(data)} characters; the limit is {most_bytes}")
        )
        viewer.transport.close(CLOSE_POLICY, "message_too_large")
        return
    if not viewer.bucket.take(now_s):
        viewer.offend(_error("rate_limited", "too many messages: this one was ignored", retryable=True), now_s)
        return
    try:
        message = protocol.parse_client(data)
    except ValidationError as error:
        viewer.offend(_error("bad_message", f"not a control message: {_first(error)}"), now_s)
        return
    session.heard(viewer, now_s)
    inputs = session.stream.inputs
    match message:
        case protocol.Input(seq=seq, t=t, code=code, down=down, held=held):
            inputs.edge(viewer.id, seq, t, code, down, held, now_s)
        case protocol.Release(seq=seq, t=t):
            inputs.release(viewer.id, seq, t, now_s)
        case protocol.Ping(seq=seq, t=t, held=held):
            inputs.heartbeat(viewer.id, seq, held, now_s)
            viewer.send(protocol.Pong(t=t, server_ms=round((time.monotonic() - now_s) * 1e3, 3)))
        case protocol.Pause():
            session.pause()
        case protocol.Resume():
            session.resume()
        case protocol.Say(text=text):
            if session.stream.voice is None:
                viewer.offend(_error("no_voice", "the student is driven by keys and says nothing"), now_s)
            else:
                session.say(viewer, text)
        case protocol.Interrupt():
            session.interrupt()
        case protocol.Bye():
            session.leave(viewer)
        case protocol.Hello():
            viewer.offend(_error("bad_message", "hello is the first message of a WebSocket and comes once"), now_s)


def _error(code: ErrorCode, message: str, retryable: bool = False) -> protocol.Error:
    return protocol.Error(code=code, message=message, retryable=retryable)


def _first(error: ValidationError) -> str:
    """The first complaint, without the client's own text in it."""
    complaint = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in complaint["loc"])
    return f"{where}: {complaint['msg']}" if where else complaint["msg"]
