"""The first-person world: reproducible, aligned with its keys, and never leaving an engine behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import vizdoom
from numpy.typing import NDArray

from streamgen.actions import WORLD_KEYS
from streamgen.models.motion import REACH
from streamgen.models.pose import Pose
from tests.toy import WITH_POSE, toy_transformer_config
from training.data import HELD_OUT_SEED, Clip, ClipSource, Share, held_out, recorded
from training.world.arena import BASIN, DAIS, EYE, STRETCH, build_arena, is_free
from training.world.policy import StickyPolicy
from training.world.recorder import WorldData, WorldRecorder

ROOT = Path(__file__).resolve().parents[2]
W, S, LEFT, RIGHT, SPACE = range(5)


@pytest.fixture(scope="module")
def recorder() -> Iterator[WorldRecorder]:
    with WorldRecorder(seed=1) as opened:
        yield opened


def hold(frames: int, first: int, last: int, *keys: int) -> np.ndarray:
    """Actions [frames, 5] with `keys` held in frames first..last."""
    actions = np.zeros((frames, len(WORLD_KEYS)), np.uint8)
    actions[first : last + 1, list(keys)] = 1
    return actions


def same(a: Clip, b: Clip) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("frames", "actions", "poses", "actors", "eyes", "beats")
    )


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_arena_bytes_are_the_same_in_another_process(tmp_path: Path) -> None:
    build_arena(tmp_path / "here.wad")
    code = "import sys, pathlib; from training.world.arena import build_arena; build_arena(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there.wad")], check=True, cwd=ROOT)
    here = (tmp_path / "here.wad").read_bytes()
    assert here[:4] == b"PWAD"
    assert len(here) > 50_000
    assert here == (tmp_path / "there.wad").read_bytes()


def test_an_episode_is_a_function_of_its_seed_and_number(recorder: WorldRecorder) -> None:
    first, second = recorder.record(40, episode=0), recorder.record(40, episode=1)
    assert first.frames.shape == (40, 128, 160, 3)
    assert first.frames.dtype == np.uint8
    assert not first.actions[0].any()
    assert same(recorder.record(40, episode=0), first), "an earlier episode leaves a trace in a later one"
    assert not np.array_equal(first.frames, second.frames)
    with WorldRecorder(seed=1) as again, WorldRecorder(seed=2) as other:
        assert same(again.record(40, episode=0), first)
        assert not np.array_equal(other.record(40, episode=0).frames, first.frames)


def test_recorded_actions_replay_to_the_same_frames(recorder: WorldRecorder) -> None:
    clip = recorder.record(60, episode=5)
    x, y, yaw = (float(v) for v in clip.poses[0])
    again = recorder.play(clip.actions.astype(np.uint8), (x, y, yaw))
    np.testing.assert_allclose(again.poses[:, :2], clip.poses[:, :2], atol=3)
    assert np.abs(again.frames.astype(int) - clip.frames).mean() < 4


@pytest.mark.parametrize(("key", "sign"), [(LEFT, 1), (RIGHT, -1)])
def test_turning_shows_on_the_frame_whose_action_says_so(recorder: WorldRecorder, key: int, sign: int) -> None:
    clip, idle = recorder.play(hold(12, 4, 6, key)), recorder.play(hold(12, 0, -1))
    turned = np.diff(clip.poses[:, 2])
    assert np.abs(turned[:3]).max() == 0
    np.testing.assert_allclose(turned[3:6], sign * 5.0, atol=0.1)
    assert np.abs(turned[6:]).max() == 0
    assert np.array_equal(clip.frames[:4], idle.frames[:4])
    assert np.abs(clip.frames[4].astype(int) - idle.frames[4]).mean() > 3


def test_a_one_frame_tap_of_every_key_shows_at_once(recorder: WorldRecorder) -> None:
    idle = recorder.play(hold(6, 0, -1))
    for key in range(5):
        clip = recorder.play(hold(6, 3, 3, key))
        assert np.array_equal(clip.frames[:3], idle.frames[:3])
        assert np.abs(clip.frames[3].astype(int) - idle.frames[3]).mean() > 0.3, WORLD_KEYS[key]


def test_a_clip_starts_where_it_is_told(recorder: WorldRecorder) -> None:
    for pose in ((100.0, -100.0, 0.0), (-560.0, 30.0, 200.5), (300.0, 30.0, 359.0)):
        np.testing.assert_allclose(recorder.play(hold(1, 0, -1), pose).poses[0], pose, atol=0.05)


def test_forward_and_back_follow_the_view(recorder: WorldRecorder) -> None:
    north = recorder.play(hold(20, 2, 19, W), (0, 0, 90)).poses[-1] - (0, 0, 90)
    assert north[1] > 100
    assert abs(north[0]) < 5
    west = recorder.play(hold(20, 2, 19, S), (0, 0, 0)).poses[-1]
    assert west[0] < -80
    assert abs(west[1]) < 5


def test_opposite_keys_cancel(recorder: WorldRecorder) -> None:
    clip = recorder.play(hold(10, 1, 9, W, S, LEFT, RIGHT))
    assert np.abs(clip.poses - clip.poses[0]).max() < 1e-3


def test_fire_lights_the_lantern_and_nothing_else(recorder: WorldRecorder) -> None:
    clip, idle = recorder.play(hold(10, 3, 3, SPACE)), recorder.play(hold(10, 0, -1))
    change = np.abs(clip.frames.astype(int) - idle.frames)
    assert change[3, 80:, 50:110].mean() > 10
    assert change[:, :64].max() == 0
    assert change[:3].max() == change[7:].max() == 0, "the lantern must come back to rest after 8 tics"


def test_a_standing_player_sees_only_wisps_and_flames_move(recorder: WorldRecorder) -> None:
    clip = recorder.play(hold(1100, 0, -1))
    assert (clip.poses == clip.poses[0]).all(), "somebody was pushed"
    changed = (clip.frames != clip.frames[0]).any(axis=3)
    assert not changed[:, :20].any(), "the sky stands still"
    assert not changed[:, 100:, 72:88].any(), "so does the lantern"
    assert (clip.frames[1:] != clip.frames[:-1]).any(axis=(1, 2, 3)).mean() > 0.5


def test_a_flame_goes_through_its_four_pictures_every_8_frames(recorder: WorldRecorder) -> None:
    clip = recorder.play(hold(24, 0, -1), (150, 70, 90))
    flames = clip.frames[:, 20:70, 60:100]
    assert len(np.unique(flames.reshape(24, -1), axis=0)) == 4
    assert np.array_equal(flames[8:], flames[:-8])


def wisp_pixels(frame: np.ndarray) -> np.ndarray:
    """Where a frame [H, W, 3] is violet, which nothing else in the world is: mask [H, W]."""
    return np.asarray(frame[..., 2].astype(int) - frame[..., 1] > 80)


def wisp_ahead(recorder: WorldRecorder) -> tuple[tuple[float, float, float], int]:
    """The first pose and scene with a wisp in the middle of the view that stays in view for 45 frames."""

    def stays(frames: np.ndarray) -> bool:
        column = 80.0
        for frame in frames:
            columns = np.nonzero(wisp_pixels(frame))[1]
            near = columns[np.abs(columns - column) < 20]
            if len(near) < 20 or abs(near.mean() - column) > 5 or not 15 < near.mean() < 145:
                return False
            column = near.mean()
        return True

    for scene in range(20):
        for yaw in range(0, 360, 10):
            pose = (0.0, 0.0, float(yaw))
            if all(stays(recorder.play(hold(frames, 0, -1), pose, scene).frames) for frames in (1, 45)):
                return pose, scene
    raise AssertionError("no wisp anywhere")


def test_wisps_drift_through_the_picture(recorder: WorldRecorder) -> None:
    clips = [recorder.play(hold(40, 0, -1), (0, 0, yaw)) for yaw in range(0, 360, 90)]
    seen = np.array([[wisp_pixels(frame) for frame in clip.frames] for clip in clips])
    per_frame = seen.sum((0, 2, 3))
    assert per_frame.min() > 100, "all around, some wisps are always in sight"
    assert not wisp_pixels(clips[0].frames[:, 100:]).any(), "they fly at eye height"
    columns = np.asarray(seen.any(axis=2))  # bobbing up and down does not count
    assert np.logical_xor(columns[:, 8:], columns[:, :-8]).sum((0, 2)).min() > 8, "in half a second they have moved on"


def test_a_flash_bursts_the_wisp_ahead_which_grows_whole_again(recorder: WorldRecorder) -> None:
    start, scene = wisp_ahead(recorder)
    idle = recorder.play(hold(60, 0, -1), start, scene).frames
    lit = recorder.play(hold(60, 1, 1, SPACE), start, scene).frames
    violet = [wisp_pixels(frame[:, 60:100]).sum() for frame in lit]
    assert violet[1] < violet[0] / 2, "it bursts on the flash's own frame"
    bright = (lit[1, :76].min(axis=2) > 190) & ~(idle[1, :76].min(axis=2) > 190)
    assert bright.sum() > 60
    changed = (lit[:, :76] != idle[:, :76]).any(axis=(1, 2, 3))
    assert changed[1:41].all(), "burst and ember show in every frame"
    assert np.array_equal(lit[42:], idle[42:]), "it has gone on along its path, and is whole"


def test_actors_are_where_wisps_are_seen_and_tell_what_a_flash_began(recorder: WorldRecorder) -> None:
    start, scene = wisp_ahead(recorder)
    clip = recorder.play(hold(60, 1, 1, SPACE), start, scene)
    assert clip.actors is not None and clip.actors.shape == (60, 5, 3)
    off = np.degrees(np.arctan2(clip.actors[0, :, 1] - start[1], clip.actors[0, :, 0] - start[0])) - start[2]
    ahead = int(np.argmin(np.abs((off + 180) % 360 - 180)))
    assert abs((off[ahead] + 180) % 360 - 180) < 4, "one is in the middle of the view"
    clock = clip.actors[:, ahead, 2]
    assert clock[0] == 0 and clock[1] > 0 and not clip.actors[:, np.arange(5) != ahead, 2].any()
    steps = np.diff(clock[1:])
    running = np.flatnonzero(clock[2:] > 0)
    np.testing.assert_allclose(steps[running], 2 / 81, atol=1e-3)
    assert running[-1] < 40 and not clock[44:].any() and clock.max() < 1
    moved = np.linalg.norm(np.diff(clip.actors[..., :2], axis=0), axis=2)
    assert np.median(moved) == pytest.approx(7, abs=0.1)


def test_a_flash_leaves_the_wisps_aside_alone(recorder: WorldRecorder) -> None:
    (x, y, yaw), scene = wisp_ahead(recorder)
    for turn, column in ((-15, 59), (15, 101)):
        idle = recorder.play(hold(5, 0, -1), (x, y, yaw + turn), scene).frames
        lit = recorder.play(hold(5, 1, 1, SPACE), (x, y, yaw + turn), scene).frames
        around = np.s_[:, :64, column - 12 : column + 12]
        assert wisp_pixels(lit[around]).sum() > 100
        assert np.array_equal(lit[around], idle[around])


def test_wisps_go_elsewhere_in_every_scene_and_push_nobody(recorder: WorldRecorder) -> None:
    actions = np.concatenate([hold(60, 1, 59, W), hold(60, 0, 40, RIGHT), hold(60, 0, 59, W), hold(60, 0, 59, S)])
    clips = [recorder.play(actions, scene=scene) for scene in range(6)]
    for clip in clips[1:]:
        assert np.array_equal(clip.poses, clips[0].poses)
        assert not np.array_equal(clip.frames[0], clips[0].frames[0])
    with WorldRecorder(seed=9) as other:
        other.record(30, episode=3)
        assert same(other.play(actions, scene=4), clips[4]), "the wisps' ways depend on the engine's past"


def test_views_tell_heading_and_place(recorder: WorldRecorder) -> None:
    views = [recorder.play(hold(1, 0, -1), (0, 0, turn)).frames[0].astype(int) for turn in range(0, 360, 45)]
    views += [
        recorder.play(hold(1, 0, -1), (x, y, 90)).frames[0].astype(int) for x, y in ((-400, 0), (0, 180), (400, 0))
    ]
    for i, a in enumerate(views):
        for b in views[:i]:
            assert np.abs(a - b).mean() > 10
        assert 60 < a.mean() < 200, "too dark or too bright"
        assert (a.max(axis=2) - a.min(axis=2)).mean() < 110, "garish"


def test_every_free_place_can_be_walked_to() -> None:
    """Flood fill over a 16-unit grid from the middle."""
    free = {(i, j) for i in range(-40, 33) for j in range(-32, 33) if is_free(16 * i, 16 * j, margin=20)}
    seen, front = {(0, 0)}, [(0, 0)]
    while front:
        i, j = front.pop()
        near = {(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)} & free - seen
        seen |= near
        front += near
    assert seen == free
    assert not {(8, -26), (2, -26), (14, -26), (-19, 24), (-19, 25)} & free, "the hedges stand there"
    assert {(-1, -26), (17, -26), (8, -22), (-10, 24), (-19, 20)} <= free, "and end there"
    assert len(free) > 2500


def test_the_ground_rises_where_the_engine_draws_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a view's rays meet by the data's heights and camera, beside the engine's own depths of the same frames."""
    start = vizdoom.DoomGame.init

    def with_depths(game: vizdoom.DoomGame) -> None:
        game.set_depth_buffer_enabled(True)
        start(game)

    monkeypatch.setattr(vizdoom.DoomGame, "init", with_depths)
    points = np.linspace(-REACH, REACH, 640) * 512
    ground = WorldData().ground(points, points)
    pose = Pose(toy_transformer_config(**WITH_POSE | {"height": 16, "width": 20, "ground_map": 640}))
    heights, floors = (torch.from_numpy(each) / 512 for each in (ground.heights, ground.floors))
    pose.stand(heights, floors, ground.eye / 512, 1.0, torch.zeros(0, 3), 0.0)
    view = pose.view
    skies, walls = [], []
    with WorldRecorder(seed=1) as recorder:
        for x, y, yaw in [
            (0.0, 0.0, 90.0),
            (283.0, 84.0, 34.0),
            (-189.0, 17.0, 155.0),
            (35.0, 243.0, 344.0),
            (-500.0, 0.0, 0.0),
        ]:
            recorder._begin((x, y, yaw), scene=3)
            state = recorder._game.get_state()
            assert state.game_variables is not None and state.depth_buffer is not None
            east, north, degrees, eye = state.game_variables
            x, y = (torch.full((1, 1), float(at) / 512) for at in (east, north))
            c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
            along = c - s * view.sides[None], s + c * view.sides[None]
            hit, far = view._met((x, y), along, view.ups, torch.full((1, 1, 1), eye * STRETCH / 512))
            depth = cv2.resize(state.depth_buffer, (80, 64), interpolation=cv2.INTER_NEAREST)
            skies.append((hit[0].numpy() == 0) == (depth == depth.max()))
            # Above the horizon there are walls and pillars, and few wisps; their depths are in steps of some 14 units.
            wall = (hit[0, :30].numpy() == 1) & (depth[:30] < depth.max())
            walls.append((far[0, :30].numpy()[wall] * 512, depth[:30][wall]))
    assert np.mean(skies) > 0.97
    distances, depths = (np.concatenate(each) for each in zip(*walls, strict=True))
    depths = depths + 0.5
    unit = np.median(distances / depths)
    off = np.abs(distances / depths / unit - 1)
    assert np.median(off) < 0.04 and np.mean(off < 0.1) > 0.9


