"""The training loop, one for all stages.

A stage owns the model, the data and the loss; the loop owns optimiser, EMA, precision, checkpoints, logs and progress.
A step averages the gradients of some batches, numbered from the run's start: `accumulate` of them in each process, one
after another. Data, times and noise are functions of (seed, batch), so a resumed run goes on as if it had never
stopped, and two processes do what one does with twice the accumulation.

Under torchrun every process has one CPU thread: on a CPU whose cores are shared with other work this beats one process
with many threads, whose barriers wait for the slowest core.
"""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from streamgen.models.transformer import CausalVideoTransformer
from training import distributed
from training.data import Clip, ClipData, ClipSource, Share
from training.ema import EMA
from training.muon import Muon
from training.recipe import BaseRecipe, RecipeError, TransformerRecipe

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
_BLOCKS = "blocks.", "before.", "deep.", "after."
"""Names of a transformer's blocks and of a face's."""


class Stage(Protocol):
    """What a stage gives the loop."""

    model: nn.Module

    @property
    def recipe(self) -> BaseRecipe: ...

    @property
    def data(self) -> ClipData: ...

    def batch(self, clips: list[Clip], number: int) -> Any:
        """What the loss takes, from a batch's clips; `number` is the batch's own, from the run's start."""
        ...

    def loss(self, batch: Any, ema: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Scalar loss and figures to log. All randomness comes from `generator`."""
        ...

    def evaluate(self, ema: nn.Module, sheet: Path) -> dict[str, float]:
        """Figures on held-out data; a contact sheet goes to `sheet`."""
        ...

    def finish(self, ema: nn.Module, folder: Path) -> None:
        """Write the trained weights into the run folder."""
        ...


@runtime_checkable
class Duel(Stage, Protocol):
    """A stage in which a model and its critic learn in turns, each from what the other is now."""

    critic: nn.Module | None
    """None: it is no duel after all."""

    def turn(self, step: int) -> nn.Module:
        """Begin a step: which of the two learns in it. What all processes draw alike depends on the step alone."""
        ...


def rate_at(step: int, recipe: BaseRecipe) -> float:
    """Share of the learning rate: warmup, stable, linear decay to zero (WSD)."""
    decay_steps = max(1, round(recipe.decay * recipe.steps))
    warm = min(1.0, (step + 1) / max(1, recipe.warmup))
    return warm * min(1.0, (recipe.steps - step) / decay_steps)


def fastest_precision() -> str:
    """bf16 where the CPU multiplies bf16 matrices clearly faster than fp32 ones (AMX, Zen 5), else fp32."""

    def seconds(dtype: torch.dtype) -> float:
        a, b = torch.randn(2048, 512, dtype=dtype), torch.randn(512, 512, dtype=dtype)
        best = float("inf")
        for _ in range(8):
            start = time.perf_counter()
            for _ in range(4):
                a @ b
            best = min(best, time.perf_counter() - start)
        return best

    return "bf16" if seconds(torch.bfloat16) < 0.7 * seconds(torch.float32) else "fp32"


def train(stage: Stage, folder: Path) -> None:
    """Run a stage to the end of its recipe in `folder`, going on from the checkpoint there if there is one."""
    recipe = stage.recipe
    rank, size = distributed.rank_and_size()
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    batches = size * recipe.accumulate
    identity = recipe.identity() | {"batches a step": batches, "data": stage.data.fingerprint()}
    run = _Run(stage)
    first, spent_s, kept_precision = run.resume(folder / CHECKPOINT, identity)
    precision = distributed.agreed(
        kept_precision or (recipe.precision if recipe.precision != "auto" else fastest_precision())
    )
    log = _Log(folder, first) if rank == 0 else None
    if log is not None:
        log.write(event="start", step=first, precision=precision, processes=size, recipe=recipe.model_dump(mode="json"))
    began = saved = time.monotonic()
    mine = Share(first * batches + rank * recipe.accumulate, recipe.accumulate, batches)
    clips = Share(mine.first * recipe.clips, mine.take * recipe.clips, mine.stride * recipe.clips)
    with (
        ClipSource(stage.data, recipe.seed, recipe.clip_length, recipe.data_workers, clips)
        if recipe.clips
        else nullcontext(iter(())) as source,
        _progress(disable=rank > 0) as progress,
    ):
        task = progress.add_task(recipe.name, total=recipe.steps, completed=first, figures="")
        for step in range(first, recipe.steps):
            start = time.perf_counter()
            player = run.turn(step)
            figures: dict[str, float] = {}
            for k in range(recipe.accumulate):
                number = mine.number((step - first) * recipe.accumulate + k)
                generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + number)
                batch = stage.batch([next(source) for _ in range(recipe.clips)], number)
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    loss, told = stage.loss(batch, run.ema.model, generator)
                (loss / recipe.accumulate).backward()
                for name, value in {"loss": loss.item(), **told}.items():
                    figures[name] = figures.get(name, 0.0) + value / recipe.accumulate
            distributed.average(player.module, figures)
            norm = distributed.whole(nn.utils.clip_grad_norm_(player.module.parameters(), recipe.clip))
            if torch.isfinite(norm):
                player.step(rate_at(step, recipe))
                if player.module is stage.model:
                    run.ema.update(stage.model)
            done = step + 1
            if log is not None:
                figures |= {"grad": norm.item(), "step_s": time.perf_counter() - start}
                log.step(step, {player.name + name: value for name, value in figures.items()})
                said = f"{player.name}loss {figures['loss']:.4f}  {figures['step_s']:.2f} s/step"
                progress.update(task, advance=1, figures=said)
            due = time.monotonic() - saved > recipe.checkpoint_every_s or done == recipe.steps
            if distributed.agreed(due) if run.in_pieces else due:
                spent = spent_s + time.monotonic() - began
                run.save(folder / CHECKPOINT, done, {"identity": identity, "precision": precision, "spent_s": spent})
                saved = time.monotonic()
            if (done % recipe.evaluate_every == 0 or done == recipe.steps) and log is not None:
                result = stage.evaluate(run.ema.model, folder / f"sheet_{done:06d}.png")
                log.evaluation(done, result)
                progress.console.print(f"step {done}: " + "  ".join(f"{k} {v:.3f}" for k, v in result.items()))
    if log is not None:
        stage.finish(run.ema.model, folder)
        log.close()


class _Run:
    """What changes from step to step: who learns, and the EMA of the one that is trained."""

    def __init__(self, stage: Stage) -> None:
        self._stage, recipe = stage, stage.recipe
        critic = stage.critic if isinstance(stage, Duel) else None
        self.ema = EMA(stage.model, recipe.ema)
        self.in_pieces = False
        if isinstance(recipe, TransformerRecipe):
            assert isinstance(stage.model, CausalVideoTransformer)
            if recipe.forget_activations:
                distributed.forget_activations(stage.model)
            self.in_pieces = recipe.shard and distributed.rank_and_size()[1] > 1
        for module in (stage.model, critic):
            if self.in_pieces and module is not None:
                distributed.cut(module)
        self._players = [_Player("", stage.model, recipe, recipe.learning_rate, recipe.matrix_learning_rate)]
        if critic is not None:
            rate = recipe.critic_learning_rate or recipe.learning_rate
            self._players.append(_Player("critic_", critic, recipe, rate, None))

    def turn(self, step: int) -> _Player:
        """Who learns in this step; the others do not."""
        learns = self._stage.turn(step) if isinstance(self._stage, Duel) else self._stage.model
        for player in self._players:
            player.learns(player.module is learns)
        return next(player for player in self._players if player.module is learns)

    def save(self, path: Path, step: int, made_by: dict[str, Any]) -> None:
        """Atomic: a kill at any moment leaves the old checkpoint or the new one. The first process writes it."""
        first = distributed.rank_and_size()[0] == 0
        if not first and not self.in_pieces:
            return
        models = [distributed.whole(player.module.state_dict()) for player in self._players]
        optimizers = [
            [distributed.whole(optimizer.state_dict()) for optimizer in player.optimizers] for player in self._players
        ]
        if not first:
            return
        state = {"step": step, **made_by, "models": models, "optimizers": optimizers}
        state |= {"ema": self.ema.model.state_dict(), "ema_updates": self.ema.updates}
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def resume(self, path: Path, identity: dict[str, Any]) -> tuple[int, float, str | None]:
        """Step, seconds spent and precision of the checkpoint. Raises RecipeError when another recipe made it."""
        if not path.exists():
            return 0, 0.0, None
        state = torch.load(path, map_location="cpu", weights_only=True)
        before: dict[str, Any] = state["identity"]
        other = sorted(key for key in identity.keys() | before.keys() if identity.get(key) != before.get(key))
        if other:
            raise RecipeError(
                f"{path} was made with another {', '.join(other)}: change it back, or give the run another name"
            )
        self.ema.model.load_state_dict(state["ema"])
        self.ema.updates = state["ema_updates"]
        for player, weights, optimizers in zip(self._players, state["models"], state["optimizers"], strict=True):
            distributed.load(player.module, weights)
            for optimizer, kept in zip(player.optimizers, optimizers, strict=True):
                distributed.load_optimizer(optimizer, kept)
        return int(state["step"]), float(state["spent_s"]), str(state["precision"])


class _Player:
    """A model that learns, with its optimisers: AdamW; with a matrix rate, Muon for the matrices and kernels inside of
    blocks and AdamW for the rest.
    """

    def __init__(
        self, name: str, module: nn.Module, recipe: BaseRecipe, rate: float, matrix_rate: float | None
    ) -> None:
        """name: before what is logged of it."""
        self.name, self.module = name, module
        self._trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for parameter_name, parameter in module.named_parameters():
            is_matrix = parameter_name.startswith(_BLOCKS) and parameter.dim() in (2, 4) and parameter.shape[1] > 1
            (matrices if is_matrix and matrix_rate is not None else rest).append(parameter)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=rate, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay)
        ]
        if matrix_rate is not None:
            self.optimizers.append(Muon(matrices, lr=matrix_rate, weight_decay=recipe.weight_decay))

    def learns(self, now: bool) -> None:
        """Gradients are made for it, or for what it is given alone."""
        self.module.zero_grad(set_to_none=True)
        for parameter in self._trainable:
            parameter.requires_grad_(now)

    def step(self, rate: float) -> None:
        """Learn from the gradients, at a share of the rates."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * rate
            optimizer.step()


def _progress(disable: bool) -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        refresh_per_second=1,
        disable=disable,
    )


class _Log:
    """The run's figures: lines of JSON in `log.jsonl`, and the same for TensorBoard."""

    def __init__(self, folder: Path, first: int) -> None:
        self._file = (folder / LOG).open("a", buffering=1)
        # What an interrupted run wrote after its last checkpoint is hidden.
        self._board = SummaryWriter(str(folder), purge_step=first)

    def write(self, **entry: Any) -> None:
        self._file.write(json.dumps(entry | {"time": round(time.time(), 1)}) + "\n")

    def step(self, step: int, figures: dict[str, float]) -> None:
        self.write(event="step", step=step, **figures)
        self._scalars("train", step, figures)

    def evaluation(self, step: int, figures: dict[str, float]) -> None:
        self.write(event="evaluate", step=step, **figures)
        self._scalars("evaluate", step, figures)

    def _scalars(self, group: str, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._board.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()
