"""An engine without a model, and its student: a picture says, in black and white squares, what it was made from.

Rows of 8x8-pixel squares, most significant bit first: frame number (2 rows), keys of this frame (1 row), and a checksum
over the seed and every action so far (2 rows). The checksum travels in the latents, so that a stream goes on from its
state like a real one.

One that speech drives has no keys: the first square of their row is white where the frame's own sound is loud.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from engines.protocol import Capacity, StepRequest, StepResult, UnknownStream
from engines.streams import heard
from server.mailbox import Making
from streamgen.actions import WORLD_KEYS
from streamgen.config import AutoencoderConfig, SpeechConfig, StudentConfig, TransformerConfig
from streamgen.face import CURVES, SPEECH
from streamgen.state import StreamState
from streamgen.student import STARTS, WEIGHTS, Student, write_config

WIDTH, HEIGHT, SQUARE = 128, 96, 8
START_FRAMES = 3
ORDERS = "SYNTHETIC_ENGINE_ORDERS"
MADE = Making("stream", worker=1, rows=1, steps=2, began_s=0.0, made_s=0.0, open_s=0.0, step_s=0.0)
"""For frames that no engine made."""


SPEECH_WINDOW, LOUD = 16, 0.0


def synthetic_config(
    fps: float = 20.0, block_size: int = 1, name: str = "synthetic", talks: bool = False
) -> StudentConfig:
    transformer = TransformerConfig(
        in_channels=4,
        height=HEIGHT // 8,
        width=WIDTH // 8,
        dim=16,
        ffn_dim=16,
        num_heads=1,
        num_layers=2,
        window=4 * block_size,
        sink=block_size,
        block_size=block_size,
        action_dim=len(CURVES) if talks else len(WORLD_KEYS),
    )
    return StudentConfig(
        name=name,
        fps=fps,
        width=WIDTH,
        height=HEIGHT,
        keys=() if talks else WORLD_KEYS,
        identities=("anna", "ben") if talks else (),
        speech=SpeechConfig(window=SPEECH_WINDOW, dim=8, curves=len(SPEECH)) if talks else None,
        step_plans={1: (1.0,), 2: (1.0, 0.5)},
        steps=2,
        transformer=transformer,
        vae=AutoencoderConfig(latent_channels=4),
    )


def make_student(
    folder: Path, fps: float = 20.0, block_size: int = 1, name: str = "synthetic", talks: bool = False
) -> Student:
    config = synthetic_config(fps, block_size, name, talks)
    write_config(folder, config)
    shape = (2, START_FRAMES, *config.latent_shape)
    starts: dict[str, NDArray[Any]] = {
        "latents": np.zeros(shape, np.float16),
        "actions": np.zeros((2, START_FRAMES, config.action_dim), np.float32),
    }
    save_file(starts, folder / STARTS)
    student = Student.from_pretrained(folder)
    for part in student.parts:
        save_file({}, folder / part / WEIGHTS)
    for graph in student.graphs:
        (folder / graph).touch()
    return Student.from_pretrained(folder)


def checksum_after(before: int, frame: int, action: NDArray[np.float32]) -> int:
    return zlib.crc32(np.asarray(action, np.float32).tobytes(), zlib.crc32(frame.to_bytes(8, "little"), before))


def first_checksum(seed: int) -> int:
    return zlib.crc32(seed.to_bytes(8, "little"))


def _bits(value: int, count: int) -> NDArray[np.uint8]:
    return np.array([value >> (count - 1 - i) & 1 for i in range(count)], np.uint8)


def _number(bits: NDArray[np.bool_]) -> int:
    return int("".join("1" if bit else "0" for bit in bits), 2)


def paint(frame: int, action: NDArray[np.float32], checksum: int) -> NDArray[np.uint8]:
    squares = np.full((HEIGHT // SQUARE, WIDTH // SQUARE), 128, np.uint8)
    squares[0:2] = 255 * _bits(frame, 32).reshape(2, 16)
    squares[2] = 0
    squares[2, : len(WORLD_KEYS)] = 255 * (action[: len(WORLD_KEYS)] > 0.5)
    squares[3:5] = 255 * _bits(checksum, 32).reshape(2, 16)
    picture = squares.repeat(SQUARE, 0).repeat(SQUARE, 1)
    return np.repeat(picture[:, :, None], 3, 2)


@dataclass(frozen=True)
class Seen:
    """What a picture says."""

    frame: int
    keys: frozenset[str]
    checksum: int


def read(picture: NDArray[np.uint8]) -> Seen:
    """Read a picture of any size, after lossy compression."""
    square_h, square_w = picture.shape[0] // (HEIGHT // SQUARE), picture.shape[1] // (WIDTH // SQUARE)
    gray = picture[..., :3].mean(2)
    squares = gray[square_h // 2 :: square_h, square_w // 2 :: square_w] > 128
    keys = frozenset(key for key, down in zip(WORLD_KEYS, squares[2], strict=False) if down)
    return Seen(_number(squares[0:2].ravel()), keys, _number(squares[3:5].ravel()))


@dataclass
class _Row:
    seed: int
    frame: int
    checksum: int


class SyntheticEngine:
    """Obeys files in `orders` while it runs: `hang`, `exit` (each once), `slow` (seconds a step), `raise-SEED`,
    `nothing-SEED` (latents that are no numbers).
    """

    name = "synthetic"
    precision = "exact"
    device = "paint"

    def __init__(self, config: StudentConfig, orders: Path, step_s: float, build_s: float, capacity: Capacity) -> None:
        self._config, self._orders, self._step_s = config, orders, step_s
        self.capacity = capacity
        self._rows: dict[str, _Row] = {}
        time.sleep(build_s)

    def open(self, stream_id: str, state: StreamState) -> None:
        checksum = first_checksum(state.seed)
        if state.frame > START_FRAMES:
            checksum = _number(state.latents[-1, 0].ravel()[:32] > 0.5)
        self._rows[stream_id] = _Row(state.seed, state.frame, checksum)

    def step(self, requests: Sequence[StepRequest]) -> list[StepResult]:
        self._obey()
        for request in requests:
            if request.stream_id not in self._rows:
                raise UnknownStream(request.stream_id)
            if (self._orders / f"raise-{self._rows[request.stream_id].seed}").exists():
                raise RuntimeError("told to raise")
        return [self._block(request) for request in requests]

    def close(self, stream_id: str) -> None:
        self._rows.pop(stream_id, None)
        (self._orders / "open").write_text(str(len(self._rows)))

    def _block(self, request: StepRequest) -> StepResult:
        row = self._rows[request.stream_id]
        first, frames, latents = row.frame, [], []
        actions = request.actions
        if request.mel is not None:
            assert self._config.speech is not None
            end = SPEECH_WINDOW - self._config.speech.lookahead
            said = np.zeros((len(actions), len(SPEECH)), np.float32)
            said[:, 0] = request.mel[:, end - 4 : end].mean((1, 2)) > LOUD
            actions = heard(said, actions)
        for action in actions:
            row.checksum = checksum_after(row.checksum, row.frame, action)
            frames.append(paint(row.frame, action, row.checksum))
            latent = np.zeros(self._config.latent_shape, np.float16)
            latent[0].ravel()[:32] = _bits(row.checksum, 32)
            latents.append(latent)
            row.frame += 1
        made = np.stack(latents)
        if (self._orders / f"nothing-{row.seed}").exists():
            made += np.float16("inf")
        return StepResult(request.stream_id, first, np.stack(frames), made, actions)

    def _obey(self) -> None:
        for order in ("hang", "exit"):
            if (self._orders / order).exists():
                (self._orders / order).unlink()
                if order == "exit":
                    os._exit(3)
                time.sleep(3600)
        slow = self._orders / "slow"
        time.sleep(float(slow.read_text()) if slow.exists() else self._step_s)


def build_served(path: Path, engine: str, threads: int | None, streams: int) -> SyntheticEngine:
    """In place of `server.cli.build_engine`; the folder for orders comes in the environment."""
    return build_synthetic(Student.from_pretrained(path).config, Path(os.environ[ORDERS]), streams=streams)


def build_synthetic(
    config: StudentConfig,
    orders: Path,
    step_s: float = 0.002,
    build_s: float = 0.0,
    streams: int = 8,
    rows: tuple[int, ...] = (1,),
    fails: bool = False,
) -> SyntheticEngine:
    """Picklable with functools.partial; runs in the worker."""
    if fails:
        raise RuntimeError("told not to build")
    return SyntheticEngine(config, orders, step_s, build_s, Capacity(streams, rows))
