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
import os
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, distributed, nn
from torch.utils.tensorboard import SummaryWriter

from training.data import Clip, ClipData, ClipSource, Share
from training.ema import EMA
from training.muon import Muon
from training.recipe import BaseRecipe, RecipeError

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


def _agree(precision: str, size: int) -> str:
    """The first process's choice, for all."""
    if size == 1:
        return precision
    choice = [precision]
    distributed.broadcast_object_list(choice)
    return choice[0]


def rank_and_size() -> tuple[int, int]:
    """This process's place under torchrun; (0, 1) without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def average_gradients(model: nn.Module, figures: dict[str, float], size: int) -> None:
    """Replace the gradients, and the figures beside them, by their mean over the processes."""
    if size == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor(list(figures.values()))])
    distributed.all_reduce(flat)
    *means, told = flat.div_(size).split([*(g.numel() for g in gradients), len(figures)])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
    figures.update(zip(figures, told.tolist(), strict=True))


def train(stage: Stage, folder: Path) -> None:
    """Run a stage to the end of its recipe in `folder`, going on from the checkpoint there if there is one."""
    recipe = stage.recipe
    rank, size = rank_and_size()
    if size > 1 and not distributed.is_initialized():
        distributed.init_process_group("gloo")
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    batches = size * recipe.accumulate
    identity = recipe.identity() | {"batches a step": batches, "data": stage.data.fingerprint()}
    optimizers = _optimizers(stage.model, recipe)
    ema = EMA(stage.model, recipe.ema)
    first, spent_s, kept_precision = _resume(folder / CHECKPOINT, identity, stage.model, ema, optimizers)
    precision = _agree(
        kept_precision or (recipe.precision if recipe.precision != "auto" else fastest_precision()), size
    )
    log = _Log(folder, first) if rank == 0 else None
    if log is not None:
        log.write(event="start", step=first, precision=precision, processes=size, recipe=recipe.model_dump(mode="json"))
    began = saved = time.monotonic()
    mine = Share(first * batches + rank * recipe.accumulate, recipe.accumulate, batches)
    clips = Share(mine.first * recipe.clips, mine.take * recipe.clips, mine.stride * recipe.clips)
    with (
        ClipSource(stage.data, recipe.seed, recipe.clip_length, recipe.data_workers, clips) as source,
        _progress(disable=rank > 0) as progress,
    ):
        task = progress.add_task(recipe.name, total=recipe.steps, completed=first, figures="")
        for step in range(first, recipe.steps):
            start = time.perf_counter()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = optimizer.defaults["lr"] * rate_at(step, recipe)
            stage.model.zero_grad(set_to_none=True)
            figures: dict[str, float] = {}
            for k in range(recipe.accumulate):
                number = mine.number((step - first) * recipe.accumulate + k)
                generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + number)
                batch = stage.batch([next(source) for _ in range(recipe.clips)], number)
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                    loss, told = stage.loss(batch, ema.model, generator)
                (loss / recipe.accumulate).backward()
                for name, value in {"loss": loss.item(), **told}.items():
                    figures[name] = figures.get(name, 0.0) + value / recipe.accumulate
            average_gradients(stage.model, figures, size)
            norm = nn.utils.clip_grad_norm_(stage.model.parameters(), recipe.clip)
            if torch.isfinite(norm):
                for optimizer in optimizers:
                    optimizer.step()
                ema.update(stage.model)
            if log is None:
                continue
            figures |= {"grad": norm.item(), "step_s": time.perf_counter() - start}
            log.step(step, figures)
            progress.update(task, advance=1, figures=f"loss {figures['loss']:.4f}  {figures['step_s']:.2f} s/step")
            done = step + 1
            if time.monotonic() - saved > recipe.checkpoint_every_s or done == recipe.steps:
                made_by = {"identity": identity, "precision": precision, "spent_s": spent_s + time.monotonic() - began}
                _save(folder / CHECKPOINT, done, made_by, stage.model, ema, optimizers)
                saved = time.monotonic()
            if done % recipe.evaluate_every == 0 or done == recipe.steps:
                result = stage.evaluate(ema.model, folder / f"sheet_{done:06d}.png")
                log.evaluation(done, result)
                progress.console.print(f"step {done}: " + "  ".join(f"{k} {v:.3f}" for k, v in result.items()))
    if log is not None:
        stage.finish(ema.model, folder)
        log.close()


def _optimizers(model: nn.Module, recipe: BaseRecipe) -> list[torch.optim.Optimizer]:
    """AdamW; with a matrix rate, Muon for the matrices and kernels inside of blocks and AdamW for the rest."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = name.startswith(_BLOCKS) and parameter.dim() in (2, 4) and parameter.shape[1] > 1
        (matrices if is_matrix and recipe.matrix_learning_rate is not None else rest).append(parameter)
    adamw = torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay)
    if recipe.matrix_learning_rate is None:
        return [adamw]
    return [adamw, Muon(matrices, lr=recipe.matrix_learning_rate, weight_decay=recipe.weight_decay)]


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


def _save(
    path: Path, step: int, made_by: dict[str, Any], model: nn.Module, ema: EMA, optimizers: list[torch.optim.Optimizer]
) -> None:
    """Atomic: a kill at any moment leaves the old checkpoint or the new one."""
    state = {
        "step": step,
        **made_by,
        "model": model.state_dict(),
        "ema": ema.model.state_dict(),
        "ema_updates": ema.updates,
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(
    path: Path, identity: dict[str, Any], model: nn.Module, ema: EMA, optimizers: list[torch.optim.Optimizer]
) -> tuple[int, float, str | None]:
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
    model.load_state_dict(state["model"])
    ema.model.load_state_dict(state["ema"])
    ema.updates = state["ema_updates"]
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    return int(state["step"]), float(state["spent_s"]), str(state["precision"])
