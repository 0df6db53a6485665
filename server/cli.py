"""`streamgen serve`."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
import webbrowser
from functools import partial
from pathlib import Path
from typing import Any

import click

from engines.protocol import Engine
from engines.select import load_engine
from server import tracing
from server.listening import Server, bind, uvicorn_config
from server.logs import configure_logs
from server.settings import CONFIG_VARIABLE, Settings, SettingsError, load_settings
from server.students import Offer, open_students
from streamgen.student import StudentError

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
"""Of glibc's malloc.h."""


def build_engine(path: Path, engine: str, threads: int | None, streams: int) -> Engine:
    """Load the student on an engine. Runs in the worker process, the only one that imports a runtime."""
    return load_engine(path, engine, threads, streams)


def _options() -> list[click.Parameter]:
    """A flag for every setting. Values are passed on as they are written: `load_settings` reads and checks them."""
    options: list[click.Parameter] = []
    for name, field in Settings.model_fields.items():
        flag = "--" + name.replace("_", "-")
        options.append(
            click.Option(
                [f"{flag}/--no-{flag[2:]}" if field.annotation is bool else flag, name],
                default=None,
                multiple=isinstance(field.default, tuple) and name != "api_key_file",
                metavar=field.title,
                help=field.description,
                show_default=_shown(field.default),
                allow_from_autoenv=False,  # the environment is `load_settings`'s too
            )
        )
    return options


def _shown(default: object) -> str | bool:
    """What the help says of a default; nothing of one that sets nothing."""
    if default in (None, (), False):
        return False
    return " ".join(default) if isinstance(default, tuple) else str(default)


@click.command(params=_options())
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar=CONFIG_VARIABLE,
    help="YAML file of settings: the options below, with _ for -.",
)
def serve(config: Path | None, **flags: Any) -> None:
    """Serve students: generated video that people steer while they watch it.

    Every option is also an environment variable, such as STREAMGEN_SERVE_MAX_SESSIONS for --max-sessions, and a line of
    the file that --config names, such as `max_sessions: 4`. An option wins over a variable, a variable over the file.
    Several values are a list in the file and stand between white space in a variable.
    """
    try:
        settings = load_settings(config, {name: value for name, value in flags.items() if value not in (None, ())})
        students = open_students(settings.student)
    except (StudentError, SettingsError) as error:
        raise click.ClickException(str(error)) from error
    configure_logs(settings.log_json)
    tracing.start()
    try:
        listener = bind(settings.host, settings.port)
    except OSError as error:
        raise click.ClickException(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}"
        ) from error
    offers = [
        Offer(student, partial(build_engine, student.path, settings.engine, settings.threads, settings.max_sessions))
        for student in students
    ]
    server = Server(uvicorn_config(settings, offers))
    url = page_url(settings, listener.getsockname()[1])
    click.echo(f"{', '.join(student.config.name for student in students)} on {url}", err=True)
    if settings.open and has_display():
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    # uvicorn raises the signal again once it has ended in order; by then there is nothing left to end.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    # What is there now stays. Python looks through everything only after a quarter more has come, and of a hundred
    # thousand objects a quarter is many closed connections.
    gc.collect()
    gc.freeze()
    _keep_memory_together()
    server.run(sockets=[listener])


def _keep_memory_together() -> None:
    """Every thread that encodes would get an arena of its own from glibc, of which little is ever given back."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc only
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_MMAP_THRESHOLD, 128 * 1024)


def page_url(settings: Settings, port: int) -> str:
    """Where a browser on this machine finds the page."""
    host = settings.host
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{'https' if settings.tls_cert else 'http'}://{name}:{port}/"


def has_display() -> bool:
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
