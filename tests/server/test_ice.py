"""ICE candidates follow the bound address, with the installed aioice."""

from __future__ import annotations

import re

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection

from server.ice import choose_addresses, media_addresses, without_mdns


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


def test_candidates_behind_mdns_names_are_left_out() -> None:
    plain = "v=0\r\na=candidate:1 1 udp 2113937151 192.0.2.1 50000 typ host\r\na=end-of-candidates\r\n"
    hidden = plain.replace("192.0.2.1", "0f1e2d3c-aaaa-bbbb-cccc-000011112222.local")
    assert without_mdns(plain) == plain
    assert without_mdns(hidden) == "v=0\r\n"
