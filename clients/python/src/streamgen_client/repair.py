"""What a receiver does about lost packets, as browsers do it.

aiortc asks for a lost packet once. When that, or the packet sent again, is lost too, it shows nothing until its buffer
of 128 packets overflows, seconds later, stays late by all of them from then on, and decodes pictures whose reference
it never had. Here packets are asked for again, and what is too late is given up for a new key frame.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from aiortc import RTCRtpReceiver
from aiortc.codecs.vpx import VpxPayloadDescriptor

ASK_EVERY_S = 0.1
GIVE_UP_AFTER_S = 0.4


class LossRepair:
    """Stands before a receiver of VP8. Raises RuntimeError when this aiortc keeps its packets differently.

    given_up: how often it went on with a new key frame.
    """

    def __init__(self, receiver: RTCRtpReceiver, clock: Callable[[], float] = time.monotonic) -> None:
        self.given_up = 0
        self._receiver: Any = receiver
        self._clock = clock
        self._nack: Any = getattr(receiver, "_RTCRtpReceiver__nack_generator", None)
        self._buffer: Any = getattr(receiver, "_RTCRtpReceiver__jitter_buffer", None)
        if not (hasattr(self._nack, "missing") and hasattr(self._buffer, "_origin")):
            raise RuntimeError("the installed aiortc does not say which packets are missing: use aiortc 1.16")
        self._handle = self._receiver._handle_rtp_packet
        setattr(receiver, "_handle_rtp_packet", self._handled)  # noqa: B010 - a plain assignment is a type error
        self._missing_since: dict[int, float] = {}
        self._asked_s = float("-inf")
        self._wants_key = False

    async def _handled(self, packet: Any, arrival_time_ms: int) -> None:
        now_s = self._clock()
        if self._wants_key:
            if not _begins_key_frame(packet.payload):
                if self._may_ask(now_s):
                    await self._receiver._send_rtcp_pli(packet.ssrc)
                return
            self._wants_key = False
        await self._handle(packet, arrival_time_ms)
        missing = self._nack.missing
        self._missing_since = {number: self._missing_since.get(number, now_s) for number in missing}
        if not missing:
            return
        if now_s - min(self._missing_since.values()) > GIVE_UP_AFTER_S:
            self._give_up()
        elif self._may_ask(now_s):
            await self._receiver._send_rtcp_nack(packet.ssrc, sorted(missing))

    def _may_ask(self, now_s: float) -> bool:
        may = now_s - self._asked_s >= ASK_EVERY_S
        if may:
            self._asked_s = now_s
        return may

    def _give_up(self) -> None:
        self.given_up += 1
        self._wants_key = True
        self._nack.missing.clear()
        self._nack.max_seq = None
        self._buffer.remove(self._buffer.capacity)
        self._buffer._origin = None
        self._asked_s = float("-inf")


def _begins_key_frame(payload: bytes) -> bool:
    """RFC 7741, sections 4.2 and 4.3."""
    try:
        descriptor, frame = VpxPayloadDescriptor.parse(payload)
    except ValueError:
        return False
    return bool(descriptor.partition_start and descriptor.partition_id == 0 and frame and not frame[0] & 1)
