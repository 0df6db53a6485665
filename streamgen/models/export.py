"""Writes student folders: weights in bf16 and the rollout's graphs, which hold no weights of their own.

A graph's initialisers are ONNX external data that point into the folder's safetensors files (a safetensors file is a
header and raw little-endian tensors), so any number of graphs shares one copy of the weights. Stored bf16 values are
cast to fp32 by the graph; a runtime folds that at load.
"""

from __future__ import annotations

import json
import logging
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from onnx_ir.passes import Sequential, common
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import _DEFAULT_REWRITE_RULES, RewritePass
from torch import Tensor, nn

from streamgen.audio import MEL_BINS
from streamgen.cache import block_rotation, in_place_cache_shapes
from streamgen.config import StudentConfig
from streamgen.models.attention import IN_PLACE_OPSET, kept_of_layer
from streamgen.models.autoencoder import Autoencoder
from streamgen.models.loading import (
    load_autoencoder,
    load_speech,
    load_transformer,
    save_tensors,
    save_weights,
    to_precision,
)
from streamgen.models.rollout import Commit, Decode, Encode, InPlacePass, RollingCache, Rollout, RotateSinks
from streamgen.models.speech import SpeechEncoder
from streamgen.models.transformer import CausalVideoTransformer
from streamgen.student import (
    COMMIT_GRAPH,
    DECODE_GRAPH,
    ENCODE_GRAPH,
    PASS_GRAPH,
    PICTURE,
    SINKS_GRAPH,
    SPEECH_GRAPH,
    STARTS,
    WEIGHTS,
    Student,
    step_graph,
    write_config,
)

_OPSET = 23
_STEP_INPUTS = ("noise", "previous", "actions", "rotation", "visible", "cache_k", "cache_v")
_REFERENCE_INPUTS = ("reference", "reference_actions")
_BLOCK_OUTPUTS = ("new_k", "new_raw_k", "new_v")
# onnxscript's optimiser but for one rule: it looks for two slices that are a split among all pairs of nodes, which
# took 75 of 194 s for a toy with actors and two frames a block, and never found any.
_REWRITE = RewritePass([rule for rule in _DEFAULT_REWRITE_RULES if rule.name != "SlicesSplit"])
_TIDY = Sequential(
    common.RemoveUnusedNodesPass(),
    common.RemoveUnusedOpsetsPass(),
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    common.DeduplicateInitializersPass(),
    common.CommonSubexpressionEliminationPass(),
    common.OutputFixPass(),
    common.NameFixPass(),
)
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def write_student(
    folder: Path,
    config: StudentConfig,
    transformer: CausalVideoTransformer,
    autoencoder: Autoencoder,
    start_latents: Tensor,
    start_actions: Tensor,
    card: str,
    speech: SpeechEncoder | None = None,
    start_pictures: Tensor | None = None,
) -> None:
    """Write a student folder. start_latents [S, T, C, h, w] and start_actions [S, T, A] are what streams begin from;
    start_pictures uint8 [S, H, W, 3] of the first ones are for a decoder that looks at them.
    """
    write_config(folder, config)
    save_weights(transformer, folder / "transformer" / WEIGHTS, torch.bfloat16)
    save_weights(autoencoder, folder / "vae" / WEIGHTS, torch.bfloat16)
    starts = {"latents": start_latents.half(), "actions": start_actions.half()}
    save_tensors(starts if start_pictures is None else starts | {"pictures": start_pictures}, folder / STARTS)
    (folder / "README.md").write_text(card)
    if speech is not None:
        save_weights(speech, folder / "speech" / WEIGHTS, torch.bfloat16)
    # What is exported is what was stored: the graphs read the bf16 weights.
    transformer, autoencoder = load_transformer(folder), load_autoencoder(folder)
    inputs = _example_inputs(config)
    step_inputs = (*_STEP_INPUTS, *(_REFERENCE_INPUTS if config.transformer.face_dim else ()))
    seen = (torch.zeros(1, *config.picture_shape, dtype=torch.uint8),) if config.vae.warp_dim else ()
    block_inputs, made = (*step_inputs, *(PICTURE for _ in seen)), ("frames", "latents", *_BLOCK_OUTPUTS)
    for count, sigmas in config.step_plans.items():
        noise = torch.zeros(count, 1, config.transformer.block_size, *config.latent_shape)
        rollout = Rollout(transformer, autoencoder, sigmas).eval()
        _export(rollout, (noise, *inputs, *seen), block_inputs, made, folder / step_graph(count))
    if config.speech is not None:
        mel = torch.zeros(1, config.transformer.block_size, config.speech.window, MEL_BINS)
        _export(Hearing(load_speech(folder)).eval(), (mel,), ("mel",), ("curves",), folder / SPEECH_GRAPH)
    if config.likeness is not None:
        pictures = torch.zeros(1, config.height, config.width, 3, dtype=torch.uint8)
        _export(Encode(autoencoder).eval(), (pictures,), ("pictures",), ("latents", "known"), folder / ENCODE_GRAPH)
    latents = torch.zeros(1, config.transformer.block_size, *config.latent_shape)
    commit_inputs = ("latents", *step_inputs[1:])
    _export(Commit(transformer).eval(), (latents, *inputs), commit_inputs, _BLOCK_OUTPUTS, folder / COMMIT_GRAPH)


