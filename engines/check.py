"""Whether a student folder can be served or published: `streamgen student check`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.openvino import OpenVINOEngine
from engines.protocol import Engine, EngineError, StepRequest, StepResult
from streamgen.state import StreamState
from streamgen.student import NO_CARD, STARTS, WEIGHTS, Student, StudentError

_BLOCKS = 50
_TOLERANCE = 1e-4 + 2**-10
"""fp32 engines agree within 1e-4 of the latents' range; latents are rounded to fp16, one part in 1,024."""
_HARMLESS = {".json", ".md", ".onnx", ".png", ".safetensors"}
_CARD_CHARACTERS = 400


@dataclass(frozen=True)
class Finding:
    """ok: None where it could not be checked on this installation."""

    what: str
    ok: bool | None
    detail: str


class _Wrong(Exception):
    """A check failed; the message says why."""


def check_student(path: Path) -> Iterator[Finding]:
    """One finding after another; where the configuration cannot be read, that is the only one."""
    try:
        student = Student.from_pretrained(path)
    except StudentError as error:
        yield Finding("configuration", False, str(error))
        return
    yield Finding("configuration", True, f"{student.config.name}, {student.config.width}x{student.config.height}")
    yield Finding("hash", True, student.hash)
    for what, check in (("files", _files), ("starts", _starts), ("card", _card), ("weights", _weights)):
        yield _finding(what, check, student)
    try:
        engine = OpenVINOEngine(student, precision="fp32")
    except (EngineError, StudentError) as error:
        yield Finding("rollout", False, str(error))
        return
    for steps in sorted(student.config.step_plans):
        yield _finding(f"rollout, {steps} steps", partial(_rollout, engine=engine, steps=steps), student)
    yield _finding("parity with torch", partial(_parity, engine=engine), student)


def _finding(what: str, check: Callable[[Student], str | None], student: Student) -> Finding:
    try:
        detail = check(student)
    except (_Wrong, EngineError, StudentError) as error:
        return Finding(what, False, str(error))
    if detail is None:
        return Finding(what, None, "needs PyTorch: install streamgen with the extra `train`")
    return Finding(what, True, detail)


def _files(student: Student) -> str:
    for name in (*(f"{part}/{WEIGHTS}" for part in student.parts), STARTS, *student.graphs):
        student.file(name)
    files = [file for file in student.path.rglob("*") if file.is_file()]
    odd = sorted(str(file.relative_to(student.path)) for file in files if file.suffix not in _HARMLESS)
    if odd:
        raise _Wrong(f"{', '.join(odd)}: a student has no such files (weights are safetensors, never pickles)")
    return f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def _starts(student: Student) -> str:
    state = student.start(0)
    if not np.isfinite(state.latents).all():
        raise _Wrong(f"{STARTS}: values that are not finite")
    return f"{len(state.latents)} frames of history"


def _card(student: Student) -> str:
    card = student.path / "README.md"
    text = card.read_text() if card.is_file() else ""
    if len(text) < _CARD_CHARACTERS or NO_CARD in text:
        raise _Wrong("README.md says too little: what it was trained on, how, what it reaches, its limits, its licence")
    return text.splitlines()[0].lstrip("# ")


def _weights(student: Student) -> str | None:
    if find_spec("torch") is None:
        return None
    from streamgen.models.loading import load_autoencoder, load_transformer

    parts = {"transformer": load_transformer(student.path), "vae": load_autoencoder(student.path)}
    counts = []
    for name, model in parts.items():
        for key, value in model.state_dict().items():
            if not value.isfinite().all():
                raise _Wrong(f"{name}/{WEIGHTS}: {key} has values that are not finite")
        counts.append(f"{name} {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M")
    return ", ".join(counts)


def _keys(student: Student) -> NDArray[np.float32]:
    """Blocks of random keys, each held for a while, [blocks, F, A]."""
    config, rng = student.config, np.random.default_rng(0)
    held = (rng.random((_BLOCKS // 5, 1, config.action_dim)) < 0.3).astype(np.float32)
    return held.repeat(5, 0).repeat(config.transformer.block_size, 1)


def _step(engine: Engine, actions: NDArray[np.float32], steps: int) -> StepResult:
    result = engine.step([StepRequest("check", actions, steps)])[0]
    if not np.isfinite(result.latents).all():
        raise _Wrong(f"{engine.name}: frame {result.frame} has values that are not finite")
    return result


def _rollout(student: Student, engine: Engine, steps: int) -> str:
    def frames() -> NDArray[np.uint8]:
        engine.open("check", student.start(0))
        return np.concatenate([_step(engine, block, steps).frames for block in _keys(student)])

    first, again = frames(), frames()
    if not np.array_equal(first, again):
        raise _Wrong("the same seed and keys gave other frames the second time")
    flat = first.reshape(len(first), -1).std(1)
    if flat.min() < 1:
        raise _Wrong(f"frame {int(flat.argmin())} is one flat colour")
    return f"{len(first)} frames, the same twice"


def _parity(student: Student, engine: Engine) -> str | None:
    """Each block from the reference's state, so that errors do not add up."""
    if find_spec("torch") is None:
        return None
    from engines.torch import TorchEngine

    reference, state = TorchEngine(student), student.start(0)
    reference.open("check", state)
    worst, scale = 0.0, 0.0
    for block in _keys(student):
        engine.open("check", StreamState.from_bytes(state.to_bytes(), student.config, student.hash))
        wanted, got = (_step(e, block, student.config.steps).latents.astype(np.float32) for e in (reference, engine))
        worst, scale = max(worst, float(np.abs(got - wanted).max())), max(scale, float(np.abs(wanted).max()))
        state = state.extended(student.config, wanted.astype(np.float16), block)
    if worst > _TOLERANCE * scale:
        raise _Wrong(f"{engine.name} parts from torch by {worst / scale:.1e} of the latents' range")
    return f"{engine.name} within {worst / scale:.1e} of the latents' range over {_BLOCKS} blocks"
