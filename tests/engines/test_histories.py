"""Students whose cache keeps what a denoising step made, and students that jump between noise levels: on every engine
as in the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from engines.generate import generate
from engines.onnxruntime import OnnxRuntimeEngine
from engines.openvino import OpenVINOEngine
from engines.protocol import Engine, StepRequest
from engines.replay import replay
from engines.torch import TorchBatches, TorchEngine
from streamgen.actions import action_vector
from streamgen.config import StudentConfig
from streamgen.session_log import Blocks, Generation, Header, ReadLog, checksum
from streamgen.state import StreamState
from streamgen.student import Student
from streamgen.work import frame_flops
from tests.toy import WITH_ACTORS, toy_student

WrittenOnce = Callable[[str, Callable[[Path], Path]], Path]
STUDENTS: dict[str, Callable[[Path], Path]] = {
    "one pass": partial(toy_student, step_plans={1: (1.0,)}, history_level=1.0, **WITH_ACTORS),
    "first of several": partial(toy_student, step_plans={1: (1.0,), 3: (1.0, 0.75, 0.5)}, history_level=1.0, sink=2),
    "noisy": partial(toy_student, step_plans={2: (1.0, 0.5), 3: (1.0, 0.75, 0.5)}, history_level=0.5, sink=2),
    "flow map": partial(toy_student, step_plans={1: (1.0,), 3: (1.0, 0.6, 0.3)}, flow_map=True),
}
ENGINES = (
    partial(OpenVINOEngine, precision="fp32"),
    partial(OnnxRuntimeEngine, rows=2),
    partial(TorchBatches, rows=2, precision="fp32", device="cpu"),
)
BLOCKS = 24


@pytest.fixture(params=STUDENTS)
def student(request: pytest.FixtureRequest, written_once: WrittenOnce) -> Student:
    return Student.from_pretrained(written_once(request.param, STUDENTS[request.param]))


def _actions(student: Student, count: int) -> np.ndarray:
    return (np.random.default_rng(0).random((count, 1, student.config.action_dim)) < 0.3).astype(np.float32)


def _play(engine: Engine, student: Student, names: str) -> list[np.ndarray]:
    """Latents of one stream for each name, of which each takes other steps than the one before."""
    counts = sorted(student.config.step_plans)
    for seed, name in enumerate(names):
        engine.open(name, student.start(seed))
    made = []
    for index, block in enumerate(_actions(student, BLOCKS)):
        requests = [StepRequest(name, block, counts[(index + ord(name)) % len(counts)]) for name in names]
        made += [result.latents.astype(np.float32) for result in engine.step(requests)]
    return made


@pytest.mark.parametrize("kind", ENGINES)
def test_every_engine_agrees_with_the_reference(kind: Callable[[Student], Engine], student: Student) -> None:
    """Two streams at a time, whose steps differ: where there is no commit, all must end in the same pass."""
    wanted = _play(TorchEngine(student), student, "ab")
    for got, known in zip(_play(kind(student), student, "ab"), wanted, strict=True):
        np.testing.assert_allclose(got, known, atol=4e-3 * np.abs(known).max())
    assert np.abs(wanted[-1]).max() > 0.5


@pytest.mark.parametrize("kind", [TorchEngine, *ENGINES])
def test_a_stream_goes_on_from_its_state(kind: Callable[[Student], Engine], student: Student) -> None:
    """Exactly, but where the kept step saw an estimate that no state holds."""
    live, fresh = kind(student), kind(student)
    state = student.start(1)
    live.open("s", state)
    actions, steps = _actions(student, BLOCKS), student.config.steps
    for block in actions:
        made = live.step([StepRequest("s", block, steps)])[0]
        state = state.extended(student.config, made.latents, block)
    fresh.open("s", StreamState.from_bytes(state.to_bytes(), student.config, student.hash))
    kept, again = (
        engine.step([StepRequest("s", actions[0], steps)])[0].latents.astype(np.float32) for engine in (live, fresh)
    )
    estimated = 0 < student.config.transformer.history_level < 1
    most = 0.025 if estimated else 0.0 if kind is TorchEngine else 2e-3
    assert np.abs(kept - again).max() <= most * np.abs(kept).max()


def test_a_stream_opens_with_steps_of_its_own(student: Student) -> None:
    """Unless somebody asks for others."""
    counts = sorted(student.config.step_plans)
    opened = replace(student, config=student.config.model_copy(update={"opening": (counts[-1], counts[0])}))
    engine, asked = TorchEngine(student), []
    step = engine.step
    engine.step = lambda requests: (asked.append(requests[0].steps), step(requests))[1]  # type: ignore[method-assign]
    actions = _actions(student, 4)[:, 0]
    assert len(list(generate(engine, opened, actions, 0))) == 4
    assert asked == [counts[-1], counts[0], student.config.steps, student.config.steps]
    assert len(list(generate(engine, opened, actions, 0, counts[0]))) == 4
    assert asked[4:] == [counts[0]] * 4
    # A server needs no others.
    assert opened.config.served == tuple(counts)
    assert opened.config.model_copy(update={"opening": (), "steps": counts[0]}).served == (counts[0],)


def test_a_kept_step_saves_the_commit(student: Student) -> None:
    config = student.config
    clean = config.transformer.model_copy(update={"history_level": 0.0})
    saved = frame_flops(config.model_copy(update={"transformer": clean}), 1) - frame_flops(config, 1)
    assert (saved > 0) == (config.transformer.history_level > 0)


def test_what_cannot_be_is_refused(student: Student) -> None:
    settings = student.config.model_dump()

    def changed(**changes: object) -> StudentConfig:
        return StudentConfig.model_validate(
            settings | {"transformer": settings["transformer"] | {"flow_map": False} | changes}
        )

    with pytest.raises(ValueError, match="does not end at the history_level"):
        changed(history_level=0.25)
    with pytest.raises(ValueError, match="opening 9 has no plan"):
        StudentConfig.model_validate(settings | {"opening": (9,)})
    with pytest.raises(ValueError, match="needs concat_previous"):
        changed(history_level=1.0, concat_previous=False, residual=False, pose_scale=None)
    with pytest.raises(ValueError, match="flow_map leads every step somewhere else"):
        changed(history_level=0.5, flow_map=True)
    with pytest.raises(ValueError, match="a block_size of 1"):
        changed(history_level=1.0, block_size=2)


def test_a_replay_must_know_of_a_recache(plain_student: Student) -> None:
    """The cache that a recache rebuilds is a rounding away from the one that it replaces, and pixels show it."""
    student, engine = plain_student, OpenVINOEngine(plain_student, precision="fp32")
    state = student.start(3)
    begun = Generation(generation=0, seed=3, frame=state.frame)
    runs: list[Blocks] = []
    for keys in (("KeyW",), ("KeyW", "ArrowLeft")):
        engine.open("live", state)
        frame, checksums = state.frame, []
        action = action_vector(keys, student.config.keys)[None]
        for _ in range(30):
            result = engine.step([StepRequest("live", action, 1)])[0]
            checksums.append(f"{checksum(result.frames):08x}")
            state = state.extended(student.config, result.latents, action)
        runs.append(Blocks(frame=frame, keys=keys, steps=1, recache=True, crc32="".join(checksums)))
    header = Header(
        session="s", student="toy", student_hash=student.hash, engine=engine.name, precision=engine.precision,
        device=engine.device, left_out_blocks=0, left_out_inputs=0,
    )  # fmt: skip
    assert all(block.equal for block in replay(engine, student, ReadLog(header, [(begun, runs)])))
    runs[1] = runs[1].model_copy(update={"recache": False})
    equal = [block.equal for block in replay(engine, student, ReadLog(header, [(begun, runs)]))]
    assert all(equal[:30]) and not all(equal[30:])