def test_a_viewer_stands_where_the_engine_lets_the_player_stand(recorder: WorldRecorder) -> None:
    """Around the dais, which one stands on as soon as one touches it, and the basin, out of which one looks last."""
    points = np.linspace(-REACH, REACH, 640) * 512
    ground = WorldData().ground(points, points)
    rng = np.random.default_rng(1)
    found: list[float] = []
    for number in range(40):
        x, y, radius = (DAIS, BASIN)[number % 2]
        turn, away = rng.uniform(0, 2 * np.pi), radius + rng.uniform(-40, 40)
        x, y = x + away * np.cos(turn), y + away * np.sin(turn)
        if not is_free(x, y):
            continue
        clip = recorder.play(hold(1, 0, -1), (x, y, 0.0))
        assert clip.eyes is not None
        column, row = (np.abs(points - place).argmin() for place in clip.poses[0, :2])
        found.append(ground.floors[row, column] + ground.eye - clip.eyes[0])
    assert len(found) > 30 and np.mean(np.abs(found) < 0.5) > 0.95  # between two points of the map it may be either


def test_an_eye_climbs_a_step_within_some_frames(recorder: WorldRecorder) -> None:
    """Who walks on to the dais is a step of 16 higher in the end, and not at once."""
    eyes = recorder.play(hold(20, 1, 19, W), (160.0, 30.0, 0.0)).eyes
    assert eyes is not None
    assert eyes[0] == pytest.approx(EYE * STRETCH) and eyes[-1] == pytest.approx((EYE + 16) * STRETCH)
    between = eyes[(eyes > eyes[0] + 1) & (eyes < eyes[-1] - 1)]
    assert len(between) >= 2 and (np.diff(eyes) >= 0).all()


