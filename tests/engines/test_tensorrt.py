"""Students as TensorRT engines: built here for cards that are not, and their runtime's plan on a device made up of host
memory.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

import engines.select
import engines.tensorrt.build
import engines.tensorrt.engine
from engines.batches import Batches
from engines.exports import exported
from engines.onnxruntime import OnnxRuntimeEngine
from engines.plan import CARDS
from engines.protocol import EngineError, MissingPackage, StepRequest
from engines.select import load_engine
from engines.store import ArtefactStore
from engines.tensorrt.build import RTX, Build, BuildError, _compile, built, module_of
from engines.tensorrt.engine import GraphRunner, TensorRTEngine
from streamgen.audio import MEL_BINS
from streamgen.cache import in_place_cache_shapes
from streamgen.cli import main
from streamgen.student import DECODE_GRAPH, PASS_GRAPH, SINKS_GRAPH, SPEECH_GRAPH, Student
from tests.engines.host_device import HostDevice, HostExecutable, HostTensorRT


def _requests(student: Student, index: int, streams: int) -> list[StepRequest]:
    """Of streams that take fewer and more steps in turns, are not asked every time, and hear something if they can."""
    config, rng = student.config, np.random.default_rng(index)
    counts = sorted(config.step_plans)
    size, speech = config.transformer.block_size, config.speech
    requests = []
    for stream in range(streams):
        actions = (rng.random((size, config.action_dim)) < 0.3).astype(np.float32)
        mel = rng.standard_normal((size, speech.window, MEL_BINS)).astype(np.float32) if speech else None
        steps = counts[(index + stream) % len(counts)]
        if (index + stream) % 3:
            requests.append(StepRequest(str(stream), actions, steps, None if stream == 1 else mel))
    return requests


@pytest.mark.parametrize(
    ("kind", "eager"),
    [("sink_student", ()), ("noisy_student", ()), ("noisy_student", (1,)), ("talker", ()), ("talker", (1,))],
)
def test_the_plan_of_a_frame_is_what_onnxruntime_does(
    kind: str, eager: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    """Bit for bit: three streams in batches of two, on a device that does nothing before it must, or what is beside the
    main stream as soon as it may.
    """
    student: Student = request.getfixturevalue(kind)
    device, options = HostDevice(eager), ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(student.path))
    graphs = exported(student, 2, "fp16", ArtefactStore())
    executables = {
        name: HostExecutable(ort.InferenceSession(graph, options, ["CPUExecutionProvider"]), device)
        for name, graph in graphs.items()
    }
    runner = GraphRunner(student.config, 2, executables, device)
    runner.warm_up()
    recorded, mine = device.launches, Batches(student, runner, 4)
    reference = OnnxRuntimeEngine(student, 4, rows=2, precision="fp16")
    for seed in range(3):
        for engine in (mine, reference):
            engine.open(str(seed), student.start(seed))
    asked = 0
    for index in range(20):
        requests = _requests(student, index, 3)
        for got, wanted in zip(mine.step(requests), reference.step(requests), strict=True):
            assert (got.stream_id, got.frame) == (wanted.stream_id, wanted.frame)
            assert np.array_equal(got.latents, wanted.latents) and got.latents.any()
            assert np.array_equal(got.frames, wanted.frames)
            assert np.array_equal(got.actions, wanted.actions)
        if index == 12:
            asked = device.asked
            for engine in (mine, reference):
                engine.close("1")
                engine.open("1", student.start(5))
    # The second batch was not warmed up: each of its plans is asked for once, and then recorded.
    assert device.launches > recorded + 30 and device.asked == asked


def test_the_engine_loads_what_was_built_and_keeps_what_the_card_compiled(
    talker: Student, store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT's own part is the build; its runtime is one that runs the same graphs in ONNX Runtime."""
    device, options = HostDevice(), ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(talker.path))
    graphs, build = exported(talker, 2, "fp16", store), built(talker, device.capability, 2, store=store)
    sessions = {build.engines[name]: ort.InferenceSession(graph, options) for name, graph in graphs.items()}
    runtime = HostTensorRT(sessions, device)
    monkeypatch.setattr(engines.tensorrt.engine, "CudaDevice", lambda: device)
    monkeypatch.setattr(engines.tensorrt.engine, "load_module", lambda name: runtime)
    monkeypatch.setattr(engines.tensorrt.engine, "logger", lambda name: None)
    engine = TensorRTEngine(talker, 4, 2, store=store)
    assert (engine.name, engine.precision, engine.device) == ("tensorrt", "fp16", "host memory")
    assert device.launches == 1 + 2 * len(talker.config.step_plans)  # of the commit, and of each plan, deaf and hearing
    reference = OnnxRuntimeEngine(talker, 4, rows=2, precision="fp16")
    for seed in range(3):
        for each in (engine, reference):
            each.open(str(seed), talker.start(seed))
    for index in range(6):
        requests = _requests(talker, index, 3)
        for got, wanted in zip(engine.step(requests), reference.step(requests), strict=True):
            assert np.array_equal(got.latents, wanted.latents) and np.array_equal(got.frames, wanted.frames)
    assert runtime.kept == []
    TensorRTEngine(talker, 4, 2, store=store)
    assert runtime.kept == [HostTensorRT.compiled]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtefactStore:
    return ArtefactStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module", params=[("world", "rtx-5090"), ("avatar", "rtx-4090")])
