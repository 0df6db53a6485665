"""The engine protocol: the same calls for every runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from streamgen.state import StreamState


class EngineError(RuntimeError):
    """An engine cannot do what it was asked; the message says what to do."""


class EngineFull(EngineError):
    """No room for another stream."""


class UnknownStream(EngineError):
    """The stream was never opened here, or was closed."""


class MissingPackage(EngineError):
    """A package that an engine needs is not installed; the message says which, and how to install it."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """streams: how many fit. rows: the batch sizes in which `step` runs; (1,) means one stream at a time."""

    streams: int
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StepRequest:
    """One block for one stream. actions: float32 [F, A], one vector for each frame of the block. steps: 1 or 2 …

    mel: float32 [F, window, MEL_BINS], what a student that speech drives hears around each frame: what it says of it
    takes the place of the first columns of `actions`. None: the actions are all there is.
    """

    stream_id: str
    actions: NDArray[np.float32]
    steps: int
    mel: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """frame: index of the block's first frame. frames: uint8 [F, H, W, 3] RGB. latents: float16 [F, C, h, w], clean.
    actions: float32 [F, A], what drove them.
    """

    stream_id: str
    frame: int
    frames: NDArray[np.uint8]
    latents: NDArray[np.float16]
    actions: NDArray[np.float32]


class Engine(Protocol):
    """A student on a runtime. Not thread-safe: one caller at a time."""

    @property
    def name(self) -> str: ...

    @property
    def precision(self) -> str: ...

    @property
    def device(self) -> str:
        """What it runs on, as its maker names it."""
        ...

    @property
    def capacity(self) -> Capacity: ...

    def open(self, stream_id: str, state: StreamState) -> None:
        """Make room and rebuild the cache from the state; reopening replaces the stream. Raises EngineFull."""
        ...

    def step(self, requests: Sequence[StepRequest]) -> list[StepResult]:
        """Generate the next block of each stream. Raises UnknownStream, or ValueError for a wrong action shape or step
        count.
        """
        ...

    def close(self, stream_id: str) -> None:
        """Give the stream's room back; closing an unknown stream does nothing."""
        ...
