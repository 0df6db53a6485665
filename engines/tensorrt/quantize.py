"""A student's graphs with fewer bits, by NVIDIA ModelOpt, for TensorRT to compile.

`int8` and `fp8` round weights, with a scale for each output channel, and what is multiplied with them, with the
greatest value seen in a rehearsal. `int8-weights` and `int4-weights` round the weights of linear layers alone, in the
pass. What stays in fp16 is what `engines.quantize` says of CPUs, and here layers of few rows are more than slow: where
they were rounded, too, the world student's pass in int8 fell from 44 dB to 26 dB.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from engines.batches import Arrays
from engines.exports import exported
from engines.protocol import EngineError, MissingPackage
from engines.store import ArtefactStore
from engines.tensorrt.build import Cost
from engines.tensorrt.rehearse import heard, measured
from streamgen.student import DECODE_GRAPH, PASS_GRAPH, Student

log = logging.getLogger(__name__)

MODES = "int8", "fp8", "int8-weights", "int4-weights"
PRECISION = "fp16"
"""Of what is not rounded. ONNX Runtime, which measures, has no bf16 on CPUs."""

_CODE = b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in ("quantize", "rehearse"))
_MODELOPT = "modelopt.onnx.quantization"
_FEWEST_CHANNELS = 48
_FEWEST_ROWS = 8
"""Of one stream."""
_GROUP = 64
"""Weights of four bits that share a scale; TensorRT has groups of 64 and 128, and 128 does not divide 192 channels."""
_QUIET, _NORMAL = 3, 2


def quantised(student: Student, rows: int, mode: str, store: ArtefactStore) -> tuple[dict[str, bytes], Cost]:
    """Graphs by name for `rows` rows, which hold their weights where they are rounded, and what that does to frames.

    Raises EngineError; MissingPackage where they are to be made and ModelOpt is missing.
    """
    if mode not in MODES:
        raise EngineError(f"quantisation {mode!r}: choose one of {', '.join(MODES)}")
    own = {count: exported(student, count, PRECISION, store) for count in {1, rows}}
    code = hashlib.sha256(_CODE + b"".join(own[rows].values())).hexdigest()

    def key(what: str) -> tuple[str, ...]:
        return student.hash, f"{what}, {rows} rows, {mode}", code

    kept = {name: store.get(*key(name)) for name in (PASS_GRAPH, DECODE_GRAPH)}
    graphs = {name: graph for name, graph in kept.items() if graph is not None}
    cost = store.get(*key("cost"))
    if len(graphs) == len(kept) and cost is not None:
        return own[rows] | graphs, Cost(**json.loads(cost))
    modelopt = _modelopt()
    log.info("rehearsing %s, to quantise it as %s", student.config.name, mode)
    inputs = heard(student, own[1])

    def made(count: int) -> dict[str, bytes]:
        return {
            name: _rounded(modelopt, own[count][name], student.path, count, mode, samples)
            for name, samples in inputs.items()
        }

    graphs = made(rows)
    told = measured(student, own[1], own[1] | (graphs if rows == 1 else made(1)))
    for name, graph in graphs.items():
        store.put(graph, *key(name))
    store.put(json.dumps(asdict(told)).encode(), *key("cost"))
    return own[rows] | graphs, told


def _modelopt() -> ModuleType:
    try:
        return importlib.import_module(_MODELOPT)
    except ImportError as error:
        raise MissingPackage(
            f"quantisation takes NVIDIA ModelOpt: install streamgen with the extra `modelopt` ({error})"
        ) from error


def _rounded(modelopt: ModuleType, graph: bytes, folder: Path, rows: int, mode: str, samples: list[Arrays]) -> bytes:
    """A graph in fewer bits; the same graph, if the mode has nothing to round in it."""
    import onnx
    import onnxruntime as ort

    weights_only = mode.endswith("-weights")
    model = _whole(graph, folder)
    layers = [
        node.name
        for node in _layers(model, rows)
        if not weights_only or (node.op_type == "MatMul" and (mode == "int8-weights" or _in_groups(model, node)))
    ]
    if not layers:
        return graph
    others = [node.name for node in model.graph.node if node.name not in layers]
    asked: dict[str, Any] = {"nodes_to_quantize": _exactly(layers), "calibration_method": "max"}
    if weights_only:
        # It has weights of eight bits as an exception to those of four.
        eight = {"enable_mixed_quant": True, "layers_8bit": ",".join(layers)} if mode == "int8-weights" else {}
        asked = {"nodes_to_exclude": _exactly(others), "calibration_method": "rtn_dq", "block_size": _GROUP} | eight
    with tempfile.TemporaryDirectory() as scratch:
        given, made = (str(Path(scratch) / f"{name}.onnx") for name in ("given", "made"))
        onnx.save(model, given)
        # Each of its runs would warn of each tensor of the cache that is not updated in place.
        ort.set_default_logger_severity(_QUIET)
        try:
            modelopt.quantize(
                given,
                "int4" if weights_only else mode,
                output_path=made,
                calibration_data_reader=_Samples(samples, rows),
                calibration_eps=["cpu"],
                # It would take the poses, too, to another precision; all else is in fp16 already.
                high_precision_dtype="fp32",
                enable_shared_constants_duplication=False,
                log_level="CRITICAL",
                **asked,
            )
        finally:
            ort.set_default_logger_severity(_NORMAL)
        return Path(made).read_bytes()


def _whole(graph: bytes, folder: Path) -> Any:
    """The model with its weights in it, as their layers take them: ModelOpt knows no others as weights."""
    import onnx
    import onnx_ir
    from onnx.external_data_helper import load_external_data_for_model
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    model = onnx.load_from_string(graph)
    load_external_data_for_model(model, str(folder))
    largest = max(prod(tensor.dims) for tensor in model.graph.initializer) * 4
    folded = onnx_ir.from_proto(model)
    fold_constants(folded, input_size_limit=largest, output_size_limit=largest)
    remove_unused_nodes(folded)
    return onnx_ir.to_proto(folded)


def _layers(model: Any, rows: int) -> Iterator[Any]:
    """The nodes that fewer bits suit."""
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
    last = [node.name for node in model.graph.node if node.op_type == "Conv"][-1:]
    for node in model.graph.node:
        if node.op_type not in ("Conv", "MatMul") or node.name in last or node.input[1] not in weights:
            continue
        made = [dim.dim_value for dim in shapes[node.output[0]]]
        positions = prod(made[2:] if node.op_type == "Conv" else made[:-1])
        if node.op_type == "MatMul":
            positions //= rows
        if min(weights[node.input[1]][:2]) >= _FEWEST_CHANNELS and positions >= _FEWEST_ROWS:
            yield node


def _in_groups(model: Any, node: Any) -> bool:
    return any(tensor.name == node.input[1] and tensor.dims[0] % _GROUP == 0 for tensor in model.graph.initializer)


def _exactly(names: list[str]) -> list[str]:
    """As patterns: a name alone would also stand for all that begin with it."""
    return [f"{name}$" for name in names]


class _Samples:
    """Inputs of one row as batches of `rows`, the way that ONNX Runtime's calibration asks for them."""

    def __init__(self, samples: list[Arrays], rows: int) -> None:
        self._samples, self._rows = samples, rows
        self.rewind()

    def get_first(self) -> Arrays:
        return self._batch(0)

    def get_next(self) -> Arrays | None:
        return next(self._batches, None)

    def rewind(self) -> None:
        self._batches = map(self._batch, range(0, len(self._samples), self._rows))

    def _batch(self, at: int) -> Arrays:
        these = [self._samples[(at + k) % len(self._samples)] for k in range(self._rows)]
        return {name: np.concatenate([sample[name] for sample in these]) for name in these[0]}
