"""Every stage at toy size on the real recorder: it learns, resumes as if never stopped, and ends in a student that
plays.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import av
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from streamgen.models.autoencoder import Autoencoder, to_float
from streamgen.models.loading import (
    load_autoencoder,
    load_transformer,
    save_autoencoder,
    save_pose,
    save_transformer,
)
from streamgen.models.pose import Pose
from streamgen.models.transformer import CausalVideoTransformer
from streamgen.student import WEIGHTS
from tests.toy import WITH_ACTORS, toy_transformer, toy_transformer_config
from tests.training.commands import refusal, streamgen
from training.clips import ClipPass, LatentClips, imperfect_history
from training.data import held_out
from training.recipe import RecipeError, load_recipe, weights_hash
from training.stages.decoder import DecoderStage
from training.stages.pose import PoseStage, _stand, _start_from, walk
from training.stages.teacher_forcing import TeacherForcingStage, rollout_plans
from training.world.recorder import WorldData

ROOT = Path(__file__).parents[2]
AUTOENCODER = """
stage: autoencoder
name: autoencoder
steps: 4
precision: fp32
learning_rate: 2.0e-3
warmup: 1
evaluate_every: 4
clips: 1
frames: 2
clip_length: 6
checkpoint_every_s: 0.001
model: {latent_channels: 4, encoder_dims: [8, 8], decoder_dims: [8, 8], decoder_blocks: [1, 1]}
"""
MODEL = """
model: {in_channels: 18, height: 8, width: 10, patch: 2, dim: 24, ffn_dim: 48, num_heads: 2, num_layers: 2, window: 4,
        action_dim: 5, concat_previous: true, residual: true, ffn_conv: true, pose_scale: 512, actors: 5, fixtures: 3,
        view_dim: 16, view_rows: 1024, ground_map: 64}
"""
POSE = """
stage: pose
name: pose
autoencoder: RUNS/autoencoder
steps: 4
precision: fp32
learning_rate: 1.0e-3
warmup: 1
evaluate_every: 4
clip_length: 12
walks: 70
starts: 6
frames: 6
MODEL
"""
TEACHER = """
stage: teacher_forcing
judged_clips: 2
judged_frames: 32
name: teacher
autoencoder: RUNS/autoencoder
steps: 8
decay: 0
precision: fp32
learning_rate: 1.0e-3
matrix_learning_rate: 3.0e-3
warmup: 1
evaluate_every: 100
clips: 1
clip_length: 12
copies: 2
recycle: 3
recycle_share: 0.5
checkpoint_every_s: 0.001
fade: 0.5
simulated: 0.5
pose: RUNS/pose
MODEL
"""
STUDENT = """
stage: distillation
judged_clips: 2
judged_frames: 32
name: student
autoencoder: RUNS/autoencoder
teacher: RUNS/teacher
steps: 2
precision: fp32
learning_rate: 1.0e-3
warmup: 1
evaluate_every: 100
clips: 1
clip_length: 12
copies: 2
recycle: 3
recycle_share: 1.0
step_plans: {1: [1.0]}
method: {name: causal_consistency, guidance: 1.5}
"""
DUEL = """
stage: distillation
judged_clips: 2
judged_frames: 32
name: duel
autoencoder: RUNS/autoencoder
teacher: RUNS/bidirectional
start: RUNS/student
steps: 6
decay: 0
precision: fp32
learning_rate: 1.0e-3
critic_learning_rate: 2.0e-3
warmup: 1
evaluate_every: 100
clips: 1
clip_length: 12
recycle: 0
checkpoint_every_s: 0.001
method: {name: self_forcing, context: 6, lead: 2, rolled: 4, critic_steps: 1, switch: 0.3, truth: 0.1}
"""
BIDIRECTIONAL = """
stage: bidirectional
judged_clips: 2
judged_frames: 32
name: bidirectional
autoencoder: RUNS/autoencoder
start: RUNS/teacher
steps: 2
precision: fp32
learning_rate: 1.0e-3
warmup: 1
evaluate_every: 2
clips: 1
clip_length: 12
context: 4
"""
DECODER = """
stage: decoder
name: decoder
student: RUNS/student
autoencoder: RUNS/autoencoder
steps: 4
precision: fp32
learning_rate: 1.0e-3
warmup: 1
evaluate_every: 4
clip_length: 12
recycle: 3
walks: 5
pairs: 2
"""
STAGES = {
    "autoencoder": AUTOENCODER,
    "pose": POSE,
    "teacher": TEACHER,
    "student": STUDENT,
    "bidirectional": BIDIRECTIONAL,
    "duel": DUEL,
    "decoder": DECODER,
}

_COMMAND = [sys.executable, "-c", "from streamgen.cli import main; main(prog_name='streamgen')"]


def _run(command: list[str]) -> str:
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _losses(run: Path) -> dict[int, float]:
    """By step, whoever learned in it; of a step that was done again after a kill, the last one."""
    entries = []
    for line in (run / "log.jsonl").read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # the line that a kill cut off
            entries.append(json.loads(line))
    return {
        entry["step"]: entry["loss"] if "loss" in entry else entry["critic_loss"]
        for entry in entries
        if entry["event"] == "step"
    }


def _wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages, by the command that people use."""
    folder = tmp_path_factory.mktemp("training")
    for name, text in STAGES.items():
        recipe = folder / f"{name}.yaml"
        recipe.write_text(text.replace("MODEL", MODEL).replace("RUNS", str(folder)))
        streamgen("train", recipe, "--runs", folder, "--threads", "1")
    return folder


