"""Engines agree with the reference, keep streams apart, and go on from a state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from engines.onnxruntime import OnnxRuntimeEngine
from engines.openvino import OpenVINOEngine, _cores
from engines.protocol import Engine, EngineError, EngineFull, StepRequest, StepResult, UnknownStream
from engines.select import load_engine
from engines.torch import TorchBatches, TorchEngine
from streamgen.state import StreamState
from streamgen.student import Student, StudentError

Kind = Callable[[Student], Engine]
KINDS = (
    TorchEngine,
    partial(OpenVINOEngine, precision="fp32"),  # where AMX makes bf16 the fastest, it rounds more
    partial(OnnxRuntimeEngine, rows=2),
    partial(TorchBatches, rows=2, precision="fp32", device="cpu"),
)


def _actions(student: Student, count: int, seed: int = 0) -> np.ndarray:
    size = student.config.transformer.block_size
    return (np.random.default_rng(seed).random((count, size, len(student.config.keys))) < 0.3).astype(np.float32)


def _run(engine: Engine, stream: str, actions: np.ndarray, steps: int = 2) -> list[StepResult]:
    return [engine.step([StepRequest(stream, block, steps)])[0] for block in actions]


@pytest.mark.parametrize(
    ("policy", "precision", "tolerance"),
    [
        ("plain_student", "fp32", 1e-4),
        ("sink_student", "fp32", 1e-4),
        ("plain_student", "bf16", 0.06),
        ("sink_student", "bf16", 0.06),
    ],
)
def test_openvino_matches_torch_on_shared_history(
    policy: str, precision: str, tolerance: float, request: pytest.FixtureRequest
) -> None:
    """40 steps on shared history: the engine starts each from the reference's state, so errors do not add up."""
    student: Student = request.getfixturevalue(policy)
    reference, engine = TorchEngine(student), OpenVINOEngine(student, precision=precision)
    state = student.start(3)
    reference.open("s", state)
    worst, scale = 0.0, 0.0
    for index, block in enumerate(_actions(student, 40)):
        steps = 1 + index % 2
        engine.open("s", state)
        wanted = reference.step([StepRequest("s", block, steps)])[0]
        got = engine.step([StepRequest("s", block, steps)])[0]
        assert got.frame == wanted.frame
        state = state.extended(student.config, wanted.latents, block)
        difference = np.abs(got.latents.astype(np.float32) - wanted.latents.astype(np.float32)).max()
        worst, scale = float(np.maximum(worst, difference)), max(scale, float(np.abs(wanted.latents).max()))
    # Latents are rounded to fp16, 1 / 1024 of a power of two: a value between two of them may fall either way.
    assert worst <= (tolerance + 2**-10) * scale
    assert scale > 1


