"""The transformer: streaming with the cache is the windowed pass over the whole clip, whatever the cache policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from streamgen.config import VIEW_MAP, VIEW_RAYS, AutoencoderConfig, TransformerConfig
from streamgen.models.attention import CacheAttention, ClipAttention
from streamgen.models.autoencoder import Autoencoder
from streamgen.models.pose import Course, Motion, Pose, View, _looked_up, _running_max, from_planes, planes, split
from streamgen.models.rollout import Commit, RollingCache, Rollout, recache
from streamgen.models.transformer import CausalVideoTransformer, sinusoid
from streamgen.state import StreamState
from tests.toy import WITH_ACTORS, WITH_POSE, toy_recipe, toy_transformer, toy_transformer_config
from training.clips import ClipPass, LatentClips, recycled_history

POLICIES = [
    {"sink": 0, "block_size": 1},
    {"sink": 2, "block_size": 1},
    {"sink": 2, "block_size": 2},
    {"sink": 4, "block_size": 2},
]
FRAMES = 20


def _clip(config: TransformerConfig, frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    shape = (1, frames, config.in_channels, config.height, config.width)
    # Representable in fp16, which is what a stream's state keeps.
    return torch.randn(shape).half().float(), (torch.rand(1, frames, 5) < 0.4).float()


def _before(x: Tensor, size: int) -> Tensor:
    frames = [x[:, at // size * size - 1] if at >= size else torch.zeros_like(x[:, 0]) for at in range(x.shape[1])]
    return torch.stack(frames, 1)


def _stream(model: CausalVideoTransformer, x: Tensor, actions: Tensor, start: int = 0) -> tuple[Tensor, RollingCache]:
    """Velocities at zero noise, block by block through the cache, and the cache afterwards."""
    config, size = model.config, model.config.block_size
    cache, commit, out = RollingCache.empty(config, 1, start), Commit(model), []
    for at in range(0, x.shape[1], size):
        block, act = x[:, at : at + size], actions[:, at : at + size]
        attend = CacheAttention(config, model.space, *cache.inputs())
        out.append(model(block, torch.zeros(1, size), attend, act, cache.previous[:, None].expand_as(block)))
        cache.clean(commit, block, act)
    return torch.cat(out, 1), cache


@pytest.mark.parametrize("policy", POLICIES)
def test_streaming_equals_the_windowed_pass(policy: dict[str, int]) -> None:
    model = toy_transformer(toy_transformer_config(**policy))
    x, actions = _clip(model.config)
    streamed, _ = _stream(model, x, actions)
    attend = ClipAttention(model.config, model.space, FRAMES)
    whole = model(x, torch.zeros(1, FRAMES), attend, actions, _before(x, model.config.block_size))
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=0)
    assert whole.std() > 0.1


@pytest.mark.parametrize("base", [1024, 10**7])
def test_far_along_a_stream_nothing_changes(base: int) -> None:
    model = toy_transformer(toy_transformer_config())
    x, actions = _clip(model.config)
    near, _ = _stream(model, x, actions)
    far, _ = _stream(model, x, actions, base)
    torch.testing.assert_close(far, near, atol=1e-5, rtol=0)


@pytest.mark.parametrize("policy", POLICIES)
def test_recache_from_the_kept_history_is_the_live_cache(policy: dict[str, int]) -> None:
    model = toy_transformer(toy_transformer_config(**policy))
    config = model.config
    x, actions = _clip(config, 24)
    _, live = _stream(model, x, actions)
    sink = config.sink
    latents, acts = x[0].half().numpy(), actions[0].numpy()
    state = StreamState("toy", "", 0, 24, latents, acts, latents[:sink], acts[:sink])

    def rebuilt(keep: int) -> RollingCache:
        with torch.no_grad():
            return recache(Commit(model), replace(state, latents=latents[-keep:], actions=acts[-keep:]))

    exact = rebuilt(config.history_frames)
    torch.testing.assert_close(exact.k, live.k, atol=1e-5, rtol=0)
    torch.testing.assert_close(exact.v, live.v, atol=1e-5, rtol=0)
    torch.testing.assert_close(exact.previous, live.previous, atol=0, rtol=0)
    assert exact.frame == live.frame
    # One block less, and the deepest keys already miss something: history_frames is no larger than it must be.
    assert (rebuilt(config.history_frames - config.block_size).k - live.k).abs().max() > 1e-4


def test_recache_before_anything_left_the_window_is_exact() -> None:
    model = toy_transformer(toy_transformer_config())
    x, actions = _clip(model.config, 4)
    _, live = _stream(model, x, actions)
    latents, acts = x[0].half().numpy(), actions[0].numpy()
    with torch.no_grad():
        rebuilt = recache(Commit(model), StreamState("toy", "", 0, 4, latents, acts, latents[:0], acts[:0]))
    torch.testing.assert_close(rebuilt.k, live.k, atol=1e-6, rtol=0)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_future_changes_nothing(policy: dict[str, int]) -> None:
    model = toy_transformer(toy_transformer_config(**policy))
    size = model.config.block_size
    x, actions = _clip(model.config)
    attend = ClipAttention(model.config, model.space, FRAMES)
    levels = torch.zeros(1, FRAMES)
    base = model(x, levels, attend, actions, _before(x, size))
    changed_x, changed_a = x.clone(), actions.clone()
    changed_x[:, 10:] += 1
    changed_a[:, 10:] = 1 - changed_a[:, 10:]
    changed = model(changed_x, levels, attend, changed_a, _before(changed_x, size))
    assert torch.equal(changed[:, :10], base[:, :10])
    assert (changed[:, 10] - base[:, 10]).abs().max() > 1e-3


def test_noisy_copies_see_the_clean_past_and_themselves_only() -> None:
    model = toy_transformer(toy_transformer_config(sink=1))
    config = model.config
    x, actions = _clip(config, 12)
    noisy = torch.randn(1, 2, *x.shape[1:])

    def run(copies: Tensor) -> Tensor:
        attend = ClipAttention(config, model.space, 12, 3)
        previous = _before(x, 1).repeat(1, 3, 1, 1, 1)
        levels = torch.cat([torch.zeros(1, 12), torch.full((1, 24), 0.7)], 1)
        out = model(torch.cat([x, copies.flatten(1, 2)], 1), levels, attend, actions.repeat(1, 3, 1), previous)
        return out[:, 12:].unflatten(1, (2, 12))

    base = run(noisy)
    changed = noisy.clone()
    changed[:, 0, 5] += 1
    moved = (run(changed) - base).abs().amax((0, 3, 4, 5))
    assert moved[0, 5] > 1e-3
    moved[0, 5] = 0
    assert moved.max() == 0
    # A noisy frame is what streaming computes for it after the clean past.
    _, cache = _stream(model, x[:, :7], actions[:, :7])
    attend = CacheAttention(config, model.space, *cache.inputs())
    streamed = model(noisy[:, 0, 7:8], torch.full((1, 1), 0.7), attend, actions[:, 7:8], x[:, 6:7])
    torch.testing.assert_close(streamed, base[:, 0, 7:8], atol=1e-5, rtol=0)


def test_no_gradient_reaches_earlier_frames_of_a_rollout() -> None:
    """What the stages generate themselves for the history carries no gradient, whatever the model's parameters want."""
    model = toy_transformer(toy_transformer_config(window=4)).requires_grad_()
    recipe = toy_recipe(model.config, recycle=3)
    x, actions = _clip(model.config, 12)
    x.requires_grad_()
    history = recycled_history(model, LatentClips(x, actions), recipe, (1.0, 0.5), torch.Generator().manual_seed(0))
    assert not history.requires_grad
    # The velocity of a noisy frame does depend on that history, so a gradient would have had a way.
    noisy = torch.randn(1, 1, *x.shape[1:])
    level = torch.zeros(1, 12)
    shown = ClipPass(model.config, history, level, actions).velocity(model, noisy, torch.ones(1, 1, 12))
    other = ClipPass(model.config, x, level, actions).velocity(model, noisy, torch.ones(1, 1, 12))
    assert (shown - other).abs().max() > 1e-4
    shown.sum().backward()
    assert x.grad is None
    assert model.blocks[0].self_attn.k.weight.grad is not None


