"""Methods of distillation on toy transformers: every loss moves whom it should and nobody else, and rollouts are those
of serving.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from streamgen.config import AutoencoderConfig
from streamgen.models.autoencoder import Autoencoder
from streamgen.models.rollout import Commit, RollingCache, Rollout
from streamgen.models.transformer import CausalVideoTransformer
from tests.toy import WITH_ACTORS, WITH_FACE, WITH_POSE, toy_transformer, toy_transformer_config
from training.clips import ClipPass, LatentClips
from training.discriminator import Discriminator, PictureDiscriminator
from training.distributed import forget_activations
from training.losses import add_noise, denoised, tells_apart
from training.methods.method import Method, Roles
from training.methods.on_policy import Policy
from training.metrics import teacher_forced
from training.recipe import DistillationRecipe, RecipeError
from training.rollouts import roll_out
from training.scores import Score, joint_velocity
from training.stages.distillation import bound, student_from

FRAMES, CONTEXT = 16, 6
ON_POLICY = {"context": CONTEXT, "rolled": 4, "critic_steps": 1}
METHODS: dict[str, dict[str, Any]] = {
    "ode_regression": {"name": "ode_regression", "intervals": 4},
    "one pass": {"name": "ode_regression", "intervals": 1, "history_level": 1.0},
    "causal_consistency": {"name": "causal_consistency", "intervals": 4, "guidance": 1.5},
    "dmd": {"name": "self_forcing", **ON_POLICY, "guidance": 1.5, "truth": 0.5, "lead": 3, "switch": 0.5},
    "sid": {"name": "self_forcing", "objective": "sid", **ON_POLICY},
    "gan": {"name": "self_forcing", "objective": "gan", **ON_POLICY},
    "diagonal": {"name": "diagonal", "opening": [3], **ON_POLICY},
    "self_adversarial": {"name": "self_adversarial", **ON_POLICY},
    "flow_map": {"name": "flow_map"},
    "flow_map on policy": {"name": "flow_map", "on_policy": True, **ON_POLICY},
    "mutual_forcing": {"name": "mutual_forcing", "context": CONTEXT, "many": 2},
}
DUELS = {"dmd", "sid", "gan", "diagonal", "self_adversarial", "flow_map on policy"}
STUDENTS = {"plain": {}, "pose": WITH_ACTORS, "face": WITH_FACE}


def _clips(model: CausalVideoTransformer, rows: int = 2) -> LatentClips:
    generator = torch.Generator().manual_seed(5)
    config = model.config
    latents = torch.randn(rows, FRAMES, config.in_channels, config.height, config.width, generator=generator)
    return LatentClips(latents, (torch.rand(rows, FRAMES, 5, generator=generator) < 0.3).float())


def _recipe(method: dict[str, Any], **changes: object) -> DistillationRecipe:
    plans = {1: (1.0,), 2: (1.0, 0.5)}
    if method["name"] == "diagonal":
        plans = {2: (1.0, 0.5), 3: (1.0, 0.75, 0.5)}
    elif method.get("history_level") == 1:
        plans = {1: (1.0,)}
    settings = {
        "stage": "distillation",
        "name": "toy",
        "steps": 8,
        "learning_rate": 1e-3,
        "autoencoder": "nowhere",
        "teacher": "nowhere",
        "clips": 2,
        "clip_length": FRAMES,
        "context_noise": 0.0,
        "recycle": 3,
        "recycle_share": 1.0,
        "step_plans": plans,
        "serve": min(plans),
        "method": method,
    }
    return DistillationRecipe.model_validate(settings | changes)


def _bound(
    method: dict[str, Any], change: dict[str, Any], bidirectional: bool = False, **changes: object
) -> tuple[Roles, Method, CausalVideoTransformer]:
    if change is WITH_FACE:
        method = {name: value for name, value in method.items() if name != "lead"}
    recipe = _recipe(method, **changes)
    teacher = toy_transformer(toy_transformer_config(**change))
    student = student_from(toy_transformer(toy_transformer_config(**change), 1), recipe)
    roles = Roles(student, Score(teacher, bidirectional), recipe, torch.ones(()))
    method = bound(roles)
    with torch.no_grad():  # a critic begins as the teacher, where nothing pulls yet
        for parameter in () if method.critic is None else method.critic.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return roles, method, toy_transformer(student.config, 2)


def _moved(module: torch.nn.Module | None) -> set[str]:
    parameters = () if module is None else module.named_parameters()
    return {name for name, p in parameters if p.grad is not None and p.grad.abs().max() > 0}


@pytest.mark.parametrize("kind", STUDENTS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_moves_the_one_whose_turn_it_is(name: str, kind: str) -> None:
    """On any student: plain, with a pose, with a face."""
    roles, method, ema = _bound(METHODS[name], STUDENTS[kind])
    assert (method.critic is not None) == (name in DUELS)
    turns = set()
    for step in range(4):
        students = method.begin(step)
        turns.add(students)
        for module, learns in ((roles.student, students), (method.critic, not students)):
            if module is not None:
                module.zero_grad(set_to_none=True)
                for part, parameter in module.named_parameters():
                    parameter.requires_grad_(learns and "pose." not in part and "face." not in part)
        loss, figures = method.loss(_clips(roles.student), ema, torch.Generator().manual_seed(step))
        loss.backward()
        assert loss.isfinite() and all(value == value for value in figures.values())
        learner, other = (roles.student, method.critic) if students else (method.critic, roles.student)
        moved = _moved(learner)
        assert any(part.endswith("weight") for part in moved)
        assert not any("pose." in part or "face." in part for part in moved)
        assert not _moved(other) and not _moved(roles.teacher.model) and not _moved(ema)
        if students:
            # Everything that a frame goes through learns, but for a head that is not asked.
            assert any(part.startswith("blocks.0.") for part in moved)
            assert any(part.startswith("patch_embedding") for part in moved)
    assert turns == ({True, False} if name in DUELS else {True})


@pytest.mark.parametrize("name", ["causal_consistency", "flow_map", "mutual_forcing"])
def test_clips_are_noised_to_what_a_second_step_sees(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(more: float) -> float:
        roles, method, ema = _bound(METHODS[name], {})
        assert method.begin(0)

        def stirred(clip: ClipPass, model: object, recipe: object, x0: Tensor, eps: Tensor, *_: object) -> Tensor:
            assert model is ema and recipe is roles.recipe and x0.shape == eps.shape
            return eps + more

        monkeypatch.setattr(f"training.methods.{name}.simulated", stirred)
        return method.loss(_clips(roles.student), ema, torch.Generator().manual_seed(0))[0].item()

    assert loss(0.0) == loss(0.0) != loss(1.0)


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith(("diagonal", "flow_map"))])
def test_a_teacher_whose_first_step_is_the_history_can_be_distilled(name: str) -> None:
    roles, method, ema = _bound(METHODS[name], {"history_level": 1.0})
    assert roles.student.config.history_level == 1
    for step in range(2):
        method.begin(step)
        loss, _ = method.loss(_clips(roles.student), ema, torch.Generator().manual_seed(step))
        assert loss.isfinite() and loss != 0
        loss.backward()


@pytest.mark.parametrize("name", sorted(DUELS))
def test_a_bidirectional_teacher_judges_rollouts_too(name: str) -> None:
    roles, method, ema = _bound(METHODS[name], WITH_POSE, bidirectional=True)
    for step in range(2):
        method.begin(step)
        loss, _ = method.loss(_clips(roles.student), ema, torch.Generator().manual_seed(step))
        assert loss.isfinite()
        loss.backward()


@pytest.mark.parametrize(
    "change",
    [{}, {"history_level": 0.5}, {"history_level": 1.0}, {"history_level": 1.0, "sink": 2}, {"flow_map": True}],
)
def test_the_next_frame_of_a_rollout_is_the_one_that_is_served(change: dict[str, Any]) -> None:
    """Block for block the same latents as the whole rollout, decoder and cache and all, makes of the same noise."""
    model = toy_transformer(toy_transformer_config(**change))
    clips, plan = _clips(model, 1), (1.0, 0.5)
    vae = Autoencoder(AutoencoderConfig(latent_channels=4, encoder_dims=(8, 8), decoder_dims=(8, 8)))
    serving, cache, commit = Rollout(model, vae, plan), RollingCache.empty(model.config, 1), Commit(model)
    generator = torch.Generator().manual_seed(1)

    def drawn() -> Tensor:
        return torch.randn(1, 1, 4, 4, 6, generator=generator)

    with torch.no_grad():
        rolled = roll_out(model, clips, CONTEXT, [plan] * 6, torch.Generator().manual_seed(1))
        for at in range(CONTEXT):
            noise = drawn() if model.config.history_level else None
            cache.clean(commit, clips.latents[:, at : at + 1], clips.actions[:, at : at + 1], noise)
        for at in range(6):
            noise = torch.stack([drawn() for _ in plan])
            actions = clips.actions[:, CONTEXT + at : CONTEXT + at + 1]
            _, made, *block = serving(noise, cache.previous, actions, *cache.inputs())
            cache.write(made, *block)
            # Serving rounds to what a state keeps.
            torch.testing.assert_close(rolled.made[:, at : at + 1], made, atol=5e-3, rtol=0)


def test_forgotten_activations_change_no_gradient() -> None:
    """Of a rollout, whose cache is written over before the way back."""
    gradients = []
    for forgets in (False, True):
        model = toy_transformer(toy_transformer_config(sink=2)).requires_grad_(True)
        if forgets:
            forget_activations(model)
        plans = [(1.0,)] * (FRAMES - CONTEXT)
        rolled = roll_out(model, _clips(model, 1), CONTEXT, plans, torch.Generator().manual_seed(3))
        rolled.made.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-4)


def test_what_a_method_cannot_do_is_refused() -> None:
    for change, method, said in (
        ({"block_size": 2}, "dmd", "counts single frames"),
        (WITH_FACE, "dmd", "lead: scores would take"),
        ({"flow_map": True}, "gan", "start maps flows"),
        ({"history_level": 0.4}, "dmd", "does not end at the history's level"),
    ):
        with pytest.raises(RecipeError, match=said):
            student_from(toy_transformer(toy_transformer_config(**change)), _recipe(METHODS[method]))


@pytest.mark.parametrize("sink", [0, 2])
def test_a_later_step_sees_the_first_in_clips_as_in_rollouts(sink: int) -> None:
    """Where the first is the history: both steps of every frame, from the same noise."""
    model = toy_transformer(toy_transformer_config(history_level=1.0, sink=sink))
    clips, plan, drawn = _clips(model, 1), (1.0, 0.5), torch.Generator().manual_seed(1)
    with torch.no_grad():
        rolled = roll_out(model, clips, 2, [plan] * (FRAMES - 2), drawn)
    drawn = torch.Generator().manual_seed(1)
    noises = [[torch.randn(1, 4, 4, 6, generator=drawn) for _ in plan[: 1 if at < 2 else 2]] for at in range(FRAMES)]
    first, second = (torch.stack([of_frame[at] for of_frame in noises], 1) for at in (0, -1))
    with torch.no_grad():
        passed = ClipPass(model.config, rolled.clips.latents, torch.zeros(1, FRAMES), clips.actions, 1, first)
        x = first[:, None]
        for sigma, noise in zip(plan, (first, second), strict=True):
            levels, x = torch.full((1, 1, FRAMES), sigma), (1 - sigma) * x + sigma * noise[:, None]
            x = denoised(x, passed.velocity(model, x, levels), levels)
    torch.testing.assert_close(rolled.made, x[:, 0, 2:], atol=2e-5, rtol=0)


@pytest.mark.parametrize("level", [0.0, 1.0])
@pytest.mark.parametrize("sink", [0, 2])
def test_a_rollout_is_what_is_served(level: float, sink: int) -> None:
    """Its last frame is what the windowed pass over the whole clip predicts from the frames before it."""
    model = toy_transformer(toy_transformer_config(history_level=level, sink=sink))
    clips = _clips(model, 1)
    drawn = torch.Generator().manual_seed(1)
    with torch.no_grad():
        rolled = roll_out(model, clips, CONTEXT, [(1.0,)] * (FRAMES - CONTEXT), drawn)
    assert torch.equal(rolled.clips.latents[:, :CONTEXT], clips.latents[:, :CONTEXT])
    if level:
        noise = torch.stack([torch.randn(1, 4, 4, 6, generator=_again(at)) for at in range(FRAMES)], 1)
    else:
        noise = torch.zeros_like(clips.latents)
        for at in range(CONTEXT, FRAMES):
            noise[:, at] = torch.randn(1, 4, 4, 6, generator=_again(at - CONTEXT))
    with torch.no_grad():
        passed = ClipPass(model.config, rolled.clips.latents, torch.zeros(1, FRAMES), clips.actions, 1, noise)
        ones = torch.ones(1, 1, FRAMES)
        want = denoised(noise[:, None], passed.velocity(model, noise[:, None], ones), ones)[:, 0]
    torch.testing.assert_close(rolled.made, want[:, CONTEXT:], atol=2e-5, rtol=0)
    assert (rolled.made - clips.latents[:, CONTEXT:]).abs().max() > 0.1


def _again(draws: int) -> torch.Generator:
    """The rollout's generator after so many blocks."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(draws):
        torch.randn(1, 1, 4, 4, 6, generator=generator)
    return generator


