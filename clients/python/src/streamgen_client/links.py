"""What the client and its two kinds of links ask of each other."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from streamgen_client.frames import Arrival, Sound

OPEN_TIMEOUT_S = 8.0

Message = dict[str, Any]


class Listener(Protocol):
    """Whoever a link brings things to."""

    def heard(self, message: Message) -> None:
        """A control message of the server."""
        ...

    def arrived(self, arrival: Arrival) -> None:
        """A frame."""
        ...

    def sounded(self, sound: Sound) -> None:
        """What is heard with a frame."""
        ...


class Link(Protocol):
    """One open connection that carries frames one way and control messages both ways."""

    @property
    def lost(self) -> asyncio.Future[str]:
        """Done, with the reason, when the connection has ended."""
        ...

    async def send(self, message: Message) -> None:
        """Send a control message; one for a connection that has ended goes nowhere."""
        ...

    async def close(self) -> None:
        """End the connection; never raises."""
        ...
