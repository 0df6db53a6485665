"""Quantised graphs: which layers, what calibration is given, what the cost says, and what TensorRT makes of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import engines.tensorrt.build
import engines.tensorrt.quantize
import engines.tensorrt.rehearse
from engines.cli import build as build_command
from engines.exports import exported
from engines.protocol import EngineError, MissingPackage
from engines.store import ArtefactStore
from engines.tensorrt.build import Cost, built
from engines.tensorrt.quantize import MODES, _layers, _modelopt, _Samples, quantised
from engines.tensorrt.rehearse import heard, measured
from streamgen.student import DECODE_GRAPH, PASS_GRAPH, Student

try:
    _modelopt()
    _MISSING = ""
except MissingPackage as error:
    _MISSING = str(error)
needs_modelopt = pytest.mark.skipif(bool(_MISSING), reason=_MISSING)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtefactStore:
    return ArtefactStore(tmp_path_factory.mktemp("store"))


def _network(rows: int, *layers: tuple[str, list[int], list[int]]) -> onnx.ModelProto:
    """Layers of an operation, weights and output of these shapes, each named for its place."""
    nodes = [helper.make_node(kind, ["x", f"w{k}"], [f"y{k}"], name=f"{k}") for k, (kind, _, _) in enumerate(layers)]
    weights = [numpy_helper.from_array(np.ones(shape, np.float16), f"w{k}") for k, (_, shape, _) in enumerate(layers)]
    made = [
        helper.make_tensor_value_info(f"y{k}", TensorProto.FLOAT16, [rows, *shape])
        for k, (_, _, shape) in enumerate(layers)
    ]
    return helper.make_model(helper.make_graph(nodes, "graph", [], [], weights, value_info=made))


@pytest.mark.parametrize("rows", [1, 4])
def test_narrow_short_and_last_layers_stay_as_they_are(rows: int) -> None:
    model = _network(
        rows,
        ("MatMul", [64, 96], [1, 12, 96]),
        ("MatMul", [64, 32], [1, 12, 32]),
        ("MatMul", [64, 96], [1, 4, 96]),
        ("Conv", [64, 64, 3, 3], [64, 4, 4]),
        ("Conv", [64, 1, 3, 3], [64, 4, 4]),
        ("Conv", [64, 64, 3, 3], [64, 2, 2]),
        ("Conv", [48, 64, 3, 3], [48, 4, 4]),
    )
    assert [node.name for node in _layers(model, rows)] == ["0", "3"]


def test_samples_come_as_full_batches_and_again() -> None:
    samples = _Samples([{"x": np.array([[k]])} for k in range(5)], 2)

    def all_of_them() -> list[list[int]]:
        batches = iter(samples.get_next, None)
        return [batch["x"][:, 0].tolist() for batch in batches]

    assert all_of_them() == [[0, 1], [2, 3], [4, 0]] and all_of_them() == []
    samples.rewind()
    assert samples.get_first()["x"][:, 0].tolist() == [0, 1]
    assert len(all_of_them()) == 3


@pytest.mark.parametrize("kind", ["plain_student", "sink_student", "talker"])
def test_calibration_hears_what_frames_of_other_starts_are_made_of(
    kind: str, request: pytest.FixtureRequest, store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    student: Student = request.getfixturevalue(kind)
    graphs = exported(student, 1, "fp16", store)
    monkeypatch.setattr(engines.tensorrt.rehearse, "_MEASURED_FRAMES", 1)
    inputs = heard(student, graphs)
    assert set(inputs) == {PASS_GRAPH, DECODE_GRAPH}
    states = list(student.starts())[1:]
    wanted = [driven for state in states for driven in state.actions[:: len(state.actions) // 4].astype(np.float32)]
    of_each = len(wanted) // len(states)
    plans = sorted(student.config.step_plans)
    steps = [plans[k % len(plans)] for k in range(of_each)]
    assert len(inputs[DECODE_GRAPH]) == len(wanted) >= 4
    assert len(inputs[PASS_GRAPH]) == len(states) * sum(count + 1 for count in steps)
    for name, samples in inputs.items():
        names = {value.name for value in onnx.load_from_string(graphs[name]).graph.input}
        assert all(set(sample) == names and all(len(x) == 1 for x in sample.values()) for sample in samples)
    driven = {tuple(sample["actions"][0, 0]) for sample in inputs[PASS_GRAPH]}
    assert driven == {tuple(actions) for actions in wanted}
    assert all(sample["cache_0"].any() for sample in inputs[PASS_GRAPH])


def _spoilt(graph: bytes, folder: Path, share: float) -> bytes:
    """A graph whose weights are each off by up to this share."""
    model, rng = engines.tensorrt.quantize._whole(graph, folder), np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16 and len(tensor.dims) > 1:
            values = numpy_helper.to_array(tensor)
            noise = 1 + share * rng.uniform(-1, 1, values.shape)
            tensor.CopyFrom(numpy_helper.from_array((values * noise).astype(np.float16), tensor.name))
    out: bytes = model.SerializeToString()
    return out


@pytest.mark.parametrize("kind", ["plain_student", "sink_student", "talker"])
def test_the_cost_is_of_frames_after_the_same_past(
    kind: str, request: pytest.FixtureRequest, store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    student: Student = request.getfixturevalue(kind)
    graphs = exported(student, 1, "fp16", store)
    frames = sum(len(state.actions) for state in student.starts()) * student.config.transformer.block_size
    assert measured(student, graphs, graphs) == Cost(min(frames, 60), 99.0, 99.0)
    costs = [
        measured(student, graphs, graphs | {PASS_GRAPH: _spoilt(graphs[PASS_GRAPH], student.path, share)})
        for share in (0.2, 0.02)
    ]
    assert costs[0].psnr_db + 5 < costs[1].psnr_db < 99
    assert all(cost.worst_db <= cost.psnr_db for cost in costs)
    # Added up, errors of later frames would be greater than those of the first.
    monkeypatch.setattr(engines.tensorrt.rehearse, "_MEASURED_FRAMES", 1)
    first = measured(student, graphs, graphs | {PASS_GRAPH: _spoilt(graphs[PASS_GRAPH], student.path, 0.02)})
    assert abs(first.psnr_db - costs[1].psnr_db) < 3


def _rounding(student: Student, calls: list[dict[str, Any]]) -> SimpleNamespace:
    """Stands in for ModelOpt: spoils the weights."""

    def quantize(given: str, mode: str, output_path: str, **asked: Any) -> None:
        calls.append({"mode": mode, **asked})
        Path(output_path).write_bytes(_spoilt(Path(given).read_bytes(), student.path, 0.01))

    return SimpleNamespace(quantize=quantize)


def test_what_was_quantised_is_kept(
    plain_student: Student, monkeypatch: pytest.MonkeyPatch, store: ArtefactStore
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(engines.tensorrt.quantize, "_FEWEST_ROWS", 6)
    monkeypatch.setattr(engines.tensorrt.quantize, "_modelopt", lambda: _rounding(plain_student, calls))
    own = exported(plain_student, 2, "fp16", store)
    graphs, cost = quantised(plain_student, 2, "int8", store)
    # The decoder has eight channels, which stay as they are; the pass is made for two rows, and for the one measured.
    assert [call["mode"] for call in calls] == ["int8", "int8"]
    assert graphs[DECODE_GRAPH] == own[DECODE_GRAPH] and graphs[PASS_GRAPH] != own[PASS_GRAPH]
    assert 10 < cost.worst_db <= cost.psnr_db < 99
    asked = calls[0]["nodes_to_quantize"]
    assert asked == calls[1]["nodes_to_quantize"] and len(asked) == 13 and all(name.endswith("$") for name in asked)

    def missing() -> None:
        raise AssertionError("it was quantised already")

    monkeypatch.setattr(engines.tensorrt.quantize, "_modelopt", missing)
    assert quantised(plain_student, 2, "int8", store) == (graphs, cost)
    with pytest.raises(AssertionError, match="quantised already"):
        quantised(plain_student, 2, "fp8", store)
    monkeypatch.setattr(engines.tensorrt.quantize, "_CODE", b"other code")
    with pytest.raises(AssertionError, match="quantised already"):
        quantised(plain_student, 2, "int8", store)


def test_a_build_says_how_it_is_quantised_and_what_that_costs(
    plain_student: Student, monkeypatch: pytest.MonkeyPatch, store: ArtefactStore
) -> None:
    student = plain_student
    graphs, cost = exported(student, 1, "fp16", store), Cost(48, 43.21, 40.5)
    plain = built(student, "sm_89", 1, store=store)
    spoilt = graphs | {DECODE_GRAPH: _spoilt(graphs[DECODE_GRAPH], student.path, 0.1)}
    monkeypatch.setattr(engines.tensorrt.build, "_quantised", lambda *asked: (spoilt, cost))
    made = built(student, "sm_89", 1, store=store, quantize="int8")
    assert (made.quantize, made.cost) == ("int8", cost) and (plain.quantize, plain.cost) == (None, None)
    assert made.engines[DECODE_GRAPH] != plain.engines[DECODE_GRAPH]
    figures = json.loads(json.dumps(made.figures()))
    assert figures["quantize"] == "int8" and figures["cost"] == asdict(cost)
    assert "int8 in fp16" in made.table() and "PSNR 43.2 dB, of the worst frame 40.5 dB" in made.table()
    assert "PSNR" not in plain.table() and built(student, "sm_89", 1, store=store).engines == plain.engines


def test_what_cannot_be_quantised_is_said(
    plain_student: Student, monkeypatch: pytest.MonkeyPatch, store: ArtefactStore
) -> None:
    with pytest.raises(EngineError, match="bf16"):
        built(plain_student, "sm_89", 1, "bf16", store, quantize="int8")
    with pytest.raises(EngineError, match=r"int5.*int8, fp8"):
        built(plain_student, "sm_89", 1, store=store, quantize="int5")
    monkeypatch.setattr(engines.tensorrt.quantize, "_MODELOPT", "modelopt_is_not_here")
    with pytest.raises(MissingPackage, match="extra `modelopt`"):
        built(plain_student, "sm_89", 1, store=store, quantize="int8")
    monkeypatch.setattr(
        engines.tensorrt.build, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name)
    )
    with pytest.raises(MissingPackage, match="extra `modelopt`"):
        built(plain_student, "sm_89", 1, store=store, quantize="int8")
    (offered,) = (option.type for option in build_command.params if option.name == "quantize")
    assert tuple(offered.choices) == MODES


@needs_modelopt
@pytest.mark.parametrize(
    ("mode", "kind", "least_db"),
    [("int8", "Int8", 40), ("fp8", "FP8", 40), ("int8-weights", None, 48), ("int4-weights", None, 30)],
)
def test_tensorrt_takes_what_modelopt_makes(mode: str, kind: str | None, least_db: float, store: ArtefactStore) -> None:
    """With attention fused and the cache updated in place, or `built` raises."""
    student = Student.from_pretrained("world")
    plain, made = (built(student, "sm_89", 1, store=store, quantize=quantize) for quantize in (None, mode))
    before, after = plain.reports[PASS_GRAPH], made.reports[PASS_GRAPH]
    assert after.weights_bytes < 0.6 * before.weights_bytes and after.cache_updates == before.cache_updates
    assert made.cost is not None and made.cost.frames == 48
    assert least_db < made.cost.worst_db <= made.cost.psnr_db < 60
    if kind is None:
        assert made.engines[DECODE_GRAPH] == plain.engines[DECODE_GRAPH]
    else:
        assert after.types[kind] >= 5 * student.config.transformer.num_layers
        # All but its first and its last convolution.
        assert made.reports[DECODE_GRAPH].types[kind] == 9


@needs_modelopt
def test_rows_do_not_change_what_is_rounded(
    plain_student: Student, monkeypatch: pytest.MonkeyPatch, store: ArtefactStore
) -> None:
    monkeypatch.setattr(engines.tensorrt.quantize, "_FEWEST_ROWS", 6)

    def scales(rows: int) -> dict[str, list[float]]:
        graph = onnx.load_from_string(quantised(plain_student, rows, "int8", store)[0][PASS_GRAPH]).graph
        return {
            tensor.name: numpy_helper.to_array(tensor).ravel().tolist()
            for tensor in graph.initializer
            if tensor.name.endswith("_scale")
        }

    one = scales(1)
    # Of the weights of thirteen layers, and of what is multiplied with them.
    assert one == scales(3) and len(one) > 13