@pytest.mark.parametrize("change", [{}, {"history_level": 0.5}, {"history_level": 1.0}])
def test_no_gradient_reaches_earlier_blocks(change: dict[str, Any]) -> None:
    """A block's loss moves the student through that block alone: the same gradient as where the past is given."""
    model = toy_transformer(toy_transformer_config(**change)).requires_grad_(True)
    clips = _clips(model, 1)

    def gradient(frames: int, blocks: slice) -> Tensor:
        model.zero_grad(set_to_none=True)
        plans = [(1.0, 0.5)] * (FRAMES - CONTEXT)
        rolled = roll_out(model, clips, CONTEXT, plans, torch.Generator().manual_seed(3), lead=frames)
        rolled.made[:, blocks].square().sum().backward()
        assert model.patch_embedding.weight.grad is not None
        return model.patch_embedding.weight.grad.clone()

    last = slice(FRAMES - CONTEXT - 1, None)
    alone = gradient(FRAMES - CONTEXT - 1, last)
    torch.testing.assert_close(gradient(0, last), alone)
    assert alone.abs().max() > 1e-4
    assert (gradient(0, slice(0, None)) - alone).abs().max() > 1e-4
    assert not roll_out(model, clips, CONTEXT, [(1.0,)], torch.Generator(), gradient=False).made.requires_grad


