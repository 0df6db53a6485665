"""Compiles a student's graphs into TensorRT engines, and says what came of it. Needs no GPU for RTX cards.

Attention must be one of TensorRT's own fused kernels and the cache its own in-place update: a build in which either is
anything else fails.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from engines.exports import exported, graph_names
from engines.protocol import EngineError, MissingPackage
from engines.store import ArtefactStore
from streamgen.cache import in_place_cache_shapes
from streamgen.student import PASS_GRAPH, Student

log = logging.getLogger(__name__)

RTX, DATA_CENTRE = "tensorrt_rtx", "tensorrt"
_RTX_MODULES = "sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121"
PRECISIONS = "fp16", "bf16"

_CODE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
_NUMBER_BYTES = {"Half": 2, "BFloat16": 2, "Float": 4, "Int32": 4, "Int64": 8, "Bool": 1, "UInt8": 1}
_LAYER = re.compile(r"^Name: (?P<name>[^,]*), LayerType: (?P<type>[^,]*),.*$", re.MULTILINE)
_TENSOR = re.compile(r"Name: (?P<name>[^,]*), Dimensions: \[(?P<shape>[\d,]*)\].*?Datatype: (?P<type>\w+)")
_TACTIC = re.compile(r"TacticName: (?P<name>\w+?)(_0x[0-9a-f]+)?(,|$)")
_FUSED_ATTENTION, _NEW_CACHE = "mha", "new_cache_"


class BuildError(EngineError):
    """TensorRT does not compile a student, or not to what is demanded."""


@dataclass(frozen=True)
class GraphReport:
    """kernels: by name, how many of an engine's layers run it; types: how many tensors they make of each. attention:
    fused kernels; cache_updates: tensors that are written in place. engine_bytes and weights_bytes: of the engine's
    file and of the weights in it; scratch_bytes: memory that a run needs beside inputs and outputs. copied_bytes: of
    caches that kernels copy in each run.
    """

    layers: int
    kernels: dict[str, int]
    types: dict[str, int]
    attention: int
    cache_updates: int
    engine_bytes: int
    weights_bytes: int
    scratch_bytes: int
    copied_bytes: int


@dataclass(frozen=True)
class Cost:
    """Peak signal-to-noise ratio of quantised frames against those of the same student as it was, both after the same
    latents, in dB: of all frames together, and of the worst one.
    """

    frames: int
    psnr_db: float
    worst_db: float


@dataclass(frozen=True)
class Build:
    """Engines by graph, and what TensorRT made of each. row_bytes: of a row's cache. quantize: how weights are rounded,
    and cost: what that does to frames; None where they are not.
    """

    module: str
    version: str
    capability: str
    precision: str
    rows: int
    row_bytes: int
    engines: dict[str, bytes]
    reports: dict[str, GraphReport]
    quantize: str | None = None
    cost: Cost | None = None

    def figures(self) -> dict[str, Any]:
        """All but the engines themselves, for JSON."""
        graphs = {name: asdict(report) for name, report in self.reports.items()}
        about = ("module", "version", "capability", "precision", "quantize", "rows", "row_bytes")
        cost = asdict(self.cost) if self.cost else None
        return {name: getattr(self, name) for name in about} | {"cost": cost, "graphs": graphs}

    def table(self) -> str:
        """A line for each graph, and one for the cost."""
        numbers = f"{self.quantize} in {self.precision}" if self.quantize else self.precision
        about = f"{self.module} {self.version} for {self.capability}, {numbers}, {self.rows} rows"
        columns = (
            "layers",
            "fused attention",
            "cache updates",
            "engine MB",
            "weights MB",
            "scratch MB",
            "cache copied MB",
        )
        lines = [f"{about}: {self.row_bytes / 1e6:.1f} MB of cache a row", " ".join(["graph ", *columns])]
        for name, of in self.reports.items():
            sizes = of.engine_bytes, of.weights_bytes, of.scratch_bytes, of.copied_bytes
            cells = of.layers, of.attention, of.cache_updates, *(f"{size / 1e6:.1f}" for size in sizes)
            aligned = (f"{cell:>{len(column)}}" for cell, column in zip(cells, columns, strict=True))
            lines.append(" ".join([f"{name.removesuffix('.onnx'):<6}", *aligned]))
        if self.cost is not None:
            lines.append(
                f"{self.cost.frames} frames of its own starts, against {self.precision} after the same latents: PSNR "
                f"{self.cost.psnr_db:.1f} dB, of the worst frame {self.cost.worst_db:.1f} dB"
            )
        return "\n".join(lines)


def module_of(capability: str) -> str:
    """Which of TensorRT's two packages makes engines for a card. Raises EngineError, which says what to do."""
    if not re.fullmatch(r"sm_\d{2,3}", capability):
        raise EngineError(f"compute capability {capability!r}: give it as sm_89, or the name of a card")
    if int(capability[3:]) < 75:
        raise EngineError(
            f"{capability} is older than TensorRT's oldest card, sm_75: use engine onnxruntime or openvino"
        )
    name = RTX if capability in _RTX_MODULES and find_spec(RTX) else DATA_CENTRE
    if find_spec(name) is None:
        if capability in _RTX_MODULES:
            raise MissingPackage(
                "engine tensorrt needs TensorRT for RTX: install streamgen with the extra `tensorrt`, or use engine "
                "openvino"
            )
        raise MissingPackage(
            f"{capability} is a data-centre card, which TensorRT for RTX does not know: install NVIDIA's package "
            "`tensorrt` on a machine with that card, and build there"
        )
    return name