def test_parameter_names_and_shapes_are_those_of_public_checkpoints() -> None:
    layout = {
        "in_channels": 16,
        "height": 60,
        "width": 104,
        "dim": 1536,
        "ffn_dim": 8960,
        "num_heads": 12,
        "num_layers": 30,
        "text_dim": 4096,
        "window": 21,
    }
    with torch.device("meta"):
        model = CausalVideoTransformer(TransformerConfig.model_validate(layout))
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert model.config.tokens == 1560
    assert model.config.rope_pairs == (22, 21, 21)
    assert sum(value.numel() for value in model.parameters()) == pytest.approx(1.42e9, rel=0.01)
    expected = {
        "patch_embedding.weight": (1536, 16, 1, 2, 2),
        "text_embedding.2.weight": (1536, 1536),
        "time_embedding.0.weight": (1536, 256),
        "time_projection.1.weight": (6 * 1536, 1536),
        "blocks.29.modulation": (1, 6, 1536),
        "blocks.0.self_attn.norm_q.weight": (1536,),
        "blocks.0.cross_attn.o.bias": (1536,),
        "blocks.0.norm3.weight": (1536,),
        "blocks.0.ffn.2.weight": (1536, 8960),
        "head.modulation": (1, 2, 1536),
        "head.head.weight": (64, 1536),
    }
    assert {name: shapes.get(name) for name in expected} == expected


