"""A decoder for what a student draws.

A student's latents are the mean of what could be, the more so the longer it plays, and a decoder that knows true ones
alone shows that as fog. This one learns from rollouts of the student under the keys and poses of true clips, and from
a discriminator, as those of image codecs do (VQGAN, Esser et al. 2021). Nothing that is shown goes back into the
rollout, so whatever it makes up, it cannot run away.

With `warp_dim` it looks at the picture of the clip's reference too, and learns to bend it to each frame.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.models.autoencoder import Autoencoder, Decoder, Reference, to_float, to_uint8
from streamgen.models.loading import load_autoencoder, load_transformer, save_autoencoder
from training.clips import encode, recorded_share, recycled_history
from training.crops import corner
from training.data import Clip, held_out
from training.discriminator import PictureDiscriminator
from training.losses import fools, logits_and_steepness, near, psnr, reconstruction, tells_apart, texture
from training.metrics import detail, frames_psnr, inside
from training.package import data_for
from training.recipe import DecoderRecipe, RecipeError
from training.sheets import contact_sheet

_EVERY = 8
"""Frames of a clip from one pair to the next: those between are much the same."""
_PART = 4
"""Clips that are rolled out together."""
_HELD_OUT = 8
"""Clips that are judged."""
_EDGE = 1
"""Latent pixels at a crop's edges that do not count."""
_POOL_SEED = 2**30 + 2
"""Recorded for pools alone."""