def test_an_engine_takes_as_many_threads_as_its_process_may(
    noisy_student: Student, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    there = _cores()
    for told, cores in (("1", 1), ("many", there), (str(2 * there), there)):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        engine = OpenVINOEngine(noisy_student, precision="fp32")
        (request,) = engine._commit.requests
        assert request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == cores


@pytest.mark.parametrize("steps", [1, 2])
def test_a_place_is_not_rounded_to_bf16(sink_student: Student, steps: int) -> None:
    """The state of the world is what fp32 makes it, frame by frame, while the picture is rounded."""
    config = sink_student.config
    exact, quick = (OpenVINOEngine(sink_student, precision=precision) for precision in ("fp32", "bf16"))
    for engine in (exact, quick):
        engine.open("s", sink_student.start(3))
    picture, state = [], []
    for block in _actions(sink_student, 20):
        wanted, got = (_run(engine, "s", block[None], steps)[0].latents.astype(np.float32) for engine in (exact, quick))
        difference = np.abs(wanted - got)
        picture.append(difference[:, : config.transformer.picture_channels].max())
        state.append(difference[:, config.transformer.picture_channels :].max())
    assert max(state) == 0 < max(picture)


@pytest.mark.parametrize(
    ("policy", "kind", "tolerance"),
    [
        ("plain_student", OnnxRuntimeEngine, 4 * 2**-10),
        ("sink_student", OnnxRuntimeEngine, 4 * 2**-10),
        ("sink_student", partial(OnnxRuntimeEngine, precision="fp16"), 0.01),
        ("sink_student", partial(TorchBatches, precision="fp32", device="cpu"), 4 * 2**-10),
        # Through the kernels' operators, which are plain torch on a CPU.
        ("sink_student", partial(TorchBatches, precision="fp16", device="cpu"), 0.01),
    ],
)
def test_rows_of_a_batch_match_torch_wherever_they_stand(
    policy: str, kind: Callable[..., Engine], tolerance: float, request: pytest.FixtureRequest
) -> None:
    """120 blocks of two rows in one batch, the second from the sixtieth on and not every time, with other steps: over
    a cache that is written in place.
    """
    student: Student = request.getfixturevalue(policy)
    reference, engine = TorchEngine(student), kind(student, rows=2)
    state, worst, scale = student.start(3), 0.0, 0.0
    for index, block in enumerate(_actions(student, 120)):
        for runtime in (reference, engine):
            # Both begin anew from one state now and then, so that what they round differently does not add up.
            if index % 20 == 0:
                runtime.open("3", state)
            if index == 60:
                runtime.open("4", student.start(4))
        steps = 1 + index % 2
        requests = [StepRequest("3", block, steps)]
        if index >= 60 and index % 3:
            requests.append(StepRequest("4", 1 - block, 1))
        wanted = reference.step(requests)
        for each, known in zip(engine.step(requests), wanted, strict=True):
            assert (each.stream_id, each.frame) == (known.stream_id, known.frame)
            difference = np.abs(each.latents.astype(np.float32) - known.latents.astype(np.float32)).max()
            worst, scale = float(np.maximum(worst, difference)), max(scale, float(np.abs(known.latents).max()))
        state = state.extended(student.config, wanted[0].latents, block)
    assert worst <= tolerance * scale
    assert scale > 1


@pytest.mark.parametrize("kind", KINDS)
def test_no_stream_touches_another(kind: Kind, plain_student: Student) -> None:
    together, alone = kind(plain_student), kind(plain_student)
    plans = {str(seed): _actions(plain_student, 12, seed) for seed in range(3)}
    for name in plans:
        together.open(name, plain_student.start(int(name)))
    mixed: dict[str, list[StepResult]] = {name: [] for name in plans}
    for index in range(12):
        for name, actions in plans.items():
            mixed[name] += together.step([StepRequest(name, actions[index], 1 + (index + int(name)) % 2)])
    for name, actions in plans.items():
        alone.open("only", plain_student.start(int(name)))
        for index, block in enumerate(actions):
            solo = alone.step([StepRequest("only", block, 1 + (index + int(name)) % 2)])[0]
            assert np.array_equal(solo.latents, mixed[name][index].latents)
            assert np.array_equal(solo.frames, mixed[name][index].frames)
    assert not np.array_equal(mixed["0"][0].latents, mixed["1"][0].latents)


@pytest.mark.parametrize("policy", ["plain_student", "sink_student"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_goes_on_from_its_state(kind: Kind, policy: str, request: pytest.FixtureRequest) -> None:
    student: Student = request.getfixturevalue(policy)
    actions = _actions(student, 40)
    live = kind(student)
    state = student.start(1)
    live.open("s", state)
    for result, block in zip(_run(live, "s", actions), actions, strict=True):
        state = state.extended(student.config, result.latents, block)
    resumed = kind(student)
    resumed.open("s", StreamState.from_bytes(state.to_bytes(), student.config, student.hash))
    more = _actions(student, 5, 9)
    for kept, fresh in zip(_run(live, "s", more), _run(resumed, "s", more), strict=True):
        assert kept.frame == fresh.frame
        if kind is TorchEngine:
            assert np.array_equal(fresh.latents, kept.latents)
        # Others compile the commit on its own and within a step differently: a rounding to fp16 may fall either way.
        np.testing.assert_allclose(fresh.latents.astype(np.float32), kept.latents.astype(np.float32), atol=2e-3)
    forgetful = replace(state, latents=state.latents[-3:], actions=state.actions[-3:])
    resumed.open("s", forgetful)
    assert not np.allclose(_run(resumed, "s", more[:1])[0].latents, _run(live, "s", more[:1])[0].latents, atol=2e-3)


def test_nothing_of_an_earlier_stream_is_left(plain_student: Student) -> None:
    """Not even where it ended in what is no number."""
    engine = OnnxRuntimeEngine(plain_student, rows=2)
    blocks = _actions(plain_student, 3)

    def play() -> list[StepResult]:
        engine.open("s", plain_student.start(1))
        return _run(engine, "s", blocks)

    first = play()
    _run(engine, "s", np.full_like(blocks, np.nan))
    engine.close("s")
    for again, known in zip(play(), first, strict=True):
        assert np.array_equal(again.latents, known.latents)


@pytest.mark.parametrize("kind", KINDS)
def test_misuse_is_named(kind: Kind, plain_student: Student) -> None:
    engine = kind(plain_student, streams=1)  # type: ignore[call-arg]
    block = _actions(plain_student, 1)[0]
    with pytest.raises(UnknownStream, match="nobody"):
        engine.step([StepRequest("nobody", block, 2)])
    engine.open("a", plain_student.start(0))
    engine.open("a", plain_student.start(1))
    with pytest.raises(EngineFull, match="1 streams"):
        engine.open("b", plain_student.start(0))
    with pytest.raises(ValueError, match=r"shape \(2, 5\)"):
        engine.step([StepRequest("a", np.zeros((2, 5), np.float32), 2)])
    with pytest.raises(ValueError, match="7 steps"):
        engine.step([StepRequest("a", block, 7)])
    engine.close("a")
    engine.close("a")
    engine.open("b", plain_student.start(0))


def test_seed_decides_the_stream(plain_student: Student) -> None:
    engine = OpenVINOEngine(plain_student, precision="fp32")
    actions = _actions(plain_student, 3)

    def latents(seed: int) -> np.ndarray:
        engine.open("s", plain_student.start(seed))
        return np.concatenate([result.latents for result in _run(engine, "s", actions)])

    assert np.array_equal(latents(4), latents(4))
    assert not np.array_equal(latents(4), latents(6))  # the same start, other noise


def test_the_memory_layout_of_a_state_does_not_matter(plain_student: Student) -> None:
    engine = OpenVINOEngine(plain_student, precision="fp32")
    state = plain_student.start(0)
    turned = replace(state, latents=np.asfortranarray(state.latents), actions=np.asfortranarray(state.actions))
    results = []
    for each in (state, turned):
        engine.open("s", each)
        results.append(engine.step([StepRequest("s", np.zeros((1, 5), np.float32), 2)])[0].latents)
    assert np.array_equal(*results)


def test_selection(plain_student: Student) -> None:
    assert load_engine(plain_student.path).name == "openvino"
    assert load_engine(plain_student.path, "torch").name == "torch"
    assert load_engine(plain_student.path, "onnxruntime").name == "onnxruntime"
    chosen = load_engine(plain_student.path, precision="bf16")
    assert isinstance(chosen, OpenVINOEngine) and chosen.precision == "bf16"
    with pytest.raises(EngineError, match="'cuda' is unknown"):
        load_engine(plain_student.path, "cuda")
    with pytest.raises(StudentError, match="no student at nowhere"):
        load_engine("nowhere")
    with pytest.raises(EngineError, match="fp8"):
        OpenVINOEngine(plain_student, precision="fp8")
    with pytest.raises(EngineError, match="'bf16': engine onnxruntime has fp32 and fp16"):
        load_engine(plain_student.path, "onnxruntime", precision="bf16")
    with pytest.raises(EngineError, match="'fp8': choose one of fp32"):
        TorchBatches(plain_student, precision="fp8", device="cpu")


def test_a_damaged_student_is_refused(plain_student: Student, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(plain_student.path, broken)
    (broken / "step_2.onnx").unlink()
    with pytest.raises(StudentError, match=r"step_2\.onnx is missing"):
        load_engine(broken)
    shutil.copy(plain_student.path / "step_2.onnx", broken)
    weights = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(StudentError, match="cannot compile"):
        load_engine(broken)
    (broken / "starts.safetensors").write_bytes(b"nothing")
    with pytest.raises(StudentError, match=r"starts\.safetensors"):
        Student.from_pretrained(broken).start(0)
    for text in ("{", "[]", "\xff"):
        (broken / "transformer" / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(StudentError, match="cannot be read"):
            load_engine(broken)