def test_patches_are_put_back_where_they_came_from() -> None:
    model = toy_transformer(toy_transformer_config(concat_previous=False))
    p, c = model.config.patch, model.config.in_channels
    x = torch.randn(1, 2, c, 4, 6)
    # The channel is innermost in the output, outermost in the embedding's input.
    order = torch.arange(c * p * p).view(c, p * p).T.flatten()
    with torch.no_grad():
        model.patch_embedding.weight.copy_(torch.eye(48)[:, : c * p * p].view(48, c, 1, p, p))
        model.patch_embedding.bias.zero_()
    tokens = model._patchify(x)[..., : c * p * p]
    assert torch.equal(model._unpatchify(tokens[..., order]), x)


@pytest.mark.parametrize("change", [{"residual": True}, WITH_POSE])
def test_a_residual_model_with_a_silent_head_stands_still_or_shows_the_view(change: dict[str, Any]) -> None:
    model = toy_transformer(toy_transformer_config(**change))
    for last in (model.head.head, model.detail.conv_out):
        last.weight.zero_()
        last.bias.zero_()
    rollout = Rollout(model, None, (1.0, 0.5))
    cache = RollingCache.empty(model.config, 1)
    cache.clean(Commit(model), *(t[:, :1] for t in _clip(model.config)))
    noise = torch.randn(2, 1, 1, *cache.previous.shape[1:])
    made = rollout.denoise(noise, cache.previous, torch.zeros(1, 1, 5), *cache.inputs())[:, 0]
    known = cache.previous
    if model.config.pose_scale:
        pose = model.pose.motion(known[:, 4:].mean((-2, -1)), torch.zeros(1, 5))
        # An eighth of the frame before stays, while nothing says more or less.
        made, known = made[:, :4], torch.lerp(model.pose.view(pose), known[:, :4], torch.tensor(-2.0).sigmoid())
    torch.testing.assert_close(made, known, atol=1e-5, rtol=0)


