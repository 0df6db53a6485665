"""Proves the engines on a machine: each against the reference, the kernels against plain torch, and how fast all are.

    python -m engines.gpu_check [--student NAME …] [--json FILE]

Needs no network, works with whatever runtimes are installed, and lists what it left out. Without a GPU it checks the
engines that a CPU runs.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np

from engines.plan import CARDS, Card
from engines.protocol import Engine, EngineError, EngineFull, StepRequest, StepResult
from engines.select import load_engine
from streamgen.audio import MEL_BINS, SILENCE
from streamgen.state import StreamState
from streamgen.student import Student, StudentError, shipped_students
from streamgen.work import frame_flops

_FRAMES, _ANEW = 200, 10
"""Blocks of a rollout, and after how many of them an engine's streams begin anew from the reference's state, so that
what is rounded differently does not add up.
"""
_STREAMS = 4
_JOINS = 7
"""Blocks after which the next stream joins: rows stand at different frames."""
_TOLERANCE = {"fp32": 2e-3, "fp16": 0.02, "bf16": 0.1}
"""Of the latents' range. What is kept of them is fp16, which may fall either way: a thousandth, several times over. Of
other precisions it is only said how far they are off.
"""
_ROWS, _ROWS_ON_CPU = (1, 4, 16, 64), (1, 4)
_SECONDS = 3.0
_PACKAGES = (
    "torch",
    "triton",
    "flash-attn",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "torch-tensorrt",
    "torch-tensorrt-rtx",
    "cuda-bindings",
    "openvino",
)


@dataclass(frozen=True)
class Finding:
    """ok: None where nothing was asserted. figures: by name."""

    what: str
    ok: bool | None
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Runtime:
    """An engine in a precision; `make` starts it for so many streams, which are one batch where it has batches."""

    name: str
    precision: str
    make: Callable[[Student, int], Engine]


def check(students: list[Student], frames: int, seconds: float, left_out: list[str]) -> Iterator[Finding]:
    """One finding after another; what cannot be run is added to `left_out`."""
    yield Finding("machine", None, _machine())
    runtimes = list(_runtimes(left_out))
    card, gpu = _card(), _gpu() is not None
    if card is None:
        left_out.append("shares of a card's rates: no GPU, or one that `streamgen plan` does not know")
    for student in students:
        blocks = _reference(student, frames)
        for runtime in runtimes:
            what = f"{student.config.name} on {runtime.name} in {runtime.precision}"
            try:
                yield _parity(what, student, runtime, blocks)
                for rows in _ROWS if gpu else _ROWS_ON_CPU:
                    yield _speed(what, student, runtime, rows, seconds, card)
            except EngineError as error:
                left_out.append(f"{what}: {error}")
    yield from _kernels(left_out)


def _machine() -> dict[str, Any]:
    found: dict[str, Any] = {"cpu": platform.processor() or platform.machine(), "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"gpu": _gpu()}


def _gpu() -> str | None:
    from engines.tensorrt.cuda import CudaDevice

    try:
        device = CudaDevice()
    except EngineError:
        return None
    return f"{device.name} ({device.capability})"


def _card() -> Card | None:
    """What is known of this machine's GPU."""
    words = set(re.findall(r"[a-z0-9]+", (_gpu() or "").lower()))
    return next((card for name, card in CARDS.items() if name.rpartition("-")[2] in words), None)