class Hearing(nn.Module):
    """A speech encoder under the name that its weights have in a folder."""

    def __init__(self, speech: SpeechEncoder) -> None:
        super().__init__()
        self.speech = speech

    def forward(self, mel: Tensor) -> Tensor:
        out: Tensor = self.speech(mel)
        return out


class HearingRows(Hearing):
    """Actions [B, F, A], of which those of rows that hear [B] begin with what is heard."""

    def forward(self, mel: Tensor, actions: Tensor, hears: Tensor) -> Tensor:  # type: ignore[override]
        curves = self.speech(mel)
        said, rest = actions.tensor_split([curves.shape[-1]], -1)
        return torch.cat([torch.where(hears[:, None, None], curves, said), rest], -1)


def _example_inputs(config: StudentConfig) -> tuple[Tensor, ...]:
    cache = RollingCache.empty(config.transformer, 1)
    actions = torch.zeros(1, config.transformer.block_size, config.action_dim)
    return cache.previous, actions, *(t.contiguous() for t in cache.inputs())


def in_place_graphs(student: Student, rows: int, precision: str = "fp32") -> dict[str, bytes]:
    """A student's graphs for `rows` streams at once that write into their cache: the pass, what rotates its sinks, what
    decodes, and what hears (`streamgen.models.rollout.InPlacePass`).

    Opset 24. The cache's inputs are `cache_0`, …, its outputs `new_cache_0`, …, made to be bound to the same memory. A
    pass has its levels from `StudentConfig.all_jumps`. Weights stay in the student's files: locations are relative to
    its folder. precision: of networks and cache; latents, poses and what hears stay in fp32.
    """
    config, dtype = student.config, _DTYPES[precision]
    transformer, autoencoder = load_transformer(student.path), load_autoencoder(student.path)
    to_precision(transformer, dtype)
    to_precision(autoencoder, dtype)
    shapes = in_place_cache_shapes(config, rows)
    cache = [torch.zeros(shape, dtype=dtype) for shape in shapes]
    rotation = torch.from_numpy(block_rotation(0, config.transformer)).repeat(rows, 1, 1, 1)
    own, sinks = rotation[:, config.transformer.sink :], rotation[:, : config.transformer.sink]
    latents = torch.zeros(rows, config.transformer.block_size, *config.latent_shape)
    actions = torch.zeros(rows, config.transformer.block_size, config.action_dim)
    at = torch.zeros(rows, 2, dtype=torch.int64)
    given: list[Any] = [latents, latents.clone(), at[:, 0].clone(), latents[:, -1].clone(), actions, own.clone(), at]
    given += [at[:, 0] + config.transformer.tokens, cache]
    old, new = ([f"{prefix}cache_{k}" for k in range(len(shapes))] for prefix in ("", "new_"))
    names = ["x", "noise", "level", "previous", "actions", "rotation", "write", "length", *old]
    if config.transformer.face_dim:
        given += [latents[:, -1].clone(), actions[:, 0].clone()]
        names += _REFERENCE_INPUTS
    wanted: dict[str, tuple[nn.Module, list[Any], list[str], list[str]]] = {
        PASS_GRAPH: (InPlacePass(transformer, config.all_jumps), given, names, ["latents", *new]),
        DECODE_GRAPH: (Decode(autoencoder), [latents], ["latents"], ["frames"]),
    }
    if config.vae.warp_dim:
        picture = torch.zeros(rows, *config.picture_shape, dtype=torch.uint8)
        looks = [latents, latents[:, -1].clone(), picture], ["latents", _REFERENCE_INPUTS[0], PICTURE]
        wanted[DECODE_GRAPH] = Decode(autoencoder), *looks, ["frames"]
    if config.transformer.sink:
        kept = kept_of_layer(config.transformer)
        rotate, inputs = RotateSinks(transformer), ["rotation", *old[::kept], *old[2::kept]]
        wanted[SINKS_GRAPH] = rotate, [sinks.clone(), cache[::kept], cache[2::kept]], inputs, new[::kept]
    if config.speech is not None:
        mel = torch.zeros(rows, config.transformer.block_size, config.speech.window, MEL_BINS)
        hears = torch.ones(rows, dtype=torch.bool)
        hearing = HearingRows(load_speech(student.path))
        wanted[SPEECH_GRAPH] = hearing, [mel, actions, hears], ["mel", "actions", "hears"], ["heard_actions"]
    return {
        graph: _exported(module.eval(), tuple(arguments), inputs, outputs, student.path, IN_PLACE_OPSET)
        for graph, (module, arguments, inputs, outputs) in wanted.items()
    }