def test_what_the_head_says_stays_is_the_frame_before() -> None:
    model = toy_transformer(toy_transformer_config(**WITH_POSE))
    for last in (model.head.head, model.detail.conv_out):
        last.weight.zero_()
        last.bias.zero_()
    # Innermost is the channel; of a token's four pixels the last one stays.
    model.head.head.bias.view(4, 5)[:, 4] = torch.tensor([-100.0, -100.0, -100.0, 100.0])
    cache = RollingCache.empty(model.config, 1)
    cache.clean(Commit(model), *(t[:, :1] for t in _clip(model.config)))
    before, noise = cache.previous[:, :4], torch.randn(1, 1, 1, *cache.previous.shape[1:])
    made = Rollout(model, None, (1.0,)).denoise(noise, cache.previous, torch.zeros(1, 1, 5), *cache.inputs())[:, 0]
    view = model.pose.view(model.pose.motion(cache.previous[:, 4:].mean((-2, -1)), torch.zeros(1, 5)))
    torch.testing.assert_close(made[:, :4, 1::2, 1::2], before[:, :, 1::2, 1::2], atol=1e-5, rtol=0)
    torch.testing.assert_close(made[:, :4, ::2], view[:, :, ::2], atol=1e-5, rtol=0)


def test_a_new_detail_head_says_nothing_and_one_with_weights_sees_four_pixels_far() -> None:
    plain = toy_transformer(toy_transformer_config(detail_dim=0, height=16, width=16))
    model = CausalVideoTransformer(toy_transformer_config(height=16, width=16)).requires_grad_(False)
    assert model.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
    x, actions = _clip(model.config, 1)
    call = torch.full((1, 1), 0.7), ClipAttention(model.config, model.space, 1, 1), actions
    assert torch.equal(model(x, *call, x), plain(x, *call, x))
    # What the convolutions add to the same tokens: four of 3x3 reach four pixels in each direction, not further.
    torch.nn.init.normal_(model.detail.conv_out.weight)
    y = x.clone()
    y[:, :, :, 8, 8] += 1
    steering = torch.randn(1, 1, 4 * model.config.detail_dim, 16, 16)
    a, b = (model.detail(torch.cat([t, t], 2), steering) for t in (x, y))
    changed = (a != b).any(2)[0, 0].nonzero()
    assert changed.amin(0).tolist() == [4, 4] and changed.amax(0).tolist() == [12, 12]


def test_residual_needs_the_previous_latent_and_a_pose_needs_both() -> None:
    with pytest.raises(ValueError, match="concat_previous"):
        toy_transformer_config(residual=True, concat_previous=False)
    for change in ({"residual": False}, {"action_dim": None}, {"in_channels": 4}):
        with pytest.raises(ValueError, match="pose_scale needs"):
            toy_transformer_config(**WITH_POSE | change)


@pytest.mark.parametrize("change", [WITH_POSE, WITH_ACTORS])
def test_a_state_is_in_the_latent_and_counts(change: dict[str, Any]) -> None:
    model = toy_transformer(toy_transformer_config(**change))
    x, actions = _clip(model.config, 8)
    states = from_planes(x[:, :, 4:], model.config)
    x[:, :, 4:] = planes(states, model.config)
    rollout, cache = Rollout(model, None, (1.0, 0.5)), RollingCache.empty(model.config, 1)
    for at in range(7):
        cache.clean(Commit(model), x[:, at : at + 1], actions[:, at : at + 1])
    call = torch.randn(2, 1, 1, *x.shape[2:]), cache.previous, actions[:, 7:]
    made = rollout.denoise(*call, *cache.inputs())[0, 0]
    want = planes(model.pose.moved(states[0, 6], actions[0, 7]), model.config)
    torch.testing.assert_close(made[4:], want, atol=1e-5, rtol=0)
    # The keys and values of the past hold the old pose still: what changes comes from the view.
    elsewhere = torch.cat([cache.previous[:, :4], cache.previous[:, 4:] + 1], 1)
    moved = rollout.denoise(call[0], elsewhere, call[2], *cache.inputs())[0, 0]
    assert (moved[:4] - made[:4]).abs().max() > 1e-3


