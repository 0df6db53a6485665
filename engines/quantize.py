"""Convolutions and linear layers in eight bits, for CPUs that multiply bytes several times faster than floats (AVX-512
VNNI and later).

Weights get a scale for each output channel, what is multiplied with them gets one range, measured at export while the
student plays on from its own starts. A part's last convolution, whose errors are pixels, and layers of few channels,
which read or write latents, stay as they are: they cost the world student's frames 13 dB of 49 (against fp32). So do
what moves a state or bends a reference, layers of a single row, which wait for memory, and all that has no weights:
attention and its cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13

from engines.parts import PRODUCTS
from streamgen.student import Ranges

_LEVELS = 256
_FEWEST_CHANNELS = 48
_FEWEST_ROWS = 8
_MOVES = ".pose.motion.", ".pose.course.", ".decoder.warp."
"""In the names of weights that say places. Errors in the state of a world would add up, while what sees from there errs
by itself in every frame; a pixel of a reference is a 256th of it.
"""
_MARGIN = 1.1
"""Talk opens a mouth wider than the few frames that are measured."""
_CLEAR = 100.0
"""How many times as strong a layer's input must be as what rounding adds to it: 20 dB. In the world student one layer
below that cost 2.8 dB of 43.8.
"""


@dataclass(frozen=True)
class _Layer:
    """name: of its weights; weights: as the node takes them; out_axis: the one of their output channels."""

    name: str
    node: ov.Node
    weights: NDArray[np.float32]
    out_axis: int


def _layers(model: ov.Model) -> Iterator[_Layer]:
    """The layers that eight bits suit."""
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("Convolution", "MatMul") or (kept := _kept(node.input_value(1))) is None:
            continue
        name, weights = kept
        given = node.input_value(0).get_shape()
        out_axis = 0 if kind == "Convolution" or node.get_attributes()["transpose_b"] else 1
        rows = np.prod(given[2:] if kind == "Convolution" else given[:-1])
        moves = any(each in name for each in _MOVES)
        if min(weights.shape[:2]) >= _FEWEST_CHANNELS and rows >= _FEWEST_ROWS and not moves:
            yield _Layer(name, node, weights, out_axis)


def _kept(value: ov.Output) -> tuple[str, NDArray[np.float32]] | None:
    """Name and values of stored weights, however converted, turned and reshaped; None: these are no weights."""
    node = value.get_node()
    kind = node.get_type_name()
    if kind == "Constant":
        return node.get_friendly_name(), node.get_data(dtype=np.float32)
    if kind not in ("Convert", "Transpose", "Reshape") or (kept := _kept(node.input_value(0))) is None:
        return None
    name, weights = kept
    if kind == "Transpose":
        weights = weights.transpose(node.input_value(1).get_node().get_data())
    return name, weights.reshape(list(value.get_shape()))


def watch(model: ov.Model) -> list[str]:
    """Make a model tell what goes into its layers but the last convolutions: three more outputs for each, its least and
    greatest value, and the mean of its squares.

    Returns the names of their weights, in the order of the outputs.
    """
    names = []
    last = _last_convolutions(model)
    for layer in list(_layers(model)):
        if layer.node.get_friendly_name() in last:
            continue
        given = layer.node.input_value(0)
        axes = opset13.constant(np.arange(len(given.get_shape())))
        squares = opset13.multiply(given, given)
        told = opset13.reduce_min(given, axes), opset13.reduce_max(given, axes), opset13.reduce_mean(squares, axes)
        model.add_outputs([each.output(0) for each in told])
        names.append(layer.name)
    return names


def _last_convolutions(model: ov.Model) -> set[str]:
    """Names of those on whose results no other product depends."""
    taken: set[str] = set()
    last: set[str] = set()
    for node in reversed(model.get_ordered_ops()):
        name, kind = node.get_friendly_name(), node.get_type_name()
        if kind == "Convolution" and name not in taken:
            last.add(name)
        if kind in PRODUCTS or name in taken:
            taken |= {source.get_node().get_friendly_name() for source in node.input_values()}
    return last


@dataclass
class Measured:
    """What went into a layer: its least and greatest value, the sum of the means of its squares, and of how many."""

    low: float = 0.0  # what pads an image is 0
    high: float = 0.0
    squares: float = 0.0
    count: int = 0

    def see(self, low: float, high: float, square: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.squares, self.count = self.squares + square, self.count + 1

    @property
    def clear(self) -> bool:
        """Whether rounding to the levels between is little beside it: a few values far beyond all others make it much.

        Rounding errs by a step's square / 12 (Bennett 1948, "Spectra of quantized signals").
        """
        step = _MARGIN * (self.high - self.low) / (_LEVELS - 1)
        return self.squares / self.count > _CLEAR * step**2 / 12


def note(measured: dict[str, Measured], names: Sequence[str], seen: Sequence[float]) -> None:
    """Add what the added outputs of a watched model said."""
    for k, name in enumerate(names):
        measured.setdefault(name, Measured()).see(*seen[3 * k : 3 * k + 3])


def ranges_of(measured: Mapping[str, Measured]) -> Ranges:
    """Of the layers that eight bits suit."""
    return {name: (layer.low, layer.high) for name, layer in measured.items() if layer.clear}


def quantise(model: ov.Model, ranges: Ranges) -> None:
    """Put a model's layers into eight bits where their ranges are known, in place."""
    rounded: dict[tuple[ov.Output, float, float], ov.Output] = {}
    for layer in list(_layers(model)):
        if layer.name not in ranges:
            continue
        others = tuple(k for k in range(layer.weights.ndim) if k != layer.out_axis)
        most = np.abs(layer.weights).max(others, keepdims=True).clip(1e-8)
        # An even number of levels would not have the zero in the middle.
        weights = _rounded(opset13.constant(np.ascontiguousarray(layer.weights)).output(0), -most, most, _LEVELS - 1)
        layer.node.input(1).replace_source_output(weights)
        low, high = ranges[layer.name]
        given = layer.node.input_value(0)
        if (given, low, high) not in rounded:  # queries, keys and values come from the same
            bounds = np.float32(_MARGIN * low), np.float32(_MARGIN * max(high, low + 1e-8))
            rounded[given, low, high] = _rounded(given, *bounds, _LEVELS)
        layer.node.input(0).replace_source_output(rounded[given, low, high])
    model.validate_nodes_and_infer_types()


def _rounded(x: ov.Output, low: np.ndarray | np.float32, high: np.ndarray | np.float32, levels: int) -> ov.Output:
    bounds = [opset13.constant(np.asarray(bound, np.float32)) for bound in (low, high)]
    out: ov.Output = opset13.fake_quantize(x, *bounds, *bounds, levels).output(0)
    return out
