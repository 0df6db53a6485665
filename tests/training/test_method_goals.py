"""What methods of distillation learn: which way losses pull, from which goals, at which levels, in whose turn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from streamgen.models.transformer import CausalVideoTransformer
from tests.training.test_methods import CONTEXT, DUELS, FRAMES, METHODS, _bound, _clips
from training.clips import ClipPass, LatentClips
from training.discriminator import Discriminator
from training.methods.causal_consistency import CausalConsistencyMethod
from training.methods.flow_map import FlowMapMethod
from training.methods.on_policy import Policy
from training.rollouts import Plan, Rolled, roll_out
from training.scores import Score


@pytest.mark.parametrize("name", ["dmd", "sid", "diagonal", "self_adversarial", "flow_map on policy"])
def test_a_rollout_moves_towards_the_teacher_and_away_from_the_critic(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = {"truth": 0.0} | ({"adversarial": 0.0} if name == "self_adversarial" else {})
    roles, method, ema = _bound(METHODS[name] | off, {})
    clips = _clips(roles.student)
    made = clips.latents[:, :5].clone().requires_grad_()
    apart = torch.randn(made[:, 1:].shape, generator=torch.Generator().manual_seed(1))

    def x0(score: Score, _clips: LatentClips, context: int, *given: object) -> Tensor:
        assert torch.is_grad_enabled() == (name == "sid")
        teachers = score is roles.teacher
        assert given[-1] == (METHODS[name].get("guidance", 1.0) if teachers else 1.0)
        return made.detach()[:, context:] + (apart if teachers else -apart)

    monkeypatch.setattr(Score, "x0", x0)
    monkeypatch.setattr(Policy, "roll", lambda *_, **__: Rolled(LatentClips(made, clips.actions[:, :5]), 1))
    assert method.begin(1)
    method.loss(clips, ema, torch.Generator().manual_seed(0))[0].backward()
    assert made.grad is not None
    assert torch.cosine_similarity(-made.grad[:, 1:].flatten(), apart.flatten(), dim=0) > 0.8


@pytest.mark.parametrize("name", ["gan", "self_adversarial"])
def test_a_discriminator_holds_the_better_for_real_and_the_student_wants_to_pass(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Better is a true clip, or what more steps made: bright here, as the worse is dark."""
    _, method, ema = _bound(METHODS[name] | {"steepness": 0.0}, {})
    clips = LatentClips(torch.full((2, FRAMES, 4, 4, 6), 10.0), torch.zeros(2, FRAMES, 5))
    leaves = []

    def roll(_policy: Policy, _given: object, plans: tuple[Plan, ...], *_: object, **__: object) -> Rolled:
        latents = torch.full((2, 5, 4, 4, 6), 10.0 if len(plans[-1]) > 1 else -10.0, requires_grad=True)
        leaves.append(latents)
        return Rolled(LatentClips(latents, clips.actions[:, :5]), 1)

    def brightness(judge: Discriminator, x: Tensor, sigma_B: Tensor, actions_BFA: Tensor) -> Tensor:
        assert judge.conv_out.bias is not None
        return x.flatten(2).mean(-1)[:, 1:] * judge.conv_out.bias

    monkeypatch.setattr(Policy, "roll", roll)
    monkeypatch.setattr(Policy, "draw", lambda *_: 0)
    monkeypatch.setattr(Discriminator, "forward", brightness)
    # Scores that agree say nothing.
    monkeypatch.setattr(Score, "x0", lambda _score, _clips, _context, x, *_: torch.zeros_like(x))
    assert method.critic is not None
    slope = method.critic.get_parameter("discriminator.conv_out.bias")
    with torch.no_grad():
        slope.fill_(0.1)
    for step in range(2):
        students = method.begin(step)
        slope.grad = None
        method.loss(clips, ema, torch.Generator().manual_seed(step))[0].backward()
        pulled = leaves[-1].grad if students else slope.grad
        assert pulled is not None and pulled.sum() < -1e-3


def _pointed(monkeypatch: pytest.MonkeyPatch, points: dict[CausalVideoTransformer, float]) -> None:
    """Every model leads straight from anywhere to its point."""

    def velocity(_clip: ClipPass, model: CausalVideoTransformer, x: Tensor, sigma: Tensor, *_: object) -> Tensor:
        return (x - points[model]) / sigma.clamp_min(1e-3)[..., None, None, None]

    monkeypatch.setattr(ClipPass, "velocity", velocity)


def test_ode_regression_goes_where_the_trajectory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    roles, method, ema = _bound(METHODS["ode_regression"], {}, recycle=0)
    _pointed(monkeypatch, {roles.teacher.model: 1.0, roles.student: 3.0})
    for seed in range(6):
        loss, _ = method.loss(_clips(roles.student), ema, torch.Generator().manual_seed(seed))
        assert loss.item() == pytest.approx(4, rel=1e-4)


