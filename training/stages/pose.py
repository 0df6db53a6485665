"""The world before the teacher: where keys lead, where actors go, and what is to be seen (streamgen/models/pose.py).

All learn side by side and share nothing: the view from single frames, the others from the states of clips. A batch is
drawn from clips that are recorded once, at the start, by each process its share: a step costs little and a recording
much.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.models.loading import load_autoencoder, save_pose
from streamgen.models.motion import REACH, Course, Motion
from streamgen.models.pose import Pose, from_planes, split
from streamgen.student import WEIGHTS
from training.clips import LatentClips, encode, recorded_share, states_of
from training.data import Clip, ClipData, held_out
from training.distributed import greatest
from training.judges import yaw_difference
from training.metrics import decode, frames_psnr
from training.package import data_for
from training.recipe import PoseRecipe, RecipeError
from training.sheets import contact_sheet

_POSE = "pose."
"""Of weights of a transformer, those that are the pose's."""
_WHERE = "view.where"
"""Weights whose shape is that of frames."""
_GROUND = "view.heights", "motion.floors"
"""Not learned, but the data's."""
_SEEN = 48, 33
"""Held-out clips and the frames of each."""
_THINNED = slice(None, None, 8)
"""Of so many frames of a clip, the view sees one: the others are much the same."""
_WALKED = 24, 96
"""Held-out clips that are walked through to their end, and the frames of each."""
_PART = 64
_SECOND = 18
_POOL_SEED = 2**30 + 1
"""Recorded for pools alone."""
_SHARPNESS = 64.0
"""Errors of a place count squared up to a quarter of 1 / 64 of the scale (2 map units of 512), linearly beyond: whether
one hits a pillar or slides past it is not to be averaged."""
_PLACE = [0, 1, 6]
"""Of a pose: x, y and the height of the eye."""
_HEADING = 30.0
"""What an error of the heading's cosine and sine counts beside: two degrees are about one, as are eight map units."""
_COURSE = 256.0
"""Errors of what a frame adds to an actor's place count linearly, 1 for so little of the scale (2 map units of 512):
whether one turns back from a wall is not to be averaged."""
_HITS, _LIKELY = 30.0, 5.0
"""What the entropy of hits counts, and how much more a hit than a frame without: hits are rare, and one of which the
keys and the aim leave a chance in six is to be one."""


