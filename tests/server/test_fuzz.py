"""Ten thousand wrong messages at every entrance: each is answered, none is an accident, and a neighbour plays on."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import psutil
import pytest
from websockets.frames import Frame, Opcode

from server.control import receive
from server.errors import Refused
from server.load import ShowingCosts
from server.settings import Settings
from server.webrtc import parse_offer
from streamgen.student import Student
from tests.server.harness import LiveServer, Ticket, bearer
from tests.server.mutations import mutated
from tests.server.viewers import undisturbed

SEED = 20_240_607
MESSAGES = 10_000
NEGOTIATIONS = 500
"""Of the offers, those that are answered: each makes sockets and a certificate."""
MOST_GROWTH_BYTES = 24 * 2**20

CONTROL = [
    json.dumps(message).encode()
    for message in (
        {"type": "input", "seq": 3, "t": 12.5, "code": "KeyW", "down": True, "held": ["KeyW", "Space"]},
        {"type": "release", "seq": 4, "t": 1e3},
        {"type": "ping", "seq": 4, "t": 0.0, "held": []},
        {"type": "pause"},
        {"type": "resume"},
        {"type": "say", "text": "Hello."},
        {"type": "interrupt"},
        {"type": "bye"},
    )
]


@pytest.fixture(scope="module")
def server(student: Student, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    settings = Settings(max_sessions=32, max_load=100.0, messages_per_s=1e9, message_burst=1e9)
    with pytest.MonkeyPatch.context() as patch:
        # The attack runs in the server's process: to the server it looks as if showing pictures cost that much.
        patch.setattr(ShowingCosts, "likely_s", 0.0)
        server = LiveServer(student, tmp_path_factory.mktemp("orders"), settings, streams=32).start()
        yield server
        server.stop()


class _Accidents(logging.Handler):
    """What must not happen: errors in the log, exceptions that nobody caught."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))


class Fuzz:
    """One run. `message` is the one under way, for whoever reads a failure."""

    def __init__(self, server: LiveServer, accidents: _Accidents) -> None:
        self.server, self.accidents = server, accidents
        self.rng = random.Random(SEED)
        self.number, self.message = 0, b""

    def messages(self, valid: Sequence[bytes], count: int = MESSAGES) -> Iterator[bytes]:
        rss = 0
        for self.number in range(count):
            self.message = mutated(self.rng, valid)
            yield self.message
            assert not self.accidents.seen, self.accidents.seen[0]
            if self.number == count // 4:
                rss = _rss()
        grown = _rss() - rss
        assert grown < MOST_GROWTH_BYTES, f"memory grew by {grown / 2**20:.1f} MiB over the last three quarters"

    async def ask(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, bytes, dict[str, str]]:
        """An HTTP request to the application, without a socket: status, body and headers."""
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.server.ask(_scope("http", path, headers) | {"method": method}, receive, send)
        status = sent[0]["status"]
        answer = b"".join(message.get("body", b"") for message in sent[1:])
        assert status < 500 or status == 503, f"{status}: {answer!r}"
        if status >= 400:
            assert set(json.loads(answer)["error"]) == {"code", "message", "retryable"}
        return status, answer, {name.decode(): value.decode() for name, value in sent[0]["headers"]}

    async def visit(self, path: str, receive: Callable[[], Awaitable[dict[str, Any]]], address: str) -> None:
        """A WebSocket of the application, without a socket."""
        sent: list[dict[str, Any]] = []
        connected = False

        async def received() -> dict[str, Any]:
            nonlocal connected
            if connected:
                return await receive()
            connected = True
            return {"type": "websocket.connect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.server.ask(_scope("websocket", path, {}) | {"client": (address, 1)}, received, send)
        assert sent[0]["type"] == "websocket.accept"


def _scope(kind: str, path: str, headers: dict[str, str]) -> dict[str, Any]:
    named = {"Host": "127.0.0.1"} | headers
    return {
        "type": kind,
        "http_version": "1.1",
        "path": path,
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in named.items()],
        "client": ("127.0.0.1", 1),
    }


def _rss() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


