"""Commands `streamgen train`, `streamgen evaluate` and `streamgen export`."""

from __future__ import annotations

from pathlib import Path

import click

RECIPES = Path(__file__).parent / "recipes"


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), help="Folder of the runs.")
@click.option("--threads", type=int, default=None, help="CPU threads; default: all cores.")
def train(recipe: str, overrides: tuple[str, ...], runs: Path, threads: int | None) -> None:
    """Run a training stage from RECIPE, a YAML file or a name such as world/autoencoder. Goes on where it was stopped."""
    import torch

    from training.loop import CHECKPOINT, train as run
    from training.recipe import RecipeError, load_recipe
    from training.stages import build_stage

    path = Path(recipe) if Path(recipe).suffix else RECIPES / f"{recipe}.yaml"
    try:
        settings = load_recipe(path, overrides)
    except RecipeError as error:
        raise click.ClickException(str(error)) from error
    if threads is not None:
        torch.set_num_threads(threads)
    folder = runs / settings.name
    first = 0
    if (folder / CHECKPOINT).exists():
        first = int(torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)["step"])
    stage = build_stage(settings, first)
    try:
        run(stage, folder)
    finally:
        stage.close()
