"""The input log."""

from __future__ import annotations

from hypothesis import given, strategies as st

from server.inputs import LOG_LENGTH, InputLog

KEYS = ("KeyW", "KeyS", "Space")


def test_a_tap_between_two_frames_counts_for_one_frame() -> None:
    log = InputLog()
    log.edge("v", 1, 0.0, "Space", True, ["Space"], 0.0)
    log.edge("v", 2, 0.0, "Space", False, [], 0.0)
    first, second = log.take(), log.take()
    assert first.held == {"Space"}
    assert [event.seq for event in first.events] == [1, 2]
    assert second.held == frozenset()
    assert second.events == ()


def test_a_lost_key_up_is_healed_by_the_next_message() -> None:
    log = InputLog()
    log.edge("v", 1, 0.0, "KeyW", True, ["KeyW"], 0.0)
    assert log.take().held == {"KeyW"}
    log.heartbeat("v", 2, [], 0.0)
    assert log.take().held == frozenset()


def test_a_lost_key_down_counts_even_when_the_key_is_up_again_at_the_frame() -> None:
    log = InputLog()
    log.heartbeat("v", 1, ["KeyW"], 0.0)
    log.heartbeat("v", 1, [], 0.0)
    assert log.take().held == {"KeyW"}
    assert log.take().held == frozenset()


def test_an_old_heartbeat_and_a_repeated_message_change_nothing() -> None:
    log = InputLog()
    log.edge("v", 5, 0.0, "KeyW", True, ["KeyW"], 0.0)
    log.heartbeat("v", 4, [], 0.0)
    log.edge("v", 5, 0.0, "KeyW", False, [], 0.0)
    assert log.take().held == {"KeyW"}
    assert log.take().held == {"KeyW"}


def test_release_and_silence_let_go_of_everything_of_that_viewer_only() -> None:
    log = InputLog()
    log.edge("a", 1, 0.0, "KeyW", True, ["KeyW"], 0.0)
    log.edge("b", 1, 0.0, "Space", True, ["Space"], 0.0)
    log.take()
    log.release("a", 2, 0.0, 0.0)
    taken = log.take()
    assert taken.held == {"Space"}
    assert [event.seq for event in taken.events if event.seq] == [2]
    log.silence("b", 0.0)
    assert log.take().held == frozenset()
    log.forget("b", 0.0)
    assert log.held == frozenset()


def test_a_frame_thrown_away_gives_its_taps_back() -> None:
    log = InputLog()
    log.edge("v", 1, 0.0, "Space", True, ["Space"], 0.0)
    log.edge("v", 2, 0.0, "Space", False, [], 0.0)
    thrown = log.take()
    log.restore(thrown)
    again = log.take()
    assert again.held == {"Space"}
    assert [event.seq for event in again.events] == [1, 2]


def test_what_was_tapped_in_a_pause_is_acknowledged_and_not_played() -> None:
    log = InputLog()
    log.edge("v", 1, 0.0, "Space", True, ["Space"], 0.0)
    log.edge("v", 2, 0.0, "Space", False, [], 0.0)
    log.settle()
    taken = log.take()
    assert taken.held == frozenset()
    assert [event.seq for event in taken.events] == [1, 2]


def test_the_log_is_bounded_and_says_what_it_lost() -> None:
    log = InputLog()
    for seq in range(1, LOG_LENGTH + 11):
        log.edge("v", seq, 0.0, "KeyW", bool(seq % 2), [], 0.0)
    assert log.take_lost() == 10
    assert len(log.take().events) == LOG_LENGTH
    log.edge("v", LOG_LENGTH + 11, 0.0, "KeyW", True, [], 0.0)
    assert log.take_lost() == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(KEYS), st.booleans(), st.sampled_from(["arrives", "lost", "frame"])), max_size=60
    )
)
def test_every_edge_that_arrives_is_seen_once_and_a_heartbeat_always_heals(story: list[tuple[str, bool, str]]) -> None:
    log = InputLog()
    held: set[str] = set()
    down_since: set[str] = set()
    seq, arrived, acked = 0, [], []
    for code, down, fate in story:
        (held.add if down else held.discard)(code)
        seq += 1
        if fate != "lost":
            log.edge("v", seq, 0.0, code, down, sorted(held), 0.0)
            arrived.append(seq)
            if down:
                down_since.add(code)
        if fate == "frame":
            taken = log.take()
            acked += [event.seq for event in taken.events if event.seq]
            assert taken.held >= held | down_since
            down_since = set()
    log.heartbeat("v", seq, sorted(held), 0.0)
    acked += [event.seq for event in log.take().events if event.seq]
    assert log.take().held == held
    assert acked == arrived
