"""A folder of videos as training data: what is in it comes out, and what is wrong with it is said by file and frame."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from training.data import HELD_OUT_SEED, held_out, recorded
from training.footage import VideoDataError
from training.videos import VideoActionDataset

KEYS = ["KeyW", "Space"]
FRAMES = 60


def write_video(path: Path, frames: int = FRAMES, rate: int = 20, codec: str = "libx264", base: int = 0) -> None:
    """Grey frames whose brightness tells their number: 40 + 3 n above `base`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            grey = np.full((48, 64, 3), base + 40 + 3 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode(None))


def number_of(picture: np.ndarray) -> int:
    return round((float(picture.mean()) - 38.5) / 3)


def actions(frames: int = FRAMES) -> list[list[int]]:
    return [[n % 2, n // 2 % 2] for n in range(frames)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_video(tmp_path / "a.mp4")
    (tmp_path / "a.json").write_text(json.dumps({"keys": KEYS, "actions": actions()}))
    write_video(tmp_path / "b.webm", codec="libvpx-vp9")
    np.savez(tmp_path / "b.npz", keys=np.array(KEYS), actions=np.array(actions()))
    return tmp_path


def poses(frames: int = FRAMES) -> list[list[float]]:
    return [[n / 2, -n, 6 * n % 360] for n in range(frames)]


def test_clips_are_the_videos_frames_with_their_actions(folder: Path) -> None:
    data = VideoActionDataset(folder, 32, 24)
    assert (data.keys, data.fps) == (tuple(KEYS), 20.0)
    assert data.check() == 2 * FRAMES
    seen = set()
    clips = list(recorded(data, 3, range(40), 9))
    for clip in clips:
        assert clip.frames.shape == (9, 24, 32, 3)
        first = number_of(clip.frames[0])
        assert [number_of(picture) for picture in clip.frames] == list(range(first, first + 9))
        assert clip.actions.tolist() == actions()[first : first + 9]
        assert np.isnan(clip.poses).all()
        seen.add(first)
    assert len(seen) > 15
    (again,) = recorded(data, 3, range(7, 8), 9)
    assert np.array_equal(again.frames, clips[7].frames)


def actors(frames: int = FRAMES) -> list[list[list[float]]]:
    return [[[n, -n / 2, 0], [3, 4, n % 4 / 4]] for n in range(frames)]


def test_poses_and_actors_where_the_game_gives_them(folder: Path) -> None:
    told = {"keys": KEYS, "actions": actions(), "poses": poses(), "actors": actors()}
    (folder / "a.json").write_text(json.dumps(told))
    np.savez(folder / "b.npz", **{name: np.array(rows) for name, rows in told.items()})
    for clip in recorded(VideoActionDataset(folder, 32, 24), 3, range(10), 9):
        first = number_of(clip.frames[0])
        assert clip.poses.tolist() == poses()[first : first + 9]
        assert clip.actors is not None and clip.actors.tolist() == actors()[first : first + 9]


def test_who_does_not_say_how_high_the_camera_is_has_both_feet_on_the_ground(folder: Path) -> None:
    told: dict[str, Any] = {"keys": KEYS, "actions": actions(), "poses": poses()}
    (folder / "a.json").write_text(json.dumps(told))
    (folder / "b.webm").unlink()
    assert all(clip.eyes is None for clip in recorded(VideoActionDataset(folder, 32, 24), 3, range(5), 9))
    floors = [[0, 30], [0, 30]]
    np.savez(folder / "ground.npz", x=[0, 30], y=[-60, 0], heights=np.full((2, 2), 50), floors=floors, eye=1.5)
    for clip in recorded(VideoActionDataset(folder, 32, 24), 3, range(5), 9):
        np.testing.assert_allclose(clip.eyes, 1.5 + clip.poses[:, 0], rtol=1e-5)
        assert clip.beats is None
    told |= {"eyes": [n / 4 for n in range(FRAMES)], "beats": [n % 8 / 8 for n in range(FRAMES)]}
    (folder / "a.json").write_text(json.dumps(told))
    for clip in recorded(VideoActionDataset(folder, 32, 24), 3, range(5), 9):
        first = number_of(clip.frames[0])
        assert clip.eyes is not None and clip.eyes.tolist() == told["eyes"][first : first + 9]
        assert clip.beats is not None and clip.beats.tolist() == told["beats"][first : first + 9]


def test_the_ground_lies_between_the_points_that_a_folder_knows(folder: Path) -> None:
    before = VideoActionDataset(folder, 32, 24)
    at = np.array([-3.0, 0.5, 9.0]), np.array([0.0, 5.0])
    assert before.ground(*at) is None
    known = {"x": [0, 1, 3], "y": [0, 10], "heights": [[0, 2, 4], [10, 12, 14]], "eye": 1.5}
    np.savez(folder / "ground.npz", **known)
    data = VideoActionDataset(folder, 32, 24)
    ground = data.ground(*at)
    assert ground is not None and (ground.eye, ground.view_deg, ground.rate) == (1.5, 90.0, 0.0)
    assert ground.fixtures.shape == (0, 3)
    assert ground.heights.tolist() == ground.floors.tolist() == [[0, 1, 4], [5, 6, 9]]
    assert data.fingerprint() != before.fingerprint()
    np.savez(folder / "ground.npz", **known, view_deg=60, floors=np.zeros((2, 3)), fixtures=[[1, 2, 3]], rate=0.25)
    again = VideoActionDataset(folder, 32, 24).ground(*at)
    assert again is not None and (again.view_deg, again.rate) == (60.0, 0.25)
    assert again.fixtures.tolist() == [[1, 2, 3]]
    assert again.heights.tolist() == [[0, 1, 4], [5, 6, 9]] and not again.floors.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"y": [0, 10, 20]}, r"heights of shape \(2, 3\) for x of \(3,\) and y of \(3,\)"),
        ({"x": [0, 3, 1]}, "x and y must rise"),
        ({"heights": [[0, 2, np.nan], [10, 12, 14]]}, "finite"),
        ({"eye": 0}, "eye 0.0 must be above the ground"),
        ({"view_deg": 180}, "view_deg 180.0"),
        ({"fixtures": [1, 2, 3]}, r"fixtures of shape \(3,\); they must be \[K, 3\]"),
        ({"rate": 1}, "rate 1.0 must be the part of a cycle"),
        ({"eye": [1, 2]}, "it needs `x`, `y`, `heights` and `eye`"),
    ],
)
def test_a_ground_that_is_none_is_refused(folder: Path, wrong: dict[str, Any], message: str) -> None:
    known = {"x": [0, 1, 3], "y": [0, 10], "heights": [[0, 2, 4], [10, 12, 14]], "eye": 1.5}
    np.savez(folder / "ground.npz", **known | wrong)
    with pytest.raises(VideoDataError, match=message):
        VideoActionDataset(folder, 32, 24)