def _graded(model: CausalVideoTransformer) -> list[bool]:
    """Of every pass from now on, whether a gradient can reach the weights through it."""
    graded: list[bool] = []
    model.register_forward_hook(lambda _module, _given, out: graded.append(out.requires_grad))
    return graded


@pytest.mark.parametrize("exits", [None, [0, 1]])
@pytest.mark.parametrize("change", [{}, {"history_level": 0.5}, {"history_level": 1.0}, {"flow_map": True}])
def test_the_last_step_alone_of_a_block_has_a_gradient(change: dict[str, Any], exits: list[int] | None) -> None:
    """But where flows are mapped, whose steps are one way; and neither context, lead nor commits have any."""
    model = toy_transformer(toy_transformer_config(**change)).requires_grad_(True)
    graded = _graded(model)
    ends = None if exits is None else [2, *exits]
    roll_out(model, _clips(model, 1), CONTEXT, [(1.0, 0.75, 0.5)] * 3, torch.Generator(), ends, lead=1)
    commit = [] if model.config.history_level else [False]
    want = [False] * (CONTEXT + 3) + commit
    for last in exits or [2, 2]:
        want += [model.config.flow_map] * last + [True] + commit
    assert graded == want


def test_a_flow_map_learns_from_all_steps_of_its_rollouts() -> None:
    roles, method, ema = _bound(METHODS["flow_map on policy"], {}, step_plans={2: (1.0, 0.5)}, serve=2)
    graded = _graded(roles.student)
    assert method.begin(1)
    method.loss(_clips(roles.student), ema, torch.Generator().manual_seed(0))
    # Context, four blocks of two steps and a commit, two sides of a difference, and the jump that is learned.
    assert graded == [False] * CONTEXT + [True, True, False] * 4 + [False, False, True]


