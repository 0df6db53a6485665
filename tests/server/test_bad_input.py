"""Bad input at every entrance of a real server: it says what is wrong, and a neighbour's session plays on."""

from __future__ import annotations

import asyncio

import pytest

from tests.server.harness import PATIENCE_S, LiveServer, Ticket, until
from tests.server.viewers import PeerClient, SocketClient, undisturbed

SDP = {"Content-Type": "application/sdp"}
FRAGMENT = {"Content-Type": "application/trickle-ice-sdpfrag"}
CANDIDATE = "a=candidate:1 1 udp 2130706431 192.0.2.1 {port} typ host\r\n"


async def refused(ticket: Ticket, method: str, path: str, **options: object) -> tuple[int, str]:
    answer = await asyncio.to_thread(ticket.call, method, path, **options)
    return answer.status_code, answer.json()["error"]["code"]


async def test_bodies(shared: LiveServer) -> None:
    ticket = shared.create()
    json_headers = {"Content-Type": "application/json"}
    async with undisturbed(shared, 81):
        for body in (
            b"{",
            b"\xff",
            b"[" * 30_000,
            b'{"seed": ' + b"9" * 5000 + b"}",
            b'{"seed": NaN}',
            b'{"\\ud800": 1}',
        ):
            status, code = await refused(ticket, "POST", "/reset", content=body, headers=json_headers)
            assert (status, code) in ((400, "invalid_request"), (422, "invalid_request")), body[:20]
        assert ticket.state()["generation"] == 0
    ticket.call("DELETE")


async def test_a_body_in_malformed_chunks(shared: LiveServer, caplog: pytest.LogCaptureFixture) -> None:
    """Found while the application refuses the request for its host: one refusal is enough, and no error of ours."""
    request = "POST /v1/sessions HTTP/1.1\r\nHost: evil.example\r\nTransfer-Encoding: chunked\r\n\r\n\r\n2\r\n{}\r\n"
    async with undisturbed(shared, 88):
        reader, writer = await asyncio.open_connection("127.0.0.1", shared.port)
        writer.write(request.encode())
        answer = await reader.read()
        writer.close()
    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 421"))
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


OFFER = """v=0
o=- 1 1 IN IP4 0.0.0.0
s=-
t=0 0
a=group:BUNDLE 0
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
a=mid:0
a=sctp-port:5000
a=candidate:1 1 udp 2130706431 192.0.2.1 40000 typ host
a=ice-ufrag:abcd
a=ice-pwd:0123456789abcdef012345
a=fingerprint:sha-256 00:11
a=setup:actpass
""".replace("\n", "\r\n")


FLAWS = [
    ("a=ice-ufrag:abcd", "a=ice-ufrag:a b", "invalid_sdp"),
    ("a=ice-pwd:0123456789abcdef012345", "a=ice-pwd:short", "invalid_sdp"),
    ("a=fingerprint:sha-256 00:11\r\n", "", "invalid_sdp"),
    ("a=sctp-port:5000\r\n", "", "invalid_sdp"),
    ("a=mid:0", "a=mid:1", "invalid_sdp"),
    ("a=mid:0", "a=mid", "invalid_sdp"),
    ("BUNDLE 0", "BUNDLE 0 1", "invalid_sdp"),
    ("192.0.2.1 40000", "192.0.2.1 65536", "invalid_sdp"),
    ("a=candidate", "a=candidate:0 1 udp 1 192.0.2.1 1 typ host\r\n" * 128 + "a=candidate", "too_many_candidates"),
    ("application", "message", "invalid_sdp"),
]


async def test_offers_that_look_right(shared: LiveServer) -> None:
    ticket = shared.create()
    async with undisturbed(shared, 82):
        for old, new, code in FLAWS:
            offer = OFFER.replace(old, new)
            assert offer != OFFER
            assert await refused(ticket, "POST", "/webrtc", content=offer, headers=SDP) == (422, code), new[:40]
        assert ticket.state()["viewers"] == 0
    ticket.call("DELETE")


async def test_fragments(shared: LiveServer) -> None:
    ticket = shared.create()
    location = (await asyncio.to_thread(ticket.call, "POST", "/webrtc", content=OFFER, headers=SDP)).headers["Location"]
    path = location.removeprefix(f"/v1/sessions/{ticket.id}")
    async with undisturbed(shared, 83):
        for fragment in (CANDIDATE.format(port=-1), CANDIDATE.format(port=65536), "a=candidate:1 1 udp x 1 1 typ host"):
            assert await refused(ticket, "PATCH", path, content=fragment, headers=FRAGMENT) == (422, "invalid_fragment")
        assert await refused(ticket, "PATCH", path, content=b"\xff", headers=FRAGMENT) == (400, "invalid_request")
        many = "".join(CANDIDATE.format(port=port) for port in range(1000, 1200))
        assert await refused(ticket, "PATCH", path, content=many, headers=FRAGMENT) == (422, "too_many_candidates")
    ticket.call("DELETE")


