"""The state in a latent: it moves as keys say, actors with it, and the map shows what is seen from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from streamgen.config import COURSE_MAP, SPRITE_CLOCKS, SPRITE_SIDES, VIEW_LEVELS, VIEW_RAYS, AutoencoderConfig
from streamgen.models.attention import ClipAttention
from streamgen.models.autoencoder import Autoencoder
from streamgen.models.motion import Course, Motion, looked_up
from streamgen.models.pose import Pose, View, _running_max, from_planes, planes, split
from streamgen.models.rollout import Commit, RollingCache, Rollout
from tests.toy import WITH_ACTORS, WITH_POSE, toy_transformer, toy_transformer_config

_EYE = 0.08


def _at(x: float, y: float, c: float = 1.0, s: float = 0.0, moved: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """A pose [9] of a viewer on flat ground who looks in direction (c, s); no beat."""
    return torch.tensor([x, y, c, s, *moved, _EYE, 0, 0])


@pytest.mark.parametrize("change", [WITH_POSE, WITH_ACTORS])
def test_a_state_is_in_the_latent_and_counts(change: dict[str, Any]) -> None:
    model = toy_transformer(config := toy_transformer_config(**change))
    torch.manual_seed(1)
    x = torch.randn(1, 8, config.in_channels, config.height, config.width)
    actions = (torch.rand(1, 8, 5) < 0.4).float()
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


@pytest.mark.parametrize("change", [WITH_POSE, WITH_ACTORS])
def test_autocast_moves_a_state_as_fp32_does(change: dict[str, Any]) -> None:
    """Training in bf16 must not round what is added up from frame to frame."""
    model = toy_transformer(config := toy_transformer_config(**change))
    shape = (1, 1, config.in_channels, config.height, config.width)
    x, before = torch.randn(2, *shape)
    call = x, torch.full((1, 1), 0.5), ClipAttention(config, model.space, 1), torch.ones(1, 1, 5), before
    exact = model(*call)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(*call)
    assert not torch.equal(rounded[:, :, :4], exact[:, :, :4])
    assert torch.equal(rounded[:, :, 4:], exact[:, :, 4:])


def test_a_pose_moves_in_the_viewers_own_frame() -> None:
    motion = Motion(toy_transformer_config(**WITH_POSE)).requires_grad_(False)
    # A tenth of the scale ahead and a twentieth to the left, a turn by 30 degrees; half of the speed is kept.
    motion.by_keys.weight[:, 1] = torch.tensor([3.2, 1.6, torch.pi / 6])
    motion.by_speed.weight.copy_(torch.eye(2) / 2)
    half, root = 0.5, 3**0.5 / 2
    east, north = _at(0.5, -0.5, moved=(0, 0.2)), _at(0, 0, 0, 3, (0, 0.2))
    for start, heading in ((east, (root, half)), (north, (-half, root))):
        c, s = heading
        move = torch.tensor([0.1 * c - 0.05 * s, 0.1 * s + 0.05 * c + 0.1])
        want = torch.cat([start[:2] + move, torch.tensor(heading), move])
        torch.testing.assert_close(motion(start, torch.ones(5))[:6], want)
        still = motion(start, torch.tensor([1.0, 0, 1, 1, 1]))
        torch.testing.assert_close(still[2:6], torch.cat([start[2:4] / start[2:4].norm(), start[4:6] / 2]))


def test_walls_take_from_a_move_and_never_turn() -> None:
    motion = Motion(toy_transformer_config(**WITH_POSE)).requires_grad_(False)
    motion.by_speed.weight.copy_(torch.eye(2))
    pose, action = _at(0.5, -0.5, moved=(0.03, 0.04)), torch.zeros(5)
    motion.walls.bias.copy_(torch.tensor([-0.6, -0.4]).atanh())
    after = motion(pose, action)
    want = torch.tensor([0, 0.02, 0, 0, -0.03, -0.02, 0, 0, 0])
    torch.testing.assert_close(after - pose, want, atol=1e-6, rtol=0)


def test_who_presses_nothing_comes_to_rest_and_stays() -> None:
    torch.manual_seed(0)
    motion = Motion(toy_transformer_config(**WITH_POSE)).requires_grad_(False)
    for parameter in motion.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.3)
    # Walls take something of it, and little.
    motion.walls.weight *= 0.35 / motion.walls.weight.abs().sum()
    motion.by_speed.weight.copy_(torch.eye(2) * 0.4)
    pose = torch.randn(50, 9)
    pose[:, 2:4] /= pose[:, 2:4].norm(dim=1, keepdim=True)
    for _ in range(600):
        pose = motion(pose, torch.zeros(50, 5))
    rest = torch.cat([pose[:, :4], torch.tensor([0, 0, _EYE, 0]).expand(50, 4), pose[:, 8:]], 1)
    torch.testing.assert_close(pose, rest, atol=1e-7, rtol=0)
    torch.testing.assert_close(motion(rest, torch.zeros(50, 5)), rest)


def test_every_frame_of_a_block_is_moved_from_the_one_before() -> None:
    config = toy_transformer_config(**WITH_POSE, block_size=2)
    pose = Pose(config).requires_grad_(False)
    start, actions = torch.randn(1, 4, 9), torch.randn(1, 4, 5)
    start[:, 1], start[:, 3] = start[:, 0], start[:, 2]
    first = [pose.motion(start[:, at], actions[:, at]) for at in (0, 2)]
    second = [pose.motion(first[at], actions[:, 2 * at + 1]) for at in (0, 1)]
    want = torch.stack([first[0], second[0], first[1], second[1]], 1)
    torch.testing.assert_close(pose(start, actions), want)
    # Before a stream's first frame there is no pose, and nothing breaks.
    assert pose(torch.zeros(1, 2, 9), actions[:, :2]).isfinite().all()


def test_a_latent_tells_of_the_viewer_everywhere_and_of_each_actor_in_its_stripe() -> None:
    config = toy_transformer_config(**WITH_ACTORS)
    state = torch.randn(3, 2, 19)
    state[0, :, 13::5] = 0
    filled = planes(state, config)
    assert filled.shape == (3, 2, 14, 4, 6)
    assert torch.equal(filled[..., :9, :, :], state[..., :9, None, None].expand(3, 2, 9, 4, 6))
    first, second = filled[..., 9:, :, :].split(3, -1)
    assert torch.equal(first, state[..., 9:14, None, None].expand(first.shape))
    assert torch.equal(second, state[..., 14:, None, None].expand(second.shape))
    told = from_planes(filled + 2.0**-24, config)
    clocks = state.new_zeros(19, dtype=torch.bool)
    clocks[13::5] = True
    torch.testing.assert_close(told[..., ~clocks], state[..., ~clocks])
    # A clock has begun, or is 0: what a step's rounding leaves begins none.
    assert torch.equal(told[..., clocks] > 0, state[..., clocks] > 0)
    torch.testing.assert_close(told[..., clocks], state[..., clocks].clamp_min(0))
    for change, what in (
        ({"actors": 4}, "actors"),
        ({"pose_scale": None}, "actors"),
        ({"pose_scale": None, "actors": 0}, "fixtures 1: need pose_scale"),
    ):
        with pytest.raises(ValueError, match=what):
            toy_transformer_config(**WITH_ACTORS | change)


def test_actors_go_on_as_they_went_and_a_hit_runs_its_course() -> None:
    course = Course(toy_transformer_config(**WITH_ACTORS)).requires_grad_(False)
    course.rate.fill_(0.3)
    viewer, keys = _at(0.3, 0.1), torch.zeros(5)
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
    viewer, keys = _at(0, 0), torch.zeros(5)
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
        margin = 3 / COURSE_MAP
        assert x.abs().max() < 0.6 + margin and y.min() > -0.2 - margin and y.max() < 0.4 + margin
        assert (actors[:, :2] - torch.tensor([0.3, 0.1])).norm(dim=1).min() > 0.12 - margin
    torch.testing.assert_close(went, torch.full((300,), 600 / 32), rtol=0.02, atol=0)  # and nobody stands


def _walled(change: dict[str, Any], wall_x: float, points: int = 301) -> View:
    """A flat court with a wall 0.3 high from `wall_x` on, and half of the scale north of its middle what beats."""
    torch.manual_seed(0)
    pose = Pose(toy_transformer_config(**change | {"ground_map": points})).requires_grad_(False)
    x = torch.linspace(-1.5, 1.5, points)
    ground = torch.where(x > wall_x, 0.3, 0.0).expand(points, points)
    pose.stand(ground, ground, _EYE, 1.0, torch.tensor([[0.0, 0.5, 0.1]])[: len(pose.view.fixtures)], 0.125)
    return pose.view


def _rays(seen: Tensor) -> Tensor:
    """What each ray sees, [rows, columns, features]."""
    return seen[0].unflatten(-1, (VIEW_RAYS, VIEW_RAYS, -1)).transpose(1, 2).flatten(0, 1).flatten(1, 2)


def _changed(view: View, before: Tensor, after: Tensor) -> Tensor:
    """Rays [rows, columns] that see something else in one state [S] than in another."""
    both = [_rays(view._seen(*split(state[None]))) for state in (before, after)]
    return (both[0] - both[1]).abs().amax(-1) > 1e-3


def test_an_actor_is_seen_where_it_is_unless_something_is_nearer() -> None:
    view = _walled(WITH_ACTORS, 0.8)
    view.shares.fill_(10.0)

    def changed(x: float, y: float, clock: float = 0.0) -> Tensor:
        """Rays [rows, columns] of a viewer in the middle, looking east, that meet an actor at (x, y)."""
        here, away = (
            torch.cat([_at(0, 0), torch.tensor([*place, 0, 0, clock, -0.5, 0, 0, 0, 0])])
            for place in ((x, y), (-1.0, 0.0))
        )
        return _changed(view, here, away)

    # 16 rows and 24 columns; at half of the scale, twelve rays are as long as the distance.
    ahead = changed(0.5, 0.0)
    rows, columns = ahead.any(1).nonzero()[:, 0], ahead.any(0).nonzero()[:, 0]
    assert ahead[6:10, 10:14].all() and rows.tolist() == list(range(6, 10)) and columns.tolist() == list(range(10, 14))
    left = changed(0.5, 0.25)  # half of the distance to the left is six columns from the middle
    assert left[:, 4:7].any() and not left[:, 9:].any()
    assert not changed(1.0, 0.0).any(), "behind the wall"
    assert not changed(-0.5, 0.0).any(), "behind the viewer"
    for side, (at, begin) in zip(SPRITE_SIDES, view.starts.long().tolist(), strict=True):
        assert side == at
        view.shares[begin + side**2 : begin + SPRITE_CLOCKS * side**2] = -10.0
    assert changed(0.5, 0.0).any() and not changed(0.5, 0.0, clock=0.01).any(), "one that is hit looks otherwise"


def test_a_picture_is_seen_upright_and_the_nearest_one() -> None:
    """Its first points are its left lower corner."""
    view = _walled(WITH_ACTORS, 5.0)
    side, begin = (int(each) for each in view.starts[0])
    view.shares[:] = -10.0
    corner = torch.zeros(side, side, dtype=torch.bool)
    corner[side // 2 :, : side // 2] = True
    view.shares[begin : begin + side**2][corner.flatten()] = 10.0
    away = torch.tensor([-0.5, 0, 0, 0, 0])
    none = torch.cat([_at(0, 0), away, away])
    close = _changed(view, none, torch.cat([_at(0, 0), torch.tensor([0.2, 0, 0, 0, 0]), away]))
    rows, columns = close.nonzero().unbind(1)
    assert rows.max() < 8 and columns.max() < 12, "what is at the upper left is seen there"
    view.shares.fill_(10.0)
    near, far = torch.tensor([0.2, 0, 0, 0, 0]), torch.tensor([0.4, 0.01, 0, 0, 0])
    alone = _changed(view, none, torch.cat([_at(0, 0), near, away]))
    hidden = _changed(view, torch.cat([_at(0, 0), near, away]), torch.cat([_at(0, 0), far, near]))
    assert alone.any() and not hidden.any()


@pytest.mark.parametrize("actors", [0, 2])
def test_what_beats_shows_a_picture_for_every_part_of_its_cycle(actors: int) -> None:
    view = _walled(WITH_ACTORS | {"actors": actors, "in_channels": 18 if actors else 13}, 5.0)
    view.shares.fill_(10.0)
    away = torch.tensor([-0.5, 0, 0, 0, 0] * actors)

    def at(beat: float, y: float = 0.0) -> Tensor:
        return torch.cat([_at(0, y, 0, 1)[:8], torch.tensor([beat]), away])

    assert _changed(view, at(0.0), at(0.0, 2.0)).any()
    for step in range(16):
        differs = _changed(view, at(step / 16), at((step + 1) / 16 % 1)).any()
        assert differs == (step % 2 == 1), "eight pictures, whatever is lost by rounding"
        assert not _changed(view, at(step / 16), at(step / 16 + 1e-3)).any()


def test_a_beat_goes_on_and_begins_anew() -> None:
    motion = Motion(toy_transformer_config(**WITH_POSE)).requires_grad_(False)
    for rate, length in ((0.125, 8), (0.2, 5)):
        motion.rate.fill_(rate)
        pose, beats = _at(0, 0), []
        for _ in range(10 * length):
            pose = motion(pose, torch.zeros(5))
            beats.append(float(pose[8]))
        want = [((frame + 1) % length) / length for frame in range(10 * length)]
        torch.testing.assert_close(torch.tensor(beats), torch.tensor(want), atol=1e-4, rtol=0)


def test_an_eye_takes_steps_and_stays_where_it_is_else() -> None:
    torch.manual_seed(0)
    motion = Motion(toy_transformer_config(**WITH_POSE | {"ground_map": 301})).requires_grad_(False)
    motion.floors.copy_((torch.linspace(-1.5, 1.5, 301) > 0.3).float().expand(301, 301).reshape(-1, 1) * 0.04)
    motion.by_keys.weight[0, 0] = 32 * 0.05
    walk, stay = torch.tensor([1.0, 0, 0, 0, 0]), torch.zeros(5)
    pose = motion(motion(_at(0.28, 0), walk), stay)
    torch.testing.assert_close(pose[6:8], torch.tensor([_EYE + 0.04, 0]), atol=1e-3, rtol=0)
    # Half of what is left a frame, once it has learned so.
    motion.climbed.bias[0] = 0
    pose, eyes = _at(0.28, 0), []
    for key in (walk, stay, stay):
        pose = motion(pose, key)
        eyes.append(float(pose[6]))
    torch.testing.assert_close(torch.tensor(eyes), _EYE + 0.04 * torch.tensor([0.5, 0.75, 0.875]))
    for parameter in (*motion.climb.parameters(), motion.climbed.weight):
        parameter.normal_()
    for start in (
        _at(0, 0),
        pose.clone().index_fill(0, torch.tensor([6]), _EYE + 0.04).index_fill(0, torch.tensor([7]), 0),
    ):
        torch.testing.assert_close(motion(start, stay)[6:8], start[6:8])


@pytest.mark.parametrize("half_width", [1.0, 0.6])
def test_a_ray_ends_where_the_ground_rises_above_it(half_width: float) -> None:
    view = _walled(WITH_POSE, 0.5)
    view.half_width.fill_(half_width)

    def hit_and_far(pose: Tensor) -> tuple[Tensor, Tensor]:
        """Of every ray [rows, columns]: whether it met something, and how far ahead."""
        rays = _rays(view._seen(*split(pose[None])))
        return rays[..., -2], rays[..., -1].exp()

    hit, far = hit_and_far(_at(-0.1, 0.2))
    for row, slope in enumerate((7.5 - torch.arange(16)) / 12 * half_width):
        if slope > 0.37:  # 0.3 - 0.08 over 0.6
            assert hit[row].max() == 0
        elif slope > 0:  # the wall, within the 0.01 that lie between two points of the map
            assert hit[row].min() == 1
            torch.testing.assert_close(far[row], torch.full((24,), 0.6), atol=0.01, rtol=0)
        elif 0.08 / -slope < 0.59:  # the ground, which is where it is
            torch.testing.assert_close(far[row], (0.08 / -slope).expand(24), atol=1e-3, rtol=0)
    # Turned away, there is none.
    assert hit_and_far(_at(-0.1, 0.2, -1))[0][:8].max() == 0


def test_who_stands_on_a_step_sees_from_there() -> None:
    view = _walled(WITH_POSE, 0.5)
    raised = _at(0.7, 0)
    raised[6] += 0.3
    high, low = (_rays(view._seen(*split(pose[None])))[..., -1].exp() for pose in (raised, _at(-0.7, 0, -1)))
    torch.testing.assert_close(high[8:], low[8:], atol=1e-3, rtol=0)


def _grids(view: View, table: Tensor | None = None) -> tuple[Tensor, ...]:
    """Of each level its part of a table, of the features' own by default."""
    return (view.grids.data if table is None else table).split([int(rows) for rows in view.levels[0]])


