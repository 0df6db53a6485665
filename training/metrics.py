"""Figures of a student on held-out clips, shared by the stages' evaluations and `streamgen evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from streamgen.config import jumps
from streamgen.models.autoencoder import Autoencoder, Reference, to_float, to_uint8
from streamgen.models.rollout import Commit, RollingCache, Rollout
from streamgen.models.transformer import CausalVideoTransformer
from training.clips import ClipPass, LatentClips
from training.data import Clip
from training.losses import psnr
from training.recipe import Box
from training.sheets import contact_sheet

_CONTEXT = 16
"""True frames before the first one that is judged."""

_PART = 64
"""Frames that are decoded together."""
_PLAYED = 3
"""Clips whose actions are played."""
_PICKED = 0, 3, 7, 15, 31, 47, 63, 79
"""Frames of what is played that are shown."""


@torch.no_grad()
def teacher_forced(
    model: CausalVideoTransformer,
    clips: LatentClips,
    sigmas: Sequence[float],
    actions: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """Every frame generated from its true past, [B, F, C, h, w]; `actions` in place of the clips' own drive the new
    frame only, in one step.
    """
    x0 = clips.latents
    generator = torch.Generator().manual_seed(seed)
    out = []
    for row in range(len(x0)):
        history, own = x0[row : row + 1], clips.actions[row : row + 1]
        noise = torch.randn(history.shape, generator=generator) if model.config.history_level else None
        clip = ClipPass(model.config, history, torch.zeros(1, x0.shape[1]), own, noise=noise)
        driven = None if actions is None else actions[row : row + 1]
        shape = (1, 1, *x0.shape[1:])
        # Where the first step is the history, it is of the same noise.
        if noise is not None and model.config.history_level == 1:
            x = noise[:, None]
        else:
            x = torch.randn(shape, generator=generator)
        for step, (sigma, to) in enumerate(jumps(sigmas, model.config)):
            if step and not model.config.flow_map:
                x = (1 - sigma) * x + sigma * torch.randn(shape, generator=generator)
            levels, ends = (torch.full(shape[:3], level) for level in (sigma, to))
            x = x - (sigma - to) * clip.velocity(model, x, levels, driven=driven, to=ends)
        out.append(x[:, 0])
    return torch.cat(out)


@dataclass
class Played:
    """A rollout: frames uint8 [F, H, W, 3] and latents [F, C, h, w]."""

    frames: NDArray[np.uint8]
    latents: Tensor


@torch.no_grad()
def play(
    model: CausalVideoTransformer,
    autoencoder: Autoencoder,
    history: LatentClips,
    actions: Tensor,
    sigmas: Sequence[float],
    seed: int = 0,
) -> Played:
    """Free-running rollout of `actions` [F, A] after a history (one clip): the model sees its own frames."""
    config = model.config
    size = config.block_size
    commit, rollout = Commit(model), Rollout(model, autoencoder, sigmas)
    cache = RollingCache.empty(config, 1)
    generator = torch.Generator().manual_seed(seed)
    for at in range(0, history.latents.shape[1], size):
        seen = history.latents[:1, at : at + size]
        noise = torch.randn(seen.shape, generator=generator) if config.history_level else None
        cache.clean(commit, seen, history.actions[:1, at : at + size], noise)
    frames, latents = [], []
    for at in range(0, len(actions) // size * size, size):
        noise = torch.randn((len(rollout.sigmas), 1, size, *history.latents.shape[2:]), generator=generator)
        rgb, made, *block = rollout(noise, cache.previous, actions[None, at : at + size], *cache.inputs())
        cache.write(made, *block)
        frames.append(rgb[0].numpy())
        latents.append(made[0])
    return Played(np.concatenate(frames), torch.cat(latents))


def other_actions(actions: Tensor) -> Tensor:
    """Actions [B, F, A] of the same clips in which every frame's differs from the true one."""
    out = actions.clone()
    flat = actions.flatten(0, 1)
    rng = np.random.default_rng(0)
    for index, action in enumerate(flat):
        different = (flat != action).any(1).nonzero()[:, 0]
        out.flatten(0, 1)[index] = flat[different[rng.integers(len(different))]]
    return out


