"""Writes docs/protocol.md from the models themselves: `python -m server.protocol_page > docs/protocol.md`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI

from server import agents, http, protocol, viewers
from server.codes import MEANINGS

_LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "`{}`",
}
_HEADER_TYPES = {"2s": "2 bytes", "B": "u8", "H": "u16", "I": "u32", "Q": "u64", "q": "i64"}
_HEADER_FIELDS = {
    "magic": f"`{protocol.MAGIC.decode()}`",
    "version": f"{protocol.VERSION}",
    "kind": "what the payload is",
    "generation": "of the stream; a reset begins the next",
    "frame": "its number in the stream",
    "pts_us": "presentation time since the session's first frame, microseconds",
}

_PAGE = """\
# Protocol, version {version}

Written by `python -m server.protocol_page` from the server's models: change those. HTTP opens a session, and viewers
attach to it by WebRTC or by WebSocket. Control messages are the same on both.

## HTTP

`POST /v1/sessions` takes an API key where the server asks for one; the routes below a session take that session's
token. Both are given as `Authorization: Bearer SECRET`. `/openapi.json` is this section for programs.

{routes}

{objects}

## Control messages

JSON objects, told apart by `type`: text messages of the WebSocket `/v1/sessions/{{session_id}}/stream`, or messages of
the data channel `control`, which the client opens. Fields that are not listed here are ignored. `/v1/schema` is this
section for programs.

### From the client

{client}

### From the server

{server}

## Binary messages

From the server, on the WebSocket only: {size} bytes of header, {byte_order}-endian, then the payload.

{header}

Kinds of payload: {kinds}.

## Voice agents

The WebSocket `/v1/sessions/{{session_id}}/agent`, with the session's token as `Authorization: Bearer TOKEN`, lets a
program say what others hear and see. It takes the server events of OpenAI's Realtime interface, passed on as they come,
and ignores those that are not listed here; plain text-to-speech sends PCM as binary messages.

| Event | Does |
|---|---|
{agent_events}

PCM is s16le in one channel, at {agent_hz} Hz or at `?rate=HZ` (8000 to 48000), in messages of at most 256 KiB; it may
come faster than it is said. What still comes of a response that was interrupted is not said; sound that names none is
said again after half a second without any. The server answers `output_audio_buffer.started`; then
`output_audio_buffer.stopped` when all is said, or `output_audio_buffer.cleared` when somebody interrupts; and `error`,
with code and message in its object `error`.

## Errors

