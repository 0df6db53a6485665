"""Who may talk to the server through a browser: Host and Origin allow-lists, body limit, security headers (pure ASGI).

A page of another site must not reach a server on this machine: the Host check stops names that were rebound to its
address, the Origin check stops cross-site requests and WebSockets. The origins that are allowed get CORS headers.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from aioice.ice import get_host_addresses
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.codes import ErrorCode
from server.errors import error_body
from server.metrics import Metrics

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def allowed_hosts(host: str, media_ip: str | None, more: Iterable[str]) -> frozenset[str]:
    """Host names under which a server bound to `host` answers: its own, those of loopback, and `more`."""
    names = {*_LOOPBACK_NAMES, host, *more}
    try:
        wildcard = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        wildcard = False
    if wildcard:
        names |= {*get_host_addresses(use_ipv4=True, use_ipv6=True), socket.gethostname()}
    if media_ip is not None:
        names.add(media_ip)
    return frozenset(name.lower().strip("[]") for name in names)


class Gatekeeper:
    """Refuses requests with a foreign Host (421) or Origin (403) or a long body (413), and adds security headers.

    A WebSocket is refused in its handshake, with the same answers.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: frozenset[str],
        origins: Iterable[str],
        max_body_bytes: Callable[[str], int],
        metrics: Metrics,
    ) -> None:
        """max_body_bytes: of requests for a path."""
        self._app, self._hosts, self._max_body_bytes, self._metrics = app, hosts, max_body_bytes, metrics
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)
        self._admit = CORSMiddleware(
            self._admitted,
            allow_origins=self._origins,
            allow_methods=("GET", "POST", "PATCH", "DELETE"),
            allow_headers=("Authorization", "If-Match"),
            expose_headers=("Accept-Patch", "ETag", "Link", "Location", "Retry-After"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if _hostname(host) not in self._hosts:
            message = f"the server does not answer under the host name {_hostname(host)[:100]!r}: see --allow-host"
            await self._refuse(scope, receive, send, 421, "unknown_host", message)
        elif not self._same_site(origin := headers.get("origin"), host):
            message = f"pages of {(origin or '')[:100]!r} may not use this server: see --allow-origin"
            await self._refuse(scope, receive, send, 403, "foreign_origin", message)
        else:
            await self._admit(scope, receive, send)

    def _same_site(self, origin: str | None, host: str) -> bool:
        if origin is None:
            return True
        origin = origin.lower()
        return origin in self._origins or origin in (f"http://{host.lower()}", f"https://{host.lower()}")

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
        elif not _short_enough(Headers(scope=scope).get("content-length"), self._max_body_bytes(scope["path"])):
            await self._refuse_body(scope, receive, send)
        else:
            await self._limited(scope, receive, send)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        read, refused, started = 0, False, False

        async def counted() -> Message:
            nonlocal read, refused
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body_bytes(scope["path"]):
                # A body without a length that turns out too long: the application sees a client that hung up.
                refused = True
                return {"type": "http.disconnect"}
            return message

        async def secured(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = started or not refused
                added = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    added.setdefault(name, value)
            if not refused:
                await send(message)

        try:
            await self._app(scope, counted, secured)
        except Exception:
            # The application met the end of a body that was cut off here; the refusal below says so.
            if not refused:
                raise
        if refused and not started:
            await self._refuse_body(scope, receive, send)

    async def _refuse_body(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = f"the body is too long: the limit is {self._max_body_bytes(scope['path'])} bytes"
        await self._refuse(scope, receive, send, 413, "body_too_large", message)

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, status: int, code: ErrorCode, message: str
    ) -> None:
        self._metrics.requests_refused.labels(code).inc()
        await JSONResponse(error_body(code, message), status)(scope, receive, send)


def client_address(connection: HTTPConnection) -> str:
    """The IP address that a request or WebSocket came from."""
    return connection.client.host if connection.client else ""


def _hostname(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _short_enough(length: str | None, limit: int) -> bool:
    return length is None or (length.isdecimal() and int(length) <= limit)
