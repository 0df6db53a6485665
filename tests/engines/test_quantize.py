"""Eight-bit convolutions: which ones, how exact, and that they are eight-bit ones in the end."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13

import engines.openvino
from engines.openvino import OpenVINOEngine, preferred_precision
from engines.protocol import EngineError, StepRequest
from engines.quantize import Measured, note, quantise, ranges_of, watch
from engines.store import ArtefactStore
from streamgen.state import StreamState
from streamgen.student import Student, StudentError

_CHANNELS = (8, 64, 96, 64, 64, 8)
_ONE = [1, 1]


def _network() -> ov.Model:
    """Convolutions between these channels, with SiLU before each: from few to many and back."""
    rng = np.random.default_rng(0)
    given = opset13.parameter([1, _CHANNELS[0], 12, 12], np.float32)
    x: ov.Node = given
    for k, (before, after) in enumerate(itertools.pairwise(_CHANNELS)):
        values = rng.standard_normal((after, before, 3, 3), np.float32) / np.float32(3 * before**0.5)
        weights = opset13.constant(values * np.geomspace(0.1, 3, after, dtype=np.float32)[:, None, None, None])
        weights.set_friendly_name(f"weights {k}")
        x = opset13.convolution(opset13.swish(x), weights, _ONE, _ONE, _ONE, _ONE)
    return ov.Model([x], [given])


def _call(model: ov.Model, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [np.array(value) for value in compiled(x).values()]


def _ranges(names: list[str], *seen: NDArray[np.float32]) -> dict[str, tuple[float, float]]:
    measured: dict[str, Measured] = {}
    note(measured, names, list(map(float, seen)))
    return ranges_of(measured)


def test_a_watched_model_tells_what_goes_into_its_wide_convolutions() -> None:
    x = np.random.default_rng(1).standard_normal((1, 8, 12, 12), np.float32)
    model = _network()
    names = watch(model)
    # The first and the last have few channels.
    assert names == ["weights 1", "weights 2", "weights 3"]
    plain, *seen = _call(model, x)
    assert np.array_equal(plain, _call(_network(), x)[0])
    ranges = _ranges(names, *seen)
    assert list(ranges) == names
    for low, high in ranges.values():
        assert low == pytest.approx(-0.2785, abs=1e-3) and high > 1  # the least that SiLU gives


def test_a_layer_whose_range_a_few_values_make_is_left_alone() -> None:
    measured: dict[str, Measured] = {}
    note(measured, ["even", "wide"], [2.0, 3.0, 6.0, -1.0, 1.0, 0.2])
    assert ranges_of(measured) == {"even": (0.0, 3.0), "wide": (-1.0, 1.0)}  # zeros pad an image
    note(measured, ["even", "wide"], [-1.0, 2.5, 6.0, -1.0, 40.0, 0.2])
    assert ranges_of(measured) == {"even": (-1.0, 3.0)}
    # In 255 steps of a range a tenth wider, which err by a step's square / 12.
    assert 0.2 < 100 * (1.1 * 41 / 255) ** 2 / 12


def test_what_says_places_is_left_alone() -> None:
    def watched(name: str) -> list[str]:
        weights = opset13.constant(np.ones((64, 64), np.float32))
        weights.set_friendly_name(f"transformer.{name}.weight.stored")
        given = opset13.parameter([1, 16, 64], np.float32)
        return watch(ov.Model([opset13.matmul(given, weights, False, True)], [given]))

    assert watched("pose.motion.layers.0") == watched("pose.course.embed") == watched("decoder.warp.blocks.0") == []
    assert watched("pose.view.embed") == ["transformer.pose.view.embed.weight.stored"]


def test_a_last_convolution_is_one_that_no_other_product_follows() -> None:
    """Whatever else the model calculates after it, as what bends a reference beside the picture."""
    given = opset13.parameter([1, 64, 4, 4], np.float32)

    def convolved(x: ov.Node, name: str) -> ov.Node:
        weights = opset13.constant(np.ones((64, 64, 1, 1), np.float32))
        weights.set_friendly_name(name)
        return opset13.convolution(x, weights, [1, 1], [0, 0], [0, 0], [1, 1])

    features = convolved(given, "features")
    picture = convolved(features, "picture")
    bent = convolved(convolved(features, "fits"), "bent")
    assert watch(ov.Model([opset13.add(picture, bent)], [given])) == ["features", "fits"]


def test_eight_bits_are_as_exact_as_eight_bits_are() -> None:
    x = np.random.default_rng(1).standard_normal((1, 8, 12, 12), np.float32)
    plain = _call(_network(), x)[0]

    def error(ranges: dict[str, tuple[float, float]]) -> float:
        model = _network()
        quantise(model, ranges)
        got = _call(model, x)[0]
        return float(np.sqrt(np.square(got - plain).mean() / np.square(plain).mean()))

    assert error({}) == 0
    model = _network()
    names = watch(model)
    fitting = _ranges(names, *_call(model, x)[1:])
    assert 0 < error(fitting) < 0.05
    for name in fitting:  # each by itself, the last one too
        assert 0 < error({name: fitting[name]}) < error(fitting) * 1.2
    assert error(dict.fromkeys(fitting, (-0.3, 60.0))) > 4 * error(fitting)
    assert error(dict.fromkeys(fitting, (-0.3, 0.6))) > 0.1


def test_an_engine_in_int8_shows_what_one_in_fp32_shows(tmp_path: Path) -> None:
    """The shipped world, from the same past: and there are eight bits in the compiled graph."""
    world, store = Student.from_pretrained("world"), ArtefactStore(tmp_path)
    exact, quick = (OpenVINOEngine(world, 2, precision, store=store) for precision in ("fp32", "int8"))
    rng, state = np.random.default_rng(0), world.start(1)
    errors = []
    for _ in range(12):
        keys = (rng.random((1, world.config.action_dim)) < 0.3).astype(np.float32)
        results = []
        for engine in (exact, quick):
            engine.open("s", StreamState.from_bytes(state.to_bytes(), world.config, world.hash))
            results.append(engine.step([StepRequest("s", keys, 1)])[0])
        errors.append(np.square(results[0].frames.astype(float) - results[1].frames).mean())
        state = state.extended(world.config, results[0].latents, keys)
    assert 10 * np.log10(255**2 / np.mean(errors)) > 43
    kinds = {
        op.get_rt_info()["runtimePrecision"].astype(str)
        for request in quick._blocks[1].requests
        for op in request.get_compiled_model().get_runtime_model().get_ops()
        if "Convolution" in op.get_rt_info()["layerType"].astype(str)
    }
    if "INT8" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert kinds & {"u8", "i8"}


def test_a_student_without_ranges_is_served_in_fp32(plain_student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.openvino, "preferred_precision", lambda core, store: "int8")
    assert OpenVINOEngine(plain_student).precision == "fp32"
    assert OpenVINOEngine(Student.from_pretrained("world")).precision == "int8"
    with pytest.raises(EngineError, match=r"has no ranges.json, which int8 needs"):
        OpenVINOEngine(plain_student, precision="int8")


def test_damaged_ranges_are_named(tmp_path: Path) -> None:
    folder = shutil.copytree(Student.from_pretrained("world").path, tmp_path / "world")
    (folder / "ranges.json").write_text('{"a": [0.0]}')
    with pytest.raises(StudentError, match=r"ranges.json is damaged"):
        OpenVINOEngine(Student.from_pretrained(folder), precision="int8")


def test_int8_is_taken_where_it_is_clearly_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    core = ov.Core()

    def choice(name: str, int8: float) -> str:
        rates = {"int8": int8, "fp32": 1.0}
        monkeypatch.setattr(engines.openvino, "_convolutions_a_second", lambda core, precision: rates[precision])
        monkeypatch.setattr(engines.openvino, "gemm_gflops", lambda *about: 1.0)
        return preferred_precision(core, ArtefactStore(tmp_path / name))

    able = "INT8" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert choice("fast", 3.0) == ("int8" if able else "fp32")
    assert choice("slow", 1.2) == "fp32"
    assert choice("fast", 1.2) == ("int8" if able else "fp32"), "it is measured once a machine"