def test_an_exit_takes_what_a_step_has_made() -> None:
    model = toy_transformer(toy_transformer_config())
    clips, plan = _clips(model, 1), (1.0, 0.75, 0.5)

    def first(exits: list[int] | None, sigmas: tuple[float, ...] = plan) -> Tensor:
        return roll_out(model, clips, CONTEXT, [sigmas], torch.Generator().manual_seed(2), exits).made

    for at in range(3):
        torch.testing.assert_close(first([at]), first(None, plan[: at + 1]), atol=1e-6, rtol=0)
    assert (first([0]) - first([2])).abs().max() > 1e-3


def test_what_is_shared_depends_on_the_step_alone() -> None:
    """Exit steps, plans and lengths, so that no process waits for another that does more; whatever the batch."""
    roles, _, _ = _bound(METHODS["dmd"], {})
    here, there = (Policy(roles, roles.recipe.method) for _ in range(2))
    clips, draws = _clips(roles.student), []
    for step in range(40):
        drawn = []
        for seed, policy in enumerate((here, there, there)):
            policy.begin(step)
            lead = policy.given(clips, torch.Generator().manual_seed(seed))[1]
            drawn.append([lead, *(policy.draw(5) for _ in range(3))])
        assert drawn[0] == drawn[1] == drawn[2]
        draws.append(drawn[0])
    assert len({tuple(drawn) for drawn in draws}) > 20


