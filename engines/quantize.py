"""Convolutions in eight bits, for CPUs that multiply bytes several times faster than floats (AVX-512 VNNI and later).

Weights get a scale for each output channel, what goes into a convolution gets one range, measured at export while the
student plays on from its own starts. The last convolution, whose errors are pixels, and those of few channels, which
read or write latents, stay as they are: they cost the world student's frames 13 dB of 49 (against fp32). So does all
that is no convolution: attention and its cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import openvino as ov
from openvino import opset13

from streamgen.student import Ranges

_LEVELS = 256
_FEWEST_CHANNELS = 48
_MARGIN = 1.1
"""Talk opens a mouth wider than the few frames that are measured."""


def _convolutions(model: ov.Model) -> list[tuple[str, ov.Node, ov.Node]]:
    """Name of the weights, the convolution, and the constant that holds them, of those that eight bits suit."""
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convolution":
            continue
        weights = node.input_value(1).get_node()
        while weights.get_type_name() == "Convert":
            weights = weights.input_value(0).get_node()
        if weights.get_type_name() == "Constant" and min(node.input_value(1).get_shape()[:2]) >= _FEWEST_CHANNELS:
            found.append((weights.get_friendly_name(), node, weights))
    return found


def watch(model: ov.Model) -> list[str]:
    """Make a model tell what goes into its convolutions but the last: two more outputs for each, its least and greatest
    value.

    Returns the names of their weights, in the order of the outputs.
    """
    names = []
    for name, node, _ in _convolutions(model)[:-1]:
        axes = opset13.constant(np.arange(len(node.input_value(0).get_shape())))
        for reduce in (opset13.reduce_min, opset13.reduce_max):
            model.add_outputs([reduce(node.input_value(0), axes).output(0)])
        names.append(name)
    return names


def widened(ranges: Ranges, names: Sequence[str], seen: Sequence[float]) -> Ranges:
    """Ranges that hold what the added outputs of a watched model said, too."""
    out = dict(ranges)
    for k, name in enumerate(names):
        low, high = out.get(name, (0.0, 0.0))  # what pads an image is 0
        out[name] = min(low, seen[2 * k]), max(high, seen[2 * k + 1])
    return out


def quantise(model: ov.Model, ranges: Ranges) -> None:
    """Put a model's convolutions into eight bits where their ranges are known, in place."""
    for name, node, constant in _convolutions(model):
        if name not in ranges:
            continue
        weights = constant.get_data(dtype=np.float32)
        most = np.abs(weights).max(tuple(range(1, weights.ndim)), keepdims=True).clip(1e-8)
        # An even number of levels would not have the zero in the middle.
        node.input(1).replace_source_output(_rounded(opset13.constant(weights).output(0), -most, most, _LEVELS - 1))
        low, high = (np.float32(_MARGIN * bound) for bound in ranges[name])
        node.input(0).replace_source_output(_rounded(node.input_value(0), low, max(high, low + 1e-8), _LEVELS))
    model.validate_nodes_and_infer_types()


def _rounded(x: ov.Output, low: np.ndarray | np.float32, high: np.ndarray | np.float32, levels: int) -> ov.Output:
    bounds = [opset13.constant(np.asarray(bound, np.float32)) for bound in (low, high)]
    out: ov.Output = opset13.fake_quantize(x, *bounds, *bounds, levels).output(0)
    return out