def builds(request: pytest.FixtureRequest, store: ArtefactStore) -> tuple[Student, str, Build]:
    """A student, a card of one generation or another, and what was built for it: that takes ten seconds."""
    name, card = request.param
    student = Student.from_pretrained(name)
    return student, card, built(student, CARDS[card].module, 2, store=store)


def test_all_attention_of_shipped_students_is_fused(builds: tuple[Student, str, Build]) -> None:
    student, _, build = builds
    config = student.config.transformer
    cache = in_place_cache_shapes(student.config, 1)
    assert set(build.engines) >= {PASS_GRAPH, DECODE_GRAPH}
    assert (SINKS_GRAPH in build.engines, SPEECH_GRAPH in build.engines) == (
        config.sink > 0,
        "avatar" in str(student.path),
    )
    of_pass = build.reports[PASS_GRAPH]
    assert sum(count for name, count in of_pass.kernels.items() if "mha" in name) == config.num_layers
    assert of_pass.attention == config.num_layers
    assert of_pass.cache_updates == len(cache)
    assert of_pass.types["Half"] > 10 * config.num_layers  # all of a block; what sees a world stays in fp32
    assert of_pass.layers == sum(of_pass.kernels.values())
    # Not more than the keys and values, each once.
    assert of_pass.copied_bytes <= 2 * build.row_bytes
    if config.sink:
        assert build.reports[SINKS_GRAPH].cache_updates == config.num_layers
    weights = sum(
        (student.path / part / "diffusion_pytorch_model.safetensors").stat().st_size for part in student.parts
    )
    assert sum(report.weights_bytes for report in build.reports.values()) < 1.5 * weights
    assert all(report.engine_bytes > report.weights_bytes for report in build.reports.values())