def test_every_stage_leaves_weights_a_log_and_a_sheet(runs: Path) -> None:
    for name in STAGES:
        part = {"autoencoder": "vae", "decoder": "vae", "pose": "pose"}.get(name, "transformer")
        assert (runs / name / part / "diffusion_pytorch_model.safetensors").is_file()
        assert list((runs / name).glob("sheet_*.png"))
        assert all(loss > 0 for loss in _losses(runs / name).values())
    before, after = (
        torch.load(runs / run / "checkpoint.pt", weights_only=True)["models"][0] for run in ("teacher", "student")
    )
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    pose = load_file(runs / "pose" / "pose" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(after[f"pose.{name}"], value) for name, value in pose.items())


def test_a_pose_is_judged_by_where_its_own_keys_lead(runs: Path) -> None:
    stage = PoseStage(load_recipe(runs / "pose.yaml"))
    stage.model.requires_grad_(False)
    motion = stage.model.motion
    for parameter in motion.parameters():
        parameter += torch.randn_like(parameter) * 0.1
    start = torch.tensor([[0.3, -0.2, 0.6, 0.8, 0.01, 0.02, 0.1, 0, 0]])
    actions = (torch.rand(70, 12, 5) < 0.5).float()
    led = torch.cat([start[:, None].expand(70, 1, 9), walk(motion, start.expand(70, 9), actions[:, 1:])], 1)
    led = torch.cat([led, torch.zeros(70, 12, 25)], -1)  # no actor moves
    led[:, 0] = torch.nan  # of a clip's first frame the speed is not known
    for driven, wrong in ((actions, False), (actions.roll(1, 1), True)):
        stage._walks = LatentClips(led, driven)
        figures = stage.loss(stage.batch([], 3), stage.model, torch.Generator())[1]
        assert figures["motion"] > 0.01 if wrong else figures["motion"] < 1e-6
        assert figures["course"] < 2


