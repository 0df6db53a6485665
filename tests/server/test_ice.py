"""ICE candidates follow the bound address, with the installed aioice."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection

from server.ice import bound_ports, choose_addresses, media_addresses, without_mdns
from server.settings import PortRange
from tests.server.harness import PATIENCE_S, LiveServer, until
from tests.server.synthetic import make_student
from tests.server.turn import RELAYED, turn_server
from tests.server.viewers import PeerClient


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", {"127.0.0.1"}), ("::1", {"::1"}), ("198.51.100.7", {"198.51.100.7"})]
)
def test_one_address_means_that_address(host: str, expected: set[str]) -> None:
    assert set(media_addresses(host)) == expected


def test_a_wildcard_means_loopback_too() -> None:
    assert "127.0.0.1" in media_addresses("0.0.0.0")


async def offered(addresses: list[str], media_ip: str | None) -> list[str]:
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    peer.createDataChannel("control")
    peer.addTransceiver("video", "recvonly")
    choose_addresses(peer, addresses, media_ip)
    await peer.setLocalDescription(await peer.createOffer())
    sdp = peer.localDescription.sdp
    await peer.close()
    return re.findall(r"^a=candidate:\S+ 1 udp \d+ (\S+) \d+ typ (?:host|srflx)", sdp, re.MULTILINE)


async def test_only_the_chosen_address_is_offered() -> None:
    assert set(await offered(["127.0.0.1"], None)) == {"127.0.0.1"}


async def test_media_ip_is_said_instead() -> None:
    assert set(await offered(["127.0.0.1"], "203.0.113.9")) == {"203.0.113.9"}


async def test_media_ip_is_said_for_sockets_of_its_own_version() -> None:
    assert await offered(["127.0.0.1", "::1"], "203.0.113.9") == ["203.0.113.9"] * 2  # video and control
    assert await offered(["127.0.0.1", "::1"], "2001:db8::9") == ["2001:db8::9"] * 2


def free_ports(count: int) -> PortRange:
    """Ports in a row that nobody has at the moment."""
    for first in range(42000, 60000, count):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    taken = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    taken.bind(("127.0.0.1", port))
            except OSError:
                continue
        return PortRange(first, first + count - 1)
    raise AssertionError("no free ports")


async def test_sockets_take_ports_of_the_range_until_none_is_left() -> None:
    loop, ports = asyncio.get_running_loop(), free_ports(3)
    bound_ports(loop, ports)

    async def opened(port: int) -> asyncio.DatagramTransport:
        return (await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", port)))[0]

    transports = [await opened(0) for _ in range(3)]
    used = {transport.get_extra_info("sockname")[1] for transport in transports}
    assert used == set(range(ports.first, ports.last + 1))
    with pytest.raises(OSError, match="is taken"):
        await opened(0)
    freed = transports[1].get_extra_info("sockname")[1]
    transports[1].close()
    await asyncio.sleep(0)
    transports.append(await opened(0))
    assert transports[-1].get_extra_info("sockname")[1] == freed
    # A port or a peer that was asked for is left alone, and so is another error than a taken port.
    outside = await opened(free_ports(1).first)
    assert outside.get_extra_info("sockname")[1] not in used
    towards = (await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("127.0.0.1", 9)))[0]
    assert towards.get_extra_info("sockname")[1] not in used
    with pytest.raises(OSError, match="Cannot assign"):
        await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("192.0.2.1", 0))
    for transport in (*transports, outside, towards):
        transport.close()


async def test_viewers_share_the_media_ports(serve: Callable[..., LiveServer], tmp_path: Path) -> None:
    ports = free_ports(1)
    server = serve(
        own=make_student(tmp_path / "calm", fps=5.0), settings={"media_ports": f"{ports.first}-{ports.last}"}
    )
    first, second = server.create(), server.create()
    async with PeerClient(first) as client:
        found = re.findall(r"^a=candidate:\S+ 1 udp \d+ \S+ (\d+) ", client.response.text, re.MULTILINE)
        assert set(map(int, found)) == {ports.first}
        await until(lambda: client.pictures, "video")
        offer = client.peer.localDescription.sdp
        answer = await asyncio.to_thread(
            second.call, "POST", "/webrtc", content=offer, headers={"Content-Type": "application/sdp"}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_media_port")
        assert int(answer.headers["Retry-After"]) > 0
        assert second.state()["viewers"] == 0
        count = len(client.pictures)
        await until(lambda: len(client.pictures) > count + 3, "more video")
    await until(lambda: first.state()["viewers"] == 0, "its place")
    await asyncio.to_thread(until_bound, ports.first)
    async with PeerClient(second) as client:
        await until(lambda: client.pictures, "video on the port that came back")


def until_bound(port: int) -> None:
    """Wait until the port is free."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return
        assert time.monotonic() < deadline, f"port {port} was not given back"
        time.sleep(0.05)


async def test_turn_is_asked_by_the_server_and_named_to_who_has_a_token(serve: Callable[..., LiveServer]) -> None:
    async with turn_server("me", "se,cret") as turn:
        url = f"turn:127.0.0.1:{turn.port}"
        server = serve(settings={"ice_server": (f"{url},me,se,cret",)})
        ticket = server.create()
        assert ticket.body["ice_servers"] == [{"urls": url, "username": "me", "credential": "se,cret"}]
        assert ticket.state()["ice_servers"] == ticket.body["ice_servers"]
        async with PeerClient(ticket) as client:
            relayed = " ".join(map(str, RELAYED))
            assert re.search(rf"^a=candidate:\S+ 1 udp \d+ {relayed} typ relay", client.response.text, re.MULTILINE)
            assert 'username="me"; credential="se,cret"' in client.response.headers["Link"]
            await until(lambda: client.pictures, "video")
        assert set(turn.allocated) == {"me"} and not turn.refused
        for path in ("/", f"/v1/sessions/{ticket.id}", "/v1/students", "/readyz", "/metrics", "/openapi.json"):
            assert "se,cret" not in server.get(path).text


async def test_a_turn_server_that_refuses_leaves_the_direct_way(serve: Callable[..., LiveServer]) -> None:
    async with turn_server("me", "secret") as turn:
        ticket = serve(settings={"ice_server": (f"turn:127.0.0.1:{turn.port},me,wrong",)}).create()
        async with PeerClient(ticket) as client:
            assert "typ relay" not in client.response.text
            await until(lambda: client.pictures, "video")
        assert turn.refused and not turn.allocated


def test_candidates_behind_mdns_names_are_left_out() -> None:
    plain = "v=0\r\na=candidate:1 1 udp 2113937151 192.0.2.1 50000 typ host\r\na=end-of-candidates\r\n"
    hidden = plain.replace("192.0.2.1", "0f1e2d3c-aaaa-bbbb-cccc-000011112222.local")
    assert without_mdns(plain) == plain
    assert without_mdns(hidden) == "v=0\r\n"
