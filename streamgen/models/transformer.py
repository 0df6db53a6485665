"""The causal video transformer: the block of the Wan 2.1 family (parameter names included), one time embedding a frame.

Dimensions: B rows, F frames, C channels, h and w latent pixels, N tokens a frame, d model dim, H heads, D head dim,
A actions, X context tokens.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.config import DETAIL_LAYERS, TransformerConfig
from streamgen.models.attention import Attend, space_rotation
from streamgen.models.face import Face
from streamgen.models.pose import Pose, from_planes, planes

TIME_SCALE = 1000.0
"""The time embedding sees noise levels in [0, 1] as times in [0, 1000]."""

JUMP_GATE = 0.25
"""Share of the embedding of a jump's length in that of its noise level (AnyFlow)."""

_VIEW_FIRST = 2.0
"""A head that says nothing keeps an eighth of the frame before, and takes the rest from the view."""
SIGMA_MIN = 1e-3
"""Least noise level that a residual model's velocity is divided by; the pass at zero noise does not use it."""


def _no_autocast(device: str) -> AbstractContextManager[object]:
    """For what moves a pose, which bf16 cannot. Without autocast it is nothing, so that no exported graph has it."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension with a learned scale."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Projections(nn.Module):
    """Projections of an attention; queries and keys are normalised over the full width before the heads are split."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim, eps), RMSNorm(dim, eps)

    def project(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q of x and k, v of context, heads split: [..., H, D]."""
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(context)), self.v(context)
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in (q, k, v))
        return q, k, v


class _FeedForward(nn.Sequential):
    """Linear, GELU (tanh), linear; optionally a depthwise 3x3 convolution over the frame's tokens before the GELU."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_dim, config.dim)
        )
        self._grid = config.height // config.patch, config.width // config.patch
        self._conv = config.ffn_conv
        if config.ffn_conv:
            self.conv = nn.Conv2d(config.ffn_dim, config.ffn_dim, 3, padding=1, groups=config.ffn_dim)

    def forward(self, x_BFNd: Tensor) -> Tensor:
        x = self[0](x_BFNd)
        if self._conv:
            rows, frames, tokens, dim = x.shape
            # Channels last as it stands: the tokens' memory is the image's.
            image = x.reshape(rows * frames, *self._grid, dim).permute(0, 3, 1, 2)
            x = x + self.conv(image).permute(0, 2, 3, 1).reshape(rows, frames, tokens, dim)
        out: Tensor = self[2](self[1](x))
        return out


class Block(nn.Module):
    """A layer: attention and feed-forward, each normalised, modulated and gated by the time embedding."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim, eps = config.dim, config.eps
        self.norm1 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.self_attn = Projections(dim, config.num_heads, eps)
        if config.text_dim is not None:
            self.norm3 = nn.LayerNorm(dim, eps)
            self.cross_attn = Projections(dim, config.num_heads, eps)
        self.norm2 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = _FeedForward(config)
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(self, x: Tensor, e_BF6d: Tensor, layer: int, attend: Attend, context: Tensor | None) -> Tensor:
        e = [t[:, :, None] for t in (self.modulation + e_BF6d).unbind(2)]
        y = self.norm1(x) * (1 + e[1]) + e[0]
        x = x + e[2] * self.self_attn.o(attend(layer, *self.self_attn.project(y, y)).flatten(-2))
        if context is not None:
            q, k, v = (t.transpose(1, 2) for t in self.cross_attn.project(self.norm3(x).flatten(1, 2), context))
            seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
            x = x + self.cross_attn.o(seen.flatten(-2)).view_as(x)
        return x + e[5] * self.ffn(self.norm2(x) * (1 + e[4]) + e[3])


class _Head(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, config.patch**2 * config.head_channels)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def modulate(self, x: Tensor, temb_BFd: Tensor) -> Tensor:
        """Tokens as the last linear layer takes them."""
        shift, scale = (t[:, :, None] for t in (self.modulation + temb_BFd[:, :, None]).unbind(2))
        out: Tensor = self.norm(x) * (1 + scale) + shift
        return out


class _DetailHead(nn.Module):
    """Convolutions over the latents themselves, scaled and shifted at every latent pixel by the tokens.

    A token carries a whole patch, and its width does not hold the patch and its neighbours sharply enough to move them
    by less than a patch. Here the tokens only say how things move, and the convolutions move them.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim, layers = config.detail_dim, DETAIL_LAYERS
        self.steer = nn.Linear(config.dim, config.patch**2 * 2 * dim * layers)
        self.conv_in = nn.Conv2d(config.input_channels, dim, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(layers))
        self.conv_out = nn.Conv2d(dim, config.head_channels, 3, padding=1)

    def forward(self, inputs_BFCHW: Tensor, steering_BFCHW: Tensor) -> Tensor:
        """[B, F, C, h, w] to add to the head's output; steering as `steer` gives it, put back into the image."""
        channels_last = torch.channels_last
        x = self.conv_in(inputs_BFCHW.flatten(0, 1).contiguous(memory_format=channels_last))
        steering = steering_BFCHW.flatten(0, 1).contiguous(memory_format=channels_last).chunk(2 * len(self.convs), 1)
        for conv, scale, shift in zip(self.convs, steering[::2], steering[1::2], strict=True):
            x = x + F.gelu(conv(x) * (1 + scale) + shift, approximate="tanh")
        out: Tensor = self.conv_out(x).unflatten(0, inputs_BFCHW.shape[:2])
        return out