def test_consistency_is_with_the_ema_and_at_last_with_the_teachers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = METHODS["causal_consistency"] | {"guidance": 1.0, "intervals": 2}
    roles, method, ema = _bound(settings, {}, recycle=0, copies=1)
    _pointed(monkeypatch, {roles.teacher.model: 2.0, roles.student: 3.0, ema: 1.0})
    seen = set()
    for seed in range(16):
        loss, _ = method.loss(_clips(roles.student, 1), ema, torch.Generator().manual_seed(seed))
        seen.add(round(loss.item(), 3))
    assert seen == {4.0, 1.0}


def test_consistency_levels_are_drawn_from_the_whole_grid_and_from_the_plans() -> None:
    _, method, _ = _bound(METHODS["causal_consistency"], {})
    assert isinstance(method, CausalConsistencyMethod)
    sigma, below = method._levels(4000, torch.Generator().manual_seed(0))
    assert sigma.dtype == below.dtype == torch.float32 and torch.equal(sigma - below, torch.full_like(sigma, 0.25))
    shares = [(sigma == at / 4).float().mean().item() for at in range(1, 5)]
    # Half from the grid; of the other half a third each from (1,) and the two levels of (1, 0.5).
    assert shares == pytest.approx([1 / 8, 1 / 8 + 1 / 6, 1 / 8, 1 / 8 + 1 / 3], abs=0.03)


def test_jumps_of_a_flow_map_are_of_every_kind_in_their_shares() -> None:
    settings = METHODS["flow_map"] | {"same": 0.3, "all_the_way": 0.5}
    _, method, _ = _bound(settings, {})
    assert isinstance(method, FlowMapMethod)
    sigma, to = method._levels(torch.Size([20000]), torch.Generator().manual_seed(0))
    assert sigma.min() > 0 and sigma.max() == 1 and (to >= 0).all() and (to <= sigma).all()
    kinds = to == sigma, to == 0, sigma == 1, (sigma == 1) & (to == 0)
    # From pure noise half of those that go anywhere.
    assert [kind.float().mean().item() for kind in kinds] == pytest.approx([0.3, 0.5, 0.35, 0.25], abs=0.02)
    assert not (kinds[0] & kinds[2]).any()
    for begins in (kinds[2], ~kinds[2]):
        between = (to / sigma)[~kinds[0] & ~kinds[1] & begins]
        assert between.mean().item() == pytest.approx(0.5, abs=0.02)


def test_an_error_of_a_flow_map_counts_less_near_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a velocity that is off by 1 it is sigma over the floor that counts, and 1 above that."""
    _, method, ema = _bound(METHODS["flow_map"], {}, recycle=0, first_target=0)
    assert isinstance(method, FlowMapMethod)
    monkeypatch.setattr("training.methods.flow_map.flow_map_target", lambda velocity, *_: velocity + 1)
    monkeypatch.setattr(ClipPass, "velocity", lambda _clip, _model, x, *_, **__: x - x)
    clips = LatentClips(torch.zeros(2, FRAMES, 4, 4, 6), torch.zeros(2, FRAMES, 5))
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.zeros(shape))
    for at, counts in ((1.0, 1.0), (0.5, 1.0), (0.25, 0.25), (0.02, 0.0016)):
        levels = torch.full((2, 2, FRAMES), at)
        monkeypatch.setattr(method, "_levels", lambda *_, levels=levels: (levels, levels))
        loss, _ = method.loss(clips, ema, torch.Generator().manual_seed(0))
        assert loss.item() == pytest.approx(counts, rel=1e-4)


def test_mutual_forcing_follows_many_steps_on_a_history_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    roles, method, ema = _bound(METHODS["mutual_forcing"] | {"many": 4}, {})
    clips, more, seen = _clips(roles.student), 0.0, set()

    def rolled(
        model: CausalVideoTransformer, given: LatentClips, context: int, plans: list[Plan], *rest: Any, **how: Any
    ) -> Rolled:
        assert model is ema and given is clips and context == CONTEXT and len(plans) == FRAMES - CONTEXT
        seen.add(tuple(plans))
        few = roll_out(model, given, context, plans, *rest, **how)
        return Rolled(LatentClips(few.clips.latents + more, few.clips.actions), context)

    def loss(seed: int) -> tuple[float, float]:
        out, figures = method.loss(clips, ema, torch.Generator().manual_seed(seed))
        return out.item(), figures["few"]

    monkeypatch.setattr("training.methods.mutual_forcing.roll_out", rolled)
    own = [loss(seed) for seed in range(4)]
    assert seen == {(plan,) * (FRAMES - CONTEXT) for plan in roles.recipe.step_plans.values()}
    more = 1.0
    assert abs(loss(0)[0] - own[0][0]) > 1e-3, "what was rolled out is what is learned on"
    _pointed(monkeypatch, {roles.student: 3.0, ema: 1.0})
    assert loss(0)[1] == pytest.approx(4, rel=1e-4)


@pytest.mark.parametrize("critic_steps", [1, 3])
@pytest.mark.parametrize("name", sorted(DUELS))
def test_the_critic_takes_its_steps_before_each_of_the_student(name: str, critic_steps: int) -> None:
    _, method, _ = _bound(METHODS[name] | {"critic_steps": critic_steps}, {})
    turns = [method.begin(step) for step in range(2 * critic_steps + 2)]
    assert turns == ([False] * critic_steps + [True]) * 2
