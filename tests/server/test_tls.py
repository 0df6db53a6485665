"""HTTPS and secure WebSockets, with a certificate made here."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.server.harness import LiveServer, make_certificate, until
from tests.server.viewers import PeerClient, SocketClient, follow


async def test_everything_is_there_over_tls(serve: Callable[..., LiveServer], tmp_path: Path) -> None:
    server = serve(settings=make_certificate(tmp_path))
    assert server.url.startswith("https://")
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        await asyncio.to_thread(httpx.get, server.url + "/healthz")
    for origin, status in ((server.url, 200), ("https://evil.example", 403)):
        assert server.get("/healthz", headers={"Origin": origin}).status_code == status
    ticket = server.create(seed=41)
    async with SocketClient(ticket) as client, PeerClient(ticket) as peer:
        await client.watch(3)
        await until(lambda: len(peer.pictures) > 3, "video")
        # Who speaks plain HTTP, or nonsense, or hangs up in the handshake, disturbs nobody.
        for said in (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\xff" * 600, b""):
            with socket.create_connection(("127.0.0.1", server.port)) as plain, suppress(ConnectionError):
                plain.sendall(said)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.load_verify_locations(tmp_path / "cert.pem")
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        old.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
        with socket.create_connection(("127.0.0.1", server.port)) as plain:
            assert old.wrap_socket(plain, server_hostname="127.0.0.1").version() == "TLSv1.2"
        await client.watch(5)
        await peer.ack(await peer.tap("Space"))
    follow(41, client.frames)
