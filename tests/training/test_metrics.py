"""The judges: figures that mean what they say."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from streamgen.config import AutoencoderConfig
from streamgen.models.attention import CacheAttention
from streamgen.models.autoencoder import Autoencoder
from streamgen.models.motion import Course
from streamgen.models.pose import from_planes, planes
from streamgen.models.rollout import Commit, RollingCache, Rollout
from tests.toy import WITH_ACTORS, WITH_FACE, WITH_POSE, toy_recipe, toy_transformer, toy_transformer_config
from training.clips import (
    ClipPass,
    LatentClips,
    before,
    drifted_history,
    encode,
    error_weight,
    faded_history,
    imperfect_history,
    noisy_history,
    pose_vector,
    recycled_history,
    scarred_history,
    simulated,
)
from training.data import Clip
from training.evaluate import end_of_play
from training.losses import add_noise, denoised, near, texture
from training.metrics import detail, frames_psnr, other_actions, ssim, teacher_forced
from training.package import _worth_seeing
from training.recipe import RecipeError
from training.stages.pose import course_loss, judge_course


def _picture(seed: int, shape: tuple[int, ...] = (3, 32, 40, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_ssim_and_psnr() -> None:
    x = _picture(0)
    assert ssim(x, x) == pytest.approx(1.0)
    assert abs(ssim(x, _picture(1))) < 0.1
    assert frames_psnr(x, x) == float("inf")
    a, b = np.full((1, 16, 16, 3), 100, np.uint8), np.full((1, 16, 16, 3), 110, np.uint8)
    assert frames_psnr(a, b) == pytest.approx(10 * np.log10(255**2 / 100), abs=1e-3)


def test_blur_loses_detail() -> None:
    x = _picture(0).astype(np.float32)
    blurred = (x[:, :-1, :-1] + x[:, 1:, :-1] + x[:, :-1, 1:] + x[:, 1:, 1:]) / 4
    assert detail(blurred.astype(np.uint8)) < 0.5 * detail(x.astype(np.uint8))
    assert detail(np.full((2, 8, 8, 3), 9, np.uint8)) == 0


def test_other_actions_always_differ() -> None:
    actions = (torch.rand(3, 30, 5) < 0.2).float()
    changed = other_actions(actions)
    assert (changed != actions).any(-1).all()
    known = {tuple(a.tolist()) for a in actions.flatten(0, 1)}
    assert all(tuple(a.tolist()) in known for a in changed.flatten(0, 1))


@pytest.mark.parametrize("change", [{}, WITH_POSE, WITH_FACE, {"history_level": 1.0}, {"history_level": 0.5}])
def test_teacher_forcing_is_one_step_of_streaming_from_the_true_past(change: dict[str, Any]) -> None:
    model = toy_transformer(toy_transformer_config(**change))
    channels = model.config.in_channels
    torch.manual_seed(2)
    clips = LatentClips(torch.randn(1, 9, channels, 4, 6), (torch.rand(1, 9, 5) < 0.3).float())
    if model.config.pose_scale:
        clips.latents[:, :, 4:] = planes(torch.randn(1, 9, 9), model.config)
    made = teacher_forced(model, clips, (1.0,), seed=3)
    generator = torch.Generator().manual_seed(3)
    of_history = torch.randn(clips.latents.shape, generator=generator) if model.config.history_level else clips.latents
    noise = torch.randn((1, 1, 9, channels, 4, 6), generator=generator)[0]
    if model.config.history_level == 1:
        noise = of_history
    with torch.no_grad():
        cache, commit = RollingCache.empty(model.config, 1), Commit(model)
        for at in range(8):
            cache.clean(commit, *(t[:, at : at + 1] for t in (clips.latents, clips.actions, of_history)))
        attend = CacheAttention(model.config, model.space, *cache.inputs()[:4])
        previous, driven = cache.previous[:, None], clips.actions[:, 8:]
        face = model.face(*cache.reference, driven) if model.config.face_dim else None
        velocity = model(noise[:, 8:], torch.ones(1, 1), attend, driven, previous, shown_BFCHW=face)
    # On a map of noise a place's rounding decides which hill a ray meets.
    atol = 1e-4 if model.config.pose_scale else 1e-5
    torch.testing.assert_close(made[:, 8:], noise[:, 8:] - velocity, atol=atol, rtol=0)
    other = teacher_forced(model, clips, (1.0,), actions=1 - clips.actions, seed=3)
    assert (other - made).abs().max() > 1e-3


def test_before_gives_the_latent_before_the_block() -> None:
    x = torch.arange(1.0, 7.0).view(1, 6, 1, 1, 1)
    assert before(x, 1).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert before(x, 2).flatten().tolist() == [0, 0, 2, 2, 4, 4]


def test_half_of_the_clips_keep_a_clean_history() -> None:
    x = torch.randn(400, 3, 2, 2, 2)
    history, level = noisy_history(x, 0.3, torch.Generator().manual_seed(0))
    clean = level[:, 0] == 0
    assert 0.4 < clean.float().mean() < 0.6
    assert torch.equal(history[clean], x[clean])
    assert 0 < level.max() <= 0.3
    assert (history[~clean] - x[~clean]).abs().max() > 0.1


def test_drift_is_one_gain_and_one_bias_per_channel_for_half_of_the_clips() -> None:
    x = torch.randn(400, 3, 2, 4, 4)
    out = drifted_history(x, 0.3, torch.Generator().manual_seed(0))
    same = (out == x).flatten(1).all(1)
    assert 0.4 < same.float().mean() < 0.6
    a, b = (t[~same].transpose(1, 2).flatten(2) for t in (x, out))
    gain = b.std(2) / a.std(2)
    bias = b.mean(2) - gain * a.mean(2)
    torch.testing.assert_close(gain[..., None] * a + bias[..., None], b, atol=1e-5, rtol=1e-5)
    assert 0.25 < gain.log().std() < 0.35
    assert 0.25 < bias.std() < 0.35


def test_what_happens_to_a_picture_leaves_its_pose_alone() -> None:
    config = toy_transformer_config(**WITH_POSE)
    recipe = toy_recipe(config, recycle=0, drift=0.3, fade=0.5, context_noise=0.3, pose="nowhere")
    clips = LatentClips(torch.randn(400, 3, 13, 4, 6), torch.zeros(400, 3, 5))
    out, level = imperfect_history(toy_transformer(config), clips, recipe, [(1.0,)], torch.Generator().manual_seed(0))
    assert torch.equal(out[:, :, 4:], clips.latents[:, :, 4:]) and level.any()
    changed = (out[:, :, :4] != clips.latents[:, :, :4]).flatten(1).any(1)
    assert 0.82 < changed.float().mean() < 0.93


def test_what_is_off_by_some_pixels_is_near() -> None:
    spots = torch.zeros(1, 3, 32, 32)
    spots[..., ::8, ::8] = 1.0
    apart = [near(spots.roll(shift, -1), spots).item() for shift in (0, 1, 2, 4)]
    assert apart[0] == 0 and apart == sorted(apart) and apart[1] < 0.8 * apart[2] < apart[3]
    # One pixel in 64 is off by one, twice: the same in squares of two, of a quarter in both, and so on.
    assert apart[3] == pytest.approx(2 / 64 * (1 + 1 + 1 + 0) / 4, rel=1e-6)


def test_texture_is_what_it_is_wherever_its_strands_are() -> None:
    strands = (torch.arange(64) % 4 < 2).float().expand(1, 3, 64, 64)
    flat = torch.full_like(strands, 0.5)
    assert texture(flat).abs().max() < 1e-6 and texture(strands).shape == (1, 1, 8, 8)
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(texture(strands.roll(1, -1))[inner], texture(strands)[inner])
    torch.testing.assert_close(texture(0.5 * strands)[inner], 0.5 * texture(strands)[inner])


def test_an_error_counts_by_what_the_decoder_shows_of_it() -> None:
    vae = AutoencoderConfig(latent_channels=4, encoder_dims=(8, 8), decoder_dims=(8, 8), decoder_blocks=(1, 1))
    torch.manual_seed(0)
    autoencoder = Autoencoder(vae).requires_grad_(False)
    first = autoencoder.decoder.layers[0]
    assert isinstance(first, torch.nn.Conv2d)
    first.weight[:, 1] = 0
    first.weight[:, 2] = 3 * first.weight[:, 3]
    config = toy_transformer_config(height=8, width=8)
    clips = LatentClips(torch.randn(1, 9, 4, 8, 8), torch.zeros(1, 9, 5))
    focus: dict[str, object] = {"focus": {"chin": (0.25, 0.5, 0.75, 1.0)}, "focus_weight": 3.0, "recycle": 0}
    plain = error_weight(autoencoder, config, toy_recipe(config, **focus), clips)
    assert plain.shape == (8, 8) and plain[6, 4] == pytest.approx(3 * float(plain[0, 0]))
    seen = error_weight(autoencoder, config, toy_recipe(config, as_seen=True, **focus), clips)
    assert seen.mean() == pytest.approx(1.0) and seen[1].max() == 0
    assert seen[2].mean() > 4 * seen[3].mean() > 0
    torch.testing.assert_close(seen[3] / seen[3].mean(), plain)


def test_a_share_of_the_histories_is_drawn_towards_the_face() -> None:
    config = toy_transformer_config(**WITH_FACE)
    model, recipe = (
        toy_transformer(config),
        toy_recipe(config, recycle=0, context_noise=0, redrawn=0.25, face="nowhere"),
    )
    clips = LatentClips(torch.randn(400, 3, 4, 4, 6), torch.rand(400, 3, 5))
    out, _ = imperfect_history(model, clips, recipe, [(1.0,)], torch.Generator().manual_seed(0))
    face = model.face(clips.latents[:, 0], clips.actions[:, 0], clips.actions)
    assert torch.equal(out[:, 0], clips.latents[:, 0])
    way = ((out - clips.latents) / (face - clips.latents))[:, 1:].flatten(1).median(1).values
    torch.testing.assert_close(clips.latents.lerp(face, way[:, None, None, None, None])[:, 1:], out[:, 1:])
    assert 0.2 < (way > 0).float().mean() < 0.3
    assert 0.4 < way[way > 0].mean() < 0.6 and way.max() > 0.95
    config = toy_transformer_config()
    recipe = toy_recipe(config, recycle=0, redrawn=0.25)
    with pytest.raises(RecipeError, match="face_dim"):
        imperfect_history(toy_transformer(config), clips, recipe, [(1.0,)], torch.Generator())


def test_a_share_of_the_histories_fades() -> None:
    x = torch.randn(400, 3, 2, 2, 2)
    out = faded_history(x, 0.25, torch.Generator().manual_seed(0))
    left = (out / x).flatten(1)
    torch.testing.assert_close(left, left[:, :1].expand_as(left), atol=1e-4, rtol=0)
    faded = left[:, 0] < 1
    assert 0.2 < faded.float().mean() < 0.3
    assert 0.4 < left[faded, 0].mean() < 0.6
    assert torch.equal(out[~faded], x[~faded])


def test_a_share_of_the_histories_has_a_scar() -> None:
    x = torch.randn(400, 6, 2, 5, 7)
    out = scarred_history(x, 0.5, torch.Generator().manual_seed(0))
    changed = out != x
    scarred = changed.flatten(1).any(1)
    assert 0.45 < scarred.float().mean() < 0.55
    for clip in changed[scarred]:
        at = clip.nonzero()
        box = at.amax(0) - at.amin(0) + 1
        assert len(at) == box.prod() and box[1] == 2, "a box, in all channels, for some frames in a row"
    spread = torch.stack([(out - x)[row][changed[row]].square().mean().sqrt() for row in scarred.nonzero()[:, 0]])
    assert spread.min() < 0.5 and 2 < spread.max() < 4.5


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_second_step_learns_from_what_the_first_one_made(level: float) -> None:
    """The same noisy clip as from the model's own answer, whose errors the velocity's target takes back; and where the
    first step is the history, from the history's.
    """
    config = toy_transformer_config(**WITH_POSE, history_level=level)
    model = toy_transformer(config)
    x0, eps = torch.randn(2, 1, 5, 2, 13, 4, 6).unbind()
    x0, eps = (t.movedim(2, 1) for t in (x0, eps))  # [B, K, F, C, h, w]
    history, actions = torch.randn(1, 5, 13, 4, 6), torch.zeros(1, 5, 5)
    first = torch.randn(history.shape)
    clip = ClipPass(config, history, torch.zeros(1, 5), actions, copies=2, noise=first)
    sigma = torch.tensor([1.0, 0.5, 0.25, 0.19, 0.0]).expand(1, 2, 5)
    recipe, generator = toy_recipe(config, simulated=1.0, recycle=0, pose="nowhere"), torch.Generator().manual_seed(0)
    out = simulated(clip, model, recipe, x0, eps, sigma, generator)
    generator.manual_seed(0)
    torch.rand(1, generator=generator)
    noise = first[:, None].expand_as(x0) if level else torch.randn(x0.shape, generator=generator)
    with torch.no_grad():
        of_all = clip.all_velocities(model, noise, torch.ones_like(sigma))
        answer = noise - (of_all[:, :1] if level else of_all[:, 1:])
    picture = slice(config.picture_channels)
    torch.testing.assert_close(
        add_noise(x0, out, sigma)[:, :, :3, picture], add_noise(answer, eps, sigma)[:, :, :3, picture]
    )
    assert torch.equal(out[:, :, 3:], eps[:, :, 3:]) and torch.equal(out[:, :, :, 4:], eps[:, :, :, 4:])
    torch.testing.assert_close(denoised(add_noise(x0, out, sigma), out - x0, sigma), x0)
    seldom = recipe.model_copy(update={"simulated": 0.3})
    some = [simulated(clip, model, seldom, x0, eps, sigma, generator) for _ in range(40)]
    assert 5 <= sum(not torch.equal(each, eps) for each in some) <= 20


@pytest.mark.parametrize("sink", [0, 1])
def test_recycled_history_is_the_models_own_rollout_clipped(sink: int) -> None:
    config = toy_transformer_config(window=4, sink=sink)
    recipe = toy_recipe(config, clips=2, clip_length=14, recycle=4, recycle_clip=0.5)
    model = toy_transformer(config)
    clips = LatentClips(torch.randn(2, 14, 4, 4, 6), torch.zeros(2, 14, 5))
    out = recycled_history(model, clips, recipe, (1.0, 0.5), torch.Generator().manual_seed(1))
    error = (out - clips.latents).abs().amax((0, 2, 3, 4))
    touched = error.nonzero()[:, 0].tolist()
    assert touched == list(range(touched[0], touched[0] + 4))
    assert touched[0] >= config.window
    assert error.max() <= 0.5 + 1e-6
    short = LatentClips(clips.latents[:, :8], clips.actions[:, :8])
    with pytest.raises(RecipeError, match="clip_length 8: recycling 4 frames needs 9"):
        recycled_history(model, short, recipe, (1.0, 0.5), torch.Generator())


def test_errors_are_recycled_of_all_step_plans() -> None:
    config = toy_transformer_config(window=4)
    recipe = toy_recipe(config, clips=1, clip_length=10, recycle=4, recycle_share=1.0, context_noise=0.0)
    model, clips = toy_transformer(config), LatentClips(torch.randn(1, 10, 4, 4, 6), torch.zeros(1, 10, 5))
    plans, taken = [(1.0,), (1.0, 0.5), (1.0, 0.75, 0.5, 0.25)], []
    for seed in range(12):
        out, _ = imperfect_history(model, clips, recipe, plans, torch.Generator().manual_seed(seed))
        made = []
        for plan in plans:
            generator = torch.Generator().manual_seed(seed)
            torch.rand(1, generator=generator), torch.randint(3, (1,), generator=generator)
            made.append(torch.equal(out, recycled_history(model, clips, recipe, plan, generator)))
        assert made.count(True) == 1
        taken.append(made.index(True))
    assert set(taken) == {0, 1, 2}


def test_a_recycled_history_keeps_true_poses_and_the_passes_own_keys() -> None:
    """A picture from another place than its target's would be taught to be blurred; where a pass leaves the history in
    the cache, there is no second one.
    """
    config = toy_transformer_config(**WITH_POSE, window=4, history_level=1.0)
    recipe = toy_recipe(config, clips=1, clip_length=14, recycle=4, recycle_clip=100.0, pose="pose")
    model, clips = toy_transformer(config), LatentClips(torch.randn(1, 14, 13, 4, 6), torch.zeros(1, 14, 5))
    out = recycled_history(model, clips, recipe, (1.0,), torch.Generator().manual_seed(1))
    assert torch.equal(out[:, :, 4:], clips.latents[:, :, 4:])
    changed = (out != clips.latents).any(-1).any(-1).any(-1)[0].nonzero()[:, 0]
    start = int(changed[0])
    assert changed.tolist() == list(range(start, start + 4))
    # The same draws, frame by frame, with every frame committed by a pass of its own over its noise.
    generator = torch.Generator().manual_seed(1)
    assert int(torch.randint(4, 10, (1,), generator=generator)) == start
    history = torch.randn(clips.latents.shape, generator=generator)
    commit, cache = Commit(model), RollingCache.empty(config, 1)
    cache.frame = cache.first = start - 4
    cache.previous = clips.latents[:, start - 5] if start > 4 else cache.previous
    for frame in range(start - 4, start):
        cache.clean(commit, *(t[:, frame : frame + 1] for t in (clips.latents, clips.actions, history)))
    for frame in range(start, start + 4):
        noise, actions = torch.randn((1, 1, 1, 13, 4, 6), generator=generator), clips.actions[:, frame : frame + 1]
        made = Rollout(model, None, (1.0,)).denoise(noise, cache.previous, actions, *cache.inputs())
        made = torch.cat([made[:, :, :4], clips.latents[:, frame : frame + 1, 4:]], 2)
        torch.testing.assert_close(out[:, frame : frame + 1], made, atol=1e-5, rtol=1e-5)
        cache.clean(commit, made, actions, noise[-1])


def test_poses_go_with_the_latents_where_the_model_has_them() -> None:
    vae = Autoencoder(AutoencoderConfig(latent_channels=4, encoder_dims=(8, 8), decoder_dims=(8, 8)))
    poses = np.array([[256, -512, 0], [0, 0, 90], [51.2, 0, 210]], np.float32)
    eyes, beats = np.array([[64, 64, 128], [0, 0.25, 0.5]], np.float32)
    clip = Clip(_picture(0, (3, 32, 48, 3)), np.zeros((3, 5), np.uint8), poses, eyes=eyes, beats=beats)
    plain, config = encode(vae, [clip], toy_transformer_config()), toy_transformer_config(**WITH_POSE)
    latents = encode(vae, [clip, clip], config).latents
    assert latents.shape == (2, 3, 13, 4, 6)
    assert torch.equal(latents[:1, :, :4], plain.latents)
    want = torch.tensor([[0.5, -1, 1, 0], [0, 0, 0, 1], [0.1, 0, -(3**0.5) / 2, -0.5]])
    torch.testing.assert_close(pose_vector(torch.from_numpy(poses), 512), want, atol=1e-6, rtol=0)
    more = [[0, 0, 0.125, 0, 0], [-0.5, 1, 0.125, 0, 0.25], [0.1, 0, 0.25, 0.125, 0.5]]
    want = torch.cat([want, torch.tensor(more)], 1)
    torch.testing.assert_close(latents[1, :, 4:], want[..., None, None].expand(3, 9, 4, 6), atol=1e-6, rtol=0)
    beatless = encode(vae, [replace(clip, beats=None)], config).latents
    assert not beatless[:, :, 12].any() and torch.equal(beatless[:, :, :12], latents[:1, :, :12])
    with pytest.raises(RecipeError, match="do not say where"):
        encode(vae, [replace(clip, poses=poses * np.nan)], config)
    with pytest.raises(RecipeError, match="do not say how high the camera is"):
        encode(vae, [clip, replace(clip, eyes=None)], config)


def test_actors_go_with_the_latents_where_the_model_has_them() -> None:
    vae = Autoencoder(AutoencoderConfig(latent_channels=4, encoder_dims=(8, 8), decoder_dims=(8, 8)))
    actors = np.array([[[256, 0, 0], [0, 512, 0]], [[128, 0, 0.25], [0, 512, 0]]], np.float32)
    poses = np.array([[0, 0, 90], [0, 256, 90]], np.float32)
    frames = np.zeros((2, 32, 48, 3), np.uint8)
    clip = Clip(frames, np.zeros((2, 5), np.uint8), poses, actors=actors, eyes=np.zeros(2, np.float32))
    config = toy_transformer_config(**WITH_ACTORS)
    states = from_planes(encode(vae, [clip], config).latents[:, :, 4:], config)
    want = [
        [0, 0, 0, 1, 0, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0, 1, 0, 0, 0],
        [0, 0.5, 0, 1, 0, 0.5, 0, 0, 0, 0.25, 0, -0.25, 0, 0.25, 0, 1, 0, 0, 0],
    ]
    torch.testing.assert_close(states[0], torch.tensor(want), atol=1e-6, rtol=0)
    for wrong in (None, actors[:, :1]):
        with pytest.raises(RecipeError, match=r"model.actors 2: the clips tell of another number"):
            encode(vae, [replace(clip, actors=wrong)], config)


def test_a_course_is_judged_by_where_actors_went_and_what_was_hit() -> None:
    torch.manual_seed(0)
    course = Course(toy_transformer_config(**WITH_ACTORS)).requires_grad_(False)
    for parameter in course.parameters():
        parameter += torch.randn_like(parameter) * 0.3
    course.rate.fill_(0.1)
    course.out.bias[2] = course.trigger.bias[0] = 4.0  # hits now and then
    poses, actions = torch.randn(6, 1, 9).expand(6, 30, 9), (torch.rand(6, 30, 5) < 0.5).float()
    actors = [torch.cat([torch.randn(6, 2, 4) * 0.5, torch.zeros(6, 2, 1)], -1)]
    for frame in range(1, 30):
        actors.append(course(actors[-1], poses[:, frame], actions[:, frame]))
    went = torch.stack(actors, 1)
    assert judge_course(course, went, poses, actions) == pytest.approx(
        {"course": 0, "hits": 1, "hits_right": 1}, abs=1e-5
    )
    right = course_loss(course, went, poses, actions)
    course.pace *= 0.5
    course.out.bias[2] = -99.0
    judged = judge_course(course, went, poses, actions)
    assert judged["course"] > 0.2 and judged["hits"] == 0
    assert course_loss(course, went, poses, actions) > right + 0.1


def test_the_end_of_play_tells_what_has_collapsed() -> None:
    """Of three minutes, the last is judged: of an episode as sharp and lively as the game, and of one that fades, one
    that stands still, one that has turned into noise.
    """
    game = [2.0] * 90
    fades, bursts = [2.0] * 59 + [0.0] * 31, [2.0] * 59 + [9.0] * 31
    episodes = [(game, game), (fades, game), (game, fades), (bursts, game)]
    ends = end_of_play([{"detail": d, "motion": m, "real_detail": game, "real_motion": game} for d, m in episodes])
    assert ends["detail"] == [1.0, 0.0, 1.0, 4.5] and ends["motion"] == [1.0, 1.0, 0.0, 1.0]
    assert (ends["seconds"], ends["collapsed"]) == (60.0, 3)


class _Places:
    """A recorder of clips that end, every third of them, before something to see, and begin so in the others."""

    keys, fps = ("KeyW",), 10.0

    def fingerprint(self) -> str:
        return ""

    def recorder(self, seed: int) -> AbstractContextManager[Any]:
        return nullcontext(self)

    def record(self, num_frames: int, episode: int) -> Clip:
        frames = np.full((num_frames, 8, 8, 3), episode, np.uint8)
        frames[-1 if episode % 3 == 0 else 0, ::2] = 255
        return Clip(frames, np.zeros((num_frames, 1), np.int8), np.full((num_frames, 3), np.nan, np.float32))


def test_streams_begin_where_there_is_something_to_see() -> None:
    starts = _worth_seeing(_Places())
    assert sorted(int(clip.frames[1, 0, 0, 0]) for clip in starts) == list(range(0, 36, 3))