@functools.cache
def load_module(name: str) -> Any:
    """tensorrt or tensorrt_rtx: one API."""
    return importlib.import_module(name)


@functools.cache
def logger(module: str) -> Any:
    """What TensorRT says: kept in `lines` until somebody takes it, warnings logged. There is one for all builders."""
    trt = load_module(module)

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(message)
            if severity <= trt.ILogger.ERROR:
                log.warning("TensorRT: %s", message)

    return Logger()


def built(
    student: Student,
    capability: str,
    rows: int,
    precision: str = "fp16",
    store: ArtefactStore | None = None,
    quantize: str | None = None,
) -> Build:
    """A student's engines for a card, from the store or made now. quantize: one of `engines.tensorrt.quantize.MODES`.

    Raises BuildError, or another EngineError.
    """
    if precision not in PRECISIONS:
        raise EngineError(f"precision {precision!r}: engine tensorrt has {' and '.join(PRECISIONS)}")
    module, store = module_of(capability), store or ArtefactStore()
    version = load_module(module).__version__
    config = student.config.transformer
    graphs: dict[str, bytes] = {}
    cost = None
    if quantize is not None:
        if precision != "fp16":
            raise EngineError(f"precision {precision!r}: what is quantised is built in fp16 otherwise")
        graphs, cost = _quantised(student, rows, quantize, store)
    engines, reports = {}, {}
    for name in graph_names(student.config):
        numbers = f"{precision}, {hashlib.sha256(graphs[name]).hexdigest()}" if quantize else precision
        key = (student.hash, f"{module} {version} {capability}", f"{name}, {rows} rows, {numbers}", _CODE)
        engine, said = store.get(*key, "engine"), store.get(*key, "log")
        if engine is None or said is None:
            graphs = graphs or exported(student, rows, precision, store)
            engine, said = _compile(graphs[name], student.path, module, capability, store)
            store.put(engine, *key, "engine")
            store.put(said, *key, "log")
        engines[name] = engine
        reports[name] = report = _report(engine, said.decode())
        if name == PASS_GRAPH and report.attention < config.num_layers:
            raise BuildError(
                f"student {student.config.name}: {report.attention} of {config.num_layers} attentions became one of "
                f"TensorRT's fused kernels; the others are spread over {dict(report.kernels)}"
            )
    cache = in_place_cache_shapes(student.config, 1)
    row_bytes = 2 * sum(map(prod, cache))
    return Build(module, version, capability, precision, rows, row_bytes, engines, reports, quantize, cost)


def _quantised(student: Student, rows: int, mode: str, store: ArtefactStore) -> tuple[dict[str, bytes], Cost]:
    if find_spec("onnxruntime") is None:
        raise MissingPackage("quantisation is measured in ONNX Runtime: install streamgen with the extra `modelopt`")
    from engines.tensorrt.quantize import quantised

    return quantised(student, rows, mode, store)


def _compile(graph: bytes, folder: Path, module: str, capability: str, store: ArtefactStore) -> tuple[bytes, bytes]:
    """An engine, and what TensorRT said of it."""
    trt, heard = load_module(module), logger(module)
    heard.lines.clear()
    builder = trt.Builder(heard)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, heard)
    # The path is where the weights' own relative paths begin.
    if not parser.parse(graph, str(folder / "graph.onnx")):
        errors = (parser.get_error(k) for k in range(parser.num_errors))
        raise BuildError("; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors))
    timing = f"{module} {trt.__version__} {capability}", "timing cache"
    attentions = list(_attend_by_length(trt, network))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if module == RTX:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability.replace("sm_", "SM")), 0)
        # What stream capture asks for.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    else:
        # It tries kernels on the card; how long each took is kept. Not yet run: that takes such a card.
        config.set_timing_cache(config.create_timing_cache(store.get(*timing) or b""), False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        said = " ".join(line for line in heard.lines if "rror" in line)[-600:]
        raise BuildError(
            f"TensorRT builds no engine of {len(attentions)} attentions ({', '.join(sorted(set(attentions)))}): {said}"
        )
    if module == DATA_CENTRE:
        store.put(bytes(config.get_timing_cache().serialize()), *timing)
        opened = trt.Runtime(heard).deserialize_cuda_engine(engine)
        heard.lines.append(opened.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.ONELINE))
    return bytes(engine), "\n".join(heard.lines).encode()