def test_a_pose_moves_in_the_viewers_own_frame() -> None:
    motion = Motion(toy_transformer_config(**WITH_POSE)).requires_grad_(False)
    # A tenth of the scale ahead and a twentieth to the left, a turn by 30 degrees; half of the speed is kept.
    motion.by_keys.weight[:, 1] = torch.tensor([3.2, 1.6, torch.pi / 6])
    motion.by_speed.weight.copy_(torch.eye(2) / 2)
    half, root = 0.5, 3**0.5 / 2
    east, north = torch.tensor([0.5, -0.5, 1, 0, 0, 0.2]), torch.tensor([0, 0, 0, 3.0, 0, 0.2])
    for start, heading in ((east, (root, half)), (north, (-half, root))):
        c, s = heading
        move = torch.tensor([0.1 * c - 0.05 * s, 0.1 * s + 0.05 * c + 0.1])
        want = torch.cat([start[:2] + move, torch.tensor(heading), move])
        torch.testing.assert_close(motion(start, torch.ones(5)), want)
        still = motion(start, torch.tensor([1.0, 0, 1, 1, 1]))
        torch.testing.assert_close(still[2:], torch.cat([start[2:4] / start[2:4].norm(), start[4:] / 2]))


def test_walls_take_from_a_move_and_never_turn() -> None:
    motion = Motion(toy_transformer_config(**WITH_POSE)).requires_grad_(False)
    motion.by_speed.weight.copy_(torch.eye(2))
    pose, action = torch.tensor([0.5, -0.5, 1, 0, 0.03, 0.04]), torch.zeros(5)
    motion.walls.bias.copy_(torch.tensor([-0.6, -0.4]).atanh())
    after = motion(pose, action)
    torch.testing.assert_close(after - pose, torch.tensor([0, 0.02, 0, 0, -0.03, -0.02]), atol=1e-6, rtol=0)


def test_who_presses_nothing_comes_to_rest_and_stays() -> None:
    torch.manual_seed(0)
    motion = Motion(toy_transformer_config(**WITH_POSE)).requires_grad_(False)
    for parameter in motion.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.3)
    # Walls take something of it, and little.
    motion.walls.weight *= 0.35 / motion.walls.weight.abs().sum()
    motion.by_speed.weight.copy_(torch.eye(2) * 0.4)
    pose = torch.randn(50, 6)
    pose[:, 2:4] /= pose[:, 2:4].norm(dim=1, keepdim=True)
    for _ in range(600):
        pose = motion(pose, torch.zeros(50, 5))
    rest = torch.cat([pose[:, :4], torch.zeros(50, 2)], 1)
    assert pose[:, 4:].abs().max() < 1e-9
    torch.testing.assert_close(motion(rest, torch.zeros(50, 5)), rest)


def test_every_frame_of_a_block_is_moved_from_the_one_before() -> None:
    config = toy_transformer_config(**WITH_POSE, block_size=2)
    pose = Pose(config).requires_grad_(False)
    start, actions = torch.randn(1, 4, 6), torch.randn(1, 4, 5)
    start[:, 1], start[:, 3] = start[:, 0], start[:, 2]
    first = [pose.motion(start[:, at], actions[:, at]) for at in (0, 2)]
    second = [pose.motion(first[at], actions[:, 2 * at + 1]) for at in (0, 1)]
    want = torch.stack([first[0], second[0], first[1], second[1]], 1)
    torch.testing.assert_close(pose(start, actions), want)
    # Before a stream's first frame there is no pose, and nothing breaks.
    assert pose(torch.zeros(1, 2, 6), actions[:, :2]).isfinite().all()


