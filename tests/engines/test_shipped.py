"""The shipped world: what people see of it must hold across recache, and it must obey its keys."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from engines.openvino import OpenVINOEngine
from engines.protocol import StepRequest
from streamgen.actions import action_vector
from streamgen.config import StudentConfig
from streamgen.models.loading import load_autoencoder
from streamgen.models.pose import from_planes, split
from streamgen.state import StreamState
from streamgen.student import Student
from training.data import held_out, open_data
from training.evaluate import CONTEXT, judge_next_frame
from training.world.arena import WISP_SPEED, is_free

SEAMS = (20, 200)
_AROUND = 4


@pytest.fixture(scope="module")
def world() -> Student:
    return Student.from_pretrained("world")


@pytest.fixture(scope="module")
def engine(world: Student) -> OpenVINOEngine:
    return OpenVINOEngine(world, precision="fp32")


def _walk(config: StudentConfig, frames: int) -> NDArray[np.float32]:
    """Keys that change every half second."""
    rng = np.random.default_rng(5)
    actions = np.zeros((frames, len(config.keys)), np.float32)
    for at in range(0, frames, 9):
        actions[at : at + 9, rng.choice(5, p=[0.5, 0.1, 0.15, 0.15, 0.1])] = 1
    return actions


def _rested(world: Student, engine: OpenVINOEngine, seed: int) -> NDArray[np.uint8]:
    """Open the stream "s" at a start and let its walker come to rest, and what a wall before it shows; returns the last
    frame.
    """
    engine.open("s", world.start(seed))
    idle = np.zeros((1, 5), np.float32)
    steps = [1] * 79 + [world.config.steps]
    return [engine.step([StepRequest("s", idle, count)])[0].frames[0] for count in steps][-1]


def _change(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean squared change from one frame to the next."""
    return float(np.square(a.astype(np.float64) - b.astype(np.float64)).mean())


@pytest.mark.parametrize("played", [0, 700_000])
def test_no_seam_shows_after_a_recache(world: Student, engine: OpenVINOEngine, tmp_path: Path, played: int) -> None:
    """A stream that was rebuilt from its state beside the same stream that was not, at its beginning and where one is
    that has played for eleven hours.
    """
    actions = _walk(world.config, SEAMS[-1] + _AROUND)
    state = world.start(2)
    state = replace(state, frame=state.frame + played)
    engine.open("live", state)
    frames, rows = [], []
    fresh: dict[int, list[NDArray[np.uint8]]] = {}
    for index, action in enumerate(actions):
        if index in SEAMS:
            engine.open("rebuilt", StreamState.from_bytes(state.to_bytes(), world.config, world.hash))
            fresh[index] = [
                engine.step([StepRequest("rebuilt", actions[index + k : index + k + 1], 1)])[0].frames[0]
                for k in range(_AROUND)
            ]
        result = engine.step([StepRequest("live", action[None], 1)])[0]
        state = state.extended(world.config, result.latents, action[None])
        frames.append(result.frames[0])
    for seam in SEAMS:
        live = frames[seam : seam + _AROUND]
        rows += [np.stack(frames[seam - _AROUND : seam] + live), np.stack(frames[seam - _AROUND : seam] + fresh[seam])]
        normal = float(
            np.median([_change(a, b) for a, b in zip(frames[seam - 9 : seam], frames[seam - 8 : seam], strict=False)])
        )
        for mine, rebuilt in zip(live, fresh[seam], strict=True):
            assert _change(mine, rebuilt) <= max(0.1 * normal, 0.5), (
                f"frame {seam}: the rebuilt stream parts from the live one"
            )
        assert _change(frames[seam - 1], fresh[seam][0]) <= 2 * max(normal, _change(frames[seam - 1], live[0]))
    sheet = np.concatenate([np.concatenate(list(row), 1) for row in rows], 0)
    Image.fromarray(sheet).save(tmp_path / "seams.png")


def test_forced_keys_turn_the_view(world: Student, engine: OpenVINOEngine) -> None:
    """Opposite turns from the same place part at once, and both part from standing still."""
    views = {}
    for name, key in (("left", 2), ("right", 3), ("still", None)):
        _rested(world, engine, 0)
        action = np.zeros((1, 5), np.float32)
        if key is not None:
            action[0, key] = 1
        views[name] = [engine.step([StepRequest("s", action, world.config.steps)])[0].frames[0] for _ in range(6)]
    still = _change(views["still"][0], views["still"][-1])
    for a, b in (("left", "right"), ("left", "still"), ("right", "still")):
        assert _change(views[a][-1], views[b][-1]) > 4 * still


def test_a_full_turn_leads_back(world: Student, engine: OpenVINOEngine) -> None:
    """72 times five degrees: what was behind came by, and what was seen first is seen again."""
    for seed in range(3):
        seen = _rested(world, engine, seed)
        left = action_vector(("ArrowLeft",), world.config.keys)[None]
        frames = [engine.step([StepRequest("s", left, world.config.steps)])[0].frames[0] for _ in range(74)]
        around = [_change(seen, frame) for frame in frames]
        assert min(around[70:]) < 0.5 * min(around[18:54]), around