def _runtimes(left_out: list[str]) -> Iterator[Runtime]:
    def through(name: str, precision: str) -> Runtime:
        return Runtime(name, precision, lambda s, rows: load_engine(s.path, name, streams=rows, precision=precision))

    def onnxruntime(precision: str) -> Runtime:
        def make(student: Student, rows: int) -> Engine:
            from engines.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(student, rows, rows=rows, precision=precision)

        return Runtime("onnxruntime", precision, make)

    def tensorrt(precision: str) -> Runtime:
        def make(student: Student, rows: int) -> Engine:
            from engines.tensorrt.engine import TensorRTEngine

            return TensorRTEngine(student, rows, rows, precision)

        return Runtime("tensorrt", precision, make)

    def torch_batches(name: str, precision: str) -> Runtime:
        def make(student: Student, rows: int) -> Engine:
            from engines.torch import TorchBatches
            from engines.torch_tensorrt import TorchTensorRTEngine

            kind = TorchBatches if name == "torch" else TorchTensorRTEngine
            return kind(student, rows, rows, precision)

        return Runtime(name, precision, make)

    for precision in ("fp32", "int8"):
        yield through("openvino", precision)
    gpu = _gpu() is not None
    if find_spec("onnxruntime") is None:
        left_out.append("onnxruntime: not installed")
    else:
        yield from map(onnxruntime, ("fp32", "fp16") if gpu else ("fp32",))
    if not gpu:
        left_out.append("tensorrt, torch_tensorrt, and torch in batches: no GPU")
        return
    yield from map(tensorrt, ("fp16", "bf16"))
    yield torch_batches("torch", "fp16")
    if find_spec("torch_tensorrt") is None:
        left_out.append("torch_tensorrt: not installed")
    else:
        yield torch_batches("torch_tensorrt", "fp16")