def test_a_build_is_kept(
    builds: tuple[Student, str, Build], store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, card, build = builds

    def compile_again(*_: object) -> tuple[bytes, bytes]:
        raise AssertionError("it was compiled already")

    monkeypatch.setattr(engines.tensorrt.build, "_compile", compile_again)
    monkeypatch.setattr(engines.tensorrt.build, "exported", compile_again)
    again = built(student, CARDS[card].module, 2, store=store)
    assert again.engines == build.engines and again.reports == build.reports
    monkeypatch.setattr(engines.tensorrt.build, "_CODE", "other code")
    with pytest.raises(AssertionError, match="compiled already"):
        built(student, CARDS[card].module, 2, store=store)


def test_the_command_says_what_came_of_it(
    builds: tuple[Student, str, Build], store: ArtefactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMGEN_CACHE", str(store.root))
    student, card, build = builds
    file = tmp_path / "build.json"
    arguments = ["build", "--student", str(student.path), "--gpu", card, "--rows", "2", "--json", str(file)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads(file.read_text())
    assert figures == build.figures()
    assert str(figures["graphs"][PASS_GRAPH]["layers"]) in result.output


def test_attention_that_is_not_fused_fails_the_build(
    builds: tuple[Student, str, Build], store: ArtefactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, card, _ = builds
    monkeypatch.setattr(engines.tensorrt.build, "_FUSED_ATTENTION", "another")
    with pytest.raises(BuildError, match=rf"0 of {student.config.transformer.num_layers} attentions"):
        built(student, CARDS[card].module, 2, store=store)


def _model(nodes: list[onnx.NodeProto], given: list[onnx.ValueInfoProto], made: list[onnx.ValueInfoProto]) -> bytes:
    graph = helper.make_graph(nodes, "graph", given, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10).SerializeToString()


def _attention(kind: int) -> bytes:
    """One attention of a block to its cache, head dimension 64, as `in_place_graphs` makes them."""
    new, cached = [1, 2, 16, 64], [1, 2, 64, 64]
    shapes = {"q": new, "k": new, "v": new, "cache_0": cached, "cache_1": cached}
    given = [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
    given += [helper.make_tensor_value_info(name, TensorProto.INT64, [1]) for name in ("at", "length")]
    nodes = [
        helper.make_node("TensorScatter", ["cache_0", "k", "at"], ["new_cache_0"], axis=2, mode="linear"),
        helper.make_node("TensorScatter", ["cache_1", "v", "at"], ["new_cache_1"], axis=2, mode="linear"),
        helper.make_node("Attention", ["q", "new_cache_0", "new_cache_1", "", "", "", "length"], ["out"], scale=1.0),
    ]
    made = [helper.make_tensor_value_info("out", kind, new)]
    return _model(nodes, given, made + [helper.make_tensor_value_info(f"new_cache_{k}", kind, cached) for k in (0, 1)])


def test_a_refusal_names_the_attention(tmp_path: Path) -> None:
    engine, said = _compile(_attention(TensorProto.FLOAT16), tmp_path, RTX, "sm_89", ArtefactStore(tmp_path))
    assert engine and b"mha" in said
    with pytest.raises(BuildError, match=r"\(1, 2, 16, 64\) to \(1, 2, 64, 64\) in FLOAT.*dedicated kernel"):
        _compile(_attention(TensorProto.FLOAT), tmp_path, RTX, "sm_89", ArtefactStore(tmp_path))


def test_a_cache_that_is_written_in_another_way_fails_the_build(tmp_path: Path) -> None:
    cache = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, [1, 2, 8, 64]) for name in ("cache_0", "new_cache_0")
    ]
    graph = _model([helper.make_node("Add", ["cache_0", "cache_0"], ["new_cache_0"])], cache[:1], cache[1:])
    with pytest.raises(BuildError, match="0 of 1 tensors of the cache"):
        _compile(graph, tmp_path, RTX, "sm_89", ArtefactStore(tmp_path))


def test_an_operation_that_tensorrt_lacks_is_named(tmp_path: Path) -> None:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    graph = _model([helper.make_node("Bernoulli", ["x"], ["y"], name="odd_one")], tensors[:1], tensors[1:])
    with pytest.raises(BuildError, match=r"Bernoulli.*odd_one"):
        _compile(graph, tmp_path, RTX, "sm_89", ArtefactStore(tmp_path))


def test_cards_that_cannot_be_built_for_are_named(monkeypatch: pytest.MonkeyPatch, plain_student: Student) -> None:
    assert module_of("sm_120") == RTX
    with pytest.raises(EngineError, match="sm_61 is older"):
        module_of("sm_61")
    with pytest.raises(EngineError, match="'ada'"):
        module_of("ada")
    with pytest.raises(MissingPackage, match="sm_90 is a data-centre card"):
        module_of("sm_90")
    with pytest.raises(EngineError, match="fp32"):
        built(plain_student, "sm_89", 2, "fp32")
    monkeypatch.setattr(engines.tensorrt.build, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match="extra `tensorrt`"):
        module_of("sm_89")


def test_without_a_gpu_auto_takes_openvino_and_says_so(
    plain_student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engines.select, "fallbacks", [])
    with pytest.raises(EngineError, match=r"CUDA|GPU"):
        load_engine(plain_student.path, "tensorrt")
    assert load_engine(plain_student.path).name == "openvino" and engines.select.fallbacks == []
    (tmp_path / "version").write_text("a driver, and no card that it knows")
    monkeypatch.setattr(engines.select, "_NVIDIA", tmp_path / "version")
    assert load_engine(plain_student.path).name == "openvino"
    assert engines.select.fallbacks == ["tensorrt"]
    assert "openvino takes the place of tensorrt" in caplog.text