def sinusoid(times: Tensor, dim: int) -> Tensor:
    """Embedding [..., dim] of times [...] in [0, 1000]: cosines, then sines, of t 10000^(-i / half); computed in
    float64.
    """
    half = dim // 2
    frequencies = torch.from_numpy(10_000.0 ** (-np.arange(half, dtype=np.float64) / half))
    angles = times.double()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1).float()


class CausalVideoTransformer(nn.Module):
    """Velocity of noisy latent frames given what `attend` lets them see."""

    space: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim, patch = config.dim, (1, config.patch, config.patch)
        self.patch_embedding = nn.Conv3d(config.input_channels, dim, patch, patch)
        if config.text_dim is not None:
            self.text_embedding = nn.Sequential(
                nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
            )
        if config.action_dim is not None:
            # One more input says whether the action is known: condition dropout clears it.
            self.action_embedding = nn.Sequential(nn.Linear(config.action_dim + 1, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        if config.flow_map:
            self.jump_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = _Head(config)
        if config.detail_dim:
            self.detail = _DetailHead(config)
        if config.pose_scale:
            self.pose = Pose(config)
        if config.face_dim:
            self.face = Face(config)
        self.register_buffer("space", space_rotation(config), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name in ("time_embedding", "text_embedding", "action_embedding"):
            for module in getattr(self, name, ()):
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        nn.init.zeros_(cast(Tensor, self.patch_embedding.bias))
        nn.init.zeros_(self.head.head.weight)
        if self.config.flow_map:
            # A model that knows no jumps yet becomes one that does, and is the same at first.
            nn.init.zeros_(cast(nn.Linear, self.jump_embedding[2]).weight)
        if self.config.detail_dim:
            nn.init.zeros_(self.detail.conv_out.weight)
            nn.init.zeros_(cast(Tensor, self.detail.conv_out.bias))

    def forward(
        self,
        x_BFCHW: Tensor,
        sigma_BF: Tensor,
        attend: Attend,
        actions_BFA: Tensor | None = None,
        previous_BFCHW: Tensor | None = None,
        context_BXd: Tensor | None = None,
        known_BF: Tensor | None = None,
        shown_BFCHW: Tensor | None = None,
        times_BFd: Tensor | None = None,
        to_BF: Tensor | None = None,
    ) -> Tensor:
        """Velocity eps - x0, [B, F, C, h, w]; of a model that maps flows the mean one on the way to levels `to`.

        x: latents at noise levels sigma in [0, 1]. to: 0 by default. actions: what drove each frame; known: 1, or 0
        where the action is withheld from the tokens (default: all known). previous: the clean latent before each
        frame's block, where the configuration has `concat_previous`. context: text features, where it has `text_dim`.
        shown: what `face` draws of each frame, where it has `face_dim`; where it has `pose_scale` what `seen` gives,
        where that is at hand. times: the levels' `sinusoid`, where it is at hand.

        Blocks and head calculate in the precision of their weights, all else in that of x.
        """
        config = self.config
        if (context_BXd is None) != (config.text_dim is None):
            raise ValueError("context goes with text_dim: the configuration has one and the call the other")
        latents = [x_BFCHW] if previous_BFCHW is None else [x_BFCHW, previous_BFCHW]
        pictures = [each[:, :, : config.picture_channels] for each in latents]
        if config.pose_scale and shown_BFCHW is None:
            assert previous_BFCHW is not None and actions_BFA is not None
            shown_BFCHW = self.seen(previous_BFCHW, actions_BFA)
        if shown_BFCHW is not None:
            pictures.append(shown_BFCHW[:, :, : config.picture_channels])
        if actions_BFA is not None:
            known = torch.ones_like(actions_BFA[..., :1]) if known_BF is None else known_BF[..., None]
            actions_BFA = torch.cat([actions_BFA * known, known], -1)
        inputs = torch.cat(pictures, 2).to(self.patch_embedding.weight.dtype)
        x = self._patchify(inputs)
        if times_BFd is None:
            times_BFd = sinusoid(sigma_BF * TIME_SCALE, config.freq_dim)
        temb_BFd = self.time_embedding(times_BFd.to(x.dtype))
        if config.flow_map:
            jump_BF = sigma_BF if to_BF is None else sigma_BF - to_BF
            jump = self.jump_embedding(sinusoid(jump_BF * TIME_SCALE, config.freq_dim).to(x.dtype))
            temb_BFd = temb_BFd + JUMP_GATE * jump
        if actions_BFA is not None:
            temb_BFd = temb_BFd + self.action_embedding(actions_BFA.to(x.dtype))
        e_BF6d = self.time_projection(temb_BFd).unflatten(-1, (6, config.dim))
        context = None if context_BXd is None else self.text_embedding(context_BXd)
        for layer, block in enumerate(self.blocks):
            x = block(x, e_BF6d, layer, attend, context)
        x = self.head.modulate(x, temb_BFd)
        out_BFCHW = self._unpatchify(self.head.head(x))
        if config.detail_dim:
            out_BFCHW = out_BFCHW + self.detail(inputs, self._unpatchify(self.detail.steer(x)))
        out_BFCHW = out_BFCHW.to(x_BFCHW.dtype)
        if not config.residual:
            return out_BFCHW
        # What is known of a frame before it is drawn, so that the network need not carry the noise through its width:
        # the frame before, what a face shows, or what a view shows, and the frame before where that shall stay.
        known_BFCHW = previous_BFCHW if shown_BFCHW is None else shown_BFCHW
        assert known_BFCHW is not None
        if config.pose_scale:
            view_BFCHW, state_BFCHW = known_BFCHW.tensor_split((config.picture_channels,), 2)
            said_BFCHW, stays_BF1HW = out_BFCHW.tensor_split((config.picture_channels,), 2)
            stays_BF1HW = (stays_BF1HW - _VIEW_FIRST).sigmoid()
            picture_BFCHW = view_BFCHW + stays_BF1HW * (pictures[1] - view_BFCHW) + said_BFCHW
            x0_BFCHW = torch.cat([picture_BFCHW, state_BFCHW], 2)
        else:
            x0_BFCHW = known_BFCHW + out_BFCHW
        sigma = sigma_BF.clamp_min(SIGMA_MIN)[..., None, None, None]
        return (x_BFCHW - x0_BFCHW) / sigma

    def seen(self, previous_BFCHW: Tensor, actions_BFA: Tensor) -> Tensor:
        """What is known of frames before they are drawn, [B, F, C, h, w]: what is to be seen from where the keys lead,
        and the state of the world by then. previous: the clean latent before each frame's block.
        """
        config = self.config
        before_BFS = from_planes(previous_BFCHW[:, :, config.picture_channels :], config)
        with _no_autocast(previous_BFCHW.device.type):
            state_BFS = self.pose(before_BFS, actions_BFA)
            return torch.cat([self.pose.view(state_BFS), planes(state_BFS, config)], 2)

    def _patchify(self, x_BFCHW: Tensor) -> Tensor:
        """[B, F, C, h, w] to [B, F, N, d]: the patch embedding's convolution as a matrix product."""
        p = self.config.patch
        rows, frames, channels, height, width = x_BFCHW.shape
        x = x_BFCHW.reshape(rows, frames, channels, height // p, p, width // p, p).permute(0, 1, 3, 5, 2, 4, 6)
        x = x.reshape(rows, frames, self.config.tokens, channels * p * p)
        return F.linear(x, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)

    def _unpatchify(self, x_BFNd: Tensor) -> Tensor:
        """[B, F, N, p p C] (channel innermost) to [B, F, C, h, w]."""
        p = self.config.patch
        c = x_BFNd.shape[-1] // p**2
        height, width = self.config.height // p, self.config.width // p
        x = x_BFNd.reshape(*x_BFNd.shape[:2], height, width, p, p, c)
        return x.permute(0, 1, 6, 2, 4, 3, 5).reshape(*x_BFNd.shape[:2], c, height * p, width * p)
