"""How a bench finds sounds in a level and mouths in pictures."""

from __future__ import annotations

import numpy as np
import pytest

from server import bench_browser as bench


def test_a_rise_is_found_between_samples() -> None:
    times = np.arange(0, 10, 0.04)
    values = np.clip((times % 2 - 1.013) / 0.1, 0, 1)  # from 1.013 s on, halfway 50 ms later
    assert bench.onsets(times, values) == pytest.approx([1.063, 3.063, 5.063, 7.063, 9.063], abs=2e-3)


def test_each_beginning_has_its_own_end() -> None:
    begins, ends = np.array([1.0, 2.0, 3.0, 5.0]), np.array([0.95, 2.1, 3.05, 7.0])
    assert bench._after(begins, ends, -0.5) == pytest.approx([-0.05, 0.1, 0.05])  # nothing belongs to the last
    assert bench._after(begins, ends, 0.0) == pytest.approx([0.1, 0.05])


def test_marks_begin_when_they_say() -> None:
    rate = 16_000
    sound, begins = bench.marks(rate)
    assert np.abs(sound).max() == pytest.approx(0.5, abs=0.01)
    loud = np.abs(sound[: len(sound) // 320 * 320]).reshape(-1, 320).max(1)
    found = bench.onsets((np.arange(len(loud)) + 0.5) * 320 / rate, loud)
    assert len(found) == len(begins)
    assert np.abs(found - begins).max() < 0.03


def test_the_edge_of_teeth_above_the_dark_counts_and_a_nose_does_not() -> None:
    mouths = np.full((4, 24, 32), 160, np.uint8)
    mouths[1:, 2:5, 12:20] = 100  # the shadow of a nose
    mouths[2:, 12, 4:28] = 100  # closed lips
    mouths[3, 10:12, 6:26] = 200
    mouths[3, 12:16, 6:26] = 20
    none, nose, closed, wide = bench._openness(mouths)
    assert none == 0
    assert wide == pytest.approx(180 / 160)  # 20 pixels of edge
    assert nose < closed < 0.4 * wide
    # A head that turns out of the light is as open as before.
    assert bench._openness((mouths * 0.5).astype(np.uint8)) == pytest.approx(bench._openness(mouths))