def test_standing_still_stays_what_it_is(world: Student, engine: OpenVINOEngine) -> None:
    """For 20 s: neither fog nor a pattern that feeds on itself, in which students end that see only themselves."""
    engine.open("s", world.start(4))
    idle = np.zeros((1, 5), np.float32)
    frames = [engine.step([StepRequest("s", idle, world.config.steps)])[0].frames[0] for _ in range(350)]
    before, after = (
        float(np.abs(np.diff(np.stack(f).astype(float), axis=2)).mean()) for f in (frames[17:34], frames[-17:])
    )
    assert 0.7 < after / before < 1.4


def test_a_tap_of_space_flashes_the_lantern(world: Student, engine: OpenVINOEngine) -> None:
    """For a frame or more the middle of the lower half lights up, and the rest of the picture does not."""
    views = {}
    for name, space in (("tapped", 1), ("still", 0)):
        engine.open("s", world.start(0))
        views[name] = []
        for index in range(6):
            action = np.zeros((1, 5), np.float32)
            action[0, 4] = space * (index == 1)
            views[name].append(engine.step([StepRequest("s", action, world.config.steps)])[0].frames[0].astype(float))
    changes = [np.abs(a - b).mean(-1) for a, b in zip(views["tapped"], views["still"], strict=True)]
    assert changes[0].max() == 0
    flash = max(changes, key=lambda change: float(change[80:, 62:98].mean()))
    assert flash[80:, 62:98].mean() > 12
    assert flash[80:, 62:98].mean() > 4 * flash[:, :50].mean()


def test_wisps_fly_on_stay_and_burst(world: Student, engine: OpenVINOEngine) -> None:
    """Half a minute in the sights of someone who hunts the nearest wisp, and stands still for as long."""
    config = world.config.transformer
    assert config.pose_scale
    engine.open("s", world.start(1))
    actors, action, bursts = None, np.zeros((1, 5), np.float32), 0
    for frame in range(1050):
        result = engine.step([StepRequest("s", action, 1)])[0]  # a state is the same in any number of steps
        latents = torch.from_numpy(result.latents[:, config.picture_channels :].astype(np.float32))
        state = from_planes(latents, config)[0]
        pose, now = (part.double().numpy() for part in split(state))
        places = now[:, :2] * config.pose_scale
        assert all(is_free(x, y, margin=8) for x, y in places), (frame, places)
        if actors is not None:
            moved = np.linalg.norm(places - actors[:, :2] * config.pose_scale, axis=1)
            assert np.all(np.abs(moved - 2 * WISP_SPEED) < 1), (frame, moved)
            bursts += int(((actors[:, 4] == 0) & (now[:, 4] > 0)).sum())
        actors, action = now, np.zeros_like(action)
        if frame < 525:
            off = now[:, :2] - pose[:2]
            ahead, aside = off @ pose[2:4], off @ np.array([-pose[3], pose[2]])
            nearest = np.argmin(np.hypot(ahead, aside))
            bearing = math.degrees(math.atan2(aside[nearest], ahead[nearest]))
            key = "Space" if abs(bearing) < 3 else "ArrowLeft" if bearing > 0 else "ArrowRight"
            # A flash needs a press of its own.
            action = action_vector((key,) if key != "Space" or frame % 2 else (), world.config.keys)[None]
        elif frame == 540:  # the last flash is over
            hunted, bursts = bursts, 0
    assert hunted >= 3
    assert bursts == 0


def test_starts_are_real_frames_and_differ(world: Student, engine: OpenVINOEngine) -> None:
    firsts = []
    for seed in range(4):
        engine.open("s", world.start(seed))
        firsts.append(engine.step([StepRequest("s", np.zeros((1, 5), np.float32), world.config.steps)])[0].frames[0])
    for index, first in enumerate(firsts):
        assert 40 < first.mean() < 215
        assert first.std() > 20
        assert all(_change(first, other) > 300 for other in firsts[index + 1 :])


def test_a_recache_leaves_no_trace(world: Student, engine: OpenVINOEngine) -> None:
    """Each pass's own keys are the history, and a state holds all that the last frame can know of: the same bits."""
    runs = []
    for again in (True, False):
        state = world.start(3)
        engine.open("live", state)
        frames = []
        for index, action in enumerate(_walk(world.config, 90)):
            if again and index in (30, 60):
                engine.open("live", StreamState.from_bytes(state.to_bytes(), world.config, world.hash))
            result = engine.step([StepRequest("live", action[None], 1)])[0]
            state = state.extended(world.config, result.latents, action[None])
            frames.append(result.frames[0])
        runs.append(np.stack(frames))
    assert np.array_equal(*runs)


def test_more_steps_never_look_worse(world: Student) -> None:
    """Of held-out play: the next frame is as near to the game's, and no further from its detail."""
    real = held_out(open_data(None, world.config.width, world.config.height), 2, CONTEXT + 24)
    counts, autoencoder = sorted(world.config.step_plans), load_autoencoder(world.path)
    assert counts == [1, 2, 4]
    judged = [judge_next_frame(world, autoencoder, real, count) for count in counts]
    assert judged[0]["psnr"] > 28 and judged[0]["detail"] > 0.9
    for fewer, more in pairwise(judged):
        assert more["psnr"] > fewer["psnr"] - 0.4
        assert fewer["detail"] - 0.01 < more["detail"] < 1.15