def test_flames_move_to_the_beat(recorder: WorldRecorder) -> None:
    """Frames of one beat show the same flame, in every scene; half a cycle later it is another."""
    clips = [recorder.play(hold(20, 0, -1), (60.0, 150.0, 0.0), scene) for scene in (3, 4)]
    by_beat: dict[float, list[NDArray[np.int64]]] = {}
    for clip in clips:
        assert clip.beats is not None and ((clip.beats >= 0) & (clip.beats < 1)).all()
        rate = np.diff(clip.beats) % 1
        np.testing.assert_allclose(rate, WorldData().ground(np.arange(2.0), np.arange(2.0)).rate, atol=1e-6)
        for beat, frame in zip(clip.beats, clip.frames[:, 20:60, 64:96].astype(int), strict=True):
            by_beat.setdefault(float(beat), []).append(frame)
    assert len(by_beat) == 16, "one scene begins on an even tic, the other on an odd one"
    for beat, frames in by_beat.items():
        assert max(np.abs(frame - frames[0]).mean() for frame in frames) < 0.5
        assert np.abs(frames[0] - by_beat[(beat + 0.5) % 1][0]).mean() > 4


def test_is_free_matches_the_engine(recorder: WorldRecorder) -> None:
    """Whoever starts at a random free pose can move at once: nobody is placed inside a wall."""
    for episode in range(100, 140):
        x, y, _ = (float(v) for v in recorder.record(1, episode=episode).poses[0])
        ends = [recorder.play(hold(5, 1, 4, W), (x, y, turn)).poses[-1, :2] for turn in (0, 90, 180, 270)]
        assert max(np.hypot(*(end - (x, y))) for end in ends) > 10, (x, y)