def test_what_is_null_is_not_told(folder: Path) -> None:
    told = {"keys": KEYS, "actions": actions(), "poses": None, "actors": None}
    (folder / "a.json").write_text(json.dumps(told))
    for clip in recorded(VideoActionDataset(folder, 32, 24), 3, range(10), 9):
        assert np.isnan(clip.poses).all() and clip.actors is None


def test_the_last_tenth_is_held_out(folder: Path) -> None:
    data = VideoActionDataset(folder, 32, 24)
    assert {number_of(clip.frames[0]) for clip in held_out(data, 12, 5)} == {54, 55}
    with data.recorder(4) as recorder:
        assert max(number_of(recorder.record(5, n).frames[-1]) for n in range(60)) == 53


def test_of_ten_videos_one_is_held_out(folder: Path) -> None:
    for n in range(8):
        (folder / f"c{n}.mp4").write_bytes((folder / "a.mp4").read_bytes())
        (folder / f"c{n}.json").write_bytes((folder / "a.json").read_bytes())
    data = VideoActionDataset(folder, 32, 24)
    apart = [video.path.name for video in data.videos if video.part(held_out=True) != (FRAMES, FRAMES)]
    assert apart == ["a.mp4"]
    with data.recorder(HELD_OUT_SEED) as recorder:
        assert recorder.record(FRAMES, 0).frames.shape[0] == FRAMES


def _shorten(folder: Path) -> None:
    (folder / "a.json").write_text(json.dumps({"keys": KEYS, "actions": actions()[:-1]}))


def _no_actions(folder: Path) -> None:
    (folder / "a.json").unlink()


def _other_keys(folder: Path) -> None:
    np.savez(folder / "b.npz", keys=np.array(["KeyS", "Space"]), actions=np.array(actions()))


