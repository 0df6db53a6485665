"""A world that stays as it is: where the keys lead, and what is to be seen from there.

Both are learned before the transformer, which draws its frames from what is to be seen and from the frames before.
A pose is x, y, cosine and sine of yaw, and what the last frame added to x and y: [..., 6] in units of `pose_scale`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.config import (
    MOTION_DIM,
    MOTION_LAYERS,
    OCTAVES,
    POSE_CHANNELS,
    VIEW_DETAIL,
    VIEW_HARMONICS,
    VIEW_LAYERS,
    TransformerConfig,
)

_STRIDE = 32.0
"""Frames that a fast walker takes for a unit of the pose: brings what a frame adds to the range of numbers near 1."""


class Pose(nn.Module):
    """What a transformer with `pose_scale` knows of its world."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self._block_size = config.block_size
        self.motion = Motion(config)
        self.view = View(config)

    def forward(self, pose_BF6: Tensor, action_BFA: Tensor) -> Tensor:
        """The pose of every frame [B, F, 6], from the pose before its block and the actions from there on."""
        size, poses = self._block_size, []
        pose = pose_BF6[:, ::size]
        for frame in range(size):
            pose = self.motion(pose, action_BFA[:, frame::size])
            poses.append(pose)
        return torch.stack(poses, 2).flatten(1, 2)


class Motion(nn.Module):
    """The next pose, by dead reckoning: what keys and speed add in the viewer's own frame, less what walls take.

    Keys turn the viewer; nothing that is seen does, so an error of the picture never becomes one of the heading.
    """

    octaves: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        actions = config.action_dim or 0
        self.by_keys = nn.Linear(actions, 3)
        self.by_speed = nn.Linear(2, 2, bias=False)
        self.embed = nn.Linear(POSE_CHANNELS + actions + 4 * OCTAVES, MOTION_DIM)
        self.layers = nn.ModuleList(nn.Linear(MOTION_DIM, MOTION_DIM) for _ in range(MOTION_LAYERS))
        self.walls = nn.Linear(MOTION_DIM, 2)
        for last in (self.by_keys, self.walls):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.register_buffer("octaves", torch.pi * 2.0 ** torch.arange(OCTAVES), persistent=False)

    def forward(self, pose: Tensor, action: Tensor) -> Tensor:
        """Poses [..., 6] one frame later, under actions [..., A]."""
        place, (c, s), speed = pose[..., :2], pose[..., 2:4].unbind(-1), pose[..., 4:]
        ahead, aside, turn = self.by_keys(action).unbind(-1)
        c, s = c * turn.cos() - s * turn.sin(), s * turn.cos() + c * turn.sin()
        # A heading stays one of length 1, however many frames have been rounded; before the first there is none.
        length = (c * c + s * s).sqrt().clamp_min(1e-3)
        c, s = c / length, s / length
        own = self.by_speed(torch.stack([_along(speed, c, s), _along(speed, -s, c)], -1))
        own = own + torch.stack([ahead, aside], -1) / _STRIDE
        free = torch.stack([_along(own, c, -s), _along(own, s, c)], -1)
        there = place + free
        waves = (there[..., None] * self.octaves).flatten(-2)
        hidden = torch.cat([there, _STRIDE * free, _STRIDE * speed, action, waves.sin(), waves.cos()], -1)
        hidden = F.silu(self.embed(hidden))
        for layer in self.layers:
            hidden = hidden + F.silu(layer(hidden))
        move = free + self.walls(hidden) / _STRIDE
        return torch.cat([place + move, torch.stack([c, s], -1), move], -1)


def _along(vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """How far vectors [..., 2] go in direction (x, y)."""
    return vector[..., 0] * x + vector[..., 1] * y


class View(nn.Module):
    """The light field of the world: poses [..., 6] to latent pictures [..., C, h, w].

    A column of the picture is a ray over the ground. Along its line the world is the same wherever one stands, but for
    what hides it, so a ray is given as the line's direction and distance from the origin and as the place on the line
    (Light Field Networks, Sitzmann et al. 2021, in the plane). The latents are blurred where the network does not know
    better; the transformer sharpens them with what it saw last.
    """

    octaves: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim, width = config.view_dim, config.width
        self._shape = config.picture_channels, config.height
        # Of a camera with a field of view of 90 degrees, until training knows better.
        columns = (width - 1) / 2 - torch.arange(width)
        self.angles = nn.Parameter(torch.atan(columns / (width / 2)))
        self.embed = nn.Linear(4 + 2 * VIEW_HARMONICS + 4 * OCTAVES, dim)
        self.layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(VIEW_LAYERS))
        self.column = nn.Linear(dim, config.picture_channels * config.height)
        self.conv1 = nn.Conv2d(config.picture_channels, VIEW_DETAIL, 3, padding=1)
        self.conv2 = nn.Conv2d(VIEW_DETAIL, config.picture_channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        self.register_buffer("octaves", torch.pi * 2.0 ** torch.arange(OCTAVES), persistent=False)

    def forward(self, pose: Tensor) -> Tensor:
        rays = self._rays(pose.flatten(0, -2))
        hidden = F.silu(self.embed(rays))
        for layer in self.layers:
            hidden = hidden + F.silu(layer(hidden))
        picture = self.column(hidden).unflatten(-1, self._shape).permute(0, 2, 3, 1)
        picture = picture + self.conv2(F.silu(self.conv1(picture)))
        out: Tensor = picture.unflatten(0, pose.shape[:-1])
        return out

    def _rays(self, pose_N6: Tensor) -> Tensor:
        """Features of every column's ray [N, w, features]."""
        x, y, c, s = pose_N6[:, None, :4].unbind(-1)
        ahead, aside = self.angles.cos(), self.angles.sin()
        c, s = c * ahead - s * aside, s * ahead + c * aside
        distance, along = x * s - y * c, x * c + y * s
        features = [ahead.expand_as(c), aside.expand_as(c), distance, along]
        for _ in range(VIEW_HARMONICS):
            features += [c, s]
            c, s = c * c - s * s, 2 * c * s
        places = (torch.stack([distance, along], -1)[..., None] * self.octaves).flatten(-2)
        return torch.cat([torch.stack(features, -1), places.sin(), places.cos()], -1)
