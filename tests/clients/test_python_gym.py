"""The Gymnasium environment against a real server."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, MultiBinary
from gymnasium.utils.env_checker import check_env

from streamgen_client import StreamLost
from streamgen_client.gym import StreamEnv
from tests.server.harness import LiveServer
from tests.server.synthetic import START_FRAMES, read
from tests.server.viewers import Got, follow


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    """Environments that are closed at the end."""
    made: list[Any] = []

    def make(url: str, **options: Any) -> Any:
        made.append(gymnasium.make("streamgen_client.gym:streamgen/Stream-v0", url=url, **options).unwrapped)
        return made[-1]

    yield make
    for env in made:
        env.close()


def act_for_ever(env: Any, action: Any) -> None:
    while True:
        env.step(action)


@pytest.mark.parametrize("transport", ["webrtc", "websocket"])
def test_gymnasium_finds_nothing_wrong(shared: LiveServer, make: Callable[..., Any], transport: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_env(make(shared.url, transport=transport, render_mode="rgb_array"))


def test_a_step_shows_its_action_and_counts_what_was_skipped(shared: LiveServer, make: Callable[..., Any]) -> None:
    env = make(shared.url, render_mode="rgb_array")
    assert isinstance(env, StreamEnv)
    assert env.metadata["render_fps"] == 20 and env.keys == shared.student.config.keys
    assert env.action_space == MultiBinary(5)
    assert env.observation_space == Box(0, 255, (96, 128, 3), np.uint8)
    picture, info = env.reset(seed=9)
    assert (info["frame"], info["skipped"], info["generation"]) == (START_FRAMES, 0, 0)
    frames = [Got(0, info["frame"], 0, read(picture))]
    env.action_space.seed(1)
    for action in [env.action_space.sample() for _ in range(6) for _ in (1, 2)]:
        picture, reward, terminated, truncated, info = env.step(action)
        assert (reward, terminated, truncated) == (0.0, False, False)
        seen = read(picture)
        assert seen.keys == {key for key, down in zip(env.keys, action, strict=True) if down}
        assert seen.frame == info["frame"] == frames[-1].frame + 1 + info["skipped"]
        assert info["skipped"] >= 0
        shown = env.render()
        assert shown is not None and np.array_equal(shown, picture)
        frames.append(Got(0, info["frame"], 0, seen))
    assert follow(9, frames) == info["frame"] - START_FRAMES + 1


def test_the_same_seed_begins_with_the_same_frame_in_another_session(
    serve: Callable[..., LiveServer], make: Callable[..., Any]
) -> None:
    server = serve(settings={"max_sessions": 1})
    env = make(server.url)
    firsts = []
    for seed in (3, 4, 3, None, None):
        picture, info = env.reset(seed=seed)
        assert info["frame"] == START_FRAMES
        firsts.append(read(picture).checksum)
        assert len(server.service.sessions) == 1
    assert firsts[0] == firsts[2] != firsts[1]
    assert len(set(firsts)) == 4
    # What follows a seeded reset is drawn from the seed.
    again = [read(env.reset(seed=seed)[0]).checksum for seed in (3, None, None)]
    assert again == firsts[2:]
    env.close()
    env.close()
    assert len(server.service.sessions) == 0


def test_misuse_and_loss_are_told(serve: Callable[..., LiveServer], make: Callable[..., Any]) -> None:
    server = serve()
    with pytest.raises(ValueError, match="render mode"):
        StreamEnv(server.url, render_mode="human")
    env = make(server.url)
    standing = np.zeros(5, np.int8)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(standing)
    env.reset()
    assert env.render() is None
    with pytest.raises(ValueError):
        env.step(np.zeros(4, np.int8))
    (session,) = server.service.sessions._sessions.values()
    server.loop.call_soon_threadsafe(server.service.sessions.free, session, "session_expired", "time is up")
    with pytest.raises(StreamLost, match="time is up"):
        act_for_ever(env, standing)
    env.reset()
    env.step(standing)
