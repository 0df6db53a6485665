"""`streamgen serve`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import webbrowser
from functools import partial
from pathlib import Path

import click
import uvicorn

from engines.protocol import Engine
from engines.select import ENGINES, load_engine
from server.listening import bind, uvicorn_config
from server.logs import configure_logs
from server.settings import IceServer, Settings
from streamgen.student import Student, StudentError


def build_engine(path: Path, engine: str, threads: int | None, streams: int) -> Engine:
    """Load the student on an engine. Runs in the worker process, the only one that imports a runtime."""
    return load_engine(path, engine, threads, streams)


@click.command()
@click.option("--host", default="127.0.0.1", help="Address to bind; 0.0.0.0 lets other machines in.")
@click.option("--port", default=8000, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--student", default="world", help="Name of a shipped student, or a folder.")
@click.option("--engine", default="auto", type=click.Choice(ENGINES), help="Runtime of the student.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads of the engine.")
@click.option("--max-sessions", default=8, type=click.IntRange(1, 1024))
@click.option("--media-ip", help="IP address to put into ICE candidates instead of the bound one.")
@click.option("--ice-server", multiple=True, metavar="URL[,USER,CREDENTIAL]", help="STUN or TURN server.")
@click.option("--allow-host", multiple=True, help="Another host name under which the server answers.")
@click.option("--allow-origin", multiple=True, help="Another site whose pages may use the server.")
@click.option("--log-json", is_flag=True, help="Log JSON lines.")
@click.option(
    "--open/--no-open",
    "open_browser",
    envvar="STREAMGEN_SERVE_OPEN",
    default=False,
    help="Open the page in a browser when there is a display.",
)
def serve(
    host: str,
    port: int,
    student: str,
    engine: str,
    threads: int | None,
    max_sessions: int,
    media_ip: str | None,
    ice_server: tuple[str, ...],
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    log_json: bool,
    open_browser: bool,
) -> None:
    """Serve a student: generated video that people steer while they watch it."""
    configure_logs(log_json)
    try:
        opened = Student.from_pretrained(student)
        settings = Settings(
            host=host,
            media_ip=media_ip,
            ice_servers=tuple(map(IceServer.parse, ice_server)),
            allowed_hosts=allow_host,
            allowed_origins=allow_origin,
            max_sessions=max_sessions,
        )
        listener = bind(host, port)
    except (StudentError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    build = partial(build_engine, opened.path, engine, threads, max_sessions)
    server = uvicorn.Server(uvicorn_config(settings, opened, build))
    url = page_url(host, listener.getsockname()[1])
    click.echo(f"{opened.config.name} on {url}", err=True)
    if open_browser and has_display():
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    # uvicorn raises the signal again once it has ended in order; by then there is nothing left to end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])


def page_url(host: str, port: int) -> str:
    """Where a browser on this machine finds the page."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}/"


def has_display() -> bool:
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