def _request(student: Student, stream: int, index: int, steps: int) -> StepRequest:
    """Of a stream's block: keys that are held for a while, and some sound where the student hears."""
    config = student.config
    held, rng = np.random.default_rng([stream, index // 5]), np.random.default_rng([stream, index])
    shape = config.transformer.block_size, config.action_dim
    actions = (held.random(shape) < 0.3).astype(np.float32)
    mel = None
    if config.speech is not None:
        sound = config.transformer.block_size, config.speech.window, MEL_BINS
        mel = np.minimum(0, rng.normal(SILENCE / 2, 1.0, sound)).astype(np.float32)
    return StepRequest(str(stream), actions, steps, mel)


@dataclass(frozen=True)
class _Block:
    """What an engine is asked, and what the reference answers. opens: streams that begin anew before, from where the
    reference stands.
    """

    opens: dict[str, StreamState]
    requests: list[StepRequest]
    wanted: list[StepResult]


def _reference(student: Student, frames: int) -> list[_Block]:
    """A rollout of several streams that begin one after another. Nothing without PyTorch."""
    if find_spec("torch") is None:
        return []
    from engines.torch import TorchEngine

    config = student.config
    # One thread: several wait for each other in turns where others have the cores too.
    reference, plans = TorchEngine(student, _STREAMS, threads=1), sorted(config.step_plans)
    states = {stream: student.start(stream) for stream in range(_STREAMS)}
    blocks = []
    for index in range(frames):
        live = [stream for stream in states if index >= stream * _JOINS]
        for stream in live:
            if index == stream * _JOINS:
                reference.open(str(stream), states[stream])
        anew = [stream for stream in live if index % _ANEW == 0 or index == stream * _JOINS]
        opens = {str(stream): states[stream] for stream in anew}
        requests = [_request(student, stream, index, plans[(index + stream) % len(plans)]) for stream in live]
        wanted = reference.step(requests)
        for stream, made in zip(live, wanted, strict=True):
            states[stream] = states[stream].extended(config, made.latents, made.actions)
        blocks.append(_Block(opens, requests, [replace(made, frames=made.frames[:0]) for made in wanted]))
    return blocks


def _parity(what: str, student: Student, runtime: Runtime, blocks: list[_Block]) -> Finding:
    """One step, and a rollout of several rows that stand at different frames, against the reference."""
    if not blocks:
        return Finding(f"parity: {what}", None, {"left out": "no PyTorch, which is the reference"})
    engine = runtime.make(student, _STREAMS)
    first, worst, scale = 0.0, 0.0, 0.0
    for index, block in enumerate(blocks):
        for name, state in block.opens.items():
            engine.open(name, state)
        for wanted, got in zip(block.wanted, engine.step(block.requests), strict=True):
            assert wanted.frame == got.frame
            apart = np.abs(got.latents.astype(np.float32) - wanted.latents.astype(np.float32)).max()
            # Not `max`, which loses what is no number.
            worst, scale = float(np.maximum(worst, apart)), max(scale, float(np.abs(wanted.latents).max()))
        if index == 0:
            first = worst / scale
    allowed, whole = _TOLERANCE.get(engine.precision), worst / scale
    figures = {"one step": first, f"{len(blocks)} blocks": whole, "allowed": allowed}
    return Finding(f"parity: {what}", None if allowed is None else whole <= allowed, figures)


def _speed(what: str, student: Student, runtime: Runtime, rows: int, seconds: float, card: Card | None) -> Finding:
    """Frames a second of so many rows, and how long the first one takes from nothing."""
    config = student.config
    begun = time.perf_counter()
    engine = runtime.make(student, rows)
    if rows > 1 and engine.capacity.rows == (1,):
        return Finding(f"speed: {what}, {rows} rows", None, {"left out": "it calculates one row at a time"})
    try:
        for stream in range(rows):
            engine.open(str(stream), student.start(stream))
    except EngineFull as error:
        return Finding(f"speed: {what}, {rows} rows", None, {"left out": str(error)})

    def step(index: int) -> None:
        engine.step([_request(student, stream, index, config.steps) for stream in range(rows)])

    step(0)
    first_s = time.perf_counter() - begun
    for index in range(1, 5):
        step(index)
    begun, blocks = time.perf_counter(), 0
    while (took := time.perf_counter() - begun) < seconds:
        step(5 + blocks)
        blocks += 1
    fps = blocks * config.transformer.block_size * rows / took
    flop_s = fps * frame_flops(config, config.steps)
    figures: dict[str, Any] = {"fps a row": fps / rows, "fps": fps, "first frame s": first_s, "TFLOP/s": flop_s / 1e12}
    if card is not None:
        from engines.plan import moved_bytes, planned

        moved = moved_bytes(planned(student.path), rows) * blocks / took
        figures |= {
            "share of FLOP rate": flop_s / 1e12 / card.tflops,
            "share of bandwidth": moved / 1e9 / card.gigabytes_s,
        }
    return Finding(f"speed: {what}, {rows} rows", None, figures)


def _kernels(left_out: list[str]) -> Iterator[Finding]:
    if find_spec("torch") is None or find_spec("triton") is None:
        left_out.append("Triton kernels: torch or triton is not installed")
        return
    from engines.kernels.measure import measure, usable

    if not usable():
        left_out.append("Triton kernels: no GPU that torch sees (the tests run them in Triton's interpreter)")
        return
    for name, ok, figures in measure():
        yield Finding(f"kernel: {name}", ok, figures)


def table(findings: list[Finding], left_out: list[str]) -> str:
    """The findings for people to read."""
    lines = []
    for found in findings:
        mark = {True: "ok", False: "FAILED", None: ""}[found.ok]
        figures = ", ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in found.figures.items()
        )
        lines.append(f"{mark:>6}  {found.what}: {figures}")
    return "\n".join([*lines, *(f"  left out  {each}" for each in left_out)])


@click.command()
@click.option("--student", "names", multiple=True, help="Shipped student or folder; default: all that are shipped.")
@click.option("--frames", type=click.IntRange(1), default=_FRAMES, help="Blocks of each rollout.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=_SECONDS, help="Of each measurement of speed.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), default=None)
def main(names: tuple[str, ...], frames: int, seconds: float, json_file: Path | None) -> None:
    """Check every engine of this machine; exit code 1 if one of them is wrong."""
    try:
        students = [Student.from_pretrained(name) for name in names or shipped_students()]
    except StudentError as error:
        raise click.ClickException(str(error)) from error
    left_out: list[str] = []
    findings: list[Finding] = []
    for found in check(students, frames, seconds, left_out):
        findings.append(found)
        click.echo(table([found], []))
    click.echo(table([], left_out))
    if json_file is not None:
        report = {"findings": [asdict(found) for found in findings], "left_out": left_out}
        json_file.write_text(json.dumps(report, indent=2) + "\n")
    raise SystemExit(int(any(found.ok is False for found in findings)))


if __name__ == "__main__":
    main()
