"""The `streamgen-client` command."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from streamgen_client.client import StreamClient, Transport
from streamgen_client.errors import ClientError
from streamgen_client.load import load as load_server
from streamgen_client.recording import record as record_stream, talk as talk_with
from streamgen_client.script import length_s, read_script

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(context_settings={"auto_envvar_prefix": "STREAMGEN_CLIENT", "show_default": True})
@click.version_option(package_name="streamgen-client")
def main() -> None:
    """Watch and steer a streamgen server."""


@main.command()
@click.argument("url")
@click.option(
    "--keys",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Key script: lines of SECONDS [KEY ...].",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=None,
    help="Length; the script is repeated or cut. Default: as long as the script.",
)
@click.option("--transport", type=click.Choice(["webrtc", "websocket"]), default="webrtc")
@click.option(
    "--api-key", default="", help="For a server that asks for one; better as STREAMGEN_CLIENT_RECORD_API_KEY."
)
@click.option("--student", default=None, help="The student that is wanted. Default: the first that the server has.")
@click.option("--seed", type=click.IntRange(0), default=None, help="Of the stream. Default: the server's choice.")
@click.option("--out", type=_FILE, required=True, help="MP4 file to write.")
@click.option("--json", "json_file", type=_FILE, help="File for the figures.")
def record(
    url: str,
    keys: Path,
    seconds: float | None,
    transport: Transport,
    api_key: str,
    student: str | None,
    seed: int | None,
    out: Path,
    json_file: Path | None,
) -> None:
    """Walk by a script on the server at URL; write the video, and figures of what this client measured."""

    async def walk() -> dict[str, Any]:
        async with StreamClient(url, api_key=api_key, student=student, seed=seed, transport=transport) as stream:
            script = read_script(keys, stream.student.keys)
            length = length_s(script) if seconds is None else seconds
            return {"transport": transport} | await record_stream(stream, script, length, out)

    _write(walk(), out, json_file)


def _write(recording: Coroutine[Any, Any, dict[str, Any]], out: Path, json_file: Path | None) -> None:
    """Make a recording, and tell its figures. Raises click's exception for what goes wrong."""
    try:
        for path in (out, json_file):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asyncio.run(recording), indent=2)
        if json_file is not None:
            json_file.write_text(text + "\n")
    except (ClientError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(text)


@main.command()
@click.argument("url")
@click.option(
    "--wav", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="What it says."
)
@click.option("--api-key", default="", help="For a server that asks for one; better as STREAMGEN_CLIENT_TALK_API_KEY.")
@click.option("--student", default=None, help="The avatar that is wanted. Default: the first student of the server.")
@click.option("--identity", default=None, help="Who it is. Default: the first of its identities.")
@click.option(
    "--reference",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="A picture of whom it is to be instead: PNG, JPEG or WebP.",
)
@click.option("--seed", type=click.IntRange(0), default=None, help="Of the stream. Default: the server's choice.")
@click.option("--out", type=_FILE, required=True, help="MP4 file to write.")
@click.option("--json", "json_file", type=_FILE, help="File for the figures.")
def talk(
    url: str,
    wav: Path,
    api_key: str,
    student: str | None,
    identity: str | None,
    reference: Path | None,
    seed: int | None,
    out: Path,
    json_file: Path | None,
) -> None:
    """Let an avatar of the server at URL say a file; write what is seen and heard, and figures of what was measured."""

    picture = None if reference is None else reference.read_bytes()

    async def speak() -> dict[str, Any]:
        wish = {"student": student, "identity": identity, "reference": picture, "seed": seed}
        async with StreamClient(url, api_key=api_key, transport="websocket", **wish) as stream:  # type: ignore[arg-type]
            return await talk_with(stream, wav, out)

    _write(speak(), out, json_file)


@main.command()
@click.argument("url")
@click.option("--viewers", type=click.IntRange(1), default=1, help="How many try to get in, one after the other.")
@click.option("--seconds", type=click.FloatRange(min=1), default=10.0, help="How long those inside are measured.")
@click.option("--transport", type=click.Choice(["webrtc", "websocket"]), default="webrtc")
@click.option("--api-key", default="", help="For a server that asks for one; better as STREAMGEN_CLIENT_LOAD_API_KEY.")
def load(url: str, viewers: int, seconds: float, transport: Transport, api_key: str) -> None:
    """Watch the server at URL several times at once, each viewer with a session and keys of its own.

    Two lines of JSON: who was let in, when the measuring begins, and what they got, when it ends.
    """
    try:
        asyncio.run(
            load_server(url, viewers, seconds, transport, api_key, lambda figures: click.echo(json.dumps(figures)))
        )
    except ClientError as error:
        raise click.ClickException(str(error)) from error
