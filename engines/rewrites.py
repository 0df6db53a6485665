"""Rewrites graphs as OpenVINO calculates them fastest; what they make stays the same but for rounding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np
import openvino as ov
from openvino import opset13

CACHE, MADE = ("cache_k", "cache_v"), ("new_k", "new_raw_k", "new_v")
"""Inputs and outputs of a graph."""


def spell_attention_out(model: ov.Model) -> None:
    """Put the products, the sum and the softmax in the place of attentions: OpenVINO 2026.4 does so too, but turns the
    keys in memory first, which costs a third of the attention's time.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention":
            continue
        q, k, v, bias = (node.input_value(index) for index in range(4))
        scale = opset13.constant(np.float32(q.get_shape()[-1] ** -0.5))
        scores = opset13.matmul(opset13.multiply(q, scale), k, False, True)
        weights = opset13.softmax(opset13.add(scores, bias), -1)
        out = opset13.matmul(weights, v, False, False).output(0)
        # What a row that sees nothing would be: there is none.
        guards = [taken.get_node() for taken in node.output(0).get_target_inputs()]
        for guard in guards:
            if guard.get_type_name() == "Select" and guard.input_value(2) == node.output(0):
                guard.output(0).replace(out)
        node.output(0).replace(out)


def halve(parts: Sequence[tuple[ov.Model, str]]) -> None:
    """Let parts that calculate in bf16 take and give the cache so, and what they alone make of it: half as much is
    moved, and nothing converted.
    """
    half = [part for part, precision in parts if precision == "bf16"]
    made, taken = names_of(chain(*(part.outputs for part in half))), names_of(chain(*(part.inputs for part in half)))
    exact = names_of(chain(*(part.inputs for part, precision in parts if precision != "bf16")))
    halved = {*CACHE, *MADE, *((made & taken) - exact - {"latents"})}
    for part in half:
        for given in part.get_parameters():
            if given.get_element_type() == ov.Type.f32 and given.output(0).get_names() & halved:
                takers = given.output(0).get_target_inputs()
                given.set_element_type(ov.Type.bf16)
                wide = opset13.convert(given, "f32").output(0)
                for taker in takers:
                    taker.replace_source_output(wide)
        for result in part.get_results():
            value = result.input_value(0)
            if value.get_element_type() == ov.Type.f32 and (names := value.get_names() & halved):
                value.set_names(value.get_names() - names)
                rounded = opset13.convert(value, "bf16").output(0)
                rounded.set_names(names)
                result.input(0).replace_source_output(rounded)
        part.validate_nodes_and_infer_types()


def names_of(values: Iterable[ov.Output]) -> set[str]:
    """Those of all tensors."""
    return {name for value in values for name in value.get_names()}


def widen_tables(model: ov.Model) -> None:
    """Keep in fp32 what is looked up in stored bf16: OpenVINO 2026.4 would look up bf16, which took twenty times as
    long for a map of 640x640 places.
    """
    for node in model.get_ordered_ops():
        stored = node.input_value(0).get_node() if node.get_type_name() == "Convert" else node
        looked_up = any(taken.get_node().get_type_name() == "Gather" for taken in node.output(0).get_target_inputs())
        if stored is not node and stored.get_type_name() == "Constant" and looked_up:
            node.output(0).replace(opset13.constant(stored.get_data(dtype=np.float32)).output(0))
