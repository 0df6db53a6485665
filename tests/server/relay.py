"""A bad network: a UDP relay between one WebRTC viewer and the server that loses and delays what its seed says."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

_CANDIDATE_PORT = re.compile(r"^(a=candidate:\S+ 1 udp \d+ 127\.0\.0\.1) (\d+) ", re.MULTILINE)
_REPAIR_TYPE = re.compile(r"^a=rtpmap:(\d+) rtx/", re.MULTILINE)
_CANDIDATES = re.compile(r"^a=(?:candidate:.*|end-of-candidates)\r\n", re.MULTILINE)

Address = tuple[str, int]


@dataclass
class Weather:
    """Of every packet, in both directions. loss: share that is lost; delay_s ± jitter_s: how long the others take.

    media: whether packets of pictures pass.
    """

    loss: float = 0.0
    media: bool = True
    delay_s: float = 0.0
    jitter_s: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.loss:.0%} lost, {self.delay_s * 1e3:.0f} ms late"


CALM = Weather()
BLACKOUT = Weather(loss=1.0)
NO_PICTURES = Weather(media=False)


class _Side(asyncio.DatagramProtocol):
    """The relay's socket towards one of the two; `peer` is where it was last heard from, or is known to be."""

    def __init__(self, relay: Relay) -> None:
        self.relay, self.peer = relay, None
        self.other: _Side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.peer = addr
        self.relay.carry(data, self.other)

    def send(self, data: bytes) -> None:
        if self.peer is not None and not self.transport.is_closing():
            self.transport.sendto(data, self.peer)


class Relay:
    """weather and repairs may be changed at any time. repairs: packets that are sent again pass. lost: so far."""

    def __init__(self, seed: int) -> None:
        self.weather = CALM
        self.repairs = True
        self.lost = 0
        self._repair_type = -1
        self._rng = random.Random(seed)
        self.viewer, self.server = _Side(self), _Side(self)
        self.viewer.other, self.server.other = self.server, self.viewer

    def carry(self, data: bytes, to: _Side) -> None:
        media = len(data) > 1 and data[0] >> 6 == 2
        repair = media and data[1] & 0x7F == self._repair_type
        barred = (media and not self.weather.media) or (repair and not self.repairs)
        if self._rng.random() < self.weather.loss or barred:
            self.lost += 1
            return
        delay_s = self.weather.delay_s + self._rng.uniform(-1, 1) * self.weather.jitter_s
        if delay_s > 0:
            asyncio.get_running_loop().call_later(delay_s, to.send, data)
        else:
            to.send(data)

    def hides(self, offer: str) -> str:
        """The offer without the viewer's own addresses: the server learns of the relay by its packets."""
        return _CANDIDATES.sub("", offer)

    def stands_for(self, answer: str) -> str:
        """The answer with the relay's address in place of the server's."""
        found = _CANDIDATE_PORT.search(answer)
        assert found, answer
        self.server.peer = ("127.0.0.1", int(found[2]))
        if repair := _REPAIR_TYPE.search(answer):
            self._repair_type = int(repair[1])
        return _CANDIDATE_PORT.sub(rf"\1 {self.viewer.port} ", answer)


@asynccontextmanager
async def relay(seed: int) -> AsyncIterator[Relay]:
    made = Relay(seed)
    loop = asyncio.get_running_loop()
    for side in (made.viewer, made.server):
        await loop.create_datagram_endpoint(lambda side=side: side, local_addr=("127.0.0.1", 0))
    try:
        yield made
    finally:
        for side in (made.viewer, made.server):
            side.transport.close()
