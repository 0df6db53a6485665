"""What a student would reach on a GPU, on paper: operations and bytes against the card's published rates.

A part of a block takes as long as its operations at the card's peak or its bytes at the card's bandwidth, whichever is
longer (the roofline, Williams et al. 2009), and parts follow each other. Starting kernels takes no time here, which
for a small student is most of it on a real card. No engine is faster, real ones are slower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamgen.config import StudentConfig, TransformerConfig
from streamgen.student import Student
from streamgen.work import Work, commit_work, decoder_work, face_work, pass_work


@dataclass(frozen=True, slots=True)
class Card:
    """tflops: dense matrix products of bf16, added up in fp32. gigabytes of memory, moved at gigabytes_s."""

    module: str
    tflops: float
    gigabytes: float
    gigabytes_s: float


CARDS = {
    # NVIDIA's data sheets; for RTX cards the appendices of the Ampere, Ada and Blackwell GPU architecture papers.
    "rtx-3090": Card("sm_86", 71.0, 24, 936),
    "rtx-4080": Card("sm_89", 97.5, 16, 717),
    "rtx-4090": Card("sm_89", 165.2, 24, 1008),
    "rtx-5090": Card("sm_120", 209.5, 32, 1792),
    "l4": Card("sm_89", 121.0, 24, 300),
    "l40s": Card("sm_89", 362.0, 48, 864),
    "a100": Card("sm_80", 312.0, 80, 2039),
    "h100": Card("sm_90", 989.4, 80, 3350),
    "h200": Card("sm_90", 989.4, 141, 4800),
    "b200": Card("sm_100", 2250.0, 180, 8000),
}

LAYOUTS = {
    # The public Wan 2.1 transformers at 832x480: four frames of 16 a second are one latent frame.
    "wan-1.3b": {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
    "wan-14b": {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
}
_LAYOUT = {"height": 60, "width": 104, "text_dim": 4096, "window": 18, "sink": 3, "block_size": 3}
_LAYOUT_FPS, _LAYOUT_STEPS = 4.0, 4

_BYTES = 2
"""Of a number in bf16."""
_SHOWN = 1, 2, 4, 8, 16, 32, 64, 128, 256


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a block: its work, done `times`."""

    name: str
    work: Work
    times: int = 1


@dataclass(frozen=True, slots=True)
class Planned:
    """parts: of a block. fps: latent frames a second that a stream should get. row_numbers: a row's keys and values."""

    name: str
    transformer: TransformerConfig
    parts: tuple[Part, ...]
    fps: float
    steps: int

    @property
    def weights_bytes(self) -> int:
        return _BYTES * sum(part.work.weights for part in self.parts if part.name != "commit")

    @property
    def row_bytes(self) -> int:
        """Keys and values of a row's cache, the sinks' raw keys, and what a layer hands on."""
        config = self.transformer
        slots = 2 * config.slots + config.sink
        largest = config.block_size * config.tokens * max(config.dim, config.ffn_dim)
        return _BYTES * (slots * config.num_layers * config.tokens * config.dim + 2 * largest)


def planned(student: str | Path, steps: int | None = None) -> Planned:
    """A student (folder or shipped name) or one of LAYOUTS, which have no decoder here.

    Raises StudentError; ValueError where a student has no plan for so many steps.
    """
    config: StudentConfig | None = None
    if student in LAYOUTS:
        transformer = TransformerConfig.model_validate(_LAYOUT | LAYOUTS[str(student)])
        name, fps, count = str(student), _LAYOUT_FPS, steps or _LAYOUT_STEPS
    else:
        config = Student.from_pretrained(student).config
        name, transformer, fps, count = config.name, config.transformer, config.fps, steps or config.steps
        if count not in config.step_plans:
            raise ValueError(
                f"student {name} has no plan for {count} steps; it has some for {sorted(config.step_plans)}"
            )
    parts = [Part("step", pass_work(transformer), count), Part("commit", commit_work(transformer))]
    if transformer.face_dim:
        parts.append(Part("face", face_work(transformer)))
    if config is not None:
        parts.append(Part("decoder", decoder_work(config)))
    return Planned(name, transformer, tuple(parts), fps, count)


