"""Where a frame lives in the cache and at which rotary position. Free of torch: engines and the model share it.

The cache of one stream has `sink + window - block_size` slots of one latent frame each. Slots below `sink` hold the
first frames of the stream for ever; the rest is a ring. A new block's own keys are not in the cache while it is
generated: the step attends to cache and block, and after the commit the block takes the slots of the frames that
leave the window.

Window keys are stored rotated at their absolute frame index. Attention sees only differences of positions, and the
angle is reduced mod 2*pi in float64 before it becomes float32, so positions never run out. Sink keys are stored
unrotated; the step rotates them to sit just before the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamgen.config import StudentConfig, TransformerConfig
from streamgen.noise import block_noise
from streamgen.state import StreamState

ROPE_THETA = 10_000.0


def slot_of(frame: int, config: TransformerConfig) -> int:
    """Slot that holds `frame` while it is visible."""
    if frame < config.sink:
        return frame
    return config.sink + (frame - config.sink) % config.past_slots


def visible_slots(frame: int, config: TransformerConfig, first: int = 0) -> NDArray[np.float32]:
    """[slots] 1 where the block that starts at `frame` may look, 0 where nothing was written yet.

    first: the oldest frame after the sinks that this cache has seen; later than the stream's start after a recache.
    """
    seen = np.zeros(config.slots, np.float32)
    seen[: min(frame, config.sink)] = 1
    for past in range(max(config.sink, first, frame - config.past_slots), frame):
        seen[slot_of(past, config)] = 1
    return seen


@dataclass(frozen=True, slots=True)
class InPlace:
    """Where the block that starts at a frame goes in a cache that has room for the block itself: the sinks, and a ring
    of `window` slots that begins with the oldest frame that the cache has seen. All in tokens.

    write: where its keys and values begin. raw_write: where its raw keys do, among those of the sinks, which have one
    block's room more for all that are none. length: how many, from the first on, the block sees, its own included;
    never others.
    """

    write: int
    raw_write: int
    length: int


def in_place(frame: int, config: TransformerConfig, first: int = 0, later: bool = False) -> InPlace:
    """first: as for `visible_slots`. later: of a step that sees the keys of its block's first one, which stay; its own
    come after all that is seen, until the next one's.
    """
    slot, raw_slot, seen = frame, frame, frame + config.block_size
    if frame >= config.sink:
        past = frame - max(config.sink, first)
        slot, raw_slot = config.sink + past % config.window, config.sink
        seen = config.sink + min(past, config.past_slots) + config.block_size
    if later:
        slot, raw_slot, seen = seen, config.sink, seen + config.block_size
    return InPlace(slot * config.tokens, raw_slot * config.tokens, seen * config.tokens)


def in_place_cache_shapes(student: StudentConfig, rows: int) -> list[tuple[int, int, int, int]]:
    """Of a cache as `in_place` counts it: for each layer keys and values, and with sinks their raw keys."""
    config = student.transformer
    heads, d = config.num_heads, config.head_dim
    slots = config.sink + config.window + config.block_size * student.sees_first
    whole = (rows, heads, slots * config.tokens, d)
    raw = [(rows, heads, (config.sink + config.block_size) * config.tokens, d)] if config.sink else []
    return [whole, whole, *raw] * config.num_layers


def time_rotation(positions: NDArray[np.int64], pairs: int) -> NDArray[np.float32]:
    """cos and sin [len(positions), 2, pairs] of the time part of the rotary embedding (theta 10^4)."""
    frequencies = ROPE_THETA ** (-np.arange(pairs, dtype=np.float64) / pairs)
    # An integer position times an irrational frequency: float64 keeps 1e-9 rad even at position 10^7.
    angles = np.remainder(positions.astype(np.float64)[:, None] * frequencies, 2 * np.pi)
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def block_rotation(frame: int, config: TransformerConfig) -> NDArray[np.float32]:
    """Rotation [sink + block_size, 2, pairs] of the sinks, then of the frames of the block that starts at `frame`.

    Sink s sits at s until the window has left the start of the stream, from then on just before the window's first
    frame.
    """
    last = frame + config.block_size - 1
    shift = max(0, last - (config.sink + config.window - 1))
    positions = np.concatenate([np.arange(config.sink) + shift, np.arange(frame, last + 1)])
    return time_rotation(positions.astype(np.int64), config.rope_pairs[0])


@dataclass(frozen=True, slots=True)
class ReplayBlock:
    """A block of a stream's history, to be committed at `frame` into a cache whose oldest ring frame is `first`.

    latents float16 [F, C, h, w]; given float32, what the pass takes that makes their keys: the latents, or with a
    `history_level` these with the stream's noise; previous float16 [C, h, w], the clean latent before it; actions
    float32 [F, A].
    """

    frame: int
    first: int
    latents: NDArray[np.float16]
    given: NDArray[np.float32]
    previous: NDArray[np.float16]
    actions: NDArray[np.float32]


def replay(state: StreamState, config: TransformerConfig, steps: int = 1) -> Iterator[ReplayBlock]:
    """The blocks whose commits, in order, rebuild the cache of a stream: its sinks, then its last latents.

    From `history_frames` latents in a windowed pass the result equals the live cache; from fewer, deeper layers miss
    what their keys remember of frames that left the window. steps: of its blocks, which with a `history_level` below 1
    decide the noise; it was added to what the step before the last made of a block, in whose place are its latents.
    """
    size, count = config.block_size, len(state.latents)
    start = state.frame - count
    nothing = np.zeros(state.latents.shape[1:], np.float16)

    def block(
        at: int, first: int, x: NDArray[np.float16], before: NDArray[np.float16], actions: NDArray[np.float32]
    ) -> ReplayBlock:
        given, level = x.astype(np.float32), config.history_level
        if level:
            given = (1 - np.float32(level)) * given
            given += np.float32(level) * block_noise(state.seed, at, config.history_step(steps), given.shape)
        return ReplayBlock(at, first, x, given, before, actions)

    for at in range(0, len(state.sink), size):
        before = state.sink[at - 1] if at else nothing
        yield block(at, config.sink, state.sink[at : at + size], before, state.sink_actions[at : at + size])
    # Of a history that does not reach back to the stream's start, the first latent only serves as `previous`.
    spare = int(config.concat_previous and start > 0)
    usable = min(count - spare, state.frame - len(state.sink)) // size * size
    first = state.frame - usable
    for at in range(count - usable, count, size):
        before = state.latents[at - 1] if at else nothing
        yield block(start + at, first, state.latents[at : at + size], before, state.actions[at : at + size])
