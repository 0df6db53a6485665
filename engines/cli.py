"""Commands `streamgen build`, `streamgen generate`, `streamgen plan`, `streamgen replay` and `streamgen student`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from engines.plan import CARDS, LAYOUTS
from engines.select import ENGINES

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_KEPT_RATE = 48_000
"""Samples a second of the sound in a video."""


@click.command()
@click.option("--student", default="world", help="Shipped student or folder.")
@click.option("--engine", type=click.Choice(ENGINES), default="auto")
@click.option("--actions", type=_FILE, default=None, help="For a world, an action script: lines of SECONDS [KEY ...].")
@click.option("--audio", type=_FILE, default=None, help="For an avatar, what it says: a file with sound.")
@click.option("--identity", default=None, help="Who an avatar is; default: the first of the student's.")
@click.option("--reference", type=_FILE, default=None, help="A picture of whom it is to be instead: PNG, JPEG or WebP.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=None,
    help="Length; the script or the sound is repeated or cut. Default: as long as that.",
)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0)
@click.option("--steps", type=int, default=None, help="Denoising steps; default: the student's own.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="MP4 file to write.")
def generate(
    student: str,
    engine: str,
    actions: Path | None,
    audio: Path | None,
    identity: str | None,
    reference: Path | None,
    seconds: float | None,
    seed: int,
    steps: int | None,
    out: Path,
) -> None:
    """Generate a video offline: the frames that a server which is not busy would send for the same seed and keys, or
    the same sound.
    """
    import numpy as np

    from engines import generate as offline
    from engines.protocol import EngineError
    from engines.reference import PictureError, References
    from engines.select import load_engine
    from streamgen.audio import SAMPLE_RATE, SoundError, read_sound
    from streamgen.script import ScriptError, read_script
    from streamgen.student import Student, StudentError

    try:
        opened = Student.from_pretrained(student)
        config = opened.config
        if (config.speech is None) != (audio is None) or (config.speech is None) != (actions is not None):
            wanted = "an action script: --actions FILE" if config.speech is None else "sound: --audio FILE"
            raise click.ClickException(f"student {config.name} is driven by {wanted}")
        if steps is not None and steps not in config.step_plans:
            raise click.ClickException(
                f"{steps} steps; student {config.name} has plans for {sorted(config.step_plans)}"
            )
        if identity is not None and reference is not None:
            raise click.ClickException("--identity and --reference: give one of them")
        whom = None if reference is None else References(opened).read(reference.read_bytes())
        running = load_engine(opened.path, engine)
        if audio is not None:
            heard, kept = read_sound(audio), read_sound(audio, _KEPT_RATE)
            if seconds is not None:
                heard, kept = (np.resize(x, round(seconds * r)) for x, r in ((heard, SAMPLE_RATE), (kept, _KEPT_RATE)))
            frames = offline.speak(running, opened, heard, seed, identity, whom, steps)
            written = offline.write_video(frames, out, config, scale=2, sound=(kept, _KEPT_RATE))
        else:
            assert actions is not None
            script = read_script(actions, config.keys, config.fps)
            count = len(script) if seconds is None else round(seconds * config.fps)
            script = np.resize(script, (count, script.shape[1]))
            written = offline.write_video(offline.generate(running, opened, script, seed, steps), out, config)
    except (EngineError, PictureError, ScriptError, SoundError, StudentError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {written} frames, {written / config.fps:.1f} s")


@click.command()
@click.argument("log", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--student", default=None, help="Shipped student or folder; default: the shipped one that the log names.")
@click.option("--engine", type=click.Choice(ENGINES), default=None, help="Default: the one that the server had.")
@click.option("--generation", type=click.IntRange(0), default=None, help="Only this one; a reset begins the next.")
@click.option("--from", "first", type=click.IntRange(0), default=0, help="Number of the first frame to write.")
@click.option("--to", "last", type=click.IntRange(0), default=None, help="Number of the last one; default: all.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="MP4 or NPZ file to write.")
def replay(
    log: Path,
    student: str | None,
    engine: str | None,
    generation: int | None,
    first: int,
    last: int | None,
    out: Path | None,
) -> None:
    """Make a session's frames again from its LOG, and compare them with those that the server sent; exit code 1 if any
    differs.

    An NPZ file has `frames` uint8 [N, H, W, 3], `frame` and `generation` [N].
    """
    from itertools import chain

    import numpy as np

    from engines.generate import write_video
    from engines.protocol import EngineError
    from engines.replay import Comparison, replay as replay_log
    from engines.select import load_engine
    from streamgen.session_log import LogError, read_log
    from streamgen.student import Student, StudentError, shipped_students

    if out is not None and out.suffix not in (".mp4", ".npz"):
        raise click.ClickException(f"{out}: give a file that ends in .mp4 or .npz")
    try:
        read = read_log(log)
        named = read.header.student
        if student is None and named not in shipped_students():
            # A log may come from anywhere: what it names is neither looked for in folders nor fetched.
            raise LogError(f"{log}: student {named} does not come with streamgen: give its folder with --student")
        opened = Student.from_pretrained(student or named)
        recorded_on = read.header.engine if read.header.engine in ENGINES else "auto"
        precision = read.header.precision if recorded_on == "openvino" else None
        running = load_engine(opened.path, engine or recorded_on, streams=1, precision=precision)
        compared = Comparison()
        frames = (
            (block.generation, number, rgb)
            for block in compared.watch(replay_log(running, opened, read, generation, last))
            for number, rgb in enumerate(block.frames, block.frame)
            if number >= first and (last is None or number <= last)
        )
        begin = next(frames, None)
        if begin is None:
            raise LogError(f"{log}: has no such frames; it has {len(read.generations)} generations, numbered from 0")
        wanted = chain([begin], frames)
        if out is None:
            written = sum(1 for _ in wanted)
        elif out.suffix == ".mp4":
            written = write_video((rgb for _, _, rgb in wanted), out, opened.config)
        else:
            generations, numbers, pictures = zip(*wanted, strict=True)
            np.savez_compressed(out, frames=np.stack(pictures), frame=numbers, generation=generations)
            written = len(pictures)
    except (EngineError, LogError, OSError, StudentError) as error:
        raise click.ClickException(str(error)) from error
    header = read.header
    click.echo(f"{out or log}: {written} frames, {written / opened.config.fps:.1f} s")
    click.echo(f"{compared.equal} of {compared.blocks} blocks equal those that were sent")
    if header.left_out_blocks:
        click.echo(f"the log was full before the session's end: {header.left_out_blocks} blocks are not in it")
    if compared.different is not None:
        generation, frame = compared.different
        click.echo(f"the first that differs: frame {frame} of generation {generation}")
        click.echo(f"sent by {header.engine} in {header.precision} on {header.device}")
        click.echo(f"replayed by {running.name} in {running.precision} on {running.device}")
        raise SystemExit(1)


@click.command()
@click.option("--student", default="world", help=f"Shipped student or folder, or {' or '.join(LAYOUTS)}.")
@click.option("--gpu", type=click.Choice(tuple(CARDS)), required=True)
@click.option("--steps", type=click.IntRange(min=1), default=None, help="Denoising steps; default: the student's own.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), default=None)
def plan(student: str, gpu: str, steps: int | None, json_file: Path | None) -> None:
    """What a student would reach at most on a GPU: frames a second, rows, memory, and what limits it. On paper: nothing
    is run or measured.
    """
    from engines import plan as paper
    from streamgen.student import StudentError

    try:
        figures = paper.plan(paper.planned(student, steps), CARDS[gpu])
    except (StudentError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(paper.table(figures))
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


@click.command()
@click.option("--student", default="world", help="Shipped student or folder.")
@click.option("--engine", type=click.Choice(("tensorrt",)), default="tensorrt")
@click.option("--gpu", required=True, help=f"Compute capability, as sm_89, or one of {', '.join(CARDS)}.")
@click.option("--rows", type=click.IntRange(1, 1024), default=4, help="Streams that are calculated together.")
@click.option("--precision", type=click.Choice(("fp16", "bf16")), default="fp16")
@click.option(
    "--quantize",
    type=click.Choice(("int8", "fp8", "int8-weights", "int4-weights")),
    default=None,
    help="Fewer bits for convolutions and linear layers, or for the pass's linear layers' weights alone; says what it "
    "does to the frames. `serve` takes engines without.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), default=None)
def build(
    student: str,
    engine: str,
    gpu: str,
    rows: int,
    precision: str,
    quantize: str | None,
    json_file: Path | None,
) -> None:
    """Compile a student for a GPU, and say what came of it; for RTX cards on any machine. What `serve` with that engine
    would make at its first start lies ready then.
    """
    from engines.protocol import EngineError
    from engines.tensorrt.build import built
    from streamgen.student import Student, StudentError

    try:
        module = CARDS[gpu].module if gpu in CARDS else gpu
        made = built(Student.from_pretrained(student), module, rows, precision, quantize=quantize)
    except (EngineError, StudentError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(made.table())
    if json_file is not None:
        json_file.write_text(json.dumps(made.figures(), indent=2) + "\n")


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
