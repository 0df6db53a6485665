"""What the server makes of measured costs."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from server.load import EncoderPool, Governor, ShowingCosts, StepCosts


def governor(cost_s: dict[int, float], rows: int = 1, most_load: float = 0.95) -> Governor:
    return Governor(StepCosts(cost_s), ShowingCosts(lambda: 0.0), cost_s, max(cost_s), rows, most_load)


def test_one_outlier_moves_neither_estimate() -> None:
    costs = StepCosts({1: 0.01})
    for _ in range(20):
        costs.add(1, 0.01)
    costs.add(1, 3.0)
    assert costs.likely_s(1) == costs.safe_s(1) == 0.01


def test_fewer_steps_at_once_and_more_only_after_calm() -> None:
    g = governor({1: 0.02, 2: 0.04})
    g.update(20, 1, 0.0)
    assert (g.steps, g.rate) == (2, 1.0)
    g.update(30, 2, 1.0)
    assert (g.steps, g.rate) == (1, 1.0)
    g.update(10, 1, 2.0)
    g.update(10, 1, 6.9)
    assert g.steps == 1
    g.update(10, 1, 7.1)
    assert g.steps == 2


def test_calm_must_last() -> None:
    g = governor({1: 0.02, 2: 0.04})
    g.update(30, 2, 0.0)
    g.update(10, 1, 1.0)
    g.update(20, 2, 4.0)
    g.update(10, 1, 5.0)
    g.update(10, 1, 9.0)
    assert g.steps == 1


def test_when_even_the_fewest_steps_are_too_many_the_rate_falls_and_recovers() -> None:
    g = governor({1: 0.1})
    g.update(20, 1, 0.0)
    assert g.rate == pytest.approx(0.45)
    g.update(5, 1, 1.0)
    g.update(5, 1, 2.9)
    assert g.rate == pytest.approx(0.45)
    g.update(5, 1, 3.0)
    assert g.rate == 1.0


def test_admission_follows_the_cost_at_the_fewest_steps() -> None:
    g = governor({1: 0.02, 2: 0.04})
    assert g.admits(20, 1, 20)
    assert not g.admits(40, 2, 20)
    assert governor({1: 0.02, 2: 0.04}, rows=4).admits(40, 2, 20)
    assert not governor({1: 0.02, 2: 0.04}, most_load=0.75).admits(20, 1, 20)


def test_what_showing_a_block_costs_is_its_usual_cost() -> None:
    spent_s = 5.0
    showing = ShowingCosts(lambda: spent_s)
    assert showing.likely_s == 0.0
    showing.count()
    for block in range(200):
        # Somebody connects at block 50.
        spent_s += 0.5 if block == 50 else 0.004
        showing.count()
    assert showing.likely_s == pytest.approx(0.004)


def test_what_is_done_while_nobody_plays_is_not_for_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    spent_s = now_s = 0.0
    # Not the clock of the whole process, by which other tests' servers wait.
    monkeypatch.setattr("server.load.time", SimpleNamespace(monotonic=lambda: now_s))
    showing = ShowingCosts(lambda: spent_s)
    for _ in range(10):
        for _ in range(30):
            now_s, spent_s = now_s + 0.05, spent_s + 0.004
            showing.count()
        now_s, spent_s = now_s + 3600.0, spent_s + 60.0
    assert showing.likely_s == pytest.approx(0.004)


def test_an_encoder_pool_knows_its_processor_time() -> None:
    def work(until_s: float) -> float:
        while time.thread_time() < until_s:
            pass
        return until_s

    def start() -> float:
        return time.thread_time() + 0.02

    with EncoderPool(1) as pool:
        until_s = pool.submit(start).result()
        assert pool.submit(work, until_s).result() == until_s
        assert 0.019 < pool.cpu_s < 0.2
        before_s = pool.cpu_s
        assert isinstance(pool.submit(time.sleep, "no number").exception(), TypeError)
        pool.submit(time.sleep, 0.05).result()
        assert pool.cpu_s - before_s < 0.02, "waiting costs nothing"


def test_the_first_stream_is_always_let_in() -> None:
    assert governor({1: 5.0}).admits(0, 0, 20)
