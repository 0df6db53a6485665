"""Chooses an engine for a student on this machine, and says why."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from engines.protocol import Engine, EngineError
from streamgen.student import Student

log = logging.getLogger(__name__)

ENGINES = ("auto", "openvino", "onnxruntime", "torch")


def load_engine(
    path: Path | str,
    engine: str = "auto",
    threads: int | None = None,
    streams: int = 16,
    precision: str | None = None,
) -> Engine:
    """A student (folder or shipped name) on an engine; threads: CPU threads, default all cores. precision: of the
    engine openvino; None takes what the CPU is fast in.

    Raises EngineError when the engine is unknown or its package is missing, StudentError when the student cannot be
    used.
    """
    if engine not in ENGINES:
        raise EngineError(f"engine {engine!r} is unknown; choose one of {', '.join(ENGINES)}")
    student = Student.from_pretrained(path)
    if engine == "torch":
        if find_spec("torch") is None:
            raise EngineError(
                "engine torch needs PyTorch: install streamgen with the extra `train`, or use engine openvino"
            )
        from engines.torch import TorchEngine

        return TorchEngine(student, streams, threads)
    if engine == "onnxruntime":
        if find_spec("onnxruntime") is None:
            raise EngineError(
                "engine onnxruntime needs ONNX Runtime: install streamgen with the extra `onnxruntime`, or use engine "
                "openvino"
            )
        from engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(student, streams, threads)
    from engines.openvino import OpenVINOEngine

    chosen = OpenVINOEngine(student, streams, precision, threads)
    if engine == "auto":
        log.info("engine openvino in %s: the fastest one on a CPU", chosen.precision)
    return chosen