def test_a_latent_tells_of_the_viewer_everywhere_and_of_each_actor_in_its_stripe() -> None:
    config = toy_transformer_config(**WITH_ACTORS)
    state = torch.randn(3, 2, 16)
    state[0, :, 10::5] = 0
    filled = planes(state, config)
    assert filled.shape == (3, 2, 11, 4, 6)
    assert torch.equal(filled[..., :6, :, :], state[..., :6, None, None].expand(3, 2, 6, 4, 6))
    first, second = filled[..., 6:, :, :].split(3, -1)
    assert torch.equal(first, state[..., 6:11, None, None].expand(first.shape))
    assert torch.equal(second, state[..., 11:, None, None].expand(second.shape))
    told = from_planes(filled + 2.0**-24, config)
    clocks = state.new_zeros(16, dtype=torch.bool)
    clocks[10::5] = True
    torch.testing.assert_close(told[..., ~clocks], state[..., ~clocks])
    # A clock has begun, or is 0: what a step's rounding leaves begins none.
    assert torch.equal(told[..., clocks] > 0, state[..., clocks] > 0)
    torch.testing.assert_close(told[..., clocks], state[..., clocks].clamp_min(0))
    for change in ({"actors": 4}, {"pose_scale": None}):
        with pytest.raises(ValueError, match="actors"):
            toy_transformer_config(**WITH_ACTORS | change)


def test_actors_go_on_as_they_went_and_a_hit_runs_its_course() -> None:
    course = Course(toy_transformer_config(**WITH_ACTORS)).requires_grad_(False)
    course.rate.fill_(0.3)
    viewer, keys = torch.tensor([0.3, 0.1, 1, 0, 0, 0]), torch.zeros(5)
    actors = torch.tensor([[0.5, -0.5, 0.03, 0.04, 0], [0.2, 0.1, -0.1, 0, 0]])
    pace = 1 / 32
    ahead = course(course(actors, viewer, keys), viewer, keys)
    step = pace * torch.tensor([[0.6, 0.8], [-1, 0]])
    torch.testing.assert_close(ahead, torch.cat([actors[:, :2] + 2 * step, step, torch.zeros(2, 1)], 1))
    # Who is right before the viewer is hit when the last key is held: the aim is the eighth that the network is told.
    course.embed.weight[0], course.embed.bias[0] = 0, 0
    course.embed.weight[0, 7], course.embed.weight[0, 14] = 10, 10
    course.out.weight[2, 0] = 0.3
    course.trigger.bias[0] = 1
    for layer in course.layers:
        layer.weight.zero_()
        layer.bias.zero_()
    actors = torch.tensor([[0.9, 0.1, 0.03, 0.04, 0], [-0.9, 0.1, -0.1, 0, 0]])
    clocks = []
    for fire in (0, 1, 0, 1, 0, 0):
        keys[4] = fire
        actors = course(actors, viewer, keys)
        clocks.append(actors[:, 4])
    want = torch.tensor([[0, 0.3, 0.6, 0.9, 0, 0], [0] * 6]).T
    torch.testing.assert_close(torch.stack(clocks), want)
    # Nobody is hit by keys that never hit, whatever else is likely.
    course.out.weight.zero_()
    course.out.bias[2] = 9
    course.trigger.weight[0, 4], course.trigger.bias[0] = 4, -2
    for fire, begun in ((0, False), (1, True)):
        keys[4] = fire
        assert ((course(actors, viewer, keys)[:, 4] > 0) == begun).all()


