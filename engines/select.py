"""Chooses an engine for a student on this machine, and says why."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from engines.protocol import Engine, EngineError, MissingPackage
from streamgen.student import Student

log = logging.getLogger(__name__)

ENGINES = ("auto", "openvino", "tensorrt", "torch_tensorrt", "onnxruntime", "torch")

fallbacks: list[str] = []
"""Engines that `auto` would have taken in this process and could not."""

_NVIDIA = Path("/proc/driver/nvidia/version")


def load_engine(
    path: Path | str,
    engine: str = "auto",
    threads: int | None = None,
    streams: int = 16,
    precision: str | None = None,
) -> Engine:
    """A student (folder or shipped name) on an engine; threads: CPU threads, default all cores. precision: one that the
    engine has; None takes what is fast. `auto` takes tensorrt where there is an NVIDIA GPU, and openvino where there is
    none or where that fails.

    Raises EngineError when the engine is unknown or cannot run here, StudentError when the student cannot be used.
    """
    if engine not in ENGINES:
        raise EngineError(f"engine {engine!r} is unknown; choose one of {', '.join(ENGINES)}")
    student = Student.from_pretrained(path)
    if engine == "torch":
        _need("torch", engine, "PyTorch", "train")
        from engines.torch import torch_engine

        return torch_engine(student, streams, threads, precision)
    if engine == "torch_tensorrt":
        _need("torch", engine, "PyTorch", "torch-tensorrt")
        from engines.torch_tensorrt import TorchTensorRTEngine

        return TorchTensorRTEngine(student, streams, precision=precision)
    if engine == "onnxruntime":
        _need("onnxruntime", engine, "ONNX Runtime", "onnxruntime")
        from engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(student, streams, threads, precision=precision)
    if engine == "tensorrt":
        from engines.tensorrt.engine import TensorRTEngine

        return TensorRTEngine(student, streams, precision=precision)
    if engine == "auto" and _NVIDIA.exists():
        from engines.tensorrt.engine import TensorRTEngine

        try:
            return TensorRTEngine(student, streams, precision=precision)
        except EngineError as error:
            fallbacks.append("tensorrt")
            log.warning("engine openvino takes the place of tensorrt on this machine with a GPU: %s", error)
    from engines.openvino import OpenVINOEngine

    chosen = OpenVINOEngine(student, streams, precision, threads)
    if engine == "auto":
        log.info("engine openvino in %s: the fastest one on a CPU", chosen.precision)
    return chosen


def _need(package: str, engine: str, what: str, extra: str) -> None:
    if find_spec(package) is None:
        raise MissingPackage(
            f"engine {engine} needs {what}: install streamgen with the extra `{extra}`, or use engine openvino"
        )