def test_what_is_close_is_seen_finer_and_what_is_far_is_not() -> None:
    view = _walled(WITH_POSE, 0.495)

    def changed(x: float, level: int) -> Tensor:
        """By how much what the rays see changes with a grid, for one who stands at x and looks east at the wall."""
        pose = _at(x, 0)[None]
        before = view._seen(*split(pose))
        grid = _grids(view)[level]
        grid.mul_(2)
        after = view._seen(*split(pose))
        grid.div_(2)
        return _rays(after - before)[7].abs().amax()

    # Rays lie a twelfth of the distance apart: 0.05 from the wall one of the finest grid's 1 / 256, 0.2 from it four.
    assert changed(0.45, 0) > 0 and changed(0.3, 0) == 0
    assert changed(0.3, 2) > 0 and changed(-0.5, 2) == 0
    assert changed(-1.4, VIEW_LEVELS - 1) > 0


def test_features_belong_to_places_and_lie_between_the_points_of_a_grid() -> None:
    torch.manual_seed(0)
    view = View(toy_transformer_config(**WITH_POSE)).requires_grad_(False)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3) / 256 + torch.tensor([0.25, -0.5, 0.125])
    at = view._features(corners.unbind(-1), torch.zeros(8))[:, :4]
    assert torch.pdist(at).min() > 1e-4, "each has its own"
    middle = view._features(corners.mean(0, keepdim=True).unbind(-1), torch.zeros(1))[0, :4]
    torch.testing.assert_close(middle, at.mean(0), atol=1e-5, rtol=0)
    # A gradient reaches no others.
    view.requires_grad_(True)
    view._features(corners[:1].unbind(-1), torch.zeros(1)).sum().backward()
    assert view.grids.grad is not None
    assert all(0 < (grid.abs().sum(1) > 1e-3).sum() <= 8 for grid in _grids(view, view.grids.grad))


