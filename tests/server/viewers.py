"""Real viewers of a server under test, one for each transport, and what their frames say."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import websockets
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCRtpReceiver, RTCSessionDescription
from aiortc.rtp import RtcpSrPacket
from av import CodecContext, Packet
from PIL import Image

from server.ice import choose_addresses
from server.protocol import HEADER, KIND_JPEG, KIND_SOUND
from streamgen.actions import WORLD_KEYS, action_vector
from streamgen_client.repair import LossRepair
from tests.server.harness import LiveServer, Ticket, until
from tests.server.relay import Relay
from tests.server.synthetic import START_FRAMES, Seen, checksum_after, first_checksum, read


@dataclass(frozen=True)
class Got:
    """A frame that a viewer received. seen: what its picture says. jpeg: the payload, as it came over the WebSocket."""

    generation: int
    frame: int
    pts_us: int
    seen: Seen
    jpeg: bytes = b""


@dataclass
class Client(ABC):
    """What both transports share: messages, keys, heartbeat. video: encodings that are asked for; (): say nothing.
    sound: take what an avatar says too.
    """

    ticket: Ticket
    beats: bool = True
    messages: list[dict[str, Any]] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    seqs: Any = field(default_factory=lambda: itertools.count(1))
    last_seq: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    video: Sequence[str] = ()
    sound: bool = False
    microphone_hz: int | None = None

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == kind]

    async def _end_tasks(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    @abstractmethod
    async def send(self, message: dict[str, Any]) -> None: ...

    async def key(self, code: str, down: bool) -> int:
        (self.held.add if down else self.held.discard)(code)
        self.last_seq = next(self.seqs)
        now_ms = time.monotonic() * 1e3
        await self.send(
            {"type": "input", "seq": self.last_seq, "t": now_ms, "code": code, "down": down, "held": sorted(self.held)}
        )
        return self.last_seq

    async def tap(self, code: str) -> int:
        seq = await self.key(code, True)
        await self.key(code, False)
        return seq

    async def ack(self, seq: int) -> dict[str, Any]:
        message: dict[str, Any] = await until(
            lambda: next((m for m in self.of("ack") if m["seq"] == seq), None), f"ack of input {seq}"
        )
        return message

    async def heartbeat(self) -> None:
        while True:
            await self.send({"type": "ping", "seq": self.last_seq, "t": 0.0, "held": sorted(self.held)})
            await asyncio.sleep(0.3)


class SocketClient(Client):
    """A WebSocket viewer."""

    async def __aenter__(self) -> Self:
        self.frames: list[Got] = []
        self.kinds: list[int] = []
        self.closed: tuple[int, str] | None = None
        self._decoder = CodecContext.create("h264", "r")
        self._decoder.thread_count = 1
        address = self.ticket.url.replace("http", "ws") + "/stream"
        trust = self.ticket.server.trust if address.startswith("wss") else None
        self.socket = await websockets.connect(address, max_size=None, ping_interval=None, ssl=trust)
        self.sounds: dict[int, tuple[int, np.ndarray]] = {}
        asked: dict[str, Any] = {"video": list(self.video)} if self.video else {}
        asked |= {"sound": True} if self.sound else {}
        asked |= {"microphone_hz": self.microphone_hz} if self.microphone_hz else {}
        await self.send({"type": "hello", "version": 1, "token": self.ticket.token} | asked)
        self.tasks = [asyncio.create_task(self._read())]
        if self.beats:
            self.tasks.append(asyncio.create_task(self.heartbeat()))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end_tasks()
        await self.socket.close()

    async def send(self, message: dict[str, Any]) -> None:
        await self.socket.send(json.dumps(message))

    async def _read(self) -> None:
        try:
            async for data in self.socket:
                if isinstance(data, str):
                    self.messages.append(json.loads(data))
                elif data[3] == KIND_SOUND:
                    *_, frame, pts_us = HEADER.unpack_from(data)
                    self.sounds[frame] = pts_us, np.frombuffer(data[HEADER.size :], "<i2")
                else:
                    self.frames.append(self._got(data))
        except websockets.ConnectionClosed:
            pass
        self.closed = (self.socket.close_code or 0, self.socket.close_reason or "")

    def _got(self, data: bytes) -> Got:
        magic, version, kind, generation, frame, pts_us = HEADER.unpack_from(data)
        assert (magic, version) == (b"SG", 1)
        self.kinds.append(kind)
        payload = data[HEADER.size :]
        if kind == KIND_JPEG:
            picture = np.asarray(Image.open(io.BytesIO(payload)))
        else:
            (decoded,) = self._decoder.decode(Packet(payload))
            picture = decoded.to_ndarray(format="rgb24")
        return Got(generation, frame, pts_us, read(picture), payload)

    async def watch(self, count: int) -> list[Got]:
        """The next `count` frames."""
        first = len(self.frames)
        await until(lambda: len(self.frames) >= first + count, f"{count} more frames")
        return self.frames[first : first + count]


@dataclass
class PeerClient(Client):
    """A WebRTC viewer: aiortc on loopback, through a relay if there is one.

    microphone: what it says. heard: pieces of what it hears, with their RTP time. reports: of the sender of each kind,
    NTP and RTP time of the last one.
    """

    relay: Relay | None = None
    microphone: MediaStreamTrack | None = None
    heard: list[tuple[int, np.ndarray]] = field(default_factory=list)
    sound_timestamps: list[int] = field(default_factory=list)
    reports: dict[str, tuple[int, int]] = field(default_factory=dict)

    async def __aenter__(self) -> Self:
        self.timestamps: list[int] = []
        self.pictures: list[Seen] = []
        self.closed = asyncio.Event()
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.channel = self.peer.createDataChannel("control")
        transceiver = self.peer.addTransceiver("video", "recvonly")
        known = RTCRtpReceiver.getCapabilities("video").codecs
        # Of several H.264 profiles the last: constrained baseline.
        wanted = [[codec for codec in known if codec.name == name][-1] for name in self.video]
        transceiver.setCodecPreferences(wanted)
        self.repair = LossRepair(transceiver.receiver)
        self._observe(transceiver.receiver, self.timestamps)
        if self.sound:
            ears = self.peer.addTransceiver(self.microphone or "audio", "sendrecv" if self.microphone else "recvonly")
            self._hear_reports(ears.receiver)
            self._observe(ears.receiver, self.sound_timestamps)
        self._hear_reports(transceiver.receiver)
        self.channel.on("message", lambda text: self.messages.append(json.loads(text)))
        self.channel.on("close", self.closed.set)
        self.peer.on("track", lambda track: self.tasks.append(asyncio.create_task(self._watch(track))))
        choose_addresses(self.peer, ["127.0.0.1"], None)
        await self.peer.setLocalDescription(await self.peer.createOffer())
        offer = self.peer.localDescription.sdp
        self.response = await asyncio.to_thread(
            self.ticket.call,
            "POST",
            "/webrtc",
            content=self.relay.hides(offer) if self.relay else offer,
            headers={"Content-Type": "application/sdp"},
        )
        assert self.response.status_code == 201, self.response.text
        answer = self.relay.stands_for(self.response.text) if self.relay else self.response.text
        await self.peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        await until(lambda: self.channel.readyState == "open", "control channel")
        if self.beats:
            self.tasks.append(asyncio.create_task(self.heartbeat()))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end_tasks()
        await self.peer.close()

    async def send(self, message: dict[str, Any]) -> None:
        self.channel.send(json.dumps(message))

    def _observe(self, receiver: Any, timestamps: list[int]) -> None:
        handle = receiver._handle_rtp_packet

        async def observed(packet: Any, arrival_time_ms: int) -> None:
            if not timestamps or timestamps[-1] != packet.timestamp:
                timestamps.append(packet.timestamp)
            await handle(packet, arrival_time_ms)

        receiver._handle_rtp_packet = observed

    def _hear_reports(self, receiver: Any) -> None:
        handle = receiver._handle_rtcp_packet

        async def observed(packet: Any) -> None:
            if isinstance(packet, RtcpSrPacket):
                info = packet.sender_info
                self.reports[receiver._track.kind] = info.ntp_timestamp, info.rtp_timestamp
            await handle(packet)

        receiver._handle_rtcp_packet = observed

    async def _watch(self, track: Any) -> None:
        while True:
            got = await track.recv()
            if track.kind == "video":
                self.pictures.append(read(got.to_ndarray(format="rgb24")))
            else:
                # aiortc counts from the first packet on.
                self.heard.append((self.sound_timestamps[0] + got.pts, got.to_ndarray()[0, ::2]))


def follow(seed: int, frames: list[Got]) -> int:
    """Check that the frames are those of one stream that ran alone from its start under the keys that they show.

    A frame that a busy machine made a viewer lose is filled in: its keys are those of the frame before it or after it.
    Returns how many frames the stream has made, lost ones included. Raises AssertionError.
    """
    checksum, before = first_checksum(seed), START_FRAMES - 1
    keys: frozenset[str] = frozenset()
    for got in frames:
        assert got.seen.frame == got.frame
        lost = range(before + 1, got.frame)
        assert len(lost) >= 0, f"frame {got.frame} after {before}"
        candidates = set()
        for change in range(len(lost) + 1):
            value = checksum
            for i, frame in enumerate(lost):
                value = checksum_after(value, frame, action_vector(keys if i < change else got.seen.keys, WORLD_KEYS))
            candidates.add(checksum_after(value, got.frame, action_vector(got.seen.keys, WORLD_KEYS)))
        assert got.seen.checksum in candidates, f"frame {got.frame} is not that of the stream alone"
        checksum, before, keys = got.seen.checksum, got.frame, got.seen.keys
    return before - START_FRAMES + 1


@asynccontextmanager
async def undisturbed(server: LiveServer, seed: int) -> AsyncIterator[None]:
    """Meanwhile another session plays on: its frames follow each other, its keys are answered.

    A frame that its viewer was too slow for is missing without anybody's fault, and counted.
    """
    dropped = {"transport": "websocket", "reason": "slow_viewer"}
    before = server.metric("streamgen_frames_dropped_total", **dropped)
    ticket = await asyncio.to_thread(server.create, seed)
    try:
        async with SocketClient(ticket) as client:
            await client.watch(3)
            yield
            await client.ack(await client.key("KeyW", True))
            await until(lambda: client.frames[-1].seen.keys == {"KeyW"}, "the key in the picture")
            assert client.closed is None and not client.of("error")
        follow(seed, client.frames)
        missing = client.frames[-1].frame - START_FRAMES + 1 - len(client.frames)
        assert missing <= server.metric("streamgen_frames_dropped_total", **dropped) - before
    finally:
        await asyncio.to_thread(ticket.call, "DELETE")