def _export(
    module: nn.Module, arguments: tuple[Tensor, ...], inputs: tuple[str, ...], outputs: tuple[str, ...], path: Path
) -> None:
    path.write_bytes(_exported(module, arguments, inputs, outputs, path.parent, _OPSET))


def _exported(
    module: nn.Module,
    arguments: tuple[Any, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    folder: Path,
    opset: int,
) -> bytes:
    """The module's graph, whose weights are those stored in `folder`."""
    # It warns of packages that it could have had operators of.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        # A transposed weight must not be folded into a copy of its own.
        common.InlinePass()(program.model)
        fold_constants_ir(
            program.model,
            onnx_shape_inference=True,
            should_fold=lambda node: False if node.op_type == "Transpose" else None,
        )
        _REWRITE(program.model)
        _TIDY(program.model)
    model = program.model_proto
    # The exporter notes where in the sources of the machine that exported each node came from.
    for part in (model.graph, *model.graph.node, *model.graph.value_info, *model.functions):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    _share_weights(model, folder)
    graph: bytes = model.SerializeToString()
    return graph


def _share_weights(model: onnx.ModelProto, folder: Path) -> None:
    """Point the initialisers that are stored weights at the safetensors files."""
    stored: dict[str, tuple[str, dict[str, Any]]] = {}
    for prefix, part in (("transformer.", "transformer"), ("autoencoder.", "vae"), ("speech.", "speech")):
        location = f"{part}/{WEIGHTS}"
        if not (folder / location).exists():
            continue
        stored |= {prefix + name: (location, entry) for name, entry in _safetensors_table(folder / location).items()}
    casts = []
    for initializer in list(model.graph.initializer):
        if initializer.name not in stored:
            continue
        location, entry = stored[initializer.name]
        first, last = entry["data_offsets"]
        tensor = TensorProto(
            name=initializer.name,
            dims=entry["shape"],
            data_location=TensorProto.EXTERNAL,
        )
        tensor.data_type = {"BF16": TensorProto.BFLOAT16, "F32": TensorProto.FLOAT}[entry["dtype"]]
        if tensor.data_type != initializer.data_type:
            tensor.name = f"{initializer.name}.stored"
            casts.append(helper.make_node("Cast", [tensor.name], [initializer.name], to=initializer.data_type))
        for key, value in (("location", location), ("offset", first), ("length", last - first)):
            tensor.external_data.add(key=key, value=str(value))
        model.graph.initializer.remove(initializer)
        model.graph.initializer.append(tensor)
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _safetensors_table(path: Path) -> dict[str, dict[str, Any]]:
    """Name to dtype, shape and data_offsets counted from the start of the file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, dict[str, Any]] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for entry in header.values():
        entry["data_offsets"] = [offset + 8 + length for offset in entry["data_offsets"]]
    return header