def test_openvino_finds_the_same_features(tmp_path: Path) -> None:
    """Of a grid as large as a real one: where features are found is a number beyond what fp32 holds, wrapped."""
    view = _walled(WITH_POSE | {"view_rows": 2**20}, 0.5)
    view.grids.normal_()
    poses = torch.stack([_at(0.1, 0.2), _at(-0.3, 0.4, 0, 1), _at(0.2, -0.7, -1)])
    torch.onnx.export(view, (poses,), tmp_path / "view.onnx", dynamo=True, external_data=True, verbose=False)
    compiled = openvino.compile_model(tmp_path / "view.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    want = view(poses)
    torch.testing.assert_close(
        torch.from_numpy(compiled(poses.numpy())[0]), want, rtol=0, atol=1e-4 * float(want.std())
    )


def test_a_view_is_the_same_however_many_poses_are_asked_for() -> None:
    view = View(toy_transformer_config(**WITH_POSE)).requires_grad_(False)
    view.heights += torch.rand_like(view.heights) * 0.2
    poses = torch.randn(2, 3, 9)
    views = view(poses)
    assert views.shape == (2, 3, 4, 4, 6) and views.isfinite().all()
    torch.testing.assert_close(view(poses[1, 2:]), views[1, 2:])
    # Far outside of the map, and before a stream's first frame, there is something too.
    assert view(torch.stack([_at(9, -9), torch.zeros(9)])).isfinite().all()


def test_maps_are_looked_up_between_their_points() -> None:
    table, place = torch.randn(25, 1), torch.rand(7, 2) * 4 - 2
    # Outside of the map is what its edge is.
    grid = F.grid_sample(
        table.view(1, 1, 5, 5),
        place.view(1, 1, 7, 2) / 1.5,
        padding_mode="border",
        align_corners=True,
    )
    torch.testing.assert_close(looked_up(table, *place.unbind(-1)), grid[0, 0, 0], atol=1e-2, rtol=0)
    x = torch.randn(4, 3, 37)
    assert torch.equal(_running_max(x), x.cummax(-1).values)


def test_a_pose_is_no_picture() -> None:
    vae = Autoencoder(AutoencoderConfig(latent_channels=4, encoder_dims=(8, 8), decoder_dims=(8, 8)))
    z = torch.randn(1, 13, 4, 6)
    assert torch.equal(vae.decode(z), vae.decode(z[:, :4]))
