"""Writes student folders: weights in bf16 and the rollout's graphs, which hold no weights of their own.

A graph's initialisers are ONNX external data that point into the folder's safetensors files (a safetensors file is a
header and raw little-endian tensors), so any number of graphs shares one copy of the weights. Stored bf16 values are
cast to fp32 by the graph; a runtime folds that at load.
"""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn

from streamgen.audio import MEL_BINS
from streamgen.cache import block_rotation, in_place_cache_shapes, in_place_slots
from streamgen.config import StudentConfig
from streamgen.models.attention import IN_PLACE_OPSET
from streamgen.models.autoencoder import Autoencoder
from streamgen.models.loading import load_autoencoder, load_speech, load_transformer, save_tensors, save_weights
from streamgen.models.rollout import Commit, InPlaceCommit, InPlaceRollout, RollingCache, Rollout
from streamgen.models.speech import SpeechEncoder
from streamgen.models.transformer import CausalVideoTransformer
from streamgen.student import COMMIT_GRAPH, SPEECH_GRAPH, STARTS, WEIGHTS, Student, step_graph, write_config

_OPSET = 23
_STEP_INPUTS = ("noise", "previous", "actions", "rotation", "visible", "cache_k", "cache_v")
_REFERENCE_INPUTS = ("reference", "reference_actions")
_BLOCK_OUTPUTS = ("new_k", "new_raw_k", "new_v")


def write_student(
    folder: Path,
    config: StudentConfig,
    transformer: CausalVideoTransformer,
    autoencoder: Autoencoder,
    start_latents: Tensor,
    start_actions: Tensor,
    card: str,
    speech: SpeechEncoder | None = None,
) -> None:
    """Write a student folder. start_latents [S, T, C, h, w] and start_actions [S, T, A] are what streams begin from."""
    write_config(folder, config)
    save_weights(transformer, folder / "transformer" / WEIGHTS, torch.bfloat16)
    save_weights(autoencoder, folder / "vae" / WEIGHTS, torch.bfloat16)
    save_tensors({"latents": start_latents.half(), "actions": start_actions.half()}, folder / STARTS)
    (folder / "README.md").write_text(card)
    if speech is not None:
        save_weights(speech, folder / "speech" / WEIGHTS, torch.bfloat16)
    # What is exported is what was stored: the graphs read the bf16 weights.
    transformer, autoencoder = load_transformer(folder), load_autoencoder(folder)
    inputs = _example_inputs(config)
    step_inputs = (*_STEP_INPUTS, *(_REFERENCE_INPUTS if config.transformer.face_dim else ()))
    for count, sigmas in config.step_plans.items():
        noise = torch.zeros(count, 1, config.transformer.block_size, *config.latent_shape)
        rollout = Rollout(transformer, autoencoder, sigmas).eval()
        _export(
            rollout, (noise, *inputs), step_inputs, ("frames", "latents", *_BLOCK_OUTPUTS), folder / step_graph(count)
        )
    if config.speech is not None:
        mel = torch.zeros(1, config.transformer.block_size, config.speech.window, MEL_BINS)
        _export(_Hearing(load_speech(folder)).eval(), (mel,), ("mel",), ("curves",), folder / SPEECH_GRAPH)
    latents = torch.zeros(1, config.transformer.block_size, *config.latent_shape)
    commit_inputs = ("latents", *step_inputs[1:])
    _export(Commit(transformer).eval(), (latents, *inputs), commit_inputs, _BLOCK_OUTPUTS, folder / COMMIT_GRAPH)


class _Hearing(nn.Module):
    """A speech encoder under the name that its weights have in a folder."""

    def __init__(self, speech: SpeechEncoder) -> None:
        super().__init__()
        self.speech = speech

    def forward(self, mel: Tensor) -> Tensor:
        out: Tensor = self.speech(mel)
        return out


