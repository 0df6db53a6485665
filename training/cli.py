"""Commands `streamgen compare`, `streamgen data`, `streamgen train`, `streamgen evaluate` and `streamgen export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.select import ENGINES

if TYPE_CHECKING:
    from streamgen.student import Student

RECIPES = Path(__file__).parent / "recipes"
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def data() -> None:
    """Look after training data."""


@data.command()
@click.argument("folder", type=_FOLDER)
def check(folder: Path) -> None:
    """Read every frame and every action of a FOLDER of videos to train on; the first fault ends it."""
    from training.footage import VideoDataError
    from training.videos import VideoActionDataset

    try:
        clips = VideoActionDataset(folder, 64, 64)
        frames = clips.check()
    except VideoDataError as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        f"{len(clips.videos)} videos, {frames} frames, {frames / clips.fps / 60:.1f} minutes at {clips.fps:g} frames "
        f"a second, keys {' '.join(clips.keys)}"
    )


@data.command()
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), required=True, help="Length of all clips together."
)
@click.option(
    "--identities",
    default="3",
    help="Whose heads: seeds such as 14,36,38 (14, for one alone), or how many of our choice.",
)
@click.option(
    "--voices-only", is_flag=True, help="Speech and what the mouth does, without pictures: a thousand times as fast."
)
@click.option(
    "--longest", "longest_s", type=click.FloatRange(min=0.1), default=30.0, help="Cut clips at so many seconds."
)
@click.option("--workers", type=click.IntRange(1), default=1, help="Processes; each renders on one core.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Decides what is said and done.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to fill or to go on with."
)
def avatar(
    minutes: float, identities: str, voices_only: bool, longest_s: float, workers: int, seed: int, out: Path
) -> None:
    """Render talking heads with their sound and what moved them, to train an avatar on."""
    try:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    except ImportError as error:
        raise click.ClickException(
            f"this needs rich: install streamgen with the extra `avatar-data` ({error})"
        ) from error

    from streamgen.say import SpeechError
    from training.talk.gl import RendererError
    from training.talk.performance import FPS
    from training.talk.record import Plan, RecordingError, cast, draw_sheet, prepare, record

    shown = TextColumn("{task.fields[made]:.1f} of " + f"{minutes:g} minutes")
    try:
        plan = Plan(out, cast(identities), seed, longest_s, not voices_only)
        prepare(plan)
        frames = round(minutes * 60 * FPS)
        made = sum(plan.lengths().values())
        with Progress(BarColumn(), shown, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
            task = progress.add_task("", total=frames, completed=made, made=made / FPS / 60)
            for length in record(plan, frames, workers):
                made += length
                progress.update(task, completed=made, made=made / FPS / 60)
        if plan.with_pictures:
            click.echo(draw_sheet(plan))
    except (RecordingError, RendererError, SpeechError) as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), help="Folder of the runs.")
@click.option("--threads", type=int, default=None, help="CPU threads; default: all cores.")
def train(recipe: str, overrides: tuple[str, ...], runs: Path, threads: int | None) -> None:
    """Run a stage from RECIPE, a YAML file or a name such as world/autoencoder; goes on where it was stopped."""
    torch = _torch()

    from streamgen.student import StudentError
    from training.distributed import start
    from training.footage import VideoDataError
    from training.loop import train as run
    from training.recipe import RecipeError, load_recipe
    from training.stages import build_stage

    path = Path(recipe) if Path(recipe).suffix else RECIPES / f"{recipe}.yaml"
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        settings = load_recipe(path, overrides)
        start()  # a stage may speak with the others while it is built
        run(build_stage(settings), runs / settings.name)
    except (RecipeError, StudentError, VideoDataError) as error:
        raise click.ClickException(str(error)) from error


def _torch() -> Any:
    """PyTorch, or a message for those who installed only what serving needs."""
    try:
        import torch
    except ImportError as error:
        raise click.ClickException(
            "this needs PyTorch: install streamgen with the extra `train` (`make dev`)"
        ) from error
    return torch


@click.command()
@click.argument("run", type=_FOLDER)
@click.option("--autoencoder", type=_FOLDER, default=Path("runs/world-autoencoder"))
@click.option(
    "--card",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="Markdown file for its card.",
)
@click.option(
    "--average",
    type=(_FOLDER, click.FloatRange(0, 1)),
    default=None,
    metavar="RUN SHARE",
    help="Mix in this share of the weights of another run of the same line.",
)
@click.option("--decoder", type=_FOLDER, default=None, help="Run of a decoder that learned what this student draws.")
@click.option("--name", default="world", help="The student's name.")
@click.option("--speech", type=_FOLDER, default=None, help="Run that hears, for a student that speech drives.")
@click.option(
    "--identity",
    "identities",
    type=(str, str),
    multiple=True,
    metavar="WHO NAME",
    help="Someone of the videos that it can be, and the name; default: all of them.",
)
@click.option(
    "--pictures", is_flag=True, help="It can be whoever a picture shows, which its face has learned (unread)."
)
@click.option("--sway", type=click.FloatRange(0, 1), default=1.0, help="Share of people's motion that an avatar has.")
@click.option("--steps", type=int, default=None, help="Steps to serve it with; default: as the run says.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Student folder to write.")
def export(
    run: Path,
    autoencoder: Path,
    card: Path | None,
    average: tuple[Path, float] | None,
    decoder: Path | None,
    name: str,
    speech: Path | None,
    identities: tuple[tuple[str, str], ...],
    pictures: bool,
    sway: float,
    steps: int | None,
    out: Path,
) -> None:
    """Make a student folder from a run: weights, graphs for the engines, starts and card."""
    _torch()

    from streamgen.student import NO_CARD, StudentError
    from training.footage import VideoDataError
    from training.package import package
    from training.recipe import RecipeError

    try:
        text = card.read_text() if card else f"# {name}\n\nExported from the run {run.name}. {NO_CARD}\n"
        people = dict(identities) or None
        package(
            run,
            autoencoder,
            out,
            text,
            name,
            average,
            speech,
            people,
            steps,
            decoder_run=decoder,
            pictures=pictures,
            sway=sway,
        )
    except (RecipeError, StudentError, VideoDataError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {sum(f.stat().st_size for f in out.rglob('*') if f.is_file()) / 1e6:.1f} MB")


@click.command()
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--recipes",
    type=_FOLDER,
    default=RECIPES / "compare",
    help="Folder of recipes of distillation; default: all methods.",
)
@click.option("--teacher", type=_FOLDER, required=True, help="Run folder of the teacher that all start from.")
@click.option("--autoencoder", type=_FOLDER, required=True, help="Run or student folder that the teacher learned with.")
@click.option("--data", type=_FOLDER, default=None, help="Folder of videos; default: the recorder of the world.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=8.0, help="Of training for each.")
@click.option("--processes", type=click.IntRange(1), default=2, help="That train together, and judge side by side.")
@click.option("--episodes", type=click.IntRange(1), default=3, help="Rollouts of a minute, each with a seed.")
@click.option("--seconds", type=click.FloatRange(min=4), default=60.0, help="Their length.")
@click.option("--long", "long_s", type=click.FloatRange(min=4), default=600.0, help="Length of one more rollout.")
@click.option("--engine", type=click.Choice(ENGINES), default="auto", help="Engine of the rollouts.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), help="Folder of the runs.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for the figures.")
def compare(
    overrides: tuple[str, ...],
    recipes: Path,
    teacher: Path,
    autoencoder: Path,
    data: Path | None,
    minutes: float,
    processes: int,
    episodes: int,
    seconds: float,
    long_s: float,
    engine: str,
    runs: Path,
    out: Path,
) -> None:
    """Train students by every method from one teacher, for as long each, and put them in one table."""
    _torch()

    from streamgen.models.loading import load_autoencoder, load_transformer
    from streamgen.student import StudentError
    from training.compare import Budget, compare as run
    from training.data import open_data
    from training.footage import VideoDataError
    from training.recipe import RecipeError

    try:
        side, config = load_autoencoder(autoencoder).config.latent_pixel, load_transformer(teacher).config
        clips = open_data(data, config.width * side, config.height * side)
        own = overrides if data is None else (*overrides, f"data={data}")
        budget = Budget(minutes, processes, episodes, seconds, long_s)
        figures = run(sorted(recipes.glob("*.yaml")), teacher, autoencoder, clips, runs, out, budget, own, engine)
    except (RecipeError, StudentError, VideoDataError) as error:
        raise click.ClickException(str(error)) from error
    click.echo((out / "compare.md").read_text())
    if left_out := figures["left_out"]:
        click.echo(f"Left out, since they make another history than this teacher's: {', '.join(left_out)}")


@click.command()
@click.option("--student", default="world", help="Shipped student or folder.")
@click.option("--engine", type=click.Choice(ENGINES), default="auto", help="Engine of the rollouts.")
@click.option(
    "--data",
    type=_FOLDER,
    default=None,
    help="Folder of videos to judge by; default: the recorder of the world, or the talking heads that come with this.",
)
@click.option("--speech", type=_FOLDER, default=None, help="For an avatar: folder of recorded speech, to say that too.")
@click.option(
    "--strangers",
    type=_FOLDER,
    default=None,
    help="For an avatar: folder of videos, two or more each, of people to be from a picture; default: the heads that "
    "come with this.",
)
@click.option(
    "--judges",
    type=_FOLDER,
    default=None,
    help="Run folder of judges, of which avatars have one; with it worlds are judged by control and drift.",
)
@click.option("--rollouts", type=click.IntRange(1), default=3, help="Episodes of free-running play, or long talks.")
@click.option("--seconds", type=click.FloatRange(min=4), default=60.0, help="Length of an episode.")
@click.option("--processes", type=click.IntRange(1), default=1, help="That play episodes or talks side by side.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), required=True, help="File for the figures."
)
@click.option(
    "--sheets",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Folder for pictures; default: beside the JSON file.",
)
def evaluate(
    student: str,
    engine: str,
    data: Path | None,
    speech: Path | None,
    strangers: Path | None,
    judges: Path | None,
    rollouts: int,
    seconds: float,
    processes: int,
    json_file: Path,
    sheets: Path | None,
) -> None:
    """Judge a student on held-out play or talk: PSNR, SSIM, control or lips, detail and drift, with pictures to look
    at.
    """
    _torch()

    import json

    from streamgen.student import Student, StudentError
    from training.data import open_data
    from training.evaluate import evaluate as judge
    from training.footage import VideoDataError
    from training.judges import load_judges
    from training.recipe import RecipeError

    json_file.parent.mkdir(parents=True, exist_ok=True)
    try:
        opened = Student.from_pretrained(student)
        pictures = sheets or json_file.parent
        if opened.config.speech is not None:
            figures = _evaluate_avatar(
                opened, data, judges, pictures, engine, seconds, rollouts, speech, strangers, processes
            )
        else:
            clips = open_data(data, opened.config.width, opened.config.height)
            trained = None if judges is None else load_judges(judges)
            figures = judge(opened, clips, pictures, engine, rollouts, seconds, trained, processes)
    except (RecipeError, StudentError, VideoDataError) as error:
        raise click.ClickException(str(error)) from error
    json_file.write_text(json.dumps(figures, indent=2) + "\n")
    click.echo(json.dumps(figures, indent=2))


def _evaluate_avatar(
    student: Student,
    data: Path | None,
    judges: Path | None,
    pictures: Path,
    engine: str,
    seconds: float,
    talks: int,
    speech: Path | None,
    strangers: Path | None,
    processes: int,
) -> dict[str, Any]:
    """Raises RecipeError, StudentError, VideoDataError."""
    from training.talk.dataset import TalkDataset
    from training.talk.evaluate import HELD_OUT, evaluate as judge
    from training.talk.judge import load_face_judge

    clips = TalkDataset(data or HELD_OUT, student.config.width, student.config.height)
    own = load_face_judge(judges or HELD_OUT)
    return judge(student, clips, own, pictures, engine, seconds, talks, speech, strangers, processes)
