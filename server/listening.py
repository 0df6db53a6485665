"""The listening socket and how uvicorn runs on it: a connection that is not read from must not pile up pictures."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import HANDLED_SIGNALS

from server.app import create_app
from server.restart import drain
from server.settings import Settings
from server.students import Offer

_GRACE_S = 3
_LOOK_S = 0.02
_FAREWELL_LOOKS = 100
"""Two seconds for viewers to read the last message and to close."""

_MOST_CONNECTIONS = 512
MOST_SOCKET_BYTES = 256 * 1024
"""Of one message of a WebSocket; a longer one ends it."""
_SEND_BUFFER_BYTES = 32 * 1024
"""Of the kernel, for one connection. Enough for 2 Mbit/s over 100 ms."""

_WRITE_BUFFER_BYTES = 16 * 1024
"""Of asyncio. asyncio's own 64 KiB are ten pictures, the better part of a second."""


class _Http(H11Protocol):
    """Requests whose body turns out malformed while the application answers: uvicorn refuses them, and that is all."""

    def send_400_response(self, msg: str) -> None:
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:
            self.transport.close()  # in the middle of the answer
        if self.cycle is not None:
            self.cycle.disconnected = True


class _Socket(WebSocketsSansIOProtocol):
    """A WebSocket whose `send` waits as soon as the network does."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.WriteTransport, transport).set_write_buffer_limits(_WRITE_BUFFER_BYTES)
        super().connection_made(transport)

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            # uvicorn forgets it, and would log every refused handshake as an error of the application.
            self.handshake_complete = True


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
        0
    ]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Connections inherit it.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listener.bind(address)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


class Server(uvicorn.Server):
    """Told to end, it drains while it still listens; told again, it ends at once."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        for number in HANDLED_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        drain(self.lifespan.state["service"].sessions)
        for _ in range(_FAREWELL_LOOKS):
            if not any(isinstance(connection, _Socket) for connection in self.server_state.connections):
                break
            await asyncio.sleep(_LOOK_S)
        await super().shutdown(sockets)


def uvicorn_config(settings: Settings, offers: Sequence[Offer], web: Path | None = None) -> uvicorn.Config:
    """How uvicorn runs the application."""
    return uvicorn.Config(
        create_app(settings, offers, web),
        log_config=None,
        access_log=False,
        server_header=False,
        http=_Http,
        ws=_Socket,
        ws_max_size=MOST_SOCKET_BYTES,
        ws_per_message_deflate=False,
        limit_concurrency=_MOST_CONNECTIONS,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        loop="asyncio",  # ice.bound_ports changes the loop, which others do not allow
        timeout_graceful_shutdown=_GRACE_S,
    )