def test_others_actions_take_over_in_a_share_of_the_rollouts() -> None:
    roles, _, _ = _bound(METHODS["dmd"], {})
    policy, clips = Policy(roles, roles.recipe.method), _clips(roles.student)
    switched = 0
    for seed in range(40):
        policy.begin(seed)
        (given, lead, known) = policy.given(clips, torch.Generator().manual_seed(seed))
        count = CONTEXT + lead + 4
        assert given.latents.shape[1] == count and 0 <= lead <= 3
        own = clips.actions[:, :count]
        assert torch.equal(given.actions[:, :CONTEXT], own[:, :CONTEXT])
        assert torch.equal(given.actions, own) or not known
        switched += not known
    assert 10 < switched < 30


def test_a_bidirectional_teacher_sees_the_future_and_a_causal_one_does_not() -> None:
    model = toy_transformer(toy_transformer_config(**WITH_POSE))
    clips = _clips(model, 1)
    x = torch.randn_like(clips.latents[:, 1:])
    changed = x.clone()
    changed[:, -1] += 1
    sigma = torch.full((1,), 0.5)
    for bidirectional in (True, False):
        score = Score(model, bidirectional)
        with torch.no_grad():
            a, b = (score.velocity(clips, 1, each, sigma) for each in (x, changed))
        earlier = (a - b)[:, :-1, : model.config.picture_channels].abs().max()
        assert (earlier > 1e-4) == bidirectional
    # Whose context is longer, sees it clean.
    with torch.no_grad():
        short, long = (joint_velocity(model, clips, n, x[:, n - 1 :], sigma) for n in (1, 4))
    assert short.shape[1] == FRAMES - 1 and long.shape[1] == FRAMES - 4
    assert (short[:, 3:] - long).abs().max() > 1e-4


def test_a_causal_score_is_teacher_forcing() -> None:
    model = toy_transformer(toy_transformer_config())
    clips = _clips(model, 1)
    eps = torch.randn((1, 1, *clips.latents.shape[1:]), generator=torch.Generator().manual_seed(0))[:, 0]
    score = Score(model, False)
    with torch.no_grad():
        x0 = score.x0(clips, 2, eps[:, 2:], torch.ones(1))
        plain, guided = (score.x0(clips, 2, eps[:, 2:], torch.ones(1), guidance=g) for g in (1.0, 3.0))
        blind = score.velocity(clips, 2, eps[:, 2:], torch.ones(1), known=torch.zeros(1))
    torch.testing.assert_close(x0, teacher_forced(model, clips, (1.0,))[:, 2:], atol=1e-5, rtol=0)
    blind_x0 = denoised(eps[:, 2:], blind, torch.ones(1))
    torch.testing.assert_close(guided, blind_x0 + 3 * (plain - blind_x0), atol=1e-4, rtol=0)


def test_a_discriminator_looks_at_pictures_pairs_and_what_drove_them() -> None:
    config = toy_transformer_config(**WITH_POSE)
    torch.manual_seed(0)
    judge, clips = Discriminator(config), _clips(toy_transformer(config))
    sigma = torch.tensor([0.2, 0.7])
    logits = judge(clips.latents, sigma, clips.actions)
    assert logits.shape[:2] == (2, FRAMES - 1)
    moved = clips.latents.clone()
    moved[:, :, config.picture_channels :] += 1
    assert torch.equal(judge(moved, sigma, clips.actions), logits)
    frozen = clips.latents[:, :1].expand_as(clips.latents)
    for other in (judge(frozen, sigma, clips.actions), judge(clips.latents, sigma, 1 - clips.actions)):
        assert (other - logits).abs().max() > 1e-4


