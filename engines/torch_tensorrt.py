"""Torch-TensorRT: the engine torch with its modules compiled by TensorRT from what PyTorch traces, for a student whose
graphs ONNX does not carry. Not yet run on a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from engines.protocol import EngineError, MissingPackage
from engines.torch import TorchBatches
from streamgen.student import Student

_OPTIONS: dict[str, Any] = {"use_explicit_typing": True, "min_block_size": 1}
"""Precisions are the modules' own."""


class TorchTensorRTEngine(TorchBatches):
    """Batches of `rows` streams on the first GPU. What TensorRT does not take, PyTorch runs."""

    name = "torch_tensorrt"

    def __init__(
        self, student: Student, streams: int = 16, rows: int | None = None, precision: str | None = None
    ) -> None:
        """Raises EngineError without a GPU, MissingPackage without Torch-TensorRT."""
        _load()
        super().__init__(student, streams, rows, precision, compiled=_compiled, kernels=False)


def _load() -> None:
    """Import it, which asks for a GPU and for CUDA's libraries at once."""
    try:
        importlib.import_module("torch_tensorrt")
    except ModuleNotFoundError as error:
        raise MissingPackage(
            "engine torch_tensorrt needs Torch-TensorRT: install streamgen with the extra `torch-tensorrt` and the "
            "versions of constraints/torch-tensorrt.txt, or use engine tensorrt"
        ) from error
    except (AssertionError, OSError, RuntimeError) as error:
        raise EngineError(f"Torch-TensorRT cannot be loaded without an NVIDIA GPU that CUDA sees: {error}") from error


def _compiled(module: nn.Module) -> Callable[..., Any]:
    return torch.compile(module, backend="torch_tensorrt", options=_OPTIONS)