def _other_rate(folder: Path) -> None:
    write_video(folder / "b.webm", rate=25, codec="libvpx-vp9")


def _half_a_key(folder: Path) -> None:
    rows: list[list[float]] = [*actions()]
    rows[17] = [0, 0.5]
    (folder / "a.json").write_text(json.dumps({"keys": KEYS, "actions": rows}))


def _ragged(folder: Path) -> None:
    rows = actions()
    rows[23] = [0]
    (folder / "a.json").write_text(json.dumps({"keys": KEYS, "actions": rows}))


def _with_poses(folder: Path, rows: object, name: str = "poses") -> None:
    (folder / "a.json").write_text(json.dumps({"keys": KEYS, "actions": actions(), name: rows}))


def _few_eyes(folder: Path) -> None:
    _with_poses(folder, [1.5] * 59, "eyes")


def _late_beat(folder: Path) -> None:
    _with_poses(folder, [0.5] * 59 + [1.0], "beats")


def _few_poses(folder: Path) -> None:
    _with_poses(folder, poses(59))


def _lost_pose(folder: Path) -> None:
    _with_poses(folder, [*poses(30), [0, float("nan"), 0], *poses(29)])


def _named_pose(folder: Path) -> None:
    _with_poses(folder, ["north"] * 60)


def _few_actors(folder: Path) -> None:
    _with_poses(folder, actors(59), "actors")


def _late_actor(folder: Path) -> None:
    _with_poses(folder, [*actors(59), [[0, 0, 0], [0, 0, 1.0]]], "actors")


def _no_more_actors(folder: Path) -> None:
    _with_poses(folder, actors(), "actors")


def _text(folder: Path) -> None:
    (folder / "a.mp4").write_text("not a film")


def _nothing(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_shorten, "a.json: 59 rows of actions, but a.mp4 has 60 frames"),
        (_no_actions, "a.mp4: no a.json or a.npz"),
        (_other_keys, "b.npz: keys .*KeyS.*a.mp4 has .*KeyW"),
        (_other_rate, "b.webm: 25.000 frames a second, but a.mp4 has 20.000"),
        (_half_a_key, r"a.json: frame 17: actions \[0.0, 0.5\] are not 0 or 1"),
        (_ragged, "a.json: frame 23: 1 actions, the first frame has 2"),
        (_few_eyes, r"a.json: eyes of shape \(59,\); 60 frames need \(60,\)"),
        (_late_beat, r"a.json: frame 59: its beat is 1.0, not in \[0, 1\)"),
        (_few_poses, r"a.json: poses of shape \(59, 3\); 60 frames need \(60, 3\)"),
        (_lost_pose, "a.json: frame 30: one of its poses is not finite"),
        (_named_pose, "a.json: poses must be rows of x, y and yaw: .*north"),
        (_few_actors, r"a.json: actors of shape \(59, 2, 3\); 60 frames need \(60, actors, 3\)"),
        (_late_actor, r"a.json: frame 59: the clock of actor 1 is 1.0, not in \[0, 1\)"),
        (_no_more_actors, r"b.npz: 0 actors, but a.mp4 has 2: all videos need the same ones"),
        (_text, "a.mp4: not a video"),
        (_nothing, "no videos"),
    ],
)
def test_a_bad_file_is_named(folder: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(folder)
    with pytest.raises(VideoDataError, match=said):
        VideoActionDataset(folder, 32, 24)


def test_a_bad_frame_is_named(folder: Path) -> None:
    """The container says 60 frames, but the file was cut short."""
    write_video(folder / "b.webm", frames=41, codec="libvpx-vp9")
    data = VideoActionDataset(folder, 32, 24)
    with pytest.raises(VideoDataError, match=r"b.webm: 41 frames, but 60 rows"):
        data.check()
    with pytest.raises(VideoDataError, match=r"b.webm: it ends before frame 41; its actions go on to 59"):
        data.read(data.videos[1], 35, 10)


def test_clips_that_do_not_fit_are_refused(folder: Path) -> None:
    data = VideoActionDataset(folder, 32, 24)
    with pytest.raises(VideoDataError, match=r"clips of 7 frames are wanted, but the longest held-out part .* has 6"):
        held_out(data, 1, 7)
    with pytest.raises(VideoDataError, match=r"longest training part .* has 54"):
        list(recorded(data, 0, range(1), 55))
