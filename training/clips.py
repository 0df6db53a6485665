"""Latent clips for the student's stages: encoded batches, the history that a step trains on, and forward passes over
clips.

Dimensions: B clips, F frames, C channels, h and w latent pixels, A actions, K noisy copies of a clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from streamgen.config import TransformerConfig
from streamgen.models.attention import ClipAttention
from streamgen.models.autoencoder import Autoencoder, to_float
from streamgen.models.pose import planes
from streamgen.models.rollout import Commit, RollingCache, Rollout
from streamgen.models.transformer import CausalVideoTransformer
from training.data import Clip, ClipData, recorded
from training.distributed import rank_and_size
from training.losses import add_noise, denoised, focus_weight
from training.recipe import DecoderRecipe, FaceRecipe, RecipeError, StudentRecipe

_LOOKED_AT = 24
"""Frames that tell what a decoder shows of a channel."""
_SCAR = 3.0
"""Largest spread of a scar's noise, in latent units: a picture that runs away gets as far in two or three frames."""
_LEAST = 0.2
"""Lowest noise level of a simulated step."""
_NUDGE = 0.2
"""In units of a channel's own spread."""


def recorded_share(
    data: ClipData, seed: int, count: int, length: int, part: int, said: str
) -> Iterator[tuple[int, list[Clip]]]:
    """This process's share of the first `count` clips, `part` at a time, with the number of each part's first one."""
    rank, size = rank_and_size()
    own = max(1, count // size)
    clips = recorded(data, seed, range(rank * own, (rank + 1) * own), length)
    for at in track(range(0, own, part), f"{said} {own} clips", transient=True, disable=rank > 0):
        yield rank * own + at, list(islice(clips, part))


@dataclass(frozen=True)
class LatentClips:
    """latents [B, F, C, h, w], normalised; actions [B, F, A], what drove each frame."""

    latents: Tensor
    actions: Tensor


def pose_vector(poses: Tensor, scale: float) -> Tensor:
    """[..., 4]: x and y in units of `scale`, cosine and sine of yaw, of poses [..., 3] as a `Clip` has them."""
    yaw = torch.deg2rad(poses[..., 2:])
    return torch.cat([poses[..., :2] / scale, yaw.cos(), yaw.sin()], -1)


def states_of(clips: list[Clip], config: TransformerConfig) -> Tensor:
    """[B, F, S]: the states of clips of equal length as latents carry them (see streamgen/models/pose.py).

    The first frame's says that nothing moved. Raises RecipeError when a clip does not tell what the configuration has.
    """
    assert config.pose_scale
    poses = torch.from_numpy(np.stack([clip.poses for clip in clips]))
    if not poses.isfinite().all():
        raise RecipeError("model.pose_scale: the clips do not say where they were seen from; leave it out")
    pose = pose_vector(poses, config.pose_scale)
    heights = [clip.eyes for clip in clips if clip.eyes is not None]
    if len(heights) < len(clips):
        raise RecipeError("model.pose_scale: the clips do not say how high the camera is, nor where the ground is")
    eyes = torch.from_numpy(np.stack(heights))[..., None] / config.pose_scale
    beats = np.stack([np.zeros(len(clip.poses), np.float32) if clip.beats is None else clip.beats for clip in clips])
    parts = [pose, _added(pose[..., :2]), eyes, _added(eyes), torch.from_numpy(beats)[..., None]]
    if config.actors:
        told = [clip.actors for clip in clips if clip.actors is not None and clip.actors.shape[1] == config.actors]
        if len(told) < len(clips):
            raise RecipeError(f"model.actors {config.actors}: the clips tell of another number, or of none")
        places, clocks = torch.from_numpy(np.stack(told)).tensor_split((2,), -1)
        places = places / config.pose_scale
        parts.append(torch.cat([places, _added(places), clocks], -1).flatten(2))
    return torch.cat(parts, -1)


def _added(places: Tensor) -> Tensor:
    """What every frame of [B, F, ...] adds to the one before."""
    return torch.diff(places, dim=1, prepend=places[:, :1])


@torch.no_grad()
def encode(autoencoder: Autoencoder, clips: list[Clip], config: TransformerConfig) -> LatentClips:
    """Encode clips of equal length for a transformer. Raises RecipeError when it needs poses and they have none."""
    latents = torch.stack([_latents(autoencoder, clip) for clip in clips])
    if config.pose_scale:
        latents = torch.cat([latents, planes(states_of(clips, config), config)], 2)
    actions = torch.from_numpy(np.stack([clip.actions for clip in clips])).float()
    return LatentClips(latents, actions)


def _latents(autoencoder: Autoencoder, clip: Clip) -> Tensor:
    if clip.latents is not None:
        return torch.from_numpy(clip.latents).float()
    frames = to_float(torch.from_numpy(clip.frames))
    return torch.cat([autoencoder.encode(part) for part in frames.split(64)])


@torch.no_grad()
def error_weight(
    autoencoder: Autoencoder, config: TransformerConfig, recipe: StudentRecipe | FaceRecipe, clips: LatentClips
) -> Tensor:
    """How much an error counts at every place of a latent, [C, h, w] or [h, w], 1 on average: what the recipe looks at
    closely and, if it says so, what the decoder shows of each channel, which `clips` tell.
    """
    focus = focus_weight(config.height, config.width, recipe.focus.values(), recipe.focus_weight)
    if not recipe.as_seen:
        return focus
    latents = clips.latents.flatten(0, 1)
    some = latents[:: max(1, len(latents) // _LOOKED_AT), : config.picture_channels]
    plain = autoencoder.decode(some)
    shown = []
    for channel in range(config.picture_channels):
        moved = some.clone()
        moved[:, channel] += _NUDGE
        shown.append((autoencoder.decode(moved) - plain).square().mean())
    weight = torch.stack(shown)
    return (weight / weight.mean())[:, None, None] * focus


def before(history: Tensor, block_size: int) -> Tensor:
    """The last latent before each frame's block, [B, F, C, h, w]; zeros before the first block."""
    frames = history.shape[1]
    first_of_block = torch.arange(frames) // block_size * block_size
    padded = torch.cat([torch.zeros_like(history[:, :1]), history], 1)
    return padded[:, first_of_block]


class ClipPass:
    """Forward passes over whole clips with a fixed history, all frames at once (teacher forcing)."""

    def __init__(
        self,
        config: TransformerConfig,
        history: Tensor,
        level: Tensor,
        actions: Tensor,
        copies: int = 1,
        noise: Tensor | None = None,
    ) -> None:
        """history [B, F, C, h, w] at noise `level` [B, F]; actions [B, F, A]; `copies` noisy copies are denoised at a
        time. noise as history: with a `history_level` the clean history's keys are made at that level.
        """
        self.config, self.copies = config, copies
        self._level, self._actions, self._reference = level, actions, history[:, 0]
        self._previous = before(history, config.block_size) if config.concat_previous else None
        if config.history_level:
            assert noise is not None, "a history_level needs noise"
            self._level = torch.full_like(level, config.history_level)
            history = add_noise(history, noise, self._level)
        self.history = history

    def _shown(self, model: CausalVideoTransformer, driven: Tensor | None) -> Tensor | None:
        """What is known of every frame of the history and of its copies before they are drawn, which is the same unless
        others drive the copies.
        """

        def shown(actions: Tensor) -> Tensor:
            if self._previous is not None and self.config.pose_scale:
                return model.seen(self._previous, actions)
            face: Tensor = model.face(self._reference, self._actions[:, 0], actions)
            return face

        if not (self.config.face_dim or self.config.pose_scale):
            return None
        own = shown(self._actions)
        return torch.cat([own, *([own if driven is None else shown(driven)] * self.copies)], 1)

    def velocity(
        self,
        model: CausalVideoTransformer,
        x: Tensor,
        sigma: Tensor,
        known: Tensor | None = None,
        driven: Tensor | None = None,
        to: Tensor | None = None,
    ) -> Tensor:
        """Velocity of noisy copies x [B, K, F, C, h, w] at levels sigma [B, K, F].

        known as sigma: 0 withholds an action. driven [B, F, A]: actions of the noisy frames instead of the history's.
        to as sigma: the levels to which a model that maps flows is to go; by default 0.
        """
        return self.all_velocities(model, x, sigma, known, driven, to)[:, 1:]

    def all_velocities(
        self,
        model: CausalVideoTransformer,
        x: Tensor,
        sigma: Tensor,
        known: Tensor | None = None,
        driven: Tensor | None = None,
        to: Tensor | None = None,
    ) -> Tensor:
        """[B, 1 + K, F, C, h, w]: as `velocity`, and before it that of the history at its own level, which is a step
        like others where there is a `history_level`.
        """
        frames, copies = self.history.shape[1], self.copies
        # The history is the first step of those at lower levels.
        later = None
        if copies and self.config.history_level == 1:
            later = torch.cat([torch.ones_like(self._level)[:, None], sigma], 1) < 1
        attend = ClipAttention(self.config, model.space, frames, copies + 1, later)

        def repeated(t: Tensor) -> Tensor:
            return t.repeat(1, copies + 1, *(1 for _ in t.shape[2:]))

        levels = torch.cat([self._level, sigma.flatten(1, 2)], 1)
        if known is not None:
            known = torch.cat([torch.ones_like(self._level), known.flatten(1, 2)], 1)
        if to is not None:
            to = torch.cat([torch.zeros_like(self._level), to.flatten(1, 2)], 1)
        out = model(
            torch.cat([self.history, x.flatten(1, 2)], 1),
            levels,
            attend,
            torch.cat([self._actions, *([self._actions if driven is None else driven] * copies)], 1),
            None if self._previous is None else repeated(self._previous),
            known_BF=known,
            shown_BFCHW=self._shown(model, driven),
            to_BF=to,
        )
        velocity: Tensor = out.unflatten(1, (1 + copies, frames))
        return velocity.float()


@torch.no_grad()
def simulated(
    clip: ClipPass,
    model: CausalVideoTransformer,
    recipe: StudentRecipe,
    x0: Tensor,
    eps: Tensor,
    sigma: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Noise for copies x0 [B, K, F, C, h, w] at levels sigma [B, K, F]: eps, or in a share of the steps what makes of
    them what a second step gets to see, the model's own answer to pure noise with eps added (backward simulation; DMD2,
    Yin et al. 2024).

    The velocity from there to x0 is this noise less x0, as ever, so what is learned takes the answer's errors back.
    Where sigma is below _LEAST, they would count for more than all else, and eps stays as it is.
    """
    if not recipe.simulated or float(torch.rand(1, generator=generator)) >= recipe.simulated:
        return eps
    pure = torch.ones_like(sigma)
    if clip.config.history_level == 1:
        # The first step is the history's.
        noise = clip.history[:, None].expand_as(x0)
    else:
        noise = torch.randn(x0.shape, generator=generator)
    error = denoised(noise, clip.velocity(model, noise, pure), pure) - x0
    # A pose is right or the target is another picture.
    error[:, :, :, model.config.picture_channels :] = 0
    return eps + torch.where(sigma < _LEAST, 0, (1 - sigma) / sigma)[..., None, None, None] * error


def noisy_history(clean: Tensor, limit: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Context noise: half of the clips stay clean, the others are noised to one level in (0, limit); returns history
    and level.
    """
    rows = clean.shape[0]
    level = torch.rand(rows, generator=generator) * limit * (torch.rand(rows, generator=generator) < 0.5)
    level = level[:, None].expand(-1, clean.shape[1])
    return add_noise(clean, torch.randn(clean.shape, generator=generator), level), level


def drifted_history(history: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Half of the clips with another contrast and colour from start to end: what a long rollout drifts into."""
    shape = len(history), 1, history.shape[2], 1, 1
    gain, bias = (torch.randn(shape, generator=generator) * amount for _ in range(2))
    chosen = torch.rand(len(history), 1, 1, 1, 1, generator=generator) < 0.5
    return torch.where(chosen, history * gain.exp() + bias, history)


def faded_history(history: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the clips paler from start to end, down to nothing but grey: what is to be seen must then come from
    the pose.
    """
    rows = len(history), 1, 1, 1, 1
    chosen, left = torch.rand(rows, generator=generator) < share, torch.rand(rows, generator=generator)
    return torch.where(chosen, history * left, history)


def scarred_history(history: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the clips with a patch of noise, of any size and strength, from some frame to another.

    What a network amplifies begins small and somewhere, and grows from frame to frame where nothing taught it that such
    a past is to be mended; a rollout that is about to run away is too rare to teach that.
    """
    rows, frames, _, height, width = history.shape

    def between(size: int) -> Tensor:
        """Which of `size` places lie from one to another, [B, size]."""
        ends, at = torch.randint(size, (rows, 2), generator=generator).sort(1).values, torch.arange(size)
        return (at >= ends[:, :1]) & (at <= ends[:, 1:])

    chosen = torch.rand(rows, generator=generator) < share
    place = (between(height)[:, :, None] & between(width)[:, None] & chosen[:, None, None])[:, None, None]
    place = place & between(frames)[:, :, None, None, None]
    strength = _SCAR * torch.rand(rows, 1, 1, 1, 1, generator=generator)
    return torch.where(place, history + strength * torch.randn(history.shape, generator=generator), history)


@torch.no_grad()
def redrawn_history(history: Tensor, face: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the clips on their way, by any part of it, to what the face draws of them, [B, F, C, h, w].

    Whoever generates for long has only its own details to go by, and they fade; this has the true frame to mend them
    by, at any distance, and costs no rollout. The first frame, from which the face draws, stays.
    """
    rows = len(history), 1, 1, 1, 1
    chosen, way = torch.rand(rows, generator=generator) < share, torch.rand(rows, generator=generator)
    out = torch.where(chosen, history.lerp(face, way), history)
    return torch.cat([history[:, :1], out[:, 1:]], 1)


def imperfect_history(
    model: CausalVideoTransformer,
    clips: LatentClips,
    recipe: StudentRecipe,
    plans: Sequence[tuple[float, ...]],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The past that a step trains on: recycled in a share of the steps, by any of the step plans, its picture redrawn,
    drifted, faded, scarred and noised as the recipe says.

    Returns the history [B, F, C, h, w] and its noise level [B, F]. Raises RecipeError.
    """
    if recipe.context_noise and model.config.history_level:
        raise RecipeError("context_noise: the history has a noise level of its own (history_level); set it to 0")
    history = clips.latents
    if recipe.recycle and float(torch.rand(1, generator=generator)) < recipe.recycle_share:
        # Errors of many steps are not those of one, and whoever generates may take either.
        plan = plans[int(torch.randint(len(plans), (1,), generator=generator))]
        history = recycled_history(model, clips, recipe, plan, generator)
    if recipe.redrawn:
        if not model.config.face_dim:
            raise RecipeError("redrawn: only a face draws, and the model has none; leave it out, or set face_dim")
        face = model.face(clips.latents[:, 0], clips.actions[:, 0], clips.actions)
        history = redrawn_history(history, face, recipe.redrawn, generator)
    picture, pose = history.tensor_split((model.config.picture_channels,), 2)
    picture = faded_history(drifted_history(picture, recipe.drift, generator), recipe.fade, generator)
    picture = scarred_history(picture, recipe.scars, generator)
    picture, level = noisy_history(picture, recipe.context_noise, generator)
    return torch.cat([picture, pose], 2), level


@torch.no_grad()
def recycled_history(
    model: CausalVideoTransformer,
    clips: LatentClips,
    recipe: StudentRecipe | DecoderRecipe,
    sigmas: tuple[float, ...],
    generator: torch.Generator,
) -> Tensor:
    """The clips with `recipe.recycle` frames replaced by the model's own rollout under the true actions.

    The rollout starts from a freshly recached window. Its error is clipped, since the target stays the true frame.
    Error recycling after LongLive 2 and Matrix-Game 3, with each error kept at the frame where it arose. Raises
    RecipeError where the clips are too short.
    """
    config, x0 = model.config, clips.latents
    size = config.block_size
    context = config.window
    last_start = x0.shape[1] - recipe.recycle - size
    if last_start < context:
        room = context + recipe.recycle + size
        raise RecipeError(f"clip_length {x0.shape[1]}: recycling {recipe.recycle} frames needs {room}")
    start = int(torch.randint(context, last_start + 1, (1,), generator=generator)) // size * size
    commit, rollout = Commit(model), Rollout(model, None, sigmas)
    cache = RollingCache.empty(config, x0.shape[0])
    own_noise = torch.randn(x0.shape, generator=generator) if config.history_level else x0
    begin = max(start - context, config.sink)
    for at in (*range(0, config.sink, size), *range(begin, start, size)):
        if at == begin and at > 0:
            cache.frame = cache.first = at
            cache.previous = x0[:, at - 1]
        cache.clean(commit, *(t[:, at : at + size] for t in (x0, clips.actions, own_noise)))
    out = x0.clone()
    for at in range(start, start + recipe.recycle, size):
        noise = torch.randn((len(sigmas), x0.shape[0], size, *x0.shape[2:]), generator=generator)
        actions = clips.actions[:, at : at + size]
        made, kept = rollout.made_and_kept(noise, cache.previous, actions, *cache.inputs())
        error = (made.float() - x0[:, at : at + size]).clamp(-recipe.recycle_clip, recipe.recycle_clip)
        # A pose is right or the target is another picture: how it errs is not the picture's to mend.
        out[:, at : at + size, : config.picture_channels] += error[:, :, : config.picture_channels]
        if config.history_level:
            cache.write(out[:, at : at + size], *kept)
        else:
            cache.clean(commit, out[:, at : at + size], actions)
    return out