An HTTP error has an [ErrorAnswer](#erroranswer) as its body and a status of 400 or more, with `Retry-After` where
another try may succeed. A viewer is sent the message `error`; where that ends the viewer, a WebSocket is closed with
the code as the reason, and by number: {normal} as was asked for, {policy} do not come back, {restart} come back to the
same session, {later} try again later.

{errors}

## Examples

A WebSocket viewer that presses a key:

```
client> POST /v1/sessions
client> {{"seed": 7}}
server> 201, the session with "id": "Zk3xQ" and "token": "s3cr3t"

client> GET /v1/sessions/Zk3xQ/stream, Upgrade: websocket
client> {hello}
server> ready, epoch, frames as binary messages; status every second
client> {ping}
server> pong; the client pings every second
client> {input}
server> frames
server> {ack_socket}
server> frame 5 shows the key
client> {bye}

client> DELETE /v1/sessions/Zk3xQ, Authorization: Bearer s3cr3t
server> 204
```

The same by WebRTC:

```
client> POST /v1/sessions
client> {{"seed": 7}}
server> 201, the session with "id": "Zk3xQ" and "token": "s3cr3t"

client> POST /v1/sessions/Zk3xQ/webrtc, Authorization: Bearer s3cr3t, Content-Type: {sdp}
client> an offer that receives video and opens the data channel `control`
server> 201, Location: /v1/sessions/Zk3xQ/webrtc/p1; the answer
        ICE and DTLS; `control` opens
server> ready, epoch; frames on the video track; status every second
client> {ping}
server> pong; the client pings every second
client> {input}
server> {ack_webrtc}
        the packets with this RTP timestamp show the key
client> {bye}

client> DELETE /v1/sessions/Zk3xQ, Authorization: Bearer s3cr3t
server> 204
```
"""


def openapi() -> dict[str, Any]:
    """The HTTP interface, as /openapi.json has it."""
    app = FastAPI()
    app.include_router(http.router)
    return app.openapi()


def page() -> str:
    """The page, Markdown; the same for the same models."""
    schema = protocol.schema()
    binary = schema["binary"]
    api = openapi()
    ack = protocol.Ack(seq=1, t=1042.5, frame=5, pts_us=114286, rtp=None, server_ms=41.2)
    return _PAGE.format(
        version=protocol.VERSION,
        normal=viewers.CLOSE_NORMAL,
        policy=viewers.CLOSE_POLICY,
        restart=viewers.CLOSE_RESTART,
        later=viewers.CLOSE_TRY_LATER,
        routes=_table(("Route", "Takes", "Answers", "Does"), _routes(api["paths"])),
        objects="\n\n".join(_objects(api["components"]["schemas"])),
        client="\n\n".join(_messages(schema["client"])),
        server="\n\n".join(_messages(schema["server"])),
        size=protocol.HEADER.size,
        byte_order=binary["byte_order"],
        header=_table(("Field", "Type", "About"), _header(binary)),
        kinds=", ".join(f"{number} {name}" for name, number in binary["kinds"].items()),
        agent_hz=agents.AGENT_HZ,
        agent_events="\n".join(f"| `{kind}` | {does} |" for kind, does in agents.EVENTS.items()),
        errors=_table(("Code", "Means"), ((f"`{code}`", meaning) for code, meaning in sorted(MEANINGS.items()))),
        hello=protocol.Hello.model_validate({"version": protocol.VERSION, "token": "s3cr3t"}).model_dump_json(),
        ping=protocol.Ping(seq=0, t=1001.0, held=[]).model_dump_json(),
        input=protocol.Input(seq=1, t=1042.5, code="KeyW", down=True, held=["KeyW"]).model_dump_json(),
        ack_socket=ack.model_dump_json(),
        ack_webrtc=ack.model_copy(update={"rtp": 2861234567}).model_dump_json(),
        bye=protocol.Bye().model_dump_json(),
        sdp=http.SDP,
    )


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _routes(paths: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for path, methods in paths.items():
        for method, route in methods.items():
            status, answer = next((s, a) for s, a in route["responses"].items() if s.startswith("2"))
            about = " ".join(route.get("description", "").split())
            yield f"`{method.upper()} {path}`", _body(route.get("requestBody", {})), f"{status} {_body(answer)}", about


def _body(described: dict[str, Any]) -> str:
    return _type(described.get("content", {}).get("application/json", {}).get("schema", {}))


def _objects(schemas: dict[str, dict[str, Any]]) -> Iterator[str]:
    for name, schema in schemas.items():
        yield f"### {name}"
        yield from _object(schema)


def _messages(union: dict[str, Any]) -> Iterator[str]:
    for reference in union["oneOf"]:
        schema = union["$defs"][_name(reference)]
        yield f"#### `{schema['properties']['type']['const']}`"
        yield from _object(schema)


def _object(schema: dict[str, Any]) -> Iterator[str]:
    """What the model says of itself, and its fields but for the one that names it."""
    if "description" in schema:
        yield " ".join(schema["description"].split())
    required = schema.get("required", ())
    rows = [
        (f"`{name}`" if name in required else f"`{name}` (optional)", _type(field), _about(field))
        for name, field in schema["properties"].items()
        if not ("const" in field and name == "type")
    ]
    if rows:
        yield _table(("Field", "Type", "About"), rows)


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return f"[{_name(schema)}](#{_name(schema).lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if set(schema.get("enum", ())) == set(MEANINGS):
        return "one of the [codes](#errors)"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "items" in schema:
        return f"array of {_type(schema['items'])}"
    if isinstance(values := schema.get("additionalProperties"), dict):
        return f"object of {_type(values)}"
    return str(schema.get("type", ""))


def _name(reference: dict[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _about(schema: dict[str, Any]) -> str:
    """Description and limits, those of alternatives and of an array's items included."""
    said = [schema["description"]] if "description" in schema else []
    said += [text.format(_value(schema[key])) for key, text in _LIMITS.items() if key in schema]
    if "items" in schema and (items := _about(schema["items"])):
        said.append(f"each: {items}")
    said += filter(None, map(_about, schema.get("anyOf", ())))
    return "; ".join(said)


def _value(limit: float | str) -> str:
    """As people write it: OpenAPI's model turns every limit into a float."""
    if isinstance(limit, str) or limit != int(limit):
        return str(limit)
    power = int(limit).bit_length() - 1
    return f"2^{power}" if power > 31 and limit == 2**power else str(int(limit))


def _header(binary: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    types = re.findall(r"\d*[a-zA-Z]", binary["struct"])
    for name, letter in zip(binary["fields"], types, strict=True):
        yield f"`{name}`", _HEADER_TYPES[letter], _HEADER_FIELDS[name]


if __name__ == "__main__":
    sys.stdout.write(page())
