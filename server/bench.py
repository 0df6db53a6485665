"""`streamgen bench`: how fast an engine is, what a person in a browser gets of it, and what many people get."""

from __future__ import annotations

import json
from pathlib import Path

import click

from engines.bench import bench as bench_engine
from engines.openvino import PRECISIONS
from engines.protocol import EngineError
from engines.select import ENGINES
from server.bench_browser import bench_browser
from server.bench_load import bench_load, table
from streamgen.student import Student, StudentError

_MOST_VIEWERS = 64


def _counts(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    counts = text.split(",")
    if not all(count.isdecimal() and 1 <= int(count) <= _MOST_VIEWERS for count in counts):
        raise click.BadParameter(f"{text!r}: give numbers from 1 to {_MOST_VIEWERS}, such as 1,2,4")
    return [int(count) for count in counts]


@click.command()
@click.option("--student", default="world", help="Shipped student or folder.")
@click.option("--engine", type=click.Choice(ENGINES), default="auto")
@click.option("--streams", type=click.IntRange(1, 64), default=1, help="Streams on the engine, stepped in turn.")
@click.option("--seconds", type=click.FloatRange(min=0.5), default=10.0)
@click.option("--steps", type=click.IntRange(1), default=None, help="Denoising steps; default: the student's own.")
@click.option("--precision", type=click.Choice(list(PRECISIONS)), default=None, help="Default: the fastest here.")
@click.option("--browser", is_flag=True, help="Also start a server and play in headless Chromium (extra `dev`).")
@click.option("--load", is_flag=True, help="Also start servers and have many watch at once (extra `dev`).")
@click.option(
    "--viewers", callback=_counts, metavar="N[,N…]", default="1,2,4,8", help="With --load: how many want to watch."
)
@click.option("--transport", type=click.Choice(["webrtc", "websocket", "both"]), default="both", help="With --load.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="File for the figures.")
def bench(
    student: str,
    engine: str,
    streams: int,
    seconds: float,
    steps: int | None,
    precision: str | None,
    browser: bool,
    load: bool,
    viewers: list[int],
    transport: str,
    json_file: Path | None,
) -> None:
    """Measure a student on an engine; all figures come from this run on this machine."""
    try:
        opened = Student.from_pretrained(student)
        if steps is not None and steps not in opened.config.step_plans:
            plans = sorted(opened.config.step_plans)
            raise click.ClickException(f"{steps} steps; student {opened.config.name} has plans for {plans}")
        if json_file is not None:
            json_file.parent.mkdir(parents=True, exist_ok=True)
        figures = bench_engine(opened, engine, streams, seconds, steps, precision)
    except (EngineError, StudentError) as error:
        raise click.ClickException(str(error)) from error
    if browser:
        figures["browser"] = bench_browser(opened, engine, seconds)
    if load:
        transports = ("webrtc", "websocket") if transport == "both" else (transport,)
        figures["load"] = bench_load(opened, engine, viewers, transports, seconds)
        click.echo(table(figures["load"]), err=True)
    text = json.dumps(figures, indent=2)
    if json_file is not None:
        json_file.write_text(text + "\n")
    click.echo(text)
