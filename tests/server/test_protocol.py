"""Control messages and binary frames."""

from __future__ import annotations

import json
import struct

import pytest
from pydantic import ValidationError

from server import protocol


def test_the_binary_header_is_the_documented_one() -> None:
    data = protocol.pack_frame(protocol.KIND_JPEG, 2, 3, -4, b"jpeg")
    assert struct.unpack_from("<2sBBIQq", data) == (b"SG", 1, 1, 2, 3, -4)
    assert data[24:] == b"jpeg"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"type": "nothing"}',
        '{"type": "input"}',
        '{"type": "input", "seq": 0, "t": 1, "code": "KeyW", "down": true, "held": []}',
        '{"type": "input", "seq": 1, "t": 1, "code": "Key W", "down": true, "held": []}',
        '{"type": "input", "seq": 1, "t": 1e999, "code": "KeyW", "down": true, "held": []}',
        '{"type": "ping", "seq": 1, "t": 1, "held": [' + ",".join(['"KeyW"'] * 33) + "]}",
        "\ud800",
    ],
)
def test_what_is_no_message_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        protocol.parse_client(text.encode("utf-8", "surrogatepass"))


def test_the_schema_names_every_message() -> None:
    schema = protocol.schema()
    json.dumps(schema)
    assert set(schema["client"]["discriminator"]["mapping"]) == {
        "hello", "input", "release", "ping", "pause", "resume", "say", "interrupt", "bye",
    }  # fmt: skip
    assert set(schema["server"]["discriminator"]["mapping"]) == {
        "ready", "ack", "pong", "status", "epoch", "paused", "resumed", "error",
    }  # fmt: skip