def test_policy_uses_every_key_taps_each_and_covers_the_floor(recorder: WorldRecorder) -> None:
    clips = [recorder.record(100, episode=n) for n in range(60)]
    actions = np.concatenate([c.actions for c in clips])
    share = actions.mean(0)
    assert (share > [0.3, 0.05, 0.15, 0.15, 0.05]).all(), share
    assert (share < [0.6, 0.2, 0.4, 0.4, 0.25]).all(), share
    assert 0.05 < (actions.sum(1) == 0).mean() < 0.3
    for key in range(5):
        padded = np.concatenate([np.pad(c.actions[:, key], 1) for c in clips])
        taps = (padded[1:-1] == 1) & (padded[:-2] == 0) & (padded[2:] == 0)
        assert taps.sum() >= 5, f"{WORLD_KEYS[key]} is hardly ever tapped"
    poses = np.concatenate([c.poses for c in clips])
    cells, _, _ = np.histogram2d(poses[:, 0], poses[:, 1], bins=6, range=[[-512, 512]] * 2)
    assert (cells > 0).sum() >= 33, cells
    headings, _ = np.histogram(poses[:, 2], bins=8, range=(0, 360))
    assert headings.min() > 0.04 * len(poses)


def test_policy_turns_full_circles_and_leaves_walls() -> None:
    rng = np.random.default_rng(0)
    free, blocked = StickyPolicy(rng), StickyPolicy(rng)
    longest = run = 0
    for _ in range(20_000):
        keys = free.next(moved=10.0)
        run = run + 1 if keys[LEFT] and not keys[RIGHT] else 0
        longest = max(longest, run)
    assert longest >= 72, "a full circle takes 72 frames"
    push = longest_push = 0
    for _ in range(5000):
        keys = blocked.next(moved=0.0)
        push = push + 1 if keys[W] and not keys[S] else 0
        longest_push = max(longest_push, push)
    assert 4 <= longest_push <= 16


