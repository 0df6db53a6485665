"""Cuts the graph of a whole block in three: its latents, and from them its frames, and its keys and values.

The last two do not need each other, so they can be made at the same time.
"""

from __future__ import annotations

from collections.abc import Collection

import openvino as ov
from openvino import opset13

_LATENTS, _FRAMES, _CACHE = ("latents",), ("frames",), ("new_k", "new_raw_k", "new_v")
_PRODUCTS = "Convolution", "ConvolutionBackpropData", "GroupConvolution", "MatMul"


def cut(model: ov.Model) -> tuple[ov.Model, ov.Model, ov.Model]:
    """What makes the latents, the frames, and the keys and values.

    The last two take what products of the first give, which are further outputs of the first under the same names.
    What needs no products they calculate again.
    """
    products: set[str] = set()
    for node in model.get_ordered_ops():
        before = {source.get_node().get_friendly_name() for source in node.input_values()}
        if node.get_type_name() in _PRODUCTS or before & products:
            products.add(node.get_friendly_name())
    first = {node.get_friendly_name() for node in _up_to(_results(model, _LATENTS))}
    frames, cache = (_rest(model.clone(), names, first & products) for names in (_FRAMES, _CACHE))
    given = {name for part in (frames, cache) for name in _names(part)} - set(_names(model))
    latents = model.clone()
    results = _results(latents, _LATENTS)
    for node in latents.get_ordered_ops():
        for output in node.outputs():
            if (name := _name(output)) in given and name not in _LATENTS:
                output.add_names({name})
                results.append(opset13.result(output))
    return _model(results), frames, cache


def _rest(model: ov.Model, outputs: Collection[str], given: Collection[str]) -> ov.Model:
    """The part of a model that makes `outputs` when it is given what the nodes `given` make."""
    results = _results(model, outputs)
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
