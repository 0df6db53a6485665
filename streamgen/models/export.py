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

import onnx
import torch
from onnx import TensorProto, helper
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn

from streamgen.audio import MEL_BINS
from streamgen.config import StudentConfig
from streamgen.models.autoencoder import Autoencoder
from streamgen.models.loading import load_autoencoder, load_speech, load_transformer, save_tensors, save_weights
from streamgen.models.rollout import Commit, RollingCache, Rollout
from streamgen.models.speech import SpeechEncoder
from streamgen.models.transformer import CausalVideoTransformer
from streamgen.student import COMMIT_GRAPH, SPEECH_GRAPH, STARTS, WEIGHTS, step_graph, write_config

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


def _export(
    module: nn.Module, arguments: tuple[Tensor, ...], inputs: tuple[str, ...], outputs: tuple[str, ...], path: Path
) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            opset_version=_OPSET,
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
    _share_weights(model, path.parent)
    path.write_bytes(model.SerializeToString())


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