class PoseStage:
    """Trains `Pose`: squared error of the view's latents, Huber's of places some frames on, and for actors the error of
    a frame's way, the entropy of hits, and the squared error of clocks.
    """

    def __init__(self, recipe: PoseRecipe) -> None:
        self.recipe = recipe
        self._autoencoder = load_autoencoder(recipe.autoencoder)
        self.data = data_for(recipe, recipe.model, self._autoencoder)
        torch.manual_seed(recipe.seed)
        model = Pose(recipe.model)
        if recipe.start is not None:
            _start_from(model, recipe.start)
        _stand(model, recipe, self.data)
        self._held_out = [clip.cut(_THINNED) for clip in held_out(self.data, *_SEEN)]
        self._judged = self._encoded(self._held_out)
        self._walked = self._states(held_out(self.data, *_WALKED))
        pool, walks = [], []
        said = f"{recipe.name}: recording"
        for _, part in recorded_share(self.data, _POOL_SEED, recipe.walks, recipe.clip_length, _PART, said):
            pool.append(self._encoded([clip.cut(_THINNED) for clip in part]))
            walks.append(self._states(part))
        self._pool = torch.cat(pool)
        self._walks = LatentClips(torch.cat([w.latents for w in walks]), torch.cat([w.actions for w in walks]))
        if recipe.model.actors:
            model.course.learn_ground(split(self._walks.latents)[1][..., :2])
            greatest(model.course.ground)
        self.model: nn.Module = model

    def batch(self, clips: list[Clip], number: int) -> tuple[Tensor, LatentClips]:
        """Latents [N, C, h, w] of single frames, and short walks: states [B, 1 + walk, S] in place of latents."""
        recipe, rng = self.recipe, np.random.default_rng((self.recipe.seed, number))
        frames = rng.integers(len(self._pool), size=recipe.frames)
        chosen = rng.integers(len(self._walks.latents), size=recipe.starts)
        states, actions = self._walks.latents[chosen], self._walks.actions[chosen]
        # Not from a clip's first frame, whose speed is not known.
        starts = rng.integers(1, recipe.clip_length - recipe.walk, size=(len(states), 1))
        at = np.arange(len(states))[:, None], starts + np.arange(1 + recipe.walk)
        return self._pool[frames], LatentClips(states[at], actions[at])

    def loss(
        self, batch: tuple[Tensor, LatentClips], ema: nn.Module, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(self.model, Pose)
        pictures, walks = batch
        picture, state = self._split(pictures)
        view = F.mse_loss(self.model.view(state), picture)
        poses, actors = split(walks.latents)
        made, true = walk(self.model.motion, poses[:, 0], walks.actions[:, 1:]), poses[:, 1:]
        place = F.smooth_l1_loss(made[..., _PLACE] * _SHARPNESS, true[..., _PLACE] * _SHARPNESS, beta=0.25)
        motion = place + F.mse_loss(made[..., 2:4] * _HEADING, true[..., 2:4] * _HEADING)
        figures = {"view": view.item(), "motion": motion.item()}
        if not self.recipe.model.actors:
            return view + motion, figures
        course = course_loss(self.model.course, actors, poses, walks.actions)
        return view + motion + course, figures | {"course": course.item()}

    @torch.no_grad()
    def evaluate(self, ema: nn.Module, sheet: Path) -> dict[str, float]:
        assert isinstance(ema, Pose)
        pictures, states = self._split(self._judged)
        made = decode(self._autoencoder, torch.cat([ema.view(part) for part in states.split(_PART)]))
        real = np.concatenate([clip.frames for clip in self._held_out])
        contact_sheet([frames[at : at + 8] for at in (0, 40) for frames in (real, made)], sheet)
        (poses, actors), actions = split(self._walked.latents), self._walked.actions
        ends, true = walk(ema.motion, poses[:, 1], actions[:, 2:])[:, -1], poses[:, -1]
        headings = (np.degrees(torch.atan2(pose[:, 3], pose[:, 2]).numpy()) for pose in (ends, true))
        assert self.recipe.model.pose_scale
        figures = {} if not self.recipe.model.actors else judge_course(ema.course, actors, poses, actions)
        return figures | {
            "psnr": frames_psnr(made, real),
            "ceiling": frames_psnr(decode(self._autoencoder, pictures), real),
            "yaw_deg": float(np.median(yaw_difference(*headings))),
            "distance": float((ends - true)[:, :2].norm(dim=1).median()) * self.recipe.model.pose_scale,
        }

    def finish(self, ema: nn.Module, folder: Path) -> None:
        assert isinstance(ema, Pose)
        save_pose(ema, folder)

    def _encoded(self, clips: list[Clip]) -> Tensor:
        """Latents of all frames, [N, C, h, w]."""
        return encode(self._autoencoder, clips, self.recipe.model).latents.flatten(0, 1)

    def _states(self, clips: list[Clip]) -> LatentClips:
        actions = torch.from_numpy(np.stack([clip.actions for clip in clips])).float()
        return LatentClips(states_of(clips, self.recipe.model), actions)

    def _split(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [N, C, h, w] and states [N, S] of latents."""
        pictures, filled = latents.tensor_split((self.recipe.model.picture_channels,), 1)
        return pictures, from_planes(filled, self.recipe.model)


def _start_from(model: Pose, folder: Path) -> None:
    """Of frames of another size the weights of each latent pixel are resampled; all else stays."""
    weights: dict[str, Tensor] = {}
    for path, prefix in ((folder / "transformer" / WEIGHTS, _POSE), (folder / "pose" / WEIGHTS, "")):
        with contextlib.suppress(OSError, SafetensorError):
            read = load_file(path).items()
            weights = {name.removeprefix(prefix): value.float() for name, value in read if name.startswith(prefix)}
    if not weights:
        raise RecipeError(f"start: {folder} has no pose: name a run or student folder that has one")
    own = model.state_dict()
    weights |= {name: own[name] for name in _GROUND}
    if _WHERE in weights:
        where = weights[_WHERE].permute(2, 0, 1)[None]
        weights[_WHERE] = F.interpolate(where, own[_WHERE].shape[:2], mode="bilinear")[0].permute(1, 2, 0)
    wrong = [name for name, value in weights.items() if name not in own or own[name].shape != value.shape]
    if wrong:
        raise RecipeError(f"start: {folder} has weights that do not fit this pose: {wrong[0]}, ...")
    model.load_state_dict(weights, strict=False)


def _stand(model: Pose, recipe: PoseRecipe, data: ClipData) -> None:
    """Put it on the data's ground."""
    scale = recipe.model.pose_scale
    assert scale is not None
    points = np.linspace(-REACH, REACH, recipe.model.ground_map) * scale
    ground = data.ground(points, points)
    if ground is None:
        raise RecipeError(
            "data: they do not say where the ground is; put ground.npz beside the videos (training/videos.py)"
        )
    half_width = math.tan(math.radians(ground.view_deg / 2))
    heights, floors = (torch.from_numpy(each) / scale for each in (ground.heights, ground.floors))
    if len(ground.fixtures) != recipe.model.fixtures:
        raise RecipeError(f"model.fixtures {recipe.model.fixtures}: the data's ground has {len(ground.fixtures)}")
    fixtures = torch.from_numpy(ground.fixtures) / scale
    model.stand(heights, floors, ground.eye / scale, half_width, fixtures, ground.rate)


def walk(motion: Motion, pose: Tensor, actions: Tensor) -> Tensor:
    """Poses [..., F, 9] that actions [..., F, A] lead to from a pose [..., 9]."""
    poses = []
    for action in actions.unbind(-2):
        pose = motion(pose, action)
        poses.append(pose)
    return torch.stack(poses, -2)


def course_loss(course: Course, actors: Tensor, poses: Tensor, actions: Tensor) -> Tensor:
    """How far actors [B, F, T, 5] of clips do not go as `course` says, from every frame to the next."""
    move, hit = course.said(actors[:, :-1], poses[:, 1:], actions[:, 1:])
    before, after = actors[:, :-1, :, 4], actors[:, 1:, :, 4]
    # Who stands, or is stopped by a wall, has no direction to be learned.
    speed = actors[..., 2:4].norm(dim=-1)
    goes = speed > speed.median() / 2
    way = _mean((move - actors[:, 1:, :, 2:4])[goes[:, :-1] & goes[:, 1:]].abs()) * _COURSE
    free, begun, going = before == 0, (before == 0) & (after > 0), (before > 0) & (after > before)
    likely = torch.tensor(_LIKELY)
    hits = F.binary_cross_entropy_with_logits(hit[free], begun[free].float(), pos_weight=likely, reduction="none")
    # Of the keys alone, hits and other frames count alike: they are to say where hits are likelier than on average.
    allowed = course.trigger(actions[:, 1:]).expand_as(hit)
    keys = _mean(F.softplus(-allowed[begun])) + _mean(F.softplus(allowed[free & ~begun]))
    rate = _mean(((course.rate - (after - before)[going]) / course.rate.detach()).square())
    return way + _HITS * _mean(hits) + keys + rate


def _mean(errors: Tensor) -> Tensor:
    """Of none, 0 that still has a gradient: all processes must have the same."""
    return errors.sum() / max(1, errors.numel())


def judge_course(course: Course, actors: Tensor, poses: Tensor, actions: Tensor) -> dict[str, float]:
    """How far off actors are after a second (18 frames), on average, in parts of how far they went: the median would
    not show who flies through walls. Of hits, how many are foretold, and how many of the foretold are hits.
    """
    made = actors[:, 1]
    for frame in range(2, 2 + _SECOND):
        made = course(made, poses[:, frame], actions[:, frame])
    true = actors[:, 1 + _SECOND]
    off, went = ((true - other)[..., :2].norm(dim=-1).mean() for other in (made, actors[:, 1]))
    said = course.said(actors[:, :-1], poses[:, 1:], actions[:, 1:])[1] > 0
    free, begun = actors[:, :-1, :, 4] == 0, (actors[:, :-1, :, 4] == 0) & (actors[:, 1:, :, 4] > 0)
    right = float((said & begun).sum())
    return {
        "course": float(off / went.clamp_min(1e-6)),
        "hits": right / max(1, int(begun.sum())),
        "hits_right": right / max(1, int((said & free).sum())),
    }
