"""The control messages, the same on the data channel `control` and on the WebSocket, and the header of binary frames.

`schema()` is published at /v1/schema. Times named `t` are the client's own milliseconds and only ever echoed.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from server.codes import ErrorCode

VERSION: Final = 1

KeyCode = Annotated[str, Field(pattern=r"^[A-Za-z0-9]{1,32}$", description="W3C KeyboardEvent.code")]
Held = Annotated[list[KeyCode], Field(max_length=32, description="every key that is down now")]
Millis = Annotated[float, Field(allow_inf_nan=False, description="client's clock, milliseconds")]
Seq = Annotated[int, Field(ge=1, lt=2**53, description="the client's counter over input and release messages")]


MOST_TEXT: Final = 1500
"""Characters that an avatar is given to say at once."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", json_schema_serialization_defaults_required=True)


class Hello(_Message):
    """First message on a WebSocket; WebRTC authenticates by its HTTP request."""

    type: Literal["hello"] = "hello"
    version: int
    token: str = Field(max_length=128)
    video: list[Annotated[str, Field(max_length=16)]] = Field(
        ["jpeg"], max_length=8, description="encodings that it takes, `jpeg` and `h264`, the one it likes best first"
    )
    sound: bool = Field(False, description="whether it takes what an avatar says, as binary messages of their own")
    microphone_hz: int = Field(
        48_000, ge=8_000, le=48_000, description="rate of the sound that it sends as binary messages: PCM s16le, mono"
    )


class Input(_Message):
    """A key edge."""

    type: Literal["input"] = "input"
    seq: Seq
    t: Millis
    code: KeyCode
    down: bool
    held: Held


class Release(_Message):
    """Focus was lost: every key is up."""

    type: Literal["release"] = "release"
    seq: Seq
    t: Millis


class Ping(_Message):
    """Heartbeat, once a second; seq is that of the last input or release sent, 0 before the first."""

    type: Literal["ping"] = "ping"
    seq: int = Field(ge=0, lt=2**53)
    t: Millis
    held: Held


class Pause(_Message):
    """Stop generating for every viewer of the session."""

    type: Literal["pause"] = "pause"


class Resume(_Message):
    """Go on generating."""

    type: Literal["resume"] = "resume"


class Say(_Message):
    """Say this text, after all that is still to be said."""

    type: Literal["say"] = "say"
    text: str = Field(min_length=1, max_length=MOST_TEXT)


class Interrupt(_Message):
    """Fall silent at once, and forget what was still to be said."""

    type: Literal["interrupt"] = "interrupt"


class Bye(_Message):
    """The viewer leaves on purpose: it is away at once."""

    type: Literal["bye"] = "bye"


ClientMessage = Hello | Input | Release | Ping | Pause | Resume | Say | Interrupt | Bye


class Ready(_Message):
    """First message to a viewer. frame: index of the next frame to be generated."""

    type: Literal["ready"] = "ready"
    version: int = VERSION
    session: str
    student: str
    fps: float
    width: int
    height: int
    keys: list[str]
    frame: int
    generation: int


class Ack(_Message):
    """The first frame sent to this viewer that shows the input.

    rtp: that frame's RTP timestamp on the wire (WebRTC only). server_ms: from receipt to the frame's hand-over.
    """

    type: Literal["ack"] = "ack"
    seq: int
    t: float
    frame: int
    pts_us: int
    rtp: int | None
    server_ms: float


class Pong(_Message):
    """Answer to a ping. server_ms: from receipt to this answer."""

    type: Literal["pong"] = "pong"
    t: float
    server_ms: float


class Status(_Message):
    """Once a second. fps: measured over the last seconds; dropped: frames this viewer was too slow for."""

    type: Literal["status"] = "status"
    frame: int
    fps: float
    step_ms: float
    steps: int
    dropped: int
    epoch: int
    generation: int


class EpochOpened(_Message):
    """From here on frame n of this generation is due t0_us + (n - n0) / fps after the session's first frame."""

    type: Literal["epoch"] = "epoch"
    n0: int
    t0_us: int
    fps: float
    generation: int


class Paused(_Message):
    """The session was paused by one of its viewers or over HTTP."""

    type: Literal["paused"] = "paused"


class Resumed(_Message):
    """The session goes on."""

    type: Literal["resumed"] = "resumed"


class Error(_Message):
    """Something was refused or has ended; `code` is for programs, `message` for people.

    `server_restarts`: the connection ends now, and the stream goes on when the viewer comes back, with the same session
    and token; until the server listens again, connections fail or are refused as `draining`. `server_stops`: it does
    not go on.
    """

    type: Literal["error"] = "error"
    code: ErrorCode
    message: str
    retryable: bool


ServerMessage = Ready | Ack | Pong | Status | EpochOpened | Paused | Resumed | Error

_CLIENT: TypeAdapter[ClientMessage] = TypeAdapter(Annotated[ClientMessage, Field(discriminator="type")])
_SERVER: TypeAdapter[ServerMessage] = TypeAdapter(Annotated[ServerMessage, Field(discriminator="type")])


def parse_client(text: str | bytes) -> ClientMessage:
    """Read one control message of a client. Raises pydantic's ValidationError."""
    return _CLIENT.validate_json(text)


def schema() -> dict[str, Any]:
    """JSON schema of both directions and the layout of binary frames."""
    return {
        "version": VERSION,
        "client": _CLIENT.json_schema(),
        "server": _SERVER.json_schema(mode="serialization"),
        "binary": {
            "byte_order": "little",
            "struct": HEADER.format,
            "fields": ["magic", "version", "kind", "generation", "frame", "pts_us"],
            "kinds": {
                "jpeg": KIND_JPEG,
                "h264_key": KIND_H264_KEY,
                "h264_delta": KIND_H264_DELTA,
                "sound": KIND_SOUND,
            },
            "sound": "PCM s16le, mono, 48 kHz: what is heard from the frame's time on, as long as the frame",
            "h264": "avc1.42E01F, Annex B, parameter sets in every key frame, enlarged by a whole factor",
        },
    }


HEADER = struct.Struct("<2sBBIQq")
"""magic b"SG", version u8, kind u8, generation u32, frame u64, pts in microseconds i64; the payload follows."""

MAGIC: Final = b"SG"
KIND_JPEG: Final = 1
KIND_H264_KEY: Final = 2
KIND_H264_DELTA: Final = 3
KIND_SOUND: Final = 4


def pack_frame(kind: int, generation: int, frame: int, pts_us: int, payload: bytes) -> bytes:
    """A binary WebSocket message."""
    return HEADER.pack(MAGIC, VERSION, kind, generation, frame, pts_us) + payload