def test_policy_aims_at_wisps() -> None:
    """A wisp stands still while the player turns; as soon as it is flashed at, or out of view, there is another one."""
    rng = np.random.default_rng(0)
    policy, wisp = StickyPolicy(rng), 30.0
    flashes, aimed, fired = 0, 0, False
    for _ in range(20_000):
        keys = policy.next(10.0, wisp)
        if keys[SPACE] and not fired:
            flashes, aimed = flashes + 1, aimed + (abs(wisp) < 6)
        fired = bool(keys[SPACE])
        wisp += 5.0 * (int(keys[RIGHT]) - int(keys[LEFT]))
        if fired or abs(wisp) > 45:
            wisp = rng.uniform(-45, 45)
    assert flashes > 400
    assert aimed > 0.4 * flashes, "12 of 90 degrees are 13% of chance hits"


def test_play_says_what_is_wrong(recorder: WorldRecorder) -> None:
    with pytest.raises(ValueError, match="must be"):
        recorder.play(np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match="actions\\[0\\] must be zero"):
        recorder.play(hold(3, 0, 0, W))
    with pytest.raises(ValueError, match="no player can stand"):
        recorder.play(hold(3, 1, 1, W), (-250.0, 200.0, 0.0))


def test_source_yields_what_is_recorded_and_held_out_is_apart() -> None:
    world = WorldData()
    with ClipSource(world, seed=7, length=8, workers=2, share=Share(first=2, take=2, stride=5)) as source:
        clips = [next(source) for _ in range(3)]
    source.close()
    assert next(source, None) is None
    alone = [clip for numbers in (range(2, 4), range(7, 8)) for clip in recorded(world, 7, numbers, 8)]
    assert all(same(clip, again) for clip, again in zip(clips, alone, strict=True))
    assert not np.array_equal(clips[0].frames, clips[1].frames)
    apart = held_out(world, 2, 8)
    assert not same(apart[0], apart[1])
    with pytest.raises(ValueError, match="training seed"):
        ClipSource(world, seed=HELD_OUT_SEED, length=8)
    with WorldRecorder(HELD_OUT_SEED) as recorder:
        assert same(recorder.record(8, episode=1), apart[1])


