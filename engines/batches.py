"""Streams as rows of batches, over caches that stay where they are calculated: what the engines onnxruntime and
tensorrt do on the host.

A frame is a few graphs (`streamgen.models.export.in_place_graphs`), which a `Runner` runs one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from engines.protocol import Capacity, StepRequest, StepResult
from engines.streams import StreamTable, check_request, step_noise
from streamgen.cache import InPlace, block_rotation, in_place, replay
from streamgen.state import StreamState
from streamgen.student import PICTURE, Student

_Number = TypeVar("_Number", bound=np.generic)

Arrays = dict[str, NDArray[np.generic]]

SINK_ROTATION = "sink_rotation"
"""What the graph that rotates the sinks takes as its `rotation`."""


@dataclass(frozen=True)
class Frame:
    """What a batch is given for a block of each of its B rows.

    noise float32 [K, B, F, C, h, w]: for each step; where there are no steps, what the commit takes, K = 1. Of each
    pass, of which there are K, and 1 more where the history is clean: levels int64 [P, B], index of its noise level;
    write int64 [P, B, 2] and length int64 [P, B], as for `streamgen.models.attention.InPlaceAttention`. given: other
    inputs, of all passes, by name, `sink_rotation`, and the decoder's `picture`. mel float32 [B, F, window, MEL_BINS]
    and hears bool [B]: what rows hear, if any does.
    """

    noise: NDArray[np.float32]
    levels: NDArray[np.int64]
    write: NDArray[np.int64]
    length: NDArray[np.int64]
    given: Arrays
    mel: NDArray[np.float32] | None = None
    hears: NDArray[np.bool_] | None = None

    def passes(self) -> Iterator[Arrays]:
        """Of each pass what it alone is given, by name."""
        for at, (level, write, length) in enumerate(zip(self.levels, self.write, self.length, strict=True)):
            yield {"noise": self.noise[min(at, len(self.noise) - 1)], "level": level, "write": write, "length": length}


@dataclass(frozen=True)
class Made:
    """frames uint8 [B, F, H, W, 3]; latents float32 [B, F, C, h, w]; actions float32 [B, F, A], what drove them."""

    frames: NDArray[np.uint8]
    latents: NDArray[np.float32]
    actions: NDArray[np.float32]


class Runner(Protocol):
    """Runs a student's graphs for batches of `rows` rows, each with a cache of its own."""

    rows: int

    def start(self, batch: int, frame: Frame) -> Callable[[], Made]:
        """Begin a frame; what is returned waits for it. One frame of a batch at a time."""
        ...

    def commit(self, batch: int, frame: Frame) -> None:
        """Write the blocks of a frame without steps into the cache."""
        ...

    def clear(self, batch: int, row: int) -> None:
        """Make a row of a batch's cache zero."""
        ...


@dataclass
class _Stream:
    """batch and row: its place. frame: the next one; first: the oldest one in the ring; previous: the last clean latent
    [C, h, w]; reference: the first one, and what drove it [A]; picture: as the state has it.
    """

    batch: int
    row: int
    seed: int
    frame: int
    first: int
    previous: NDArray[np.float32]
    reference: tuple[NDArray[np.float32], NDArray[np.float32]]
    picture: NDArray[np.uint8]