def _example_inputs(config: StudentConfig) -> tuple[Tensor, ...]:
    cache = RollingCache.empty(config.transformer, 1)
    actions = torch.zeros(1, config.transformer.block_size, config.action_dim)
    return cache.previous, actions, *(t.contiguous() for t in cache.inputs())


def in_place_graphs(student: Student, rows: int) -> dict[str, bytes]:
    """A student's graphs for `rows` streams at once that write into their cache: each step count's, the commit's, and
    what hears.

    Opset 24. The cache's inputs are `cache_0`, …, its outputs `new_cache_0`, …, made to be bound to the same memory.
    Weights stay in the student's files: locations are relative to its folder.
    """
    config, transformer = student.config, load_transformer(student.path)
    autoencoder = load_autoencoder(student.path)
    shapes = in_place_cache_shapes(config.transformer, rows)
    cache = [torch.zeros(shape) for shape in shapes]
    (write, visible), rotation = in_place_slots(0, config.transformer), block_rotation(0, config.transformer)
    latents = torch.zeros(rows, config.transformer.block_size, *config.latent_shape)
    actions = torch.zeros(rows, config.transformer.block_size, config.action_dim)
    state = (torch.from_numpy(np.repeat(np.asarray(array)[None], rows, 0)) for array in (rotation, visible, write))
    given: tuple[Tensor, ...] = (latents[:, -1].clone(), actions, *state)
    names = ["previous", "actions", "rotation", "visible", "write", *(f"cache_{k}" for k in range(len(shapes)))]
    reference: tuple[Tensor, ...] = ()
    if config.transformer.face_dim:
        reference = latents[:, -1].clone(), actions[:, 0].clone()
        names += _REFERENCE_INPUTS
    new = tuple(f"new_cache_{k}" for k in range(len(shapes)))
    graphs = {}
    for count, sigmas in config.step_plans.items():
        noise = torch.zeros(count, *latents.shape)
        rollout = InPlaceRollout(transformer, autoencoder, sigmas).eval()
        graphs[step_graph(count)] = _exported(
            rollout,
            (noise, *given, cache, *reference),
            ("noise", *names),
            ("frames", "latents", *new),
            student.path,
            IN_PLACE_OPSET,
        )
    commit = InPlaceCommit(transformer).eval()
    graphs[COMMIT_GRAPH] = _exported(
        commit, (latents, *given, cache, *reference), ("latents", *names), new, student.path, IN_PLACE_OPSET
    )
    if config.speech is not None:
        mel = torch.zeros(rows, config.transformer.block_size, config.speech.window, MEL_BINS)
        hearing = _Hearing(load_speech(student.path)).eval()
        graphs[SPEECH_GRAPH] = _exported(hearing, (mel,), ("mel",), ("curves",), student.path, IN_PLACE_OPSET)
    return graphs


def _export(
    module: nn.Module, arguments: tuple[Tensor, ...], inputs: tuple[str, ...], outputs: tuple[str, ...], path: Path
) -> None:
    path.write_bytes(_exported(module, arguments, inputs, outputs, path.parent, _OPSET))


def _exported(
    module: nn.Module,
    arguments: tuple[Tensor | list[Tensor], ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    folder: Path,
    opset: int,
) -> bytes:
    """The module's graph, whose weights are those stored in `folder`."""
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
        # Folding constants must not fold a transposed weight into a copy of its own. A second round takes a quarter of
        # the export's time and finds one node of a thousand.
        optimize_ir(
            program.model, num_iterations=1, should_fold=lambda node: False if node.op_type == "Transpose" else None
        )
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
            data_type=TensorProto.FLOAT,
            dims=entry["shape"],
            data_location=TensorProto.EXTERNAL,
        )
        if entry["dtype"] == "BF16":
            tensor.name, tensor.data_type = f"{initializer.name}.bf16", TensorProto.BFLOAT16
            casts.append(helper.make_node("Cast", [tensor.name], [initializer.name], to=TensorProto.FLOAT))
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