def _grey(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The mean of the colours of frames [..., H, W, 3]; as a product it is six times as fast."""
    grey: NDArray[np.float32] = frames.astype(np.float32) @ np.full(3, 1 / 3, np.float32)
    return grey


def detail(frames: NDArray[np.uint8]) -> float:
    """High-frequency energy: mean squared difference between neighbouring pixels of frames [F, H, W, 3], in grey
    levels squared.
    """
    x = _grey(frames)
    return float(np.square(np.diff(x, axis=1)).mean() + np.square(np.diff(x, axis=2)).mean())


def ssim(x: NDArray[np.uint8], y: NDArray[np.uint8]) -> float:
    """Mean structural similarity (Wang et al. 2004) of grey frames [F, H, W, 3]: Gaussian window of 11 pixels, sigma
    1.5.
    """
    g = torch.exp(-((torch.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    kernel = (g[:, None] * g[None] / g.sum() ** 2)[None, None]
    a, b = (torch.from_numpy(_grey(v))[:, None] for v in (x, y))

    def blur(t: Tensor) -> Tensor:
        return F.conv2d(t, kernel)

    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    score = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return float(score.mean())


def frechet(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Fréchet distance (Dowson and Landau 1982) of the normal distributions nearest to two sets of features [N, D]."""
    of_a, of_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of the root of a product is the sum of its eigenvalues' roots.
    roots = np.sqrt(np.clip(np.linalg.eigvals(of_a @ of_b).real, 0, None))
    return float(np.square(a.mean(0) - b.mean(0)).sum() + np.trace(of_a + of_b) - 2 * roots.sum())


@torch.no_grad()
def decode(autoencoder: Autoencoder, latents: Tensor, reference: Reference | None = None) -> NDArray[np.uint8]:
    """uint8 frames [..., H, W, 3] of latents [..., C, h, w]. reference: of each of clips [B, F, C, h, w], for a decoder
    that looks at one.
    """
    flat = latents.flatten(0, -4)
    seen: list[Reference | None] = [None] * -(-len(flat) // _PART)
    if reference is not None:
        each = (t.repeat_interleave(latents.shape[1], 0).split(_PART) for t in reference)
        seen = list(zip(*each, strict=True))
    images = [to_uint8(autoencoder.decode(*given)) for given in zip(flat.split(_PART), seen, strict=True)]
    return torch.cat(images).unflatten(0, latents.shape[:-3]).numpy()


def inside(frames: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """A part of frames [..., H, W, 3]."""
    left, top, right, bottom = box
    height, width = frames.shape[-3:-1]
    return frames[..., round(top * height) : round(bottom * height), round(left * width) : round(right * width), :]


def frames_psnr(made: NDArray[np.uint8], real: NDArray[np.uint8]) -> float:
    """Pooled PSNR in dB of uint8 frames."""
    return psnr(to_float(torch.from_numpy(made)), to_float(torch.from_numpy(real)))


@torch.no_grad()
def evaluate_transformer(
    model: CausalVideoTransformer,
    autoencoder: Autoencoder,
    clips: LatentClips,
    real: list[Clip],
    sigmas: Sequence[float],
    sheet: Path,
    focus: Mapping[str, Box],
) -> dict[str, float]:
    """Teacher-forced PSNR against copy-last, shuffled actions, and a free rollout whose frames go to the sheet.

    focus: parts of the frame in which PSNR is told beside.
    """
    short = LatentClips(clips.latents[:, : 2 * _CONTEXT], clips.actions[:, : 2 * _CONTEXT])
    frames = np.stack([clip.frames for clip in real])
    truth, last = frames[:, _CONTEXT : 2 * _CONTEXT], frames[:, _CONTEXT - 1 : 2 * _CONTEXT - 1]
    one_step = decode(autoencoder, teacher_forced(model, short, (1.0,))[:, _CONTEXT:])
    figures = {"copy": frames_psnr(last, truth), "tf1": frames_psnr(one_step, truth)}
    for part, box in focus.items():
        copied, made, seen = (inside(x, box) for x in (last, one_step, truth))
        figures |= {f"copy_{part}": frames_psnr(copied, seen), f"tf1_{part}": frames_psnr(made, seen)}
    made = one_step
    if tuple(sigmas) != (1.0,):
        made = decode(autoencoder, teacher_forced(model, short, sigmas)[:, _CONTEXT:])
    figures["tf"] = frames_psnr(made, truth)
    figures["detail"] = detail(made.reshape(-1, *made.shape[2:])) / detail(truth.reshape(-1, *truth.shape[2:]))
    wrong = other_actions(short.actions)
    figures["shuffled"] = frames_psnr(
        decode(autoencoder, teacher_forced(model, short, (1.0,), wrong)[:, _CONTEXT:]), truth
    )
    rows, ratios, near = [], [], []
    for row in range(min(_PLAYED, len(real))):
        history = LatentClips(clips.latents[row : row + 1, :_CONTEXT], clips.actions[row : row + 1, :_CONTEXT])
        played = play(model, autoencoder, history, clips.actions[row, _CONTEXT:], sigmas)
        game = frames[row, _CONTEXT:][: len(played.frames)]
        picks = [frame for frame in _PICKED if frame < len(game)]
        rows += [game[picks], played.frames[picks]]
        end, true = (each[len(game) // 2 :] for each in (played.frames, game))
        ratios.append(detail(end) / detail(true))
        near.append(frames_psnr(end, true))
    figures["rollout_detail"] = float(np.mean(ratios))
    figures["rollout_psnr"] = float(np.mean(near))
    contact_sheet(rows, sheet, scale=1)
    return figures
