"""The one rollout: how the next block of frames comes about. Training and evaluation call it, engines run its export.

Dimensions: K steps, B rows, F frames of a block, S sink frames, L layers, H heads, D head dim, N tokens a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from streamgen.cache import block_rotation, replay, slot_of, visible_slots
from streamgen.config import Jump, TransformerConfig, jumps
from streamgen.models.attention import Attend, CacheAttention, InPlaceAttention, rotate_sinks
from streamgen.models.autoencoder import Autoencoder, to_float, to_levels, to_uint8
from streamgen.models.transformer import TIME_SCALE, CausalVideoTransformer, sinusoid
from streamgen.state import StreamState


class Commit(nn.Module):
    """The pass that gives a known block's keys and values: at zero noise, or at the transformer's `history_level`."""

    def __init__(self, transformer: CausalVideoTransformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        latents: Tensor,
        previous: Tensor,
        actions: Tensor,
        rotation: Tensor,
        visible: Tensor,
        cache_k: Tensor,
        cache_v: Tensor,
        reference: Tensor | None = None,
        reference_actions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, raw keys and values [L, B, H, F N, D] of `latents` [B, F, C, h, w], which are at the history's noise
        level; other inputs as for `Rollout`.
        """
        attend = _attention(self.transformer, rotation, visible, cache_k, cache_v)
        shown = _shown(self.transformer, previous, actions, reference, reference_actions)
        _velocity(self.transformer, latents, self.transformer.config.history_level, attend, actions, previous, shown)
        return attend.block()