class DecoderStage:
    """Trains the `Decoder` of an autoencoder: L1 of pixels and of their differences, and a discriminator's pull."""

    def __init__(self, recipe: DecoderRecipe) -> None:
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self._autoencoder = _looking(load_autoencoder(recipe.autoencoder), recipe.warp_dim)
        self._student = load_transformer(recipe.student)
        config, warps = self._student.config, bool(self._autoencoder.config.warp_dim)
        if warps and not config.face_dim:
            raise RecipeError(f"warp_dim: {recipe.student} has no face, so its clips have no reference; leave it out")
        if warps and recipe.crop is not None:
            raise RecipeError(f"crop {recipe.crop}: where a reference is bent to, only whole frames say; leave it out")
        if recipe.clip_length < 2 * config.window + recipe.recycle:
            room = 2 * config.window + recipe.recycle
            raise RecipeError(f"clip_length {recipe.clip_length}: {recipe.recycle} frames and two windows need {room}")
        pixel = self._pixel = self._autoencoder.config.latent_pixel
        if recipe.crop is not None:
            largest = pixel * min(config.height, config.width)
            if recipe.crop % pixel or not (1 + 2 * _EDGE) * pixel <= recipe.crop <= largest:
                raise RecipeError(
                    f"crop {recipe.crop}: give a multiple of {pixel} from {(1 + 2 * _EDGE) * pixel} to {largest} pixels"
                )
        self.data = data_for(recipe, config, self._autoencoder)
        said = f"{recipe.name}: rolling out"
        share = recorded_share(self.data, _POOL_SEED, recipe.walks, recipe.clip_length, _PART, said)
        pairs = [self._pairs(clips, number) for number, clips in share]
        self._pool = _Pairs(*map(torch.cat, zip(*pairs, strict=True)))
        self.model: nn.Module = self._autoencoder.decoder.requires_grad_(True).train()
        self.critic = PictureDiscriminator() if recipe.adversarial else None
        self._learns_to_tell = False

    @cached_property
    def _held_out(self) -> _Pairs:
        """For the one process that judges."""
        return _Pairs(*self._pairs(held_out(self.data, _HELD_OUT, self.recipe.clip_length), 0))

    def turn(self, step: int) -> nn.Module:
        """They take turns, the discriminator first."""
        learns = self.model if self.critic is None or step % 2 else self.critic
        self._learns_to_tell = learns is self.critic
        return learns

    def batch(self, clips: list[Clip], number: int) -> _Pairs:
        """Some of the pairs, perhaps cut to squares."""
        rng = np.random.default_rng((self.recipe.seed, number))
        chosen = self._pool[torch.from_numpy(rng.integers(len(self._pool.latents), size=self.recipe.pairs))]
        if self.recipe.crop is None:
            return chosen
        side, cut = self.recipe.crop // self._pixel, []
        for pair, shown in zip(chosen.latents, chosen.frames, strict=True):
            y, x = corner(pair.shape[-2:], side, self.recipe.focus, rng)
            rows, columns = (slice(at * self._pixel, (at + side) * self._pixel) for at in (y, x))
            cut.append((pair[..., y : y + side, x : x + side], shown[:, rows, columns]))
        latents, frames = (torch.stack(each) for each in zip(*cut, strict=True))
        return replace(chosen, latents=latents, frames=frames)

    def loss(self, batch: _Pairs, ema: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(self.model, Decoder)
        recipe = self.recipe
        shown = self.model.shown(batch.latents.flatten(0, 1).float(), batch.reference(self.model))
        made, true = shown.frames().float().unflatten(0, batch.latents.shape[:2]), to_float(batch.frames)
        if recipe.crop is not None:
            # At a crop's edges the decoder lacks what lies beyond.
            inner = slice(_EDGE * self._pixel, -_EDGE * self._pixel)
            made, true = made[..., inner, inner], true[..., inner, inner]
        if self._learns_to_tell:
            return self._told_apart(true, made.detach(), generator), {}
        loss = error = reconstruction(made.flatten(0, 1), true.flatten(0, 1), recipe.gradient_weight)
        figures = {"psnr": psnr(made.detach(), true)}
        if shown.bent is not None and shown.mask is not None:
            frames = true.flatten(0, 1)
            fit = near(shown.bent, frames)
            # A pixel's error knows no better than a mean of what does not quite fit. Texture may choose between what
            # is drawn and what is bent, and not make any.
            chosen = torch.lerp(shown.image.detach().float(), shown.bent.detach(), shown.mask)
            rough = F.l1_loss(texture(chosen), texture(frames))
            loss = loss + recipe.warp_weight * fit + recipe.texture_weight * rough
            figures |= {"fit": fit.item(), "texture": rough.item(), "mask": shown.mask.mean().item()}
        if self.critic is None:
            return loss, figures
        # Of the discriminator only the direction counts: its slope is now steep, now flat.
        (towards_true,) = torch.autograd.grad(error, made, retain_graph=True)
        (towards_real,) = torch.autograd.grad(fools(self.critic(made)), made)
        pull = towards_real * (recipe.adversarial * towards_true.norm() / towards_real.norm().clamp_min(1e-12))
        return loss + (pull * (made - made.detach())).sum(), figures

    def _told_apart(self, true: Tensor, made: Tensor, generator: torch.Generator) -> Tensor:
        assert self.critic is not None
        (real, real_slope), (fake, fake_slope) = (
            logits_and_steepness(self.critic, pairs, generator) for pairs in (true, made)
        )
        return tells_apart(real, fake) + self.recipe.steepness * (real_slope + fake_slope)

    @torch.no_grad()
    def evaluate(self, ema: nn.Module, sheet: Path) -> dict[str, float]:
        assert isinstance(ema, Decoder)
        frames = self._held_out.frames.flatten(0, 1)
        parts = [self._held_out[part] for part in torch.arange(len(self._held_out.latents)).split(16)]
        made = torch.cat([to_uint8(ema(each.latents.flatten(0, 1).float(), each.reference(ema))) for each in parts])
        some = slice(None, None, max(1, len(frames) // 16))
        rows = [each[some][at : at + 8].numpy() for at in (0, 8) for each in (frames, made)]
        contact_sheet(rows, sheet)
        boxes = {"": (0.0, 0.0, 1.0, 1.0)} | ({} if self.recipe.focus is None else {"_focus": self.recipe.focus})
        figures: dict[str, float] = {}
        for part, box in boxes.items():
            a, b = (inside(each.numpy(), box) for each in (made, frames))
            figures |= {f"psnr{part}": frames_psnr(a, b), f"detail{part}": detail(a) / detail(b)}
        return figures

    def finish(self, ema: nn.Module, folder: Path) -> None:
        assert isinstance(ema, Decoder)
        self._autoencoder.decoder.load_state_dict(ema.state_dict())
        save_autoencoder(self._autoencoder, folder)

    def _pairs(self, clips: list[Clip], number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pairs of the student's rollouts, true ones among them from before they begin."""
        config, autoencoder = self._student.config, self._autoencoder
        encoded = encode(autoencoder, clips, config)
        generator = torch.Generator().manual_seed(number)
        rolled = recycled_history(self._student, encoded, self.recipe, self.recipe.plan, generator)
        frames = torch.from_numpy(np.stack([clip.frames for clip in clips]))
        firsts = torch.arange(config.window, frames.shape[1] - 1, _EVERY)
        at = torch.stack([firsts, firsts + 1], 1)
        latents, shown = autoencoder.raw(rolled[:, at].flatten(0, 2)).half(), frames[:, at].flatten(0, 1)
        references = autoencoder.raw(encoded.latents[:, 0]).half(), frames[:, 0]
        return latents.unflatten(0, (-1, 2)), shown, *(each.repeat_interleave(len(firsts), 0) for each in references)


@dataclass(frozen=True)
class _Pairs:
    """Of N pairs of successive frames raw latents float16 [N, 2, C, h, w], the pictures uint8 [N, 2, H, W, 3] that they
    are of, and the first frame of the clip, raw latents float16 [N, C, h, w] and the picture uint8 [N, H, W, 3].
    """

    latents: Tensor
    frames: Tensor
    first: Tensor
    first_frame: Tensor

    def __getitem__(self, which: Tensor) -> _Pairs:
        return _Pairs(self.latents[which], self.frames[which], self.first[which], self.first_frame[which])

    def reference(self, decoder: Decoder) -> Reference | None:
        """Of every frame, if the decoder looks at one."""
        if decoder.warp is None:
            return None
        return self.first.float().repeat_interleave(2, 0), to_float(self.first_frame).repeat_interleave(2, 0)


def _looking(autoencoder: Autoencoder, warp_dim: int | None) -> Autoencoder:
    """The same with a decoder that bends references, which has yet to learn it; None: as it is."""
    if warp_dim is None or warp_dim == autoencoder.config.warp_dim:
        return autoencoder
    other = Autoencoder(autoencoder.config.model_copy(update={"warp_dim": warp_dim})).requires_grad_(False)
    weights = {name: value for name, value in autoencoder.state_dict().items() if ".warp." not in name}
    other.load_state_dict(weights, strict=False)
    return other