def test_a_flow_map_starts_as_its_teacher_and_can_tell_jumps_apart() -> None:
    teacher = toy_transformer(toy_transformer_config())
    student = student_from(teacher, _recipe(METHODS["flow_map"])).requires_grad_(False)
    clips = _clips(teacher, 1)
    torch.manual_seed(0)
    noise = torch.randn(1, 1, *clips.latents.shape[1:])
    sigma, to = torch.full((1, 1, FRAMES), 0.8), torch.full((1, 1, FRAMES), 0.3)
    passed = ClipPass(student.config, clips.latents, torch.zeros(1, FRAMES), clips.actions)
    x = add_noise(clips.latents[:, None], noise, sigma)
    with torch.no_grad():
        torch.testing.assert_close(
            passed.velocity(student, x, sigma, to=to), passed.velocity(teacher, x, sigma), atol=1e-5, rtol=0
        )
        for parameter in student.jump_embedding.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        a, b = (passed.velocity(student, x, sigma, to=level) for level in (to, sigma))
    assert (a - b).abs().max() > 1e-3


def test_a_history_of_its_own_needs_its_noise() -> None:
    model = toy_transformer(toy_transformer_config(history_level=1.0))
    clips = _clips(model, 1)
    with pytest.raises(AssertionError, match="noise"):
        ClipPass(model.config, clips.latents, torch.zeros(1, FRAMES), clips.actions)
    with pytest.raises(AssertionError, match="noise"):
        RollingCache.empty(model.config, 1).clean(Commit(model), clips.latents[:, :1], clips.actions[:, :1])


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        (METHODS["dmd"], {"clip_length": 12}, "self_forcing needs 13 frames"),
        (METHODS["causal_consistency"] | {"intervals": 5}, {}, "grid of 5 intervals"),
        (METHODS["ode_regression"] | {"intervals": 3}, {}, "grid of 3 intervals"),
        (METHODS["gan"] | {"seen": 7}, {}, "only 6 frames of context"),
        (METHODS["gan"] | {"objective": "magic"}, {}, "objective"),
        ({"name": "magic"}, {}, "magic"),
        (METHODS["flow_map"], {"step_plans": {1: (0.9,)}}, "noise levels that fall from 1"),
        (METHODS["flow_map"], {"serve": 4}, "serve 4 has no step plan"),
        (METHODS["flow_map"], {"step_plans": {1: (1.0,), 2: (1.0, 0.0)}}, "fall from 1 to above 0"),
        (METHODS["mutual_forcing"] | {"many": 3}, {}, "grid of 3 intervals"),
        (METHODS["self_adversarial"] | {"first": 4}, {}, "opens with 4 steps"),
        (METHODS["causal_consistency"], {"copies": 0}, "copies 0"),
    ],
)
def test_recipes_of_methods_are_checked(method: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        _recipe(method, **changes)


def test_a_discriminator_of_pictures_sees_no_colours_and_pulls_at_none() -> None:
    torch.manual_seed(0)
    judge, pairs = PictureDiscriminator(), torch.rand(2, 2, 3, 16, 24).requires_grad_(True)
    logits = judge(pairs)
    assert logits.shape == (2, 1, 2, 3)
    torch.testing.assert_close(judge(pairs.flip(2)), logits, atol=1e-4, rtol=0)
    (pull,) = torch.autograd.grad(logits.sum(), pairs)
    assert pull.abs().max() > 1e-3
    torch.testing.assert_close(pull, pull[:, :, :1].expand_as(pull))
    assert (judge(pairs.flip(1)) - logits).abs().max() > 1e-3, "which comes first counts"


def test_a_discriminator_of_pictures_tells_soft_ones_by_their_detail() -> None:
    """Not by how light they are; and within a few steps, where one that saw whole pictures learned nothing."""
    torch.manual_seed(0)
    judge = PictureDiscriminator()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=1e-3, betas=(0.5, 0.95))
    light, grain = torch.rand(64, 2, 3, 1, 1) - 0.5, 0.05 * torch.randn(64, 2, 24, 25)
    sharp, soft = (light + part[:, :, None] for part in (grain[..., 1:], (grain[..., 1:] + grain[..., :-1]) / 2))
    torch.testing.assert_close(judge(sharp + 0.3), judge(sharp), atol=1e-4, rtol=0)
    for at in range(0, 48, 8):
        batch = slice(at, at + 8)
        optimizer.zero_grad()
        tells_apart(judge(sharp[batch]), judge(soft[batch])).backward()
        optimizer.step()
    assert judge(sharp[48:]).mean() > judge(soft[48:]).mean() + 0.5
