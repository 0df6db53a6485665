"""Which addresses a peer connection offers. They follow the address that HTTP is bound to.

aioice offers every interface except loopback (`aioice.ice.get_host_addresses`), whatever the server is bound to. It
asks `Connection.get_component_candidates` for them, with the addresses as an argument, so replacing that one method on
a connection is enough to choose them. tests/server/test_ice.py holds this against the installed aioice.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import itertools
import re
import socket
from collections.abc import Callable, Iterable
from typing import Any

from aioice import Candidate
from aioice.ice import Connection, get_host_addresses
from aiortc import RTCPeerConnection

from server.errors import Refused
from server.settings import PortRange

_MDNS_CANDIDATE = re.compile(r"^a=candidate:\S+ \d+ \S+ \d+ \S+\.local ")


def media_addresses(host: str) -> list[str]:
    """Addresses that a server bound to `host` takes media on; a wildcard means every interface and loopback.

    Raises OSError when `host` is a name that cannot be resolved.
    """
    found = {info[4][0] for info in socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_DGRAM)}
    addresses: list[str] = []
    for address in sorted(map(str, found)):
        if not ipaddress.ip_address(address).is_unspecified:
            addresses.append(address)
        elif ":" in address:
            addresses += [*get_host_addresses(use_ipv4=True, use_ipv6=True), "127.0.0.1", "::1"]
        else:
            addresses += [*get_host_addresses(use_ipv4=True, use_ipv6=False), "127.0.0.1"]
    return list(dict.fromkeys(addresses))


def choose_addresses(peer: RTCPeerConnection, addresses: Iterable[str], media_ip: str | None) -> None:
    """Let the peer gather on these addresses; with media_ip, say that address instead of them.

    To be called between setRemoteDescription, which makes the transports, and setLocalDescription, which gathers.
    """
    wanted = list(addresses)
    if media_ip is not None:
        said = ipaddress.ip_address(media_ip)
        # Nobody reaches this machine's loopback, nor a socket of the other IP version, under that address.
        for reached in (lambda a: a.version == said.version, lambda a: said.is_loopback or not a.is_loopback):
            wanted = [a for a in wanted if reached(ipaddress.ip_address(a))] or wanted
    transports = [transceiver.sender.transport for transceiver in peer.getTransceivers()]
    if peer.sctp is not None:
        transports.append(peer.sctp.transport)
    for connection in {transport.transport.iceGatherer._connection for transport in transports}:
        _replace_gathering(connection, wanted, media_ip)


def _replace_gathering(connection: Connection, addresses: list[str], media_ip: str | None) -> None:
    gather = connection.get_component_candidates

    async def gather_on_ours(component: int, addresses: list[str]) -> list[Candidate]:
        candidates = await gather(component, chosen)
        if not candidates:
            raise Refused(503, "no_media_port", "no UDP port for media is free: try again later", retry_after_s=10)
        for candidate in candidates:
            if media_ip is not None and candidate.type == "host":
                candidate.host = media_ip
        return candidates

    chosen = addresses
    setattr(connection, "get_component_candidates", gather_on_ours)  # noqa: B010 - a plain assignment is a type error


def bound_ports(loop: asyncio.AbstractEventLoop, ports: PortRange) -> None:
    """Let UDP sockets that may have any port take one of these; aioice asks for any and knows no range.

    It asks the loop (`create_datagram_endpoint` with port 0), and goes on without an address that has no port left.
    Sockets with a remote address, as towards a TURN server, keep any port: nothing comes in on them unasked.
    """
    create = loop.create_datagram_endpoint
    first = itertools.count()

    async def create_in_range(
        factory: Callable[[], asyncio.BaseProtocol], local_addr: Any = None, **options: Any
    ) -> tuple[asyncio.DatagramTransport, asyncio.BaseProtocol]:
        if local_addr is None or local_addr[1] != 0:
            return await create(factory, local_addr=local_addr, **options)
        count = ports.last - ports.first + 1
        start = next(first)  # a port that was just given back may still get packets of its last peer
        for offset in range(count):
            port = ports.first + (start + offset) % count
            try:
                return await create(factory, local_addr=(local_addr[0], port), **options)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
        raise OSError(errno.EADDRINUSE, f"every port from {ports.first} to {ports.last} is taken")

    setattr(loop, "create_datagram_endpoint", create_in_range)  # noqa: B010 - a plain assignment is a type error


def without_mdns(offer: str) -> str:
    """The offer without candidates that hide behind multicast DNS names.

    Browsers offer them in place of their addresses. Resolving one takes seconds and often fails; it is not needed,
    because the browser's own connectivity checks reveal its address. The end-of-candidates mark goes with them: it
    would let ICE fail for want of candidates before the first check arrives.
    """
    lines = offer.splitlines()
    kept = [line for line in lines if not _MDNS_CANDIDATE.match(line)]
    if len(kept) < len(lines):
        kept = [line for line in kept if line != "a=end-of-candidates"]
    return "\r\n".join(kept) + "\r\n"