def test_actors_never_leave_the_ground_where_they_were_seen() -> None:
    torch.manual_seed(0)
    course = Course(toy_transformer_config(**WITH_ACTORS)).requires_grad_(False)
    places = torch.cartesian_prod(torch.linspace(-0.6, 0.6, 200), torch.linspace(-0.2, 0.4, 200))
    hole = (places - torch.tensor([0.3, 0.1])).norm(dim=1) < 0.12
    course.learn_ground(places[~hole])
    viewer, keys = torch.tensor([0.0, 0, 1, 0, 0, 0]), torch.zeros(5)
    # Against a wall in the east: the way north goes on, the way east turns.
    back = course(torch.tensor([[0.595, 0.0, 0.03, 0.02, 0]]), viewer, keys)[0]
    assert back[0] < 0.595 and back[1] > 0 and back[2] < 0 < back[3]
    # Along a wall, and far from one: straight on.
    on = course(torch.tensor([[0.0, 0.39, 0.03, 0, 0], [-0.3, 0.0, 0.0, 0.03, 0]]), viewer, keys)
    assert torch.equal(on[:, 2:4] > 0, torch.tensor([[True, False], [False, True]]))
    # Whatever the network says, whose weights are noise here, in the sixteen bits that a stream's state has.
    for parameter in course.layers.parameters():
        parameter += torch.randn_like(parameter) * 0.05
    course.out.weight.normal_(std=0.05)
    starts = places[~hole][torch.randperm(int((~hole).sum()))[:300]]
    actors = torch.cat([starts, torch.randn(300, 2), torch.zeros(300, 1)], 1)
    went = torch.zeros(300)
    for _ in range(600):
        before, actors = actors, course(actors, viewer, keys).half().float()
        went += (actors - before)[:, :2].norm(dim=1)
        x, y = actors[:, 0], actors[:, 1]
        margin = 3 / VIEW_MAP
        assert x.abs().max() < 0.6 + margin and y.min() > -0.2 - margin and y.max() < 0.4 + margin
        assert (actors[:, :2] - torch.tensor([0.3, 0.1])).norm(dim=1).min() > 0.12 - margin
    torch.testing.assert_close(went, torch.full((300,), 600 / 32), rtol=0.02, atol=0)  # and nobody stands


def test_an_actor_is_seen_where_it_is_unless_something_is_nearer() -> None:
    view = View(toy_transformer_config(**WITH_ACTORS)).requires_grad_(False)
    map_x = torch.linspace(-1.5, 1.5, VIEW_MAP).repeat(VIEW_MAP)
    view.heights[:, 0] = torch.where(map_x > 0.8, 0.3, 0.0)
    view.shares.fill_(10.0)

    def changed(x: float, y: float, clock: float = 0.0) -> Tensor:
        """Rays [rows, columns] of a viewer in the middle, looking east, that meet an actor at (x, y)."""
        pose = torch.tensor([[0.0, 0, 1, 0, 0, 0]])
        both = [
            view._seen(pose, torch.tensor([[[*place, 0, 0, clock], [-0.5, 0, 0, 0, 0]]]), 1e4)[0]
            for place in ((x, y), (-1.0, 0.0))
        ]
        rays = (both[0] - both[1]).abs().unflatten(-1, (VIEW_RAYS, VIEW_RAYS, -1)).amax(-1)
        return rays.transpose(1, 2).flatten(0, 1).flatten(1, 2) > 1e-3

    ahead = changed(0.5, 0.0)
    # At eye height and in the middle, a quarter of the distance up, and down to where the ground is nearer.
    assert ahead[2:5, 5:7].all() and ahead.sum() <= 12 and ahead.any(1).nonzero()[:, 0].tolist() == [2, 3, 4]
    left = changed(0.5, 0.25)  # half of the distance to the left is three columns from the middle
    assert left[:, 2:4].any() and not left[:, 5:].any()
    assert not changed(1.0, 0.0).any(), "behind the wall"
    assert not changed(-0.5, 0.0).any(), "behind the viewer"
    view.shares[12:] = -10.0
    assert changed(0.5, 0.0).any() and not changed(0.5, 0.0, clock=0.01).any(), "one that is hit looks otherwise"