def processes_naming(text: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if text in (entry / "cmdline").read_bytes().decode(errors="replace"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="finds the orphans in /proc, which only Linux has")
@pytest.mark.parametrize("victim", ["recorder", "source"])
def test_nothing_outlives_an_owner_that_is_killed(victim: str, tmp_path: Path) -> None:
    code = {
        "recorder": "r = WorldRecorder(3); r.record(4, 0)",
        "source": "r = ClipSource(WorldData(), 3, 4); next(r)",
    }[victim]
    script = tmp_path / "owner.py"
    script.write_text(
        "import time\nfrom training.data import ClipSource\n"
        "from training.world.recorder import WorldData, WorldRecorder\n"
        f"if __name__ == '__main__':\n    {code}\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    before = set(Path("/dev/shm").glob("ViZDoom*"))
    # Everything that the owner leaves on disk, and so every command line of its children, names this folder.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "ready\n"
            engines = [p for p in processes_naming(str(tmp_path)) if p != owner.pid]
            assert len(engines) >= 2, "guard and engine should be running"
            assert list(tmp_path.glob("streamgen-world-*"))
        finally:
            owner.send_signal(signal.SIGKILL)
    assert wait_for(lambda: not processes_naming(str(tmp_path)), 8), processes_naming(str(tmp_path))
    assert wait_for(lambda: not list(tmp_path.glob("streamgen-world-*")), 3), "the temporary WAD is still there"
    assert wait_for(lambda: set(Path("/dev/shm").glob("ViZDoom*")) <= before, 3), "shared memory is still there"


def test_a_killed_guard_takes_the_engine_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    recorder = WorldRecorder(seed=4)
    guard = next(p for p in processes_naming(str(tmp_path)) if "guard.py" in Path(f"/proc/{p}/cmdline").read_text())
    os.kill(guard, signal.SIGKILL)
    assert wait_for(lambda: not processes_naming(str(tmp_path)), 3)
    recorder.close()


def test_close_is_idempotent_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where temporary files are nor where it was started: two that started at once there failed by that."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    recorder = WorldRecorder(seed=4)
    assert len(processes_naming(str(tmp_path))) == 2
    recorder.close()
    recorder.close()
    assert wait_for(lambda: not processes_naming(str(tmp_path)), 3)
    assert not list(tmp_path.iterdir())
