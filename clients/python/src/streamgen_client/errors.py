"""What can go wrong. All of it is a ClientError."""

from __future__ import annotations

from collections.abc import Iterable


class ClientError(Exception):
    """Something that this package could not do; the message says what was given and what to do."""


class BadAddress(ClientError, ValueError):
    """The URL is none of a streamgen server."""

    def __init__(self, url: str) -> None:
        super().__init__(f"{url!r} is no server's address: give one such as http://127.0.0.1:8000")


class ServerUnreachable(ClientError):
    """Nobody answers under the server's address."""

    def __init__(self, url: str, why: object) -> None:
        super().__init__(f"{url} does not answer ({why}): is the server running, and is the address right?")


class SessionRefused(ClientError):
    """The server answered, and the answer is no.

    code: the server's own, such as `full`, `starting`, `unknown_student`. retry_after_s: when another try may succeed,
    None where the server names no time. retryable: whether another try may succeed at all.
    """

    def __init__(self, code: str, message: str, retryable: bool = False, retry_after_s: float | None = None) -> None:
        advice = ""
        if retry_after_s is not None:
            advice = f"; try again in {retry_after_s:g} s"
        elif retryable:
            advice = "; try again later"
        super().__init__(f"the server refused ({code}): {message}{advice}")
        self.code, self.retryable, self.retry_after_s = code, retryable, retry_after_s


class TransportFailed(ClientError):
    """The session exists, and no connection for its pictures could be made."""

    def __init__(self, transport: str, why: object) -> None:
        advice = ': where UDP is blocked, transport="websocket" gets through' if transport == "webrtc" else ""
        super().__init__(f"no {transport} connection to the server ({why}){advice}")


class StreamLost(ClientError):
    """The stream has ended and cannot be returned to: open another client.

    code: the server's reason, such as `session_expired`; `unreachable` when it did not answer for too long; `closed`
    when it was this client that ended it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"the stream is over ({code}): {message}")
        self.code = code


class Silent(ClientError):
    """The stream has no voice, or not over this transport."""


class UnknownKey(ClientError, ValueError):
    """A key that the student does not know."""

    def __init__(self, code: str, known: Iterable[str]) -> None:
        super().__init__(f"key {code!r}: this student knows {', '.join(known)} (names of W3C KeyboardEvent.code)")