async def fuzz(server: LiveServer, attack: Callable[[Fuzz, Ticket], Awaitable[None]]) -> None:
    """Run the attack on the server's own loop, while a neighbour plays."""
    accidents = _Accidents()
    logging.getLogger().addHandler(accidents)
    run = Fuzz(server, accidents)
    try:
        async with undisturbed(server, 91):
            ticket = await asyncio.to_thread(server.create, 92)
            done = asyncio.run_coroutine_threadsafe(attack(run, ticket), server.loop)  # type: ignore[arg-type]
            await asyncio.wrap_future(done)
            await asyncio.to_thread(ticket.call, "DELETE")
            gc.collect()
            await asyncio.sleep(0.2)
            assert not accidents.seen, accidents.seen[0]
    except BaseException as error:
        error.add_note(f"seed {SEED}, message {run.number}: {run.message!r}")
        raise
    finally:
        logging.getLogger().removeHandler(accidents)


async def test_bodies_of_new_sessions(server: LiveServer) -> None:
    valid = [b'{"student": "synthetic", "seed": 7}', b'{"seed": 18446744073709551615}', b"{}"]
    statuses: Counter[int] = Counter()

    async def attack(run: Fuzz, ticket: Ticket) -> None:
        for body in run.messages(valid):
            status, answer, _ = await run.ask("POST", "/v1/sessions", body, {"Content-Type": "application/json"})
            statuses[status] += 1
            if status == 201:
                made = json.loads(answer)
                await run.ask("DELETE", f"/v1/sessions/{made['id']}", b"", bearer(made["token"]))
            await asyncio.sleep(0)

    await fuzz(server, attack)
    assert statuses[201] > 1000 and statuses[422] > 1000


def an_offer(*kinds: str) -> bytes:
    """As Chromium words it, for nobody: no address of it is anybody's."""
    shared = (
        "c=IN IP4 0.0.0.0\r\na=candidate:842163049 1 udp 1677729535 192.0.2.7 46154 typ srflx raddr 0.0.0.0 rport 0 "
        "generation 0 network-cost 999\r\na=ice-ufrag:EsAw\r\na=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\n"
        f"a=ice-options:trickle\r\na=fingerprint:sha-256 {':'.join(['7B'] * 32)}\r\na=setup:actpass\r\n"
    )
    codecs = {
        "audio": ("111", "a=rtpmap:111 opus/48000/2\r\na=fmtp:111 minptime=10;useinbandfec=1\r\n"),
        "video": (
            "96 97",
            "a=rtpmap:96 VP8/90000\r\na=rtcp-fb:96 nack pli\r\na=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\n",
        ),
    }
    sdp = "v=0\r\no=- 4611731400430051336 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
    sdp += f"a=group:BUNDLE {' '.join(map(str, range(len(kinds) + 1)))}\r\na=msid-semantic: WMS\r\n"
    for mid, kind in enumerate(kinds):
        formats, lines = codecs[kind]
        sdp += f"m={kind} 9 UDP/TLS/RTP/SAVPF {formats}\r\n{shared}a=mid:{mid}\r\na=recvonly\r\na=rtcp-mux\r\n{lines}"
    sdp += f"m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n{shared}a=mid:{len(kinds)}\r\na=sctp-port:5000\r\n"
    return sdp.encode()


