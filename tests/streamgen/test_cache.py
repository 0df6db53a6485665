"""Positions and slots of the rolling cache."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from streamgen.cache import block_rotation, in_place, slot_of, time_rotation, visible_slots
from streamgen.config import TransformerConfig
from tests.toy import toy_transformer_config


@given(st.integers(0, 10**9), st.integers(0, 4), st.integers(2, 9))
def test_a_frame_keeps_its_slot_until_it_leaves_the_window(frame: int, sink: int, window: int) -> None:
    config = toy_transformer_config(sink=sink, window=window)
    visible = range(max(sink, frame - config.past_slots), frame)
    slots = [slot_of(past, config) for past in visible]
    assert len(set(slots)) == len(slots)
    assert all(sink <= slot < config.slots for slot in slots)
    expected = np.zeros(config.slots)
    expected[[*range(min(frame, sink)), *slots]] = 1
    assert np.array_equal(visible_slots(frame, config), expected)


def test_after_a_recache_only_what_was_replayed_is_visible() -> None:
    config = toy_transformer_config(window=6)
    assert visible_slots(103, config, first=101).sum() == 2
    assert visible_slots(101, config, first=101).sum() == 0


@given(st.integers(1, 3), st.integers(0, 2), st.integers(2, 5), st.integers(0, 40), st.integers(1, 30))
def test_a_cache_with_room_for_the_block_shows_what_the_other_shows(
    size: int, sinks: int, blocks: int, start: int, count: int
) -> None:
    """Written block after block, from the beginning or, after the sinks, from a later frame on."""
    config = toy_transformer_config(block_size=size, sink=size * sinks, window=size * blocks)
    first = config.sink + size * start if start else 0
    frames = [*range(0, config.sink, size), *range(max(first, config.sink), first + config.sink + size * count, size)]
    n, held, raw = config.tokens, dict[int, int](), dict[int, int]()
    for frame in frames:
        place = in_place(frame, config, first)
        assert (place.write % n, place.raw_write % n, place.length % n) == (0, 0, 0)
        held |= {place.write // n + i: frame + i for i in range(size)}
        raw |= {place.raw_write // n + i: frame + i for i in range(size)}
        assert max(held) < config.sink + config.window and max(raw) < config.sink + size
        seen = {held[slot] for slot in range(place.length // n)}
        window = range(max(config.sink, first, frame - config.past_slots), frame)
        assert seen == {*range(min(frame, config.sink)), *window, *range(frame, frame + size)}
        assert len(seen) == place.length // n
    assert all(raw[slot] == slot for slot in range(config.sink))


def test_sinks_sit_just_before_the_window() -> None:
    config = toy_transformer_config(sink=2, window=6)
    early, late = block_rotation(5, config), block_rotation(100, config)
    pairs = config.rope_pairs[0]
    assert np.array_equal(early, time_rotation(np.array([0, 1, 5]), pairs))
    # The window of frame 100 is 95 .. 100, so the sinks are at 93 and 94.
    assert np.array_equal(late, time_rotation(np.array([93, 94, 100]), pairs))


@pytest.mark.parametrize("base", [0, 1024, 10**7])
def test_only_differences_of_positions_matter(base: int) -> None:
    pairs = 12
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, pairs)) + 1j * rng.standard_normal((2, pairs))

    def score(at: int, past: int) -> float:
        (cq, sq), (ck, sk) = time_rotation(np.array([at, past]), pairs).astype(np.float64)
        return float(np.real(np.sum(q * (cq + 1j * sq) * np.conj(k * (ck + 1j * sk)))))

    assert score(base + 11, base + 3) == pytest.approx(score(11, 3), abs=2e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"height": 5}, "height 5"), ({"window": 1}, "no past"), ({"dim": 50, "num_heads": 5}, "head dimension 10")],
)
def test_impossible_shapes_are_refused(change: dict[str, int], said: str) -> None:
    settings = toy_transformer_config().model_dump() | change
    with pytest.raises(ValueError, match=said):
        TransformerConfig.model_validate(settings)