class Rollout(nn.Module):
    """All of a block: denoising steps with fresh noise between them, the decoder, and the commit if there is one."""

    def __init__(
        self, transformer: CausalVideoTransformer, autoencoder: Autoencoder | None, sigmas: Sequence[float]
    ) -> None:
        """autoencoder: None where only `denoise` is wanted."""
        super().__init__()
        self.transformer = transformer
        self.autoencoder = autoencoder
        self.sigmas = tuple(sigmas)
        # The history is the first of several steps.
        self._keeps_first = transformer.config.history_level == 1 and len(self.sigmas) > 1

    def denoise(self, *given: Tensor) -> Tensor:
        """Clean latents [B, F, C, h, w] alone, of what `made_and_kept` takes."""
        return self.made_and_kept(*given)[0]

    def made_and_kept(
        self,
        noise: Tensor,
        previous: Tensor,
        actions: Tensor,
        rotation: Tensor,
        visible: Tensor,
        cache_k: Tensor,
        cache_v: Tensor,
        reference: Tensor | None = None,
        reference_actions: Tensor | None = None,
        *,
        gradient_from: int = 0,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Clean latents [B, F, C, h, w]: predict x0, noise it again to the next level with fresh noise, and so on; or
        jump from level to level, where the transformer maps flows. And keys, raw keys and values of the step that is
        the history where there is no commit. gradient_from: the first step that has one, if any has.
        """
        attend = _attention(self.transformer, rotation, visible, cache_k, cache_v)
        shown = _shown(self.transformer, previous, actions, reference, reference_actions)
        return self._denoise(noise, previous, actions, attend, shown, gradient_from), attend.block()

    def _denoise(
        self,
        noise: Tensor,
        previous: Tensor,
        actions: Tensor,
        attend: CacheAttention,
        shown: Tensor | None,
        gradient_from: int = 0,
    ) -> Tensor:
        x, maps_flows = noise[0], self.transformer.config.flow_map
        for step, (sigma, to) in enumerate(jumps(self.sigmas, self.transformer.config)):
            if step and not maps_flows:
                x = (1 - sigma) * x + sigma * noise[step]
            with torch.no_grad() if step < gradient_from else nullcontext():
                x = x - (sigma - to) * _velocity(self.transformer, x, sigma, attend, actions, previous, shown, to=to)
            if step == 0 and self._keeps_first:
                attend.keep()
        return x

    def forward(
        self,
        noise: Tensor,
        previous: Tensor,
        actions: Tensor,
        rotation: Tensor,
        visible: Tensor,
        cache_k: Tensor,
        cache_v: Tensor,
        reference: Tensor | None = None,
        reference_actions: Tensor | None = None,
        picture: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Frames uint8 [B, F, H, W, 3], latents [B, F, C, h, w], and keys, raw keys and values [L, B, H, F N, D].

        noise [K, B, F, C, h, w]; previous [B, C, h, w], the clean latent before the block; actions [B, F, A]; rotation
        [B, S + F, 2, Pt] and visible [B, slots] from `streamgen.cache`; cache_k, cache_v [L, B, H, slots N, D]. For
        a transformer with a face the stream's first latent [B, C, h, w] and what drove it [B, A]; for a decoder that
        looks at it its picture, uint8 [B, H, W, 3].
        """
        assert self.autoencoder is not None
        attend = _attention(self.transformer, rotation, visible, cache_k, cache_v)
        shown = _shown(self.transformer, previous, actions, reference, reference_actions)
        # As the state keeps them: what is committed, shown and replayed later are the same latents.
        latents = self._denoise(noise, previous, actions, attend, shown).half().float()
        frames = to_uint8(_decoded(self.autoencoder, latents, reference, picture)).unflatten(0, latents.shape[:2])
        if not self.transformer.config.history_level:
            _velocity(self.transformer, latents, 0.0, attend, actions, previous, shown)
        return frames, latents, *attend.block()


class InPlacePass(nn.Module):
    """One pass over a block, a denoising step or the commit, that writes into its cache: the rollout in pieces, for
    runtimes that write into a cache once a graph.

    A frame is `RotateSinks`, a pass for each step and for the commit if there is one, and `Decode`. Each row has a
    noise level of its own; one that takes fewer steps than others commits, or begins, more than once, which changes
    nothing. Where the first step is the history, later ones write elsewhere (`streamgen.cache.in_place`).
    """

    levels: Tensor
    ends: Tensor
    times: Tensor

    def __init__(
        self,
        transformer: CausalVideoTransformer,
        levels: Sequence[Jump],
        attention: Callable[..., InPlaceAttention] = InPlaceAttention,
    ) -> None:
        """levels: before and after the passes that may be asked for; from 0 commits. attention: made as
        `InPlaceAttention` is.
        """
        super().__init__()
        self.transformer = transformer
        self._attention = attention
        for name, values in zip(("levels", "ends"), zip(*levels, strict=True), strict=True):
            self.register_buffer(name, torch.tensor(values), persistent=False)
        times = sinusoid(self.levels * TIME_SCALE, transformer.config.freq_dim)
        self.register_buffer("times", times, persistent=False)

    def forward(
        self,
        x: Tensor,
        noise: Tensor,
        level: Tensor,
        previous: Tensor,
        actions: Tensor,
        rotation: Tensor,
        write: Tensor,
        length: Tensor,
        cache: Sequence[Tensor],
        reference: Tensor | None = None,
        reference_actions: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Latents [B, F, C, h, w] at the level to which the pass leads, and the cache with the block in it.

        x: what the pass before gave (of the first: the noise); noise: fresh, to bring x to the level, whose index is
        `level` [B], where the transformer does not map flows. write, length and cache as for `InPlaceAttention`, all
        else as for `Rollout`.
        """
        attend = self._attention(self.transformer.config, self.transformer.space, rotation, write, length, cache)
        shown = _shown(self.transformer, previous, actions, reference, reference_actions)
        sigma, end = (t.index_select(0, level)[:, None, None, None, None] for t in (self.levels, self.ends))
        noisy = x if self.transformer.config.flow_map else (1 - sigma) * x + sigma * noise
        # What is committed are latents as the state keeps them.
        x = torch.where(sigma > 0, noisy, x.half().float())
        times = self.times.index_select(0, level)[:, None].expand(-1, x.shape[1], -1)
        levels, ends = (t[:, :, 0, 0, 0].expand(-1, x.shape[1]) for t in (sigma, end))
        velocity = _velocity(self.transformer, x, levels, attend, actions, previous, shown, times, ends)
        return x - (sigma - end) * velocity, attend.cache


class RotateSinks(nn.Module):
    """What comes before a block's passes: the sinks' keys at the positions from which the block sees them."""

    space: Tensor

    def __init__(self, transformer: CausalVideoTransformer) -> None:
        super().__init__()
        self._config = transformer.config
        self.register_buffer("space", transformer.space, persistent=False)

    def forward(self, rotation: Tensor, keys: Sequence[Tensor], raw: Sequence[Tensor]) -> list[Tensor]:
        """As `streamgen.models.attention.rotate_sinks`."""
        return rotate_sinks(self._config, self.space, rotation, keys, raw)


class Decode(nn.Module):
    """Frames uint8 [B, F, H, W, 3] of latents [B, F, C, h, w], taken as the state keeps them. reference and picture as
    for `Rollout`.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor, reference: Tensor | None = None, picture: Tensor | None = None) -> Tensor:
        images = _decoded(self.autoencoder, latents.half().float(), reference, picture)
        # TensorRT has bytes as outputs only: nothing may be done to them.
        return to_levels(images).movedim(-3, -1).unflatten(0, latents.shape[:2]).to(torch.uint8)


def _decoded(autoencoder: Autoencoder, latents: Tensor, reference: Tensor | None, picture: Tensor | None) -> Tensor:
    """Images [B F, 3, H, W] of latents [B, F, C, h, w]."""
    seen = None
    if reference is not None and picture is not None:
        # TensorRT takes bytes to make floats of them only.
        given = reference, to_float(picture.float())
        one, two = (t[:, None].expand(-1, latents.shape[1], *t.shape[1:]).flatten(0, 1) for t in given)
        seen = one, two
    return autoencoder.decode(latents.flatten(0, 1), seen)


class Encode(nn.Module):
    """Latents [B, C, h, w] of pictures uint8 [B, H, W, 3], as the state keeps them, and the pictures [B, H, W, 3] that
    these decode to.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.autoencoder.encode(to_float(pictures))
        return latents, to_uint8(self.autoencoder.decode(latents.half().float()))


def _attention(
    transformer: CausalVideoTransformer, rotation: Tensor, visible: Tensor, k: Tensor, v: Tensor
) -> CacheAttention:
    return CacheAttention(transformer.config, transformer.space, rotation, visible, k, v)


def _shown(
    transformer: CausalVideoTransformer,
    previous: Tensor,
    actions: Tensor,
    reference: Tensor | None,
    reference_actions: Tensor | None,
) -> Tensor | None:
    """What all passes of a block know of its frames before they are drawn: a face's drawing, or a world's view."""
    shown: Tensor | None = None
    if reference is not None and reference_actions is not None:
        shown = transformer.face(reference, reference_actions, actions)
    elif transformer.config.pose_scale:
        shown = transformer.seen(previous[:, None].expand(-1, actions.shape[1], -1, -1, -1), actions)
    return shown


def _velocity(
    transformer: CausalVideoTransformer,
    x: Tensor,
    sigma: float | Tensor,
    attend: Attend,
    actions: Tensor,
    previous: Tensor,
    shown: Tensor | None,
    times: Tensor | None = None,
    to: float | Tensor = 0.0,
) -> Tensor:
    config = transformer.config
    levels, ends = (t if isinstance(t, Tensor) else torch.full(x.shape[:2], t) for t in (sigma, to))
    before = previous[:, None].expand_as(x) if config.concat_previous else None
    driven = actions if config.action_dim is not None else None
    velocity: Tensor = transformer(x, levels, attend, driven, before, shown_BFCHW=shown, times_BFd=times, to_BF=ends)
    return velocity


@dataclass
class RollingCache:
    """The cache of B rows that stand at the same frame: fixed slots, a new block is written in place.

    k, v [L, B, H, slots N, D]; frame: index of the next frame; first: the oldest frame seen after the sinks;
    previous: the last clean latent [B, C, h, w]. reference: where there is a face, the stream's first latent and what
    drove it [B, A]; picture: where the decoder looks at it, its picture, uint8 [B, H, W, 3]; else nothing.
    """

    config: TransformerConfig
    k: Tensor
    v: Tensor
    previous: Tensor
    reference: tuple[Tensor, ...]
    frame: int
    first: int
    picture: tuple[Tensor, ...] = ()

    @classmethod
    def empty(cls, config: TransformerConfig, rows: int, frame: int = 0) -> Self:
        shape = config.num_layers, rows, config.num_heads, config.slots * config.tokens, config.head_dim
        previous = torch.zeros(rows, config.in_channels, config.height, config.width)
        # A tensor of its own: what an export is shown as one tensor becomes one input.
        reference = (previous.clone(), torch.zeros(rows, config.action_dim or 0)) if config.face_dim else ()
        return cls(config, torch.zeros(shape), torch.zeros(shape), previous, reference, frame, frame)

    def inputs(self) -> tuple[Tensor, ...]:
        """rotation, visible, cache_k, cache_v of the next block, and the reference."""
        rows = self.k.shape[1]
        rotation = torch.from_numpy(block_rotation(self.frame, self.config))
        visible = torch.from_numpy(visible_slots(self.frame, self.config, self.first))
        return rotation.expand(rows, -1, -1, -1), visible.expand(rows, -1), self.k, self.v, *self.reference

    def write(self, latents: Tensor, k: Tensor, raw_k: Tensor, v: Tensor) -> None:
        """Store the block that `inputs` were asked for: latents [B, F, C, h, w], keys and values as `Rollout` gives
        them.
        """
        n = self.config.tokens
        for i in range(self.config.block_size):
            slot = slot_of(self.frame + i, self.config)
            keys = raw_k if self.frame + i < self.config.sink else k
            self.k[:, :, :, slot * n : (slot + 1) * n] = keys[:, :, :, i * n : (i + 1) * n]
            self.v[:, :, :, slot * n : (slot + 1) * n] = v[:, :, :, i * n : (i + 1) * n]
        self.previous = latents[:, -1]
        self.frame += self.config.block_size

    def clean(self, commit: Commit, latents: Tensor, actions: Tensor, noise: Tensor | None = None) -> None:
        """Commit a known block: clean latents [B, F, C, h, w], actions [B, F, A]. noise: its own, as large, which a
        `history_level` needs.
        """
        if self.config.face_dim and self.frame == 0:
            self.reference = latents[:, 0], actions[:, 0]
        given, level = latents, self.config.history_level
        if level:
            assert noise is not None, "a history_level needs the block's noise"
            given = (1 - level) * latents + level * noise
        self.write(latents, *commit(given, self.previous, actions, *self.inputs()))


def recache(commit: Commit, state: StreamState, steps: int = 1) -> RollingCache:
    """The cache (one row) of a stream, by committing its history in order: the live cache, if the history is long
    enough. steps: as for `replay`.
    """
    cache = RollingCache.empty(commit.transformer.config, 1)
    if state.picture.size:
        cache.picture = (torch.from_numpy(state.picture)[None],)
    for block in replay(state, commit.transformer.config, steps):
        cache.frame, cache.first = block.frame, block.first
        cache.previous = torch.from_numpy(block.previous)[None].float()
        latents, actions = torch.from_numpy(block.latents)[None].float(), torch.from_numpy(block.actions)[None]
        if cache.config.face_dim and cache.frame == 0:
            cache.reference = latents[:, 0], actions[:, 0]
        given = torch.from_numpy(block.given)[None]
        cache.write(latents, *commit(given, cache.previous, actions, *cache.inputs()))
    return cache
