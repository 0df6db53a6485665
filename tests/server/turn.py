"""The part of a TURN server that hands out an address (RFC 8656, section 7), and who asked it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from aioice import stun

REALM = "tests"
RELAYED = ("192.0.2.99", 40404)


class TurnServer(asyncio.DatagramProtocol):
    """allocated: user names that gave the right credential; refused: how many gave a wrong one."""

    def __init__(self, username: str, credential: str) -> None:
        self.username = username
        self.key = hashlib.md5(f"{username}:{REALM}:{credential}".encode()).digest()
        self.port = 0
        self.allocated: list[str] = []
        self.refused = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        asked = stun.parse_message(data)
        answer = stun.Message(asked.message_method, stun.Class.RESPONSE, asked.transaction_id)
        if "USERNAME" not in asked.attributes or not self.is_right(asked):
            self.refused += "USERNAME" in asked.attributes
            answer.message_class = stun.Class.ERROR
            answer.attributes |= {"ERROR-CODE": (401, "Unauthorized"), "REALM": REALM, "NONCE": b"once"}
        else:
            answer.attributes["LIFETIME"] = asked.attributes.get("LIFETIME", 600)
            if asked.message_method == stun.Method.ALLOCATE:
                self.allocated.append(asked.attributes["USERNAME"])
                answer.attributes |= {"XOR-RELAYED-ADDRESS": RELAYED, "XOR-MAPPED-ADDRESS": addr}
            answer.add_message_integrity(self.key)
        self.transport.sendto(bytes(answer), addr)

    def is_right(self, asked: stun.Message) -> bool:
        return asked.check_message_integrity(self.key) and asked.attributes["USERNAME"] == self.username


@asynccontextmanager
async def turn_server(username: str, credential: str) -> AsyncIterator[TurnServer]:
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: TurnServer(username, credential), local_addr=("127.0.0.1", 0)
    )
    try:
        yield server
    finally:
        transport.close()