def plan(what: Planned, card: Card) -> dict[str, Any]:
    """The figures of `streamgen plan --json`."""
    memory = 1e9 * card.gigabytes
    most = max(0, int((memory - what.weights_bytes) // what.row_bytes))
    wanted = what.fps / what.transformer.block_size
    total = sum((part.work * part.times for part in what.parts), Work())
    keep_up = _last(lambda rows: wanted * _block_s(what, card, rows) <= 1, most)
    return {
        "student": what.name,
        "steps": what.steps,
        "card": {
            "module": card.module,
            "tflops": card.tflops,
            "gigabytes": card.gigabytes,
            "gigabytes_s": card.gigabytes_s,
        },
        "block": {
            "latent_frames": what.transformer.block_size,
            "gflop_a_row": round(total.flops / 1e9, 3),
            "weight_mb": round(_BYTES * total.weights / 1e6, 3),
            "activation_mb_a_row": round(_BYTES * total.activations / 1e6, 3),
            "cache_mb_a_row": round(_BYTES * total.cache / 1e6, 3),
        },
        "memory": {
            "weights_mb": round(what.weights_bytes / 1e6, 1),
            "row_mb": round(what.row_bytes / 1e6, 1),
            "rows": most,
        },
        "ridge_flop_a_byte": round(card.tflops * 1e3 / card.gigabytes_s, 1),
        "fps_wanted": what.fps,
        "rows_at_that": keep_up,
        "limit": "memory" if keep_up == most else _limit(what, card, max(1, keep_up)),
        "rows": [_figures(what, card, rows) for rows in _SHOWN if rows <= most],
    }


def _figures(what: Planned, card: Card, rows: int) -> dict[str, Any]:
    block_s = _block_s(what, card, rows)
    fps = what.transformer.block_size / block_s
    flops = rows * sum(part.times * part.work.flops for part in what.parts)
    moved = moved_bytes(what, rows)
    return {
        "rows": rows,
        "block_ms": round(1e3 * block_s, 3),
        "fps_a_row": round(fps, 1),
        "fps_total": round(rows * fps, 1),
        "flop_a_byte": round(flops / moved, 1),
        "limit": _limit(what, card, rows),
        "parts_ms": {p.name: round(1e3 * p.times * max(_terms_s(p.work, card, rows)), 3) for p in what.parts},
    }


def _moved(work: Work, rows: int) -> int:
    """Bytes."""
    return _BYTES * (work.weights + rows * (work.activations + work.cache))


def moved_bytes(what: Planned, rows: int) -> int:
    """Bytes that a block of so many rows must move."""
    return sum(part.times * _moved(part.work, rows) for part in what.parts)


def _terms_s(work: Work, card: Card, rows: int) -> tuple[float, float]:
    """What the operations take, and what the bytes take."""
    return rows * work.flops / (1e12 * card.tflops), _moved(work, rows) / (1e9 * card.gigabytes_s)


def _block_s(what: Planned, card: Card, rows: int) -> float:
    return sum(part.times * max(_terms_s(part.work, card, rows)) for part in what.parts)


def _limit(what: Planned, card: Card, rows: int) -> str:
    """Which term most of a block's time is spent on."""
    spent = [0.0, 0.0]
    for part in what.parts:
        terms = _terms_s(part.work, card, rows)
        spent[terms[1] > terms[0]] += part.times * max(terms)
    return "operations" if spent[0] >= spent[1] else "bandwidth"


def _last(holds: Callable[[int], bool], most: int) -> int:
    """The largest count up to `most` for which it holds, if it holds for all below; 0 if for none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def table(figures: dict[str, Any]) -> str:
    """The figures for people to read."""
    block, memory, card = figures["block"], figures["memory"], figures["card"]
    text = f"""{figures["student"]}, {figures["steps"]} steps a block, on paper
card ({card["module"]}): {card["tflops"]:g} TFLOP/s in bf16, {card["gigabytes_s"]:g} GB/s, {card["gigabytes"]:g} GB
a block ({block["latent_frames"]} latent frames) of a row: {block["gflop_a_row"]:g} GFLOP, \
{block["activation_mb_a_row"]:g} MB of activations, {block["cache_mb_a_row"]:g} MB of keys and values
for all rows: {block["weight_mb"]:g} MB of weights
memory: {memory["weights_mb"]:g} MB of weights, {memory["row_mb"]:g} MB a row
"""
    if not figures["rows"]:
        return f"{text}\nNot even one row fits."
    text += "\n rows  block ms   fps a row  fps total  FLOP/byte  limit\n"
    for row in figures["rows"]:
        text += f"{row['rows']:5d} {row['block_ms']:9.3f} {row['fps_a_row']:11.1f} {row['fps_total']:10.1f} "
        text += f"{row['flop_a_byte']:10.1f}  {row['limit']}\n"
    text += f"\nThe roofline bends at {figures['ridge_flop_a_byte']:g} FLOP/byte. {figures['rows_at_that']} rows get "
    return text + f"{figures['fps_wanted']:g} latent frames a second; more are held up by {figures['limit']}."
