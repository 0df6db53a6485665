"""The link over WebRTC: video one way, control messages on the data channel `control`.

Two things that aiortc keeps to itself are reached for here, and nowhere else: where a receiver's timestamps begin
(aiortc subtracts the first one and does not tell; an aiortc that names it differently is refused), and which addresses
aioice gathers candidates on (it leaves loopback out).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections import deque
from typing import Any, Self
from urllib.parse import urlsplit

import av
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.exceptions import InvalidStateError
from aiortc.mediastreams import MediaStreamError

from streamgen_client.errors import ClientError, TransportFailed
from streamgen_client.frames import Arrival
from streamgen_client.links import OPEN_TIMEOUT_S, Listener, Message
from streamgen_client.numbering import Numbering
from streamgen_client.repair import LossRepair
from streamgen_client.session import Session

_MOST_UNNAMED = 16
"""Pictures that wait for the first acknowledgement, which comes about one frame after the first one."""


class PeerLink:
    """A `links.Link`."""

    def __init__(self, listener: Listener) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._listener = listener
        self._numbering = Numbering()
        self._unnamed: deque[tuple[int, av.VideoFrame]] = deque(maxlen=_MOST_UNNAMED)
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: Session | None = None
        self._path: str | None = None
        # An empty list, not the absence of one: aiortc would then ask a public STUN server.
        self._peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._channel = self._peer.createDataChannel("control")
        receiver = self._peer.addTransceiver("video", "recvonly").receiver
        self._clock = _ReceiverClock(receiver)
        LossRepair(receiver)
        self._opened = asyncio.Event()
        self._channel.on("open", self._opened.set)
        self._channel.on("message", self._heard)
        self._channel.on("close", lambda: self._lose("the server closed the control channel"))
        self._peer.on("track", self._watch)
        self._peer.on("connectionstatechange", self._on_state)

    @classmethod
    async def open(cls, session: Session, listener: Listener) -> Self:
        """Offer, and wait for the control channel. Raises TransportFailed, ServerUnreachable, SessionRefused."""
        link = cls(listener)
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await link._connect(session)
        except TimeoutError:
            await link.close()
            raise TransportFailed("webrtc", f"nothing got through within {OPEN_TIMEOUT_S:g} s") from None
        except BaseException:
            await link.close()
            raise
        return link

    async def send(self, message: Message) -> None:
        with contextlib.suppress(InvalidStateError):
            self._channel.send(json.dumps(message))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._peer.close()
        if self._session is not None and self._path is not None:
            # It also ends by itself; but where the connection broke, the server is the last to notice.
            with contextlib.suppress(ClientError):
                await self._session.end(self._path)

    async def _connect(self, session: Session) -> None:
        try:
            _gather_on(self._peer, await asyncio.to_thread(_local_address, session.address))
        except OSError as error:
            raise TransportFailed("webrtc", f"no route to the server: {error}") from error
        await self._peer.setLocalDescription(await self._peer.createOffer())
        answer, self._path = await session.offer(self._peer.localDescription.sdp)
        self._session = session
        try:
            await self._peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        except ValueError as error:
            raise TransportFailed("webrtc", f"the server's answer cannot be read: {error}") from error
        opened = asyncio.create_task(self._opened.wait())
        try:
            either: set[asyncio.Future[Any]] = {opened, self.lost}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            opened.cancel()
        if self.lost.done():
            raise TransportFailed("webrtc", self.lost.result())

    def _lose(self, why: str) -> None:
        if not self.lost.done():
            self.lost.set_result(why)

    def _on_state(self) -> None:
        if self._peer.connectionState in ("failed", "closed"):
            self._lose(f"the connection is {self._peer.connectionState}")

    def _heard(self, text: str) -> None:
        message = json.loads(text)
        if message["type"] == "epoch":
            self._numbering.opened(message["n0"], message["t0_us"], message["fps"], message["generation"])
        elif message["type"] == "ack" and message["rtp"] is not None:
            self._numbering.tie(message["rtp"], message["pts_us"])
            while self._unnamed:
                self._name(*self._unnamed.popleft())
        self._listener.heard(message)

    def _watch(self, track: MediaStreamTrack) -> None:
        task = asyncio.create_task(self._receive(track))
        self._tasks.add(task)

    async def _receive(self, track: MediaStreamTrack) -> None:
        try:
            while True:
                picture = await track.recv()
                assert isinstance(picture, av.VideoFrame) and picture.pts is not None
                rtp = self._clock.on_the_wire(picture.pts)
                if self._numbering.tied:
                    self._name(rtp, picture)
                else:
                    self._unnamed.append((rtp, picture))
        except MediaStreamError:
            pass
        finally:
            self._lose("the video ended")

    def _name(self, rtp: int, picture: av.VideoFrame) -> None:
        name = self._numbering.name(rtp)
        # A nameless one was shown before the connection was lost: the server repeats the last frame to every newcomer.
        if name is not None:
            self._listener.arrived(Arrival(name.generation, name.number, name.pts_us, picture))


class _ReceiverClock:
    """The RTP timestamps of a receiver's pictures. Raises RuntimeError when this aiortc keeps them differently."""

    _MAPPER = "_RTCRtpReceiver__timestamp_mapper"

    def __init__(self, receiver: RTCRtpReceiver) -> None:
        self._mapper: Any = getattr(receiver, self._MAPPER, None)
        if not hasattr(self._mapper, "_origin"):
            raise RuntimeError("the installed aiortc does not say where its timestamps begin: use aiortc 1.16")

    def on_the_wire(self, pts: int) -> int:
        """The RTP timestamp of the picture that aiortc gave this time."""
        return int(pts + self._mapper._origin) % 2**32


def _local_address(address: str) -> str:
    """This machine's address on the way to the server: loopback when it is the same machine."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    family, kind, _, _, where = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(where)  # sends nothing: it only chooses a route
        return str(probe.getsockname()[0])


def _gather_on(peer: RTCPeerConnection, address: str) -> None:
    """Let the peer gather on this address too. To be called before setLocalDescription, which gathers."""
    transports = [transceiver.receiver.transport for transceiver in peer.getTransceivers()]
    if peer.sctp is not None:
        transports.append(peer.sctp.transport)
    for connection in {transport.transport.iceGatherer._connection for transport in transports}:
        gather = connection.get_component_candidates

        async def gather_more(component: int, addresses: list[str], gather: Any = gather) -> Any:
            return await gather(component, list(dict.fromkeys([address, *addresses])))

        setattr(connection, "get_component_candidates", gather_more)  # noqa: B010 - a plain assignment is a type error