async def test_offers(server: LiveServer) -> None:
    valid = [an_offer("video"), an_offer("audio", "video"), an_offer()]
    statuses: Counter[int] = Counter()

    async def attack(run: Fuzz, ticket: Ticket) -> None:
        path, headers = f"/v1/sessions/{ticket.id}/webrtc", ticket.headers | {"Content-Type": "application/sdp"}
        for offer in run.messages(valid):
            if run.number % (MESSAGES // NEGOTIATIONS):
                with suppress(Refused, UnicodeDecodeError):
                    parse_offer(offer.decode())
            else:
                status, _, answered = await run.ask("POST", path, offer, headers)
                statuses[status] += 1
                if status == 201:
                    await run.ask("DELETE", answered["location"], b"", ticket.headers)
            await asyncio.sleep(0)

    await fuzz(server, attack)
    assert statuses[201] > 100 and statuses[422] > 100


async def test_candidates(server: LiveServer) -> None:
    valid = [
        b"a=mid:0\r\na=candidate:1 1 udp 2130706431 127.0.0.1 9 typ host\r\n",
        b"a=ice-ufrag:EsAw\r\na=candidate:2 1 udp 1694498815 192.0.2.1 40000 typ srflx raddr 10.0.0.1 rport 9\r\n",
        b"m=video 9 RTP/AVP 0\r\na=mid:0\r\na=candidate:3 1 udp 1 2001:db8::1 5000 typ host\r\na=end-of-candidates\r\n",
    ]
    codes: Counter[str] = Counter()

    async def attack(run: Fuzz, ticket: Ticket) -> None:
        session, peers = server.service.sessions.find(ticket.id, ticket.token, ""), server.service.peers
        peer, _ = await peers.accept(session, an_offer("video").decode())
        for fragment in run.messages(valid):
            try:
                await peers.trickle(peer, fragment.decode(errors="replace"))
                codes["taken"] += 1
            except Refused as refused:
                codes[refused.code] += 1
                if refused.code == "too_many_candidates":
                    peer.close(1000, "full")
                    peer, _ = await peers.accept(session, an_offer("video").decode())
            await asyncio.sleep(0)
        peer.close(1000, "done")

    await fuzz(server, attack)
    assert codes["taken"] > 1000 and codes["invalid_fragment"] > 1000 and codes["too_many_candidates"] > 10


async def test_sockets(server: LiveServer) -> None:
    """Text and binary, hellos among them; who is shown out comes back from another address."""

    async def attack(run: Fuzz, ticket: Ticket) -> None:
        hello = json.dumps({"type": "hello", "version": 1, "token": ticket.token}).encode()
        messages = run.messages([*CONTROL, hello])
        visits, said = 0, chain[bytes]()

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(0)
            data = next(said, None)
            if data is None:
                return {"type": "websocket.disconnect", "code": 1000}
            with suppress(UnicodeDecodeError):
                return {"type": "websocket.receive", "text": data.decode()}
            return {"type": "websocket.receive", "bytes": data}

        while run.number < MESSAGES - 1:
            visits += 1
            said = chain([hello] if visits % 4 else [], messages)
            await run.visit(f"/v1/sessions/{ticket.id}/stream", receive, f"10.0.{visits // 256}.{visits % 256}")
        assert visits > 20

    await fuzz(server, attack)


async def test_data_channels(server: LiveServer) -> None:
    class Silent:
        kind, rtp_origin, has_rtp, present = "webrtc", None, True, False
        closed = False

        def send(self, text: str, important: bool) -> bool:
            json.loads(text)
            return True

        def close(self, code: int, reason: str) -> None:
            self.closed = True

    async def attack(run: Fuzz, ticket: Ticket) -> None:
        session = server.service.sessions.find(ticket.id, ticket.token, "")
        viewer = session.attach(Silent())
        for data in run.messages(CONTROL):
            text: str | bytes = data
            with suppress(UnicodeDecodeError):
                text = data.decode()
            receive(session, viewer, text, server.settings.max_message_bytes)
            if viewer.transport.closed:  # type: ignore[attr-defined]
                session.detach(viewer)
                viewer = session.attach(Silent())
            await asyncio.sleep(0)
        session.detach(viewer)

    await fuzz(server, attack)


async def test_connections(server: LiveServer) -> None:
    """A few hundred over real sockets: whatever comes, a connection is answered or closed, and never with a 5xx."""
    ticket = server.create()
    host = f"Host: 127.0.0.1:{server.port}\r\n"
    requests = [
        f'POST /v1/sessions HTTP/1.1\r\n{host}Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{{"seed":1}}',
        f"GET /v1/sessions/{ticket.id} HTTP/1.1\r\n{host}Authorization: Bearer x\r\n\r\n",
        f"POST /v1/sessions HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n",
    ]
    upgrade = (
        f"GET /v1/sessions/{ticket.id}/stream HTTP/1.1\r\n{host}Connection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ).encode()
    hello = json.dumps({"type": "hello", "version": 1, "token": ticket.token}).encode()
    frames = b"".join(Frame(Opcode.TEXT, text).serialize(mask=True) for text in (hello, *CONTROL))

    async def attack(run: Fuzz, _: Ticket) -> None:
        for message in run.messages([*(request.encode() for request in requests), upgrade], 300):
            assert not (await said(server.port, message)).startswith(b"HTTP/1.1 50"), "a server error"
        for message in run.messages([frames], 100):
            answer = await said(server.port, upgrade + message)
            assert answer.startswith(b"HTTP/1.1 101")

    await fuzz(server, attack)
    for session in list(server.service.sessions._sessions.values()):
        server.loop.call_soon_threadsafe(server.service.sessions.free, session, "done", "done")


async def said(port: int, data: bytes) -> bytes:
    """What the server says to these bytes, until it waits for more or closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    with suppress(TimeoutError, ConnectionError):
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(0.5):
            while more := await reader.read(65536):
                answer += more
    writer.close()
    return answer
