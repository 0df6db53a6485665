"""Cuts graphs into parts, which one request each calculates.

A block's is cut in three: its latents, and from them its frames, and its keys and values. The last two do not need each
other, so they can be made at the same time. What knows where it is can be cut further, where that place needs more
bits than what is drawn there.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import openvino as ov
from openvino import opset13

_LATENTS, _FRAMES, _CACHE = ("latents",), ("frames",), ("new_k", "new_raw_k", "new_v")
PRODUCTS = "Convolution", "ConvolutionBackpropData", "GroupConvolution", "MatMul"
POSE = ".pose."
"""In the names of the weights that move a pose, and that see from it."""


def cut(model: ov.Model) -> tuple[ov.Model, ov.Model, ov.Model]:
    """What makes the latents, the frames, and the keys and values.

    The last two take what products of the first give, which are further outputs of the first under the same names.
    What needs no products they calculate again.
    """
    products: set[str] = set()
    for node in model.get_ordered_ops():
        if node.get_type_name() in PRODUCTS or _sources(node) & products:
            products.add(node.get_friendly_name())
    first = {node.get_friendly_name() for node in _up_to(_results(model, _LATENTS))}
    frames, cache = (_part(model, names, first & products) for names in (_FRAMES, _CACHE))
    given = {name for part in (frames, cache) for name in _names(part)} - set(_names(model))
    return _part(model, {*_LATENTS, *given}), frames, cache


def in_turns(model: ov.Model) -> list[ov.Model]:
    """The parts of a graph that knows where it is, in the order that they run. The first and every other one after it
    must be exact: they move the pose, see from it, and put latents together. The rest draws.

    Each takes what those before it make.
    """
    for node in model.get_ordered_ops():  # a shape is no reason to wait for what has it
        if node.get_type_name() == "ShapeOf":
            shape = np.array(node.input_value(0).get_shape(), node.output(0).get_element_type().to_dtype())
            node.output(0).replace(opset13.constant(shape).output(0))
    exact, fixed = _exact(model)
    turns: dict[str, int] = {}
    for node in model.get_ordered_ops():
        name, own = node.get_friendly_name(), 0 if node.get_friendly_name() in exact else 1
        if name not in fixed and node.get_type_name() not in ("Parameter", "Result"):
            before = [turns[source] for source in _sources(node) & turns.keys()]
            turns[name] = max((turn + (turn + own) % 2 for turn in before), default=own)
    parts: list[ov.Model] = []
    made = {_name(result.input_value(0)): result.input_value(0).get_node() for result in model.get_results()}
    for turn in reversed(range(max(turns.values()) + 1)):
        wanted = {name for name, node in made.items() if turns[node.get_friendly_name()] == turn}
        parts.insert(0, _part(model, wanted, {name for name, other in turns.items() if other < turn}))
        needed = set(_names(parts[0])) - set(_names(model))
        made |= {
            name: node for node in model.get_ops() for output in node.outputs() if (name := _name(output)) in needed
        }
    return parts


def _exact(model: ov.Model) -> tuple[set[str], set[str]]:
    """Names of the nodes that must be exact, and of those that are the same for all inputs.

    Exact are those that lead to one with weights of a pose, and those between the last products and the latents.
    """
    fixed: set[str] = set()
    weights: set[str] = set()
    posed: list[ov.Node] = []
    for node in model.get_ordered_ops():
        name, before = node.get_friendly_name(), _sources(node)
        if node.get_type_name() != "Parameter" and before <= fixed:
            fixed.add(name)
            if POSE in name or before & weights:
                weights.add(name)
        elif before & weights:
            posed.append(node)
    products = {node.get_friendly_name() for node in model.get_ops() if node.get_type_name() in PRODUCTS}
    exact = [*_up_to(posed), *_up_to(_results(model, _LATENTS), products)]
    return {node.get_friendly_name() for node in exact} - fixed, fixed


def _part(model: ov.Model, outputs: Collection[str], given: Collection[str] = ()) -> ov.Model:
    """The part of a model that makes the values `outputs`, when it is given what the nodes `given` make."""
    model = model.clone()
    results = _results(model, outputs)
    there = {_name(result.input_value(0)) for result in results}
    for node in model.get_ordered_ops():
        for output in node.outputs():
            if node.get_type_name() != "Result" and (name := _name(output)) in outputs and name not in there:
                output.add_names({name})
                results.append(opset13.result(output))
    parameters: dict[str, ov.Node] = {}
    for node in _up_to(results, given):
        for taken in node.inputs():
            source = taken.get_source_output()
            if source.get_node().get_friendly_name() not in given:
                continue
            name = _name(source)
            if name not in parameters:
                parameters[name] = opset13.parameter(list(source.get_shape()), source.get_element_type())
                parameters[name].output(0).set_names({name})
            taken.replace_source_output(parameters[name].output(0))
    return _model(results)


def _sources(node: ov.Node) -> set[str]:
    return {source.get_node().get_friendly_name() for source in node.input_values()}


def _results(model: ov.Model, names: Collection[str]) -> list[ov.Node]:
    return [result for result in model.get_results() if result.input_value(0).get_names() & set(names)]


def _up_to(results: Collection[ov.Node], but: Collection[str] = ()) -> list[ov.Node]:
    """Results and what they depend on, except through nodes called `but`."""
    found: dict[str, ov.Node] = {}
    todo = list(results)
    while todo:
        node = todo.pop()
        name = node.get_friendly_name()
        if name in found or name in but:
            continue
        found[name] = node
        todo += [source.get_node() for source in node.input_values()]
    return list(found.values())


def _model(results: list[ov.Node]) -> ov.Model:
    return ov.Model(results, [node for node in _up_to(results) if node.get_type_name() == "Parameter"])


def _name(output: ov.Output) -> str:
    return min(output.get_names(), default=f"{output.get_node().get_friendly_name()}.{output.get_index()}")


def _names(model: ov.Model) -> list[str]:
    return [name for taken in model.inputs for name in taken.get_names()]