def _attend_by_length(trt: Any, network: Any) -> Iterator[str]:
    """Give every attention its rows' lengths, which the ONNX parser drops, and the cache itself as keys: the parser
    multiplies them by a scale, here of one, and TensorRT would copy the cache for it. Says of each what it is.

    Raises BuildError where a cache is written in another way than TensorRT's own.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    made_by = {layer.get_output(k).name: layer for layer in layers for k in range(layer.num_outputs)}
    inputs = {network.get_input(k).name: network.get_input(k) for k in range(network.num_inputs)}
    updates = sum(layer.type == trt.LayerType.KV_CACHE_UPDATE for layer in layers)
    wanted = sum(network.get_output(k).name.startswith(_NEW_CACHE) for k in range(network.num_outputs))
    if updates != wanted:
        raise BuildError(f"{updates} of {wanted} tensors of the cache are written by TensorRT's own update")
    if "length" not in inputs:
        return
    length = network.add_cast(inputs["length"], trt.int32).get_output(0)
    for layer in layers:
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            for at in (0, 1):
                scaled = made_by[layer.get_input(at).name]
                if scaled.type == trt.LayerType.ELEMENTWISE:
                    layer.set_input(at, scaled.get_input(0))
            query, keys = layer.get_input(0), layer.get_input(1)
            if made_by[keys.name].type != trt.LayerType.KV_CACHE_UPDATE:
                raise BuildError(f"{layer.name}: keys of {tuple(keys.shape)} are not those of the cache")
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.key_value_lengths = length
            yield f"{tuple(query.shape)} to {tuple(keys.shape)} in {str(query.dtype).rpartition('.')[2]}"


def _report(engine: bytes, said: str) -> GraphReport:
    """Read from TensorRT's own list of an engine's layers. Raises BuildError where there is none."""
    if "Input Tensor length is unused" in said:
        raise BuildError("TensorRT dropped the rows' lengths: queries would see slots that nobody has written")
    begin = said.find("\nLayers:")
    ends = [at for at in (said.find(mark, begin) for mark in ("\nI/O Tensors:", "\nBindings:")) if at > begin]
    if begin < 0 or not ends:
        raise BuildError("TensorRT listed no layers of the engine: this version of it says so in another way")
    layers = [found[0] for found in _LAYER.finditer(said, begin, min(ends))]
    kernels: Counter[str] = Counter()
    types: Counter[str] = Counter()
    copied, written = 0, set()
    for layer in layers:
        tactic = _TACTIC.search(layer)
        kernel = tactic["name"] if tactic else _LAYER.match(layer)["type"]  # type: ignore[index]
        kernels[kernel] += 1
        given, _, made = layer.partition("Outputs: ")
        reads = {tensor["name"]: tensor for tensor in _TENSOR.finditer(given)}
        for tensor in _TENSOR.finditer(made):
            types[tensor["type"]] += 1
            if tensor["name"].startswith(_NEW_CACHE):
                written.add(tensor["name"])
        if len(reads) == 1 and (only := next(iter(reads.values())))["name"].removeprefix("new_").startswith("cache_"):
            copied += _bytes_of(only)
    sizes = {what: _said_bytes(said, what) for what in ("Total Weights Memory", "Max Scratch Memory")}
    attention = sum(count for kernel, count in kernels.items() if _FUSED_ATTENTION in kernel)
    return GraphReport(
        layers=len(layers),
        kernels=dict(kernels.most_common()),
        types=dict(types.most_common()),
        attention=attention,
        cache_updates=len(written),
        engine_bytes=len(engine),
        weights_bytes=sizes["Total Weights Memory"],
        scratch_bytes=sizes["Max Scratch Memory"],
        copied_bytes=copied,
    )


def _bytes_of(tensor: re.Match[str]) -> int:
    return prod(map(int, tensor["shape"].split(","))) * _NUMBER_BYTES[tensor["type"]]


def _said_bytes(said: str, what: str) -> int:
    found = re.search(rf"{what}: (\d+) bytes", said)
    return int(found[1]) if found else 0
