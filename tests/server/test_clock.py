"""The media clock, with times passed in."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from server.clock import MediaClock, rtp_ticks

RATES = st.sampled_from([12.0, 12.5, 16.0, 23.976, 25.0, 29.97, 30.0, 60.0])


@given(fps=RATES, hours=st.floats(0.1, 200.0), t0_s=st.floats(0, 1e6))
def test_no_drift_over_hours(fps: float, hours: float, t0_s: float) -> None:
    clock = MediaClock(fps)
    clock.open(7, t0_s)
    n = 7 + round(hours * 3600 * fps)
    assert clock.due_s(n) - t0_s == pytest.approx((n - 7) / fps, abs=1e-6)
    assert abs(clock.stamp(n) - (n - 7) * 1e6 / fps) <= 0.5
    assert abs(rtp_ticks(clock.stamp(n)) - (n - 7) * 90_000 / fps) <= 0.6


@given(
    fps=RATES,
    steps=st.lists(st.tuples(st.integers(1, 50), st.floats(-5.0, 100.0)), min_size=1, max_size=20),
)
def test_stamps_grow_by_a_period_at_least_whatever_the_epochs(fps: float, steps: list[tuple[int, float]]) -> None:
    clock = MediaClock(fps)
    now_s, n, stamps = 100.0, 0, []
    for frames, gap_s in steps:
        clock.open(n, now_s + gap_s)  # a negative gap asks for an epoch before frames that were stamped already
        for _ in range(frames):
            stamps.append(clock.stamp(n))
            now_s = clock.due_s(n)
            n += 1
    assert stamps[0] == 0
    assert all(b - a >= 1e6 / fps - 1.5 for a, b in pairwise(stamps))
    assert clock.epochs == len(steps)


def test_a_frame_number_may_begin_anew_while_time_goes_on() -> None:
    clock = MediaClock(25.0)
    clock.open(1000, 50.0)
    last = clock.stamp(1010)
    clock.open(3, 50.1)
    assert clock.stamp(3) == last + 40_000


def test_nothing_is_due_without_an_epoch() -> None:
    clock = MediaClock(25.0)
    clock.open(0, 0.0)
    clock.close()
    with pytest.raises(RuntimeError, match="open one first"):
        clock.due_s(1)