class Batches:
    """Streams in batches. A row that is not asked for is calculated with its batch: what it writes lands where its own
    next block will, which nobody reads before that block has been there.
    """

    def __init__(self, student: Student, runner: Runner, streams: int) -> None:
        self.student = student
        self.capacity = Capacity(streams, tuple(range(1, runner.rows + 1)))
        self._runner = runner
        self._streams: StreamTable[_Stream] = StreamTable(self.capacity)

    def open(self, stream_id: str, state: StreamState) -> None:
        self._streams.check_room(stream_id)
        config, rows = self.student.config, self._runner.rows
        taken = {(stream.batch, stream.row) for name, stream in self._streams.items() if name != stream_id}
        batch, row = next(p for p in (divmod(k, rows) for k in range(self.capacity.streams)) if p not in taken)
        nothing = np.zeros(config.latent_shape, np.float32)
        reference = nothing, np.zeros(config.action_dim, np.float32)
        if len(state.sink):
            reference = state.sink[0].astype(np.float32), state.sink_actions[0].astype(np.float32)
        self._runner.clear(batch, row)
        stream = self._streams[stream_id] = _Stream(batch, row, state.seed, 0, 0, nothing, reference, state.picture)
        levels = np.full((1, rows), config.all_jumps.index((config.transformer.history_level, 0.0)), np.int64)
        for block in replay(state, config.transformer, config.steps):
            stream.frame, stream.first = block.frame, block.first
            stream.previous = block.previous.astype(np.float32)
            noise = np.zeros((1, rows, *block.given.shape), np.float32)
            noise[0, row] = block.given
            places = self._places(batch, np.zeros((1, rows), np.bool_))
            self._runner.commit(batch, Frame(noise, levels, *places, self._given(batch, {row: block.actions})))
            self._advance(stream, block.latents)
        stream.frame = state.frame

    def step(self, requests: Sequence[StepRequest]) -> list[StepResult]:
        for request in requests:
            check_request(request, self.student.config)
            self._streams[request.stream_id]  # raises before anything has moved
        together: dict[int, list[StepRequest]] = {}
        for request in requests:
            together.setdefault(self._streams[request.stream_id].batch, []).append(request)
        # All are begun before the first is waited for.
        begun = [(those, self._runner.start(batch, self._frame(batch, those))) for batch, those in together.items()]
        results: dict[str, StepResult] = {}
        for those, wait in begun:
            made = wait()
            for request in those:
                stream = self._streams[request.stream_id]
                latents = made.latents[stream.row].astype(np.float16)
                results[request.stream_id] = StepResult(
                    request.stream_id,
                    stream.frame,
                    made.frames[stream.row].copy(),
                    latents,
                    made.actions[stream.row].copy(),
                )
                self._advance(stream, latents)
        return [results[request.stream_id] for request in requests]

    def close(self, stream_id: str) -> None:
        self._streams.pop(stream_id, None)

    def _frame(self, batch: int, requests: list[StepRequest]) -> Frame:
        """Rows that take fewer steps than others commit more than once, or where there is no commit begin more than
        once; those without a request do nothing else.
        """
        config, rows = self.student.config, self._runner.rows
        most = max(request.steps for request in requests)
        noise = np.zeros((most, rows, config.transformer.block_size, *config.latent_shape), np.float32)
        commits = not config.transformer.history_level
        levels = np.zeros((most + commits, rows), np.int64)
        later = np.zeros(levels.shape, np.bool_)
        actions, mel = {}, {}
        for request in requests:
            stream, steps = self._streams[request.stream_id], request.steps
            own = step_noise(stream.seed, stream.frame, steps, config)
            plan = [config.all_jumps.index(jump) for jump in config.jumps(steps)]
            wait = 0 if commits else most - steps
            noise[:wait, stream.row], levels[:wait, stream.row] = own[0], plan[0]
            noise[wait : wait + steps, stream.row], levels[wait : wait + steps, stream.row] = own, plan
            later[wait + 1 :, stream.row] = config.sees_first
            actions[stream.row] = request.actions
            if request.mel is not None:
                mel[stream.row] = request.mel
        given, places = self._given(batch, actions), self._places(batch, later)
        if not mel:
            return Frame(noise, levels, *places, given)
        hears = np.isin(np.arange(rows), list(mel))
        return Frame(noise, levels, *places, given, self._rows(mel), hears)

    def _places(self, batch: int, later: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`write` and `length` of a batch's passes. later [P, B]: those that see the first of their block."""
        config = self.student.config.transformer
        write, length = np.zeros((*later.shape, 2), np.int64), np.zeros(later.shape, np.int64)
        write[...], length[...] = _where(in_place(0, config))
        for stream in self._streams.values():
            if stream.batch != batch:
                continue
            for at, is_later in enumerate(later[:, stream.row]):
                place = in_place(stream.frame, config, stream.first, bool(is_later))
                write[at, stream.row], length[at, stream.row] = _where(place)
        return write, length

    def _given(self, batch: int, actions: dict[int, NDArray[np.float32]]) -> Arrays:
        config = self.student.config.transformer
        streams = [stream for stream in self._streams.values() if stream.batch == batch]
        rotation = self._rows({stream.row: block_rotation(stream.frame, config) for stream in streams})
        given: Arrays = {
            "previous": self._rows({stream.row: stream.previous for stream in streams}),
            "actions": self._rows(actions),
            "rotation": rotation[:, config.sink :],
        }
        if config.sink:
            given[SINK_ROTATION] = rotation[:, : config.sink]
        if config.face_dim:
            given["reference"] = self._rows({stream.row: stream.reference[0] for stream in streams})
            given["reference_actions"] = self._rows({stream.row: stream.reference[1] for stream in streams})
        if self.student.config.vae.warp_dim:
            given[PICTURE] = self._rows({stream.row: stream.picture for stream in streams})
        return given

    def _rows(self, values: Mapping[int, NDArray[_Number]]) -> NDArray[_Number]:
        """An array of a batch's rows; zero where there is no value."""
        some = next(iter(values.values()))
        out = np.zeros((self._runner.rows, *some.shape), some.dtype)
        for row, value in values.items():
            out[row] = value
        return out

    def _advance(self, stream: _Stream, latents: NDArray[np.float16]) -> None:
        stream.previous = latents[-1].astype(np.float32)
        stream.frame += self.student.config.transformer.block_size


def _where(place: InPlace) -> tuple[tuple[int, int], int]:
    return (place.write, place.raw_write), place.length