def test_a_decoder_learns_from_the_pictures_that_belong_to_what_it_decodes(runs: Path) -> None:
    """Of rollouts that may not err at all: they are the true latents of the pictures beside them."""
    stage = DecoderStage(load_recipe(runs / "decoder.yaml", ("recycle_clip=1.0e-6",)))
    pairs = stage.batch([], 3)
    encoder = load_autoencoder(runs / "autoencoder").encoder
    true = encoder(to_float(pairs.frames.flatten(0, 1))).unflatten(0, (-1, 2))
    torch.testing.assert_close(pairs.latents.float(), true, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(pairs.first.float(), encoder(to_float(pairs.first_frame)), rtol=2e-3, atol=2e-3)


def test_a_decoder_learns_from_squares_that_belong_to_what_it_decodes(runs: Path) -> None:
    pixel = load_autoencoder(runs / "autoencoder").config.latent_pixel
    stage = DecoderStage(load_recipe(runs / "decoder.yaml", (f"crop={4 * pixel}", "focus=[0.5, 0.5, 1, 1]")))
    # Every latent pixel, and what is shown of it, says which one it is.
    which = torch.arange(8 * 10).view(8, 10)
    pool = stage._pool
    shown = which.repeat_interleave(pixel, 0).repeat_interleave(pixel, 1).byte()[..., None]
    stage._pool = replace(pool, latents=which.half().expand_as(pool.latents), frames=shown.expand_as(pool.frames))
    batches = [stage.batch([], number) for number in range(8)]
    for pairs in batches:
        assert pairs.latents.shape[-2:] == (4, 4)
        assert torch.equal(pairs.frames[:, :, ::pixel, ::pixel, 0].half(), pairs.latents[:, :, 0])
    begins = {divmod(int(first), 10) for pairs in batches for first in pairs.latents[:, 0, 0, 0, 0]}
    assert len(begins) > 8
    assert sum(y >= 2 and x >= 3 for y, x in begins) > len(begins) / 2  # around a point of the focus
    loss, _ = stage.loss(stage.batch([], 1), stage.model, torch.Generator())
    assert loss.isfinite()
    for wrong in (4 * pixel + 1, 2 * pixel, 9 * pixel):
        with pytest.raises(RecipeError, match=f"crop {wrong}: give a multiple of {pixel} from"):
            DecoderStage(load_recipe(runs / "decoder.yaml", (f"crop={wrong}",)))


def test_a_discriminator_pulls_as_hard_as_the_recipe_says(runs: Path) -> None:
    """In parts of the pull of the true picture, and away from where it is."""
    pulls = []
    for share in (0.0, 0.5):
        stage = DecoderStage(load_recipe(runs / "decoder.yaml", (f"adversarial={share}",)))
        # Without a pull there is none who could pull.
        assert stage.turn(0) is (stage.critic if share else stage.model)
        assert stage.turn(1) is stage.model
        made = []
        shown = stage.model.layers[-1]
        shown.register_forward_hook(lambda _, __, out, made=made: (out.retain_grad(), made.append(out))[0])
        loss, _ = stage.loss(stage.batch([], 1), stage.model, torch.Generator())
        loss.backward()
        pulls.append(made[0].grad)
    assert float((pulls[1] - pulls[0]).norm() / pulls[0].norm()) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(("name", "kills"), [("teacher", (2, 5)), ("duel", (2,))])
def test_a_run_killed_at_any_moment_goes_on_as_if_it_had_not_been(
    name: str, kills: tuple[int, ...], runs: Path, tmp_path: Path
) -> None:
    """A duel with both of its players."""
    command = [*_COMMAND, "train", str(runs / f"{name}.yaml"), "--runs", str(tmp_path), "--threads", "1"]
    log = tmp_path / name / "log.jsonl"
    for upto in kills:
        with subprocess.Popen(command, cwd=ROOT) as process:
            _wait_for(lambda upto=upto: log.exists() and f'"step": {upto},' in log.read_text())
            process.kill()
    _run(command)
    whole, parts = _losses(runs / name), _losses(tmp_path / name)
    assert sorted(parts) == list(range(len(whole)))
    assert parts == pytest.approx(whole, rel=1e-5)


def test_export_generate_and_evaluate(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs' mean becomes a student folder on which every command works."""
    monkeypatch.setenv("STREAMGEN_CACHE", str(tmp_path / "cache"))
    student = tmp_path / "student"
    mix = ("--autoencoder", runs / "autoencoder", "--average", runs / "teacher", "0.25", "--decoder", runs / "decoder")
    streamgen("export", runs / "student", *mix, "--out", student, "--name", "toy")
    own, plain = (load_autoencoder(runs / run).state_dict() for run in ("decoder", "autoencoder"))
    shipped = load_autoencoder(student).state_dict()
    for name, value in shipped.items():
        torch.testing.assert_close(value, own[name], rtol=0.01, atol=1e-6)
        assert name.startswith("decoder.") or torch.equal(own[name], plain[name])
    weights = [
        load_file(path / "transformer" / "diffusion_pytorch_model.safetensors")["head.head.weight"].float()
        for path in (student, runs / "student", runs / "teacher")
    ]
    torch.testing.assert_close(weights[0], 0.75 * weights[1] + 0.25 * weights[2], rtol=0.01, atol=1e-6)
    script = tmp_path / "walk.txt"
    script.write_text("0.5 KeyW\n0.5 KeyW ArrowLeft\n")
    video = tmp_path / "walk.mp4"
    generate = ["generate", "--student", student, "--actions", script, "--seconds", "2", "--out", video]
    assert "35 frames" in _run([*_COMMAND, *map(str, generate)])
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, float(stream.average_rate)) == (240, 192, 17.5)
        assert sum(1 for _ in container.decode(stream)) == 35
    figures_file = tmp_path / "figures" / "figures.json"
    figures_file.parent.mkdir()
    played = "--rollouts", "2", "--processes", "2", "--seconds", "4"
    streamgen("evaluate", "--student", student, *played, "--json", figures_file)
    figures = json.loads(figures_file.read_text())
    forced = figures["teacher_forced"]
    assert forced["autoencoder"]["psnr"] > 5
    assert forced["gain_over_copy_last_db"] == pytest.approx(forced["steps_1"]["psnr"] - forced["copy_last"]["psnr"])
    end = figures["rollout"]["end"]
    assert end["seconds"] == 4 and len(end["detail"]) == len(end["motion"]) == 2
    assert {path.name for path in figures_file.parent.glob("*.png")} == {
        "teacher_forced.png",
        "rollout.png",
        "rollout_curves.png",
    }
    bench_file = tmp_path / "bench.json"
    _run([*_COMMAND, "bench", "--student", str(student), "--streams=2", "--seconds=1", "--json", str(bench_file)])
    bench = json.loads(bench_file.read_text())
    assert bench["fps_total"] == pytest.approx(2 * bench["fps"], rel=0.01)
    assert bench["gflops"] > 0
    assert bench["step_ms"]["p99"] >= bench["step_ms"]["p50"] > 0


@pytest.mark.parametrize(
    ("name", "how"), [("teacher", ("shard=true", "forget_activations=true")), ("duel", ("shard=true",))]
)
def test_two_processes_do_what_one_does_with_twice_the_accumulation(
    name: str, how: tuple[str, ...], runs: Path, tmp_path: Path
) -> None:
    """Each with a model of its own, or with a piece of one, which Muon's matrices are put together from."""
    recipe = runs / f"{name}.yaml"
    streamgen("train", recipe, "steps=3", "accumulate=2", "--runs", tmp_path / "one", "--threads", "1")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    _run([*torchrun, "-m", "training", "train", str(recipe), "steps=3", *how, "--runs", str(tmp_path / "two")])
    one, two, single = (_losses(folder / name) for folder in (tmp_path / "one", tmp_path / "two", runs))
    assert two == pytest.approx(one, rel=1e-4)
    assert max(abs(two[step] / single[step] - 1) for step in two) > 1e-2, "a second batch should make a difference"
    ends = [load_file(tmp_path / way / name / "transformer" / WEIGHTS) for way in ("one", "two")]
    for weight, value in ends[0].items():
        torch.testing.assert_close(ends[1][weight], value, rtol=1e-3, atol=1e-5)
    # Either goes on with what the other left.
    shutil.copytree(tmp_path / "two" / name, tmp_path / "further" / name)
    streamgen("train", recipe, "steps=4", "accumulate=2", "--runs", tmp_path / "further", "--threads", "1")
    assert sorted(_losses(tmp_path / "further" / name)) == [0, 1, 2, 3]


def test_two_processes_learn_the_same_ground(runs: Path, tmp_path: Path) -> None:
    """Each records its share of the walks; where any of them has seen an actor, actors can be."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    recipe = str(runs / "pose.yaml")
    _run([*torchrun, "-m", "training", "train", recipe, "steps=1", "--runs", str(tmp_path)])
    one, two = (load_file(folder / "pose" / "pose" / WEIGHTS)["course.ground"] for folder in (runs, tmp_path))
    assert 0 < one.sum() < len(one) / 2
    assert torch.equal(one, two)


def test_a_run_is_not_mixed_with_another(runs: Path) -> None:
    said = refusal("train", runs / "teacher.yaml", "learning_rate=0.5", "--runs", runs)
    assert "another learning_rate" in said
    said = refusal("train", runs / "teacher.yaml", "autoencoder=/nowhere", "--runs", runs)
    assert "/nowhere" in said
    for other in ("model.ffn_conv=false", "model.ffn_dim=40"):
        said = refusal("train", runs / "teacher.yaml", f"start={runs / 'teacher'}", other, "--runs", runs)
        assert "has weights that do not fit this model: blocks" in said
    said = refusal("train", runs / "duel.yaml", "start=null", "--runs", runs)
    assert "sees the future: name a causal one to start from" in said
    for method in ("{name: causal_consistency}", "{name: flow_map}"):
        seer = f"teacher={runs / 'bidirectional'}", f"start={runs / 'student'}", f"method={method}"
        said = refusal("train", runs / "student.yaml", *seer, "--runs", runs)
        assert "sees the future" in said
    said = refusal("export", runs / "bidirectional", "--autoencoder", runs / "autoencoder", "--out", runs / "x")
    assert "it can teach a student, not be one" in said
    said = refusal("export", runs / "teacher", "--autoencoder", runs / "student", "--out", runs / "x")
    assert "is not there" in said
    (runs / "other").mkdir()
    save_autoencoder(Autoencoder(load_autoencoder(runs / "decoder").config), runs / "other")
    mine = "--autoencoder", runs / "autoencoder", "--decoder", runs / "other"
    said = refusal("export", runs / "student", *mine, "--out", runs / "x")
    assert "other was trained on the latents of another autoencoder" in said
    said = refusal("train", runs / "decoder.yaml", "recycle=5", "--runs", runs)
    assert "clip_length 12: 5 frames and two windows need 13" in said
    said = refusal(
        "export", runs / "student", "--autoencoder", runs / "autoencoder", "--steps", "3", "--out", runs / "x"
    )
    assert "no plan for 3 steps" in said


def test_an_autoencoder_goes_on_from_another_and_is_named_by_its_latents(runs: Path, tmp_path: Path) -> None:
    still = ("learning_rate=1e-9", f"start={runs / 'autoencoder'}", "name=further", "--runs", tmp_path)
    streamgen("train", runs / "autoencoder.yaml", *still)
    old, new = (load_file(run / "vae" / WEIGHTS) for run in (runs / "autoencoder", tmp_path / "further"))
    for name in old:
        if not name.startswith("latents_"):
            torch.testing.assert_close(old[name], new[name], atol=1e-5, rtol=0)
    for part, same in (("decoder", True), ("encoder", False)):
        other = {name: value + 1 if name.startswith(part) else value for name, value in old.items()}
        save_file(other, tmp_path / "further" / "vae" / WEIGHTS)
        assert (weights_hash(tmp_path / "further", "vae") == weights_hash(runs / "autoencoder", "vae")) == same


def test_a_model_of_something_else_starts_from_the_blocks(runs: Path) -> None:
    wanted = (f"start_blocks={runs / 'teacher'}", "model.patch=1")
    own = TeacherForcingStage(load_recipe(runs / "teacher.yaml", wanted)).model.state_dict()
    theirs = load_transformer(runs / "teacher").state_dict()
    assert theirs["patch_embedding.weight"].shape != own["patch_embedding.weight"].shape
    shared = [name for name in own if name.startswith(("blocks.", "time_embedding."))]
    assert shared and all(torch.equal(own[name], theirs[name]) for name in shared)
    with pytest.raises(RecipeError, match="give one of them"):
        load_recipe(runs / "teacher.yaml", (*wanted, "start=elsewhere"))


def test_a_shallower_model_starts_from_layers_of_a_deeper_one(runs: Path) -> None:
    wanted = (f"start={runs / 'teacher'}", "model.num_layers=1")
    own = TeacherForcingStage(load_recipe(runs / "teacher.yaml", (*wanted, "start_layers=[1]"))).model.state_dict()
    theirs = load_transformer(runs / "teacher").state_dict()
    assert len(own) < len(theirs)
    for name, value in own.items():
        assert torch.equal(value, theirs[name.replace("blocks.0.", "blocks.1.")])
    with pytest.raises(RecipeError, match=r"start_layers \[2\]: .* has no layer 2"):
        TeacherForcingStage(load_recipe(runs / "teacher.yaml", (*wanted, "start_layers=[2]")))
    with pytest.raises(RecipeError, match=r"start_layers \[0, 1\]: model\.num_layers is 1"):
        load_recipe(runs / "teacher.yaml", (*wanted, "start_layers=[0, 1]"))
    with pytest.raises(RecipeError, match="name the start"):
        load_recipe(runs / "teacher.yaml", ("model.num_layers=1", "start_layers=[0]"))


@pytest.mark.parametrize("kind", ["run", "student"])
def test_a_pose_starts_from_one_of_other_frames(kind: str, tmp_path: Path) -> None:
    """What it knows of places is the same for pictures of twice the columns and rows; the ground is the data's."""
    small = toy_transformer(toy_transformer_config(**WITH_ACTORS))
    small.pose.view.heights.normal_()
    small.pose.motion.floors.normal_()
    if kind == "student":
        save_transformer(small, tmp_path)
    else:
        save_pose(small.pose, tmp_path)
    config = small.config
    change = {"height": 2 * config.height, "width": 2 * config.width, "ground_map": 17}
    large = Pose(config.model_copy(update=change))
    _start_from(large, tmp_path)
    with torch.no_grad():
        state = torch.randn(3, 9 + 5 * 2)
        action = torch.ones(3, config.action_dim or 0)
        new, old = (pose.moved(state, action) for pose in (large, small.pose))
        torch.testing.assert_close(*(torch.cat([each[:, :6], each[:, 8:]], 1) for each in (new, old)))
        place, apart = (torch.rand(3, 9) - 0.5).unbind(0), torch.zeros(9)
        assert torch.equal(large.view._features(place, apart), small.pose.view._features(place, apart))
        where = F.avg_pool2d(large.view.where.permute(2, 0, 1), 2).permute(1, 2, 0)
        torch.testing.assert_close(where[1:-1, 1:-1], small.pose.view.where[1:-1, 1:-1], rtol=0, atol=0.1)
    assert not large.view.heights.any() and not large.motion.floors.any()
    with pytest.raises(RecipeError, match="has no pose: name a run or student folder"):
        _start_from(large, tmp_path / "vae")


def test_videos_without_a_ground_are_refused() -> None:
    recipe = load_recipe(ROOT / "training/recipes/world/pose.yaml")
    data = Mock(ground=lambda x, y: None)
    with pytest.raises(RecipeError, match=r"put ground\.npz beside the videos"):
        _stand(Mock(), recipe, data)


def test_as_many_fixtures_as_the_ground_has() -> None:
    recipe = load_recipe(ROOT / "training/recipes/world/pose.yaml", ("model.fixtures=2",))
    with pytest.raises(RecipeError, match=r"model\.fixtures 2: the data's ground has 3"):
        _stand(Pose(recipe.model), recipe, WorldData())


def test_a_start_without_actors_cannot_move_any(runs: Path, tmp_path: Path) -> None:
    """A course that has learned nothing would let them fly through walls, and a teacher does not train it."""
    still = load_transformer(runs / "teacher").config.model_copy(update={"actors": 0, "in_channels": 13})
    save_transformer(CausalVideoTransformer(still), tmp_path)
    with pytest.raises(RecipeError, match=r"has no pose\.course.*name the run of a pose too"):
        TeacherForcingStage(load_recipe(runs / "teacher.yaml", ("pose=null", f"start={tmp_path}")))
    TeacherForcingStage(load_recipe(runs / "teacher.yaml", (f"start={tmp_path}",)))


@pytest.mark.parametrize("tail", [None, 8])
def test_a_teacher_of_one_pass_learns_the_next_frame_from_that_pass(tail: int | None, runs: Path) -> None:
    """Without copies: the loss is the error of the frames that the history's own pass predicts, each from its past."""
    one_pass = (
        "copies=0",
        "model.history_level=1.0",
        "recycle=0",
        "fade=0",
        "simulated=0",
        "context_noise=0",
        f"start={runs}/teacher",
    )
    stage = TeacherForcingStage(load_recipe(runs / "teacher.yaml", (*one_pass, *([f"tail={tail}"] if tail else []))))
    batch = stage.batch(held_out(stage.data, 1, 12), 0)
    loss, _ = stage.loss(batch, stage.model, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    imperfect_history(stage.model, batch, stage.recipe, (1.0,), generator)  # draws, and changes nothing here
    frames = tail or 12
    latents, actions = batch.latents[:, -frames:], batch.actions[:, -frames:]
    noise = torch.randn(latents.shape, generator=generator)
    with torch.no_grad():
        passed = ClipPass(stage.model.config, latents, torch.zeros(1, frames), actions, 0, noise)
        nothing = latents[:, None][:, :0]
        velocity = passed.all_velocities(stage.model, nothing, torch.zeros(1, 0, frames))[:, 0]
    error = (noise - velocity - latents)[:, 2:, : stage.model.config.picture_channels]
    assert loss.item() == pytest.approx(error.square().mean().item(), rel=1e-4)
    loss.backward()
    assert stage.model.blocks[0].ffn[0].weight.grad.abs().max() > 0
    refused = {
        ("copies=0",): "copies 0",
        ("copies=0", "model.history_level=1.0"): "simulated: with copies 0",
        ("tail=3",): "tail 3",
        ("tail=8", "model.sink=1"): "the first frames of a clip are the sink",
        ("tail=8", "clip_length=16", "recycle=4"): "a rollout of 4 frames could end before it; .* below 16",
    }
    for wrong, said in refused.items():
        with pytest.raises(RecipeError, match=said):
            load_recipe(runs / "teacher.yaml", wrong)
    noisy = TeacherForcingStage(load_recipe(runs / "teacher.yaml", (*one_pass, "context_noise=0.1")))
    with pytest.raises(RecipeError, match="context_noise"):
        noisy.loss(batch, noisy.model, torch.Generator())


@pytest.mark.parametrize(
    ("changes", "plans"),
    [
        ((), {1: (1.0,), 2: (1.0, 0.5), 4: (1.0, 0.75, 0.5, 0.25)}),
        (("model.history_level=1.0",), {1: (1.0,), 2: (1.0, 0.5), 4: (1.0, 0.75, 0.5, 0.25)}),
        (("model.history_level=1.0", "copies=0", "simulated=0"), {1: (1.0,)}),
        (("model.history_level=0.4",), {2: (1.0, 0.4)}),
    ],
)
def test_a_teacher_takes_the_steps_that_it_has_seen(
    changes: tuple[str, ...], plans: dict[int, tuple[float, ...]], runs: Path
) -> None:
    assert rollout_plans(load_recipe(runs / "teacher.yaml", changes)) == plans


def test_recipes_are_checked(tmp_path: Path) -> None:
    for recipe in sorted((ROOT / "training" / "recipes").rglob("*.yaml")):
        # Those of the avatar say that they need clips, and are given some.
        assert load_recipe(recipe, (f"data={tmp_path}",) if recipe.parent.name == "avatar" else ()).steps > 0
    path = tmp_path / "r.yaml"
    path.write_text(AUTOENCODER)
    assert load_recipe(path, ("steps=9", "model.latent_channels=8")).steps == 9
    for text, overrides, said in (
        (AUTOENCODER, ("steps",), "not KEY=VALUE"),
        (AUTOENCODER, ("colour=red",), "colour"),
        (AUTOENCODER, ("steps=0",), "steps"),
        (AUTOENCODER, ("steps.x=1",), "steps.x"),
        (TEACHER, ("clip_length=7",), "clip_length 7"),
        (TEACHER, ("pose=null",), "needs a pose"),
        (POSE, ("model.pose_scale=null", "model.actors=0", "model.fixtures=0"), "set model.pose_scale"),
        (POSE, ("clip_length=9",), "a walk of 8 needs two"),
        (STUDENT, ("method.intervals=7", "step_plans={1: [1.0], 2: [1.0, 0.5]}"), "grid of 7"),
        (STUDENT, ("serve=3",), "serve 3 has no step plan"),
        (DUEL, ("method.name=self_adversarial", "step_plans={1: [1.0]}"), "give two step_plans or more"),
        ("stage: magic\n", (), "magic"),
        ("[]", (), "not a mapping"),
    ):
        path.write_text(text.replace("MODEL", MODEL))
        with pytest.raises(RecipeError, match=said):
            load_recipe(path, overrides)
