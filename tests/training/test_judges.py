"""The judges learn what they should, say it in the right units, and their figures are the ones that were meant."""

from __future__ import annotations

import json
import math
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from streamgen.actions import WORLD_KEYS
from streamgen.student import Student, write_config
from tests.training.commands import refusal, streamgen
from training import evaluate
from training.clips import pose_vector
from training.data import Clip
from training.judges import Judges, load_judges, recognised, save_judges, turn_accuracy, yaw_difference
from training.recipe import JudgesRecipe, RecipeError
from training.stages.judges import JudgesStage

WIDTH, HEIGHT, FPS = 48, 32, 4
LEFT, RIGHT = WORLD_KEYS.index("ArrowLeft"), WORLD_KEYS.index("ArrowRight")


def write_walk(path: Path, frames: int = 1000) -> None:
    """A striped wall that the arrows move, one at a time, over a floor whose parts the other keys light."""
    rng = np.random.default_rng(len(path.name))
    rows, at, held = [], 0, np.zeros(len(WORLD_KEYS), int)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.gop_size = 16  # every clip is a seek
        for number in range(frames):
            if number % 3 == 0:
                held = (rng.random(len(WORLD_KEYS)) < 0.4).astype(int)
                held[RIGHT] &= 1 - held[LEFT]
            at += 3 * (held[RIGHT] - held[LEFT])
            picture = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
            picture[16:] += np.repeat(120 * held[[0, 1, 4]], WIDTH // 3).astype(np.uint8)[:, None]
            picture[:16] = (128 + 90 * np.sin((np.arange(WIDTH) - at) * (2 * np.pi / 16)))[:, None]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            rows.append(held.tolist())
        container.mux(stream.encode(None))
    path.with_suffix(".json").write_text(json.dumps({"keys": WORLD_KEYS, "actions": rows}))


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("walks")
    for name in ("a.mp4", "bb.mp4"):
        write_walk(folder / name)
    return folder


@pytest.fixture(scope="module")
def student(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Student:
    """It shows frames of the walks' size at their rate, and knows nothing."""
    folder = Path(shutil.copytree(toy_folder, tmp_path_factory.mktemp("students") / "toy"))
    write_config(folder, Student.from_pretrained(folder).config.model_copy(update={"fps": float(FPS)}))
    return Student.from_pretrained(folder)


@pytest.fixture(scope="module")
def trained(walks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Judges of the walks, by the command and the shipped recipe."""
    runs = tmp_path_factory.mktemp("runs")
    small = (f"width={WIDTH}", f"height={HEIGHT}", "steps=140", "warmup=5", "ema=0.9", "evaluate_every=140")
    streamgen("train", "world/judges", "name=judges", f"data={walks}", *small, "--runs", runs, "--threads", 1)
    return runs / "judges"


def last_evaluation(run: Path) -> dict[str, float]:
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    figures: dict[str, float] = [entry for entry in entries if entry["event"] == "evaluate"][-1]
    return figures


def zeroed(judges: Judges) -> Judges:
    with torch.no_grad():
        for parameter in judges.parameters():
            parameter.zero_()
    return judges


def test_balanced_accuracy_of_each_key() -> None:
    keys = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], np.uint8)
    said = np.array([[0.9, 0.2, 0.1], [0.6, 0.1, 0.9], [0.4, 0.9, 0.1], [0.1, 0.1, 0.1], [0.8, 0.3, 0.1]], np.float32)
    # The first: 2 of 3 with it, 1 of 2 without. The second: 0 of 1 and 3 of 4. The third is never held.
    found = recognised(said, keys, ("KeyW", "ArrowLeft", "Space"))
    assert found == pytest.approx({"KeyW": (2 / 3 + 1 / 2) / 2, "ArrowLeft": (0 + 3 / 4) / 2})


def test_turns_count_where_exactly_one_arrow_was_held() -> None:
    keys = np.array([[0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 1, 1], [1, 0, 0]], np.uint8)
    said = np.array(
        [[0, 0.9, 0.1], [0, 0.4, 0.1], [0, 0.8, 0.7], [0, 0.1, 0.6], [0, 0.1, 0.1], [0, 0.9, 0.9]], np.float32
    )
    # Found; found but thought unlikely; the wrong way; found; both held and none held, which do not count.
    assert turn_accuracy(said, keys, 1, 2) == pytest.approx(2 / 4)
    assert turn_accuracy(said[4:], keys[4:], 1, 2) is None


def test_headings_differ_by_the_shorter_way_round() -> None:
    a, b = np.array([10, 350, 90, 0, 270], np.float32), np.array([350, 10, 90, 180, 0], np.float32)
    np.testing.assert_allclose(yaw_difference(a, b), [20, 20, 0, 180, 90])


def test_a_pose_comes_back_from_what_the_judge_should_say() -> None:
    poses = torch.tensor([[-500.0, 20.0, 0.0], [100.0, -7.0, 135.0], [0.0, 0.0, 359.0]])
    judges = Judges(WORLD_KEYS, HEIGHT, WIDTH, scale=512.0)
    judges.pose = lambda images: pose_vector(poses, 512.0)[: len(images)]  # type: ignore[method-assign]
    np.testing.assert_allclose(judges.poses_of(np.zeros((3, HEIGHT, WIDTH, 3), np.uint8)), poses, atol=1e-3)


def test_keys_of_looks_at_each_frame_and_the_one_before() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (300, HEIGHT, WIDTH, 3), np.uint8)
    judges = Judges(WORLD_KEYS, HEIGHT, WIDTH, 512.0)
    said = judges.keys_of(frames)
    assert said.shape == (299, len(WORLD_KEYS))
    for at in (0, 127, 128, 298):
        np.testing.assert_allclose(judges.keys_of(frames[at : at + 2])[0], said[at], atol=1e-5)


def test_the_loss_is_cross_entropy_of_the_keys_and_error_of_the_known_poses(walks: Path) -> None:
    stage = stage_of(walks)
    zeroed(stage.model)  # says 0.5 to every key and 0 to every pose
    images, keys = torch.zeros(3, 3, HEIGHT, WIDTH), torch.tensor([[1.0, 0, 0, 1, 0]] * 3)
    unknown = torch.full((3, 3), math.nan)
    loss, _ = stage.loss((images, images, keys, unknown), stage.model, torch.Generator())
    assert loss.item() == pytest.approx(math.log(2))
    poses = torch.tensor([[300.0, -400.0, 70.0], [math.nan] * 3, [0.0, 500.0, 200.0]])
    loss, _ = stage.loss((images, images, keys, poses), stage.model, torch.Generator())
    # Cosine and sine add up to 1; both known places are 500 from the middle, 2 in units of the scale.
    assert loss.item() == pytest.approx(math.log(2) + (1 + 2**2) / 4)


def stage_of(walks: Path) -> JudgesStage:
    recipe = JudgesRecipe(
        stage="judges", name="j", data=walks, width=WIDTH, height=HEIGHT, steps=1, learning_rate=1, clips=2,
        clip_length=9, frames=4, scale=250.0,
    )  # fmt: skip
    return JudgesStage(recipe)


def test_a_batch_has_successive_frames_and_the_keys_between_them(walks: Path) -> None:
    """Every clip counts its frames, and its keys and poses say the same number."""
    count = np.arange(9)
    clips = []
    for first in (0, 100):
        frames = np.broadcast_to((first + count)[:, None, None, None], (9, HEIGHT, WIDTH, 3)).astype(np.uint8)
        actions = (count[:, None] >> np.arange(len(WORLD_KEYS)) & 1).astype(np.uint8)
        clips.append(Clip(frames, actions, np.repeat(first + count[:, None], 3, 1).astype(np.float32)))
    stage = stage_of(walks)
    before, after, keys, poses = stage.batch(clips, 5)
    numbers = ((after[:, 0, 0, 0] + 1) * 127.5).round()
    assert len(numbers) == 2 * 4
    assert len(set(numbers.tolist())) == len(numbers)
    assert torch.equal(((before[:, 0, 0, 0] + 1) * 127.5).round(), numbers - 1)
    assert torch.equal(poses[:, 0], numbers)
    assert torch.equal(keys @ 2.0 ** torch.arange(5), numbers % 100)
    assert torch.equal(stage.batch(clips, 5)[1], after)
    assert not torch.equal(stage.batch(clips, 6)[1], after)


def test_judges_learn_which_keys_drove_a_frame(trained: Path) -> None:
    figures = last_evaluation(trained)
    assert {"yaw_deg", "distance"}.isdisjoint(figures), "videos know no poses"
    assert all(figures[code] > 0.9 for code in WORLD_KEYS), figures
    judges = load_judges(trained)
    assert (judges.keys, judges.width, judges.height) == (WORLD_KEYS, WIDTH, HEIGHT)


def test_judges_of_the_world_are_told_where_a_frame_was_seen_from(tmp_path: Path) -> None:
    streamgen("train", "world/judges", "width=64", "height=48", "steps=2", "evaluate_every=2", "--runs", tmp_path)
    figures = last_evaluation(tmp_path / "world-judges")
    assert set(WORLD_KEYS) < set(figures)
    assert 0 < figures["yaw_deg"] < 180
    assert 0 < figures["distance"] < 1500


def test_evaluate_with_judges_says_what_the_keys_did(
    walks: Path, trained: Path, student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMGEN_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "figures.json"
    short = ("--seconds", 4, "--rollouts", 1)
    streamgen("evaluate", "--student", student.path, "--data", walks, *short, "--judges", trained, "--json", file)
    control = json.loads(file.read_text())["control"]
    assert control["seconds"] == 10
    assert set(control["generated"]["recognised"]) == set(control["ceiling"]["recognised"]) == set(WORLD_KEYS)
    assert control["ceiling"]["turn_accuracy"] > 0.8
    assert control["generated"]["turn_accuracy"] < 0.6, "its weights are random"
    assert "10_s" not in control["ceiling"], "videos know no poses"


def test_evaluate_refuses_other_judges_and_other_clips(walks: Path, student: Student, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    arguments = ["evaluate", "--student", student.path, "--json", tmp_path / "x.json", "--data"]
    assert "train them first" in refusal(*arguments, walks, "--judges", tmp_path / "none")
    save_judges(Judges(WORLD_KEYS[::-1], HEIGHT, WIDTH, 512.0), tmp_path / "other")
    with pytest.raises(RecipeError, match="the judges know the keys Space"):
        evaluate.evaluate(student, stage_of(walks).data, tmp_path, judges=load_judges(tmp_path / "other"))
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    (fewer / "a.mp4").write_bytes((walks / "a.mp4").read_bytes())
    actions = json.loads((walks / "a.json").read_text())["actions"]
    (fewer / "a.json").write_text(json.dumps({"keys": ["KeyW"], "actions": [row[:1] for row in actions]}))
    assert "the clips have the keys KeyW, but toy has KeyW" in refusal(*arguments, fewer)


class Reader(Judges):
    """Reads what `shown` wrote into the picture."""

    def __init__(self) -> None:
        super().__init__(WORLD_KEYS, HEIGHT, WIDTH, 1.0)

    def keys_of(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        return (frames[1:, 0, : len(WORLD_KEYS), 0] / 255).astype(np.float32)

    def poses_of(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        return frames[:, 1, 0].astype(np.float32) * (1, 1, 2)


def shown(actions: NDArray[np.uint8], poses: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Frames that show keys, and poses in whole units and steps of two degrees."""
    frames = np.zeros((len(actions), HEIGHT, WIDTH, 3), np.uint8)
    frames[:, 0, : len(WORLD_KEYS), 0] = 255 * actions
    frames[:, 1, 0] = poses / (1, 1, 2)
    return frames


def test_control_and_drift_of_hand_made_play(student: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four episodes of turning left; the made ones turn right in every fourth frame, walk off, and look elsewhere."""
    context, frames = 16, 10 * FPS
    real, made = [], []
    for n in range(4):
        actions = np.zeros((context + frames, len(WORLD_KEYS)), np.uint8)
        actions[::2, LEFT] = 1
        poses = np.tile(np.array([50, 60, 350], np.float32), (len(actions), 1))
        real.append(Clip(shown(actions, poses), actions, poses))
        other, seen = actions[context:].copy(), poses[context:].copy()
        other[::4] = other[::4, ::-1]
        other[::4, RIGHT], other[::4, LEFT] = 1, 0
        at = np.arange(frames)
        seen[:, 0] += 3 * (at >= FPS)  # from 1 s on, 3 and 4 units away: 5
        seen[:, 1] += 4 * (at >= FPS)
        seen[:, 2] = (350 + 20 * n * (at >= 5 * FPS - 1)) % 360  # at 5 s by 0, 20, 40 and 60 degrees
        made.append(shown(other, seen))
    monkeypatch.setattr(evaluate, "_play", lambda student, engine, autoencoder, clip, seed: made[seed])
    nothing: Any = None
    control = evaluate._control(student, nothing, nothing, real, Reader())
    assert control["episodes"] == 4
    # Frame 0 has no frame before it. LEFT: 10 of the 19 frames with it, and all of those without it.
    assert control["ceiling"]["recognised"] == {"ArrowLeft": 1.0}
    assert control["generated"]["recognised"] == pytest.approx({"ArrowLeft": (10 / 19 + 1) / 2})
    assert control["ceiling"]["turn_accuracy"] == 1
    assert control["generated"]["turn_accuracy"] == pytest.approx(10 / 19)
    for seconds in (1, 5, 10):
        assert control["ceiling"][f"{seconds}_s"] == {"yaw_deg_median": 0, "distance_median": 0}
    drift = [control["generated"][f"{seconds}_s"] for seconds in (1, 5, 10)]
    assert [d["yaw_deg_median"] for d in drift] == [0, 30, 30]
    assert [d["distance_median"] for d in drift] == [0, 5, 5]
