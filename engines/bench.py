"""Measures an engine: frame rate, step times, and how much of the machine's matrix-product rate it reaches."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov

from engines.openvino import gemm_gflops
from engines.protocol import Engine, StepRequest
from engines.select import load_engine
from streamgen.audio import MEL_BINS, SILENCE
from streamgen.student import Student
from streamgen.work import frame_flops

_GEMM = 1536
_WARMUP_STEPS = 5


@dataclass
class _Times:
    steps_s: list[float]
    elapsed_s: float


def bench(
    student: Student,
    engine_name: str,
    streams: int,
    seconds: float,
    steps: int | None = None,
    precision: str | None = None,
) -> dict[str, Any]:
    """Step `streams` streams in turn for `seconds`; the figures are those of `streamgen bench --json`."""
    steps = steps or student.config.steps
    start = time.perf_counter()
    engine = load_engine(student.path, engine_name, streams=streams, precision=precision)
    load_s = time.perf_counter() - start
    start = time.perf_counter()
    for index in range(streams):
        engine.open(str(index), student.start(index))
    open_s = (time.perf_counter() - start) / streams
    start = time.perf_counter()
    _run(engine, student, streams, 0.0, steps)
    first_frame_s = time.perf_counter() - start
    gemm = gemm_gflops(ov.Core(), engine.precision, _GEMM, 1.0)
    times = _run(engine, student, streams, seconds, steps)
    size = student.config.transformer.block_size
    fps_total = len(times.steps_s) * size / times.elapsed_s
    gflop = frame_flops(student.config, steps) / 1e9
    p50, p99 = (float(np.percentile(times.steps_s, q)) * 1e3 for q in (50, 99))
    return {
        "student": student.config.name,
        "student_hash": student.hash,
        "engine": engine.name,
        "precision": engine.precision,
        "streams": streams,
        "steps": steps,
        "fps": round(fps_total / streams, 2),
        "fps_total": round(fps_total, 2),
        "step_ms": {"p50": round(p50, 2), "p99": round(p99, 2)},
        "gflop_per_frame": round(gflop, 3),
        "gflops": round(gflop * fps_total, 1),
        "gemm_gflops": round(gemm, 1),
        "efficiency": round(gflop * fps_total / gemm, 3),
        "startup_s": {"load": round(load_s, 2), "open": round(open_s, 3), "first_frame": round(first_frame_s, 3)},
    }


def _run(engine: Engine, student: Student, streams: int, seconds: float, steps: int) -> _Times:
    """Steps all streams in turn until the time is up, at least once each, under changing keys."""
    config = student.config
    rng = np.random.default_rng(0)
    taken: list[float] = []
    warmup = _WARMUP_STEPS if seconds else 0
    start = time.perf_counter()
    count = 0
    while True:
        for index in range(streams):
            actions = (rng.random((config.transformer.block_size, config.action_dim)) < 0.3).astype(np.float32)
            mel = None
            if config.speech is not None:
                sound = (len(actions), config.speech.window, MEL_BINS)
                mel = np.minimum(0, rng.normal(SILENCE / 2, 1.0, sound)).astype(np.float32)
            before = time.perf_counter()
            engine.step([StepRequest(str(index), actions, steps, mel)])
            taken.append(time.perf_counter() - before)
        count += 1
        if warmup and count == warmup:
            taken, start = [], time.perf_counter()
        elif time.perf_counter() - start >= seconds and taken:
            return _Times(taken, time.perf_counter() - start)
