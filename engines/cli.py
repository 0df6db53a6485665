"""Commands `streamgen generate` and `streamgen student`."""

from __future__ import annotations

from pathlib import Path

import click

from engines.select import ENGINES


@click.command()
@click.option("--student", default="world", help="Shipped student or folder.")
@click.option("--engine", type=click.Choice(ENGINES), default="auto")
@click.option(
    "--actions",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="Action script: lines of SECONDS [KEY ...].",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=None,
    help="Length; the script is repeated or cut. Default: as long as the script.",
)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0)
@click.option("--steps", type=int, default=None, help="Denoising steps; default: the student's own.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="MP4 file to write.")
def generate(
    student: str, engine: str, actions: Path, seconds: float | None, seed: int, steps: int | None, out: Path
) -> None:
    """Generate a video offline: the frames that the server would send for the same seed and keys."""
    import numpy as np

    from engines import generate as offline
    from engines.protocol import EngineError
    from engines.select import load_engine
    from streamgen.script import ScriptError, read_script
    from streamgen.student import Student, StudentError

    try:
        opened = Student.from_pretrained(student)
        config = opened.config
        script = read_script(actions, config.keys, config.fps)
        if steps is not None and steps not in config.step_plans:
            raise click.ClickException(
                f"{steps} steps; student {config.name} has plans for {sorted(config.step_plans)}"
            )
        count = len(script) if seconds is None else round(seconds * config.fps)
        script = np.resize(script, (count, script.shape[1]))
        frames = offline.generate(load_engine(opened.path, engine), opened, script, seed, steps)
        written = offline.write_video(frames, out, config)
    except (EngineError, ScriptError, StudentError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {written} frames, {written / config.fps:.1f} s")


@click.group()
def student() -> None:
    """Look after student folders."""


@student.command()
@click.argument("folder", type=click.Path(path_type=Path))
def check(folder: Path) -> None:
    """Check a student FOLDER (or a shipped student) before it is served or published; exit code 1 if it should not
    be.
    """
    from engines.check import check_student

    failed = False
    for finding in check_student(folder):
        mark = {True: "ok", False: "FAILED", None: "not checked"}[finding.ok]
        click.echo(f"{mark:>11}  {finding.what}: {finding.detail}")
        failed |= finding.ok is False
    raise SystemExit(int(failed))