def test_a_ray_ends_where_the_ground_rises_above_it() -> None:
    view = View(toy_transformer_config(**WITH_POSE)).requires_grad_(False)
    # A wall from x = 0.5 on, 0.3 high, around a flat court; the eye is 0.08 above the ground.
    map_x = torch.linspace(-1.5, 1.5, VIEW_MAP).repeat(VIEW_MAP)
    view.heights[:, 0] = torch.where(map_x > 0.5, 0.3, 0.0)

    def hit_and_far(pose: Tensor) -> tuple[Tensor, Tensor]:
        """Of every ray [rows, columns]: the share that met something, and the distance to it over the ground."""
        rays = view._seen(*split(pose[None]), sharpness=1e4)[0].unflatten(-1, (VIEW_RAYS, VIEW_RAYS, -1))
        rays = rays.transpose(1, 2).flatten(0, 1).flatten(1, 2)
        return rays[..., -2], rays[..., -1].exp()

    hit, far = hit_and_far(torch.tensor([-0.1, 0.2, 1.0, 0.0, 0.0, 0.0]))
    columns = torch.arange(12)
    aside = (5.5 - columns) / 6
    across = (1 + aside**2).sqrt()  # the way along a column's line for one of the way ahead
    for row, slope in enumerate((3.5 - torch.arange(8)) / 6):
        if slope > 0.37:  # 0.3 - 0.08 over 0.6
            assert hit[row].max() < 0.01
        elif slope > 0:
            torch.testing.assert_close(hit[row], torch.ones(12))
            torch.testing.assert_close(far[row], 0.6 * across, atol=0.06, rtol=0)
        else:  # the ground, or the wall before it
            ground = torch.minimum(0.08 / -slope * torch.ones(12), torch.tensor(0.6))
            torch.testing.assert_close(far[row], ground * across, atol=0.06, rtol=0)
    # Turned away, there is none.
    assert hit_and_far(torch.tensor([-0.1, 0.2, -1.0, 0.0, 0.0, 0.0]))[0][:4].max() < 0.01


def test_a_view_is_the_same_however_many_poses_are_asked_for() -> None:
    view = View(toy_transformer_config(**WITH_POSE)).requires_grad_(False)
    view.heights += torch.rand_like(view.heights) * 0.2
    poses = torch.randn(2, 3, 6)
    views = view(poses)
    assert views.shape == (2, 3, 4, 4, 6) and views.isfinite().all()
    torch.testing.assert_close(view(poses[1, 2:]), views[1, 2:])
    # Far outside of the map, and before a stream's first frame, there is something too.
    assert view(torch.tensor([[9.0, -9, 1, 0, 0, 0], [0.0] * 6])).isfinite().all()


def test_maps_are_looked_up_between_their_points() -> None:
    table, place = torch.randn(25, 3), torch.rand(7, 2) * 4 - 2
    # Outside of the map is what its edge is.
    grid = F.grid_sample(
        table.view(1, 5, 5, 3).permute(0, 3, 1, 2),
        place.view(1, 1, 7, 2) / 1.5,
        padding_mode="border",
        align_corners=True,
    )
    torch.testing.assert_close(_looked_up(table, place), grid[0, :, 0].T, atol=1e-2, rtol=0)
    x = torch.randn(4, 3, 37)
    assert torch.equal(_running_max(x), x.cummax(-1).values)


def test_a_pose_is_no_picture() -> None:
    vae = Autoencoder(AutoencoderConfig(latent_channels=4, encoder_dims=(8, 8), decoder_dims=(8, 8)))
    z = torch.randn(1, 10, 4, 6)
    assert torch.equal(vae.decode(z), vae.decode(z[:, :4]))


def test_time_embedding_follows_its_formula() -> None:
    out = sinusoid(torch.tensor([0.0, 731.25]), 8)
    angles = 731.25 * 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    torch.testing.assert_close(out[1], torch.cat([angles.cos(), angles.sin()]).float(), atol=1e-7, rtol=0)
    assert out[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
