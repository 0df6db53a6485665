"""The link over a WebSocket: JPEG frames as binary messages, control messages as JSON text."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from typing import Self

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from streamgen_client.errors import TransportFailed
from streamgen_client.frames import SOUND_RATE, Arrival, Sound
from streamgen_client.links import OPEN_TIMEOUT_S, Listener, Message
from streamgen_client.session import Session

_VERSION = 1
_HEADER = struct.Struct("<2sBBIQq")
"""Before the JPEG: "SG", version, kind, generation, frame, presentation time in microseconds."""

_JPEG_FRAME, _SOUND_FRAME = (b"SG", _VERSION, 1), (b"SG", _VERSION, 4)
_MOST_BYTES = 16 * 1024 * 1024
_CLOSE_TIMEOUT_S = 1.0
_MOST_SAMPLES = 16_384
"""Of one message."""


class SocketLink:
    """A `links.Link`."""

    def __init__(self, socket: ClientConnection, listener: Listener) -> None:
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._socket, self._listener = socket, listener
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, session: Session, listener: Listener) -> Self:
        """Connect and say hello. Raises TransportFailed."""
        try:
            # The client's own heartbeat finds dead connections, and JPEG does not get smaller.
            socket = await connect(
                session.socket_address,
                compression=None,
                ping_interval=None,
                open_timeout=OPEN_TIMEOUT_S,
                close_timeout=_CLOSE_TIMEOUT_S,
                max_size=_MOST_BYTES,
            )
        except (OSError, TimeoutError, WebSocketException) as error:
            raise TransportFailed("websocket", str(error) or "timed out") from error
        link = cls(socket, listener)
        hello: Message = {"type": "hello", "version": _VERSION, "token": session.token}
        if session.student.speech:
            hello |= {"sound": True, "microphone_hz": SOUND_RATE}
        await link.send(hello)
        return link

    async def send(self, message: Message) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._socket.send(json.dumps(message))

    async def speak(self, samples: NDArray[np.int16]) -> None:
        """Send the next samples of a microphone."""
        with contextlib.suppress(ConnectionClosed):
            for at in range(0, len(samples), _MOST_SAMPLES):
                await self._socket.send(samples[at : at + _MOST_SAMPLES].astype("<i2").tobytes())

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._socket.close()

    async def _read(self) -> None:
        try:
            async for data in self._socket:
                if isinstance(data, str):
                    self._listener.heard(json.loads(data))
                else:
                    self._take(data)
        except ConnectionClosed:
            pass
        finally:
            if not self.lost.done():
                self.lost.set_result(self._socket.close_reason or f"closed with code {self._socket.close_code}")

    def _take(self, data: bytes) -> None:
        magic, version, kind, generation, number, pts_us = _HEADER.unpack_from(data)
        if (magic, version, kind) == _JPEG_FRAME:
            self._listener.arrived(Arrival(generation, number, pts_us, data[_HEADER.size :]))
        elif (magic, version, kind) == _SOUND_FRAME:
            samples = np.frombuffer(data[_HEADER.size :], "<i2").astype(np.int16)
            self._listener.sounded(Sound(samples, number, pts_us, generation))
