"""The transformer: streaming with the cache is the windowed pass over the whole clip, whatever the cache policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from streamgen.config import TransformerConfig
from streamgen.models.attention import CacheAttention, ClipAttention
from streamgen.models.rollout import Commit, RollingCache, Rollout, recache
from streamgen.models.transformer import TIME_SCALE, CausalVideoTransformer, sinusoid
from streamgen.state import StreamState
from tests.toy import WITH_POSE, toy_recipe, toy_transformer, toy_transformer_config
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


def test_time_embedding_follows_its_formula() -> None:
    out = sinusoid(torch.tensor([0.0, 731.25]), 8)
    angles = 731.25 * 10_000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    torch.testing.assert_close(out[1], torch.cat([angles.cos(), angles.sin()]).float(), atol=1e-7, rtol=0)
    assert out[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_autocast_leaves_the_times_of_steps_as_they_are() -> None:
    """bf16 cannot tell 979 from 980, nor .999 from 1: it may round what has been embedded, and nothing before."""
    model = toy_transformer(toy_transformer_config(flow_map=True))
    x, actions = _clip(model.config, 4)
    sigma, to = torch.tensor([[1.0, 1 - 1 / 1000, 1 - 1 / 48, 0.3]]), torch.tensor([[1 - 1 / 48, 0.0, 0.1, 0.3]])
    seen: list[Tensor] = []
    for embedding in (model.time_embedding, model.jump_embedding):
        embedding.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    with torch.autocast("cpu", torch.bfloat16):
        attend = ClipAttention(model.config, model.space, 4)
        model(x, sigma, attend, actions, _before(x, model.config.block_size), to_BF=to)
    for embedded, level in zip(seen, (sigma, sigma - to), strict=True):
        exact = sinusoid(level * TIME_SCALE, model.config.freq_dim)
        assert torch.equal(embedded, exact.to(embedded.dtype))
    assert len({tuple(each.tolist()) for each in seen[0][0]}) == 4