async def test_the_token_of_an_ended_session(shared: LiveServer) -> None:
    """It opens nothing any more, wherever it is shown; who goes on showing it is told to wait, and nobody else is."""
    ticket = shared.create()
    async with undisturbed(shared, 84):
        async with SocketClient(ticket) as client:
            await client.watch(1)
            await asyncio.to_thread(ticket.call, "DELETE")
            await until(lambda: client.closed, "the end")
        for method, path in (("GET", ""), ("POST", "/resume"), ("POST", "/webrtc"), ("DELETE", "")):
            assert await refused(ticket, method, path) == (401, "unauthorized")
        async with SocketClient(ticket) as client:
            await until(lambda: client.closed, "shown out")
            assert client.closed == (1008, "unauthorized")
        codes = [(await refused(ticket, "GET", ""))[1] for _ in range(8)]
        assert codes == ["unauthorized"] * 5 + ["too_many_wrong_tokens"] * 3
        answer = await asyncio.to_thread(ticket.call, "GET")
        assert (answer.status_code, int(answer.headers["Retry-After"]) > 0) == (429, True)
        async with SocketClient(ticket) as client:
            await until(lambda: client.closed, "shown out")
            assert client.closed == (1013, "too_many_wrong_tokens")


async def test_guesses_at_a_token(shared: LiveServer) -> None:
    """Once they are used up, the right one counts no more from there; from elsewhere it does."""
    ticket = shared.create()
    async with undisturbed(shared, 85):
        guess = Ticket(shared, ticket.id, "guess", {})
        for _ in range(10):
            assert await refused(guess, "GET", "") == (401, "unauthorized")
        assert await refused(ticket, "GET", "") == (429, "too_many_wrong_tokens")
        shared.service.sessions.find(ticket.id, ticket.token, "192.0.2.1")
    session = shared.service.sessions.find(ticket.id, ticket.token, "192.0.2.1")
    shared.loop.call_soon_threadsafe(shared.service.sessions.free, session, "done", "done")


UNMASKED = b"\0\0\0\0"
"""A mask that leaves the data as it is."""


FRAMES = [
    (b"\x81\x02{}", 1002),  # without a mask
    (b"\xc1\x82" + UNMASKED + b"{}", 1002),  # a reserved bit
    (b"\x80\x82" + UNMASKED + b"{}", 1002),  # a continuation of nothing
    (b"\x83\x80" + UNMASKED, 1002),  # an unknown kind
    (b"\x09\x80" + UNMASKED, 1002),  # a ping in parts
    (b"\x81\x83" + UNMASKED + b'"\xff"', 1007),  # a text that is none
    (b"\x81\xff" + b"\x7f" * 8 + UNMASKED, 1009),  # longer than anything
]


async def test_websocket_frames(shared: LiveServer) -> None:
    ticket = shared.create()
    async with undisturbed(shared, 86):
        for data, code in FRAMES:
            async with SocketClient(ticket) as client:
                await client.watch(1)
                client.socket.transport.write(data)
                await until(lambda client=client: client.closed, "the end of it")
                assert client.closed is not None and client.closed[0] == code, data
        await until(lambda: ticket.state()["viewers"] == 0, "its place")
    ticket.call("DELETE")


async def test_too_much_on_a_data_channel(shared: LiveServer) -> None:
    ticket = shared.create()
    async with undisturbed(shared, 87), PeerClient(ticket, beats=False) as client:

        def refused() -> bool:
            # Again and again: a slow network or machine would let one burst through at a rate that is allowed.
            for _ in range(30):
                client.channel.send('{"type": "ping", "seq": 0, "t": 0, "held": []}')
            return "rate_limited" in [e["code"] for e in client.of("error")]

        await until(refused, "the rate limit")
        for _ in range(400):
            client.channel.send("{")
        # A farewell that is lost on the way is noticed half a minute later; the session may be over by then.
        await until(client.closed.is_set, "the channel closes", 2 * PATIENCE_S)
    await until(lambda: not ticket.state().get("viewers"), "its place")
    ticket.call("DELETE")
