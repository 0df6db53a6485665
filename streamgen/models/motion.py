"""How a world moves: where keys lead a viewer, and where actors go (states as in pose.py)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.config import COURSE_MAP, EYE_DIM, MOTION_DIM, MOTION_LAYERS, OCTAVES, TransformerConfig

_STRIDE = 32.0
"""Frames that a fast walker takes for a unit of the pose: brings what a frame adds to the range of numbers near 1."""
_AIM = 4.0
"""An aim's sine times this is of the range of numbers near 1."""
_UNLIKELY = 4.0
"""Logit of an actor's not being hit, until training knows better."""
REACH = 1.5
"""Of the map, from the middle."""
_AT_ONCE = 4.0
"""Logit of the share of its way that an eye takes in a frame, until training knows better."""
_ON_TIME = 1e-3
"""Of a cycle: a beat that ends so little later has ended."""
EYE = 0.08
"""Height of an eye above the ground until the data say, and of an actor until training knows better."""


class Motion(nn.Module):
    """The next pose, by dead reckoning: what keys and speed add in the viewer's own frame, less what walls take.

    Keys turn the viewer; nothing that is seen does, so an error of the picture never becomes one of the heading. What
    walls take is a share of a move, and keys have no bias: who rests, rests for as long as the stream runs. The eye
    goes to where it would be on the floor below, at a pace of its own: a step takes some frames, up and down.
    """

    octaves: Tensor
    floors: Tensor
    eye: Tensor
    rate: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        actions = config.action_dim or 0
        self.by_keys = nn.Linear(actions, 3, bias=False)
        self.by_speed = nn.Linear(2, 2, bias=False)
        self.embed = nn.Linear(2 + 2 + 2 + actions + 4 * OCTAVES, MOTION_DIM)
        self.layers = nn.ModuleList(nn.Linear(MOTION_DIM, MOTION_DIM) for _ in range(MOTION_LAYERS))
        self.walls = nn.Linear(MOTION_DIM, 2)
        self.climb = nn.ModuleList([nn.Linear(3, EYE_DIM), nn.Linear(EYE_DIM, EYE_DIM)])
        self.climbed = nn.Linear(EYE_DIM, 1)
        for start in (self.by_keys.weight, self.walls.weight, self.walls.bias, self.climbed.weight):
            nn.init.zeros_(start)
        nn.init.constant_(self.climbed.bias, _AT_ONCE)
        self.register_buffer("octaves", torch.pi * 2.0 ** torch.arange(OCTAVES), persistent=False)
        self.register_buffer("floors", torch.zeros(config.ground_map**2, 1))
        self.register_buffer("eye", torch.tensor(EYE))
        self.register_buffer("rate", torch.tensor(0.0))

    def forward(self, pose: Tensor, action: Tensor) -> Tensor:
        """Poses [..., 9] one frame later, under actions [..., A]."""
        place, (c, s), speed = pose[..., :2], pose[..., 2:4].unbind(-1), pose[..., 4:6]
        ahead, aside, turn = self.by_keys(action).unbind(-1)
        c, s = c * turn.cos() - s * turn.sin(), s * turn.cos() + c * turn.sin()
        # A heading stays one of length 1, however many frames have been rounded; before the first there is none.
        length = _length(torch.stack([c, s], -1)).clamp_min(1e-3)
        c, s = c / length, s / length
        own = self.by_speed(torch.stack([along(speed, c, s), along(speed, -s, c)], -1))
        own = own + torch.stack([ahead, aside], -1) / _STRIDE
        free = torch.stack([along(own, c, -s), along(own, s, c)], -1)
        there = place + free
        waves = (there[..., None] * self.octaves).flatten(-2)
        hidden = torch.cat([there, _STRIDE * free, _STRIDE * speed, action, waves.sin(), waves.cos()], -1)
        hidden = F.silu(self.embed(hidden))
        for layer in self.layers:
            hidden = hidden + F.silu(layer(hidden))
        move = free + self.walls(hidden).tanh() * _length(free)[..., None]
        beat = pose[..., 8:] + self.rate
        beat = beat - (beat + _ON_TIME).floor()
        return torch.cat([place + move, torch.stack([c, s], -1), move, self._raised(pose, place + move), beat], -1)

    def _raised(self, pose: Tensor, there: Tensor) -> Tensor:
        """The eye's height a frame after a pose, over another place [..., 2], and what that frame added: [..., 2]."""
        both = torch.stack([pose[..., :2], there]).detach()
        before, now = (self.eye + looked_up(self.floors, *both.unbind(-1))).unbind(0)
        eye, added = pose[..., 6:8].unbind(-1)
        hidden = _STRIDE * torch.stack([now - eye, added, now - before], -1)
        for layer in self.climb:
            hidden = F.silu(layer(hidden))
        # However wrong, a share of the way never leads beyond its end.
        move = self.climbed(hidden)[..., 0].sigmoid() * (now - eye)
        return torch.stack([eye + move, move], -1)


class Course(nn.Module):
    """Where actors go next, and what a hit does to them.

    They go on as they went, all at one pace, unless they meet the viewer, who bends their way, or come to where no
    actor was ever seen to be, which throws them back. A hit starts an actor's clock, which runs at
    its own rate and ends in nothing: until then no hit counts.
    """

    octaves: Tensor
    ground: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.pace = nn.Parameter(torch.ones(()))
        self.rate = nn.Parameter(torch.tensor(0.03))
        self.embed = nn.Linear(2 + 2 + 3 + 2 + 1 + (config.action_dim or 0) + 4 * OCTAVES, MOTION_DIM)
        self.layers = nn.ModuleList(nn.Linear(MOTION_DIM, MOTION_DIM) for _ in range(MOTION_LAYERS))
        self.out = nn.Linear(MOTION_DIM, 3)
        self.trigger = nn.Linear(config.action_dim or 0, 1)
        for start in (self.out.weight, self.out.bias, self.trigger.weight, self.trigger.bias):
            nn.init.zeros_(start)
        self.register_buffer("octaves", torch.pi * 2.0 ** torch.arange(OCTAVES), persistent=False)
        self.register_buffer("ground", torch.ones(COURSE_MAP**2, 1))

    def forward(self, actors: Tensor, pose: Tensor, action: Tensor) -> Tensor:
        """Actors [..., T, 5] one frame later, under actions [..., A] of the viewer, by then at a pose [..., 9]."""
        move, hit = self.said(actors, pose, action)
        clock = actors[..., 4:]
        begun = torch.where(hit[..., None] > 0, self.rate, torch.zeros_like(self.rate))
        clock = torch.where(clock > 0, clock + self.rate, begun)
        clock = torch.where(clock < 1, clock, torch.zeros_like(clock))
        return torch.cat([actors[..., :2] + move, move, clock], -1)

    def said(self, actors: Tensor, pose: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """What the next frame adds to x and y [..., T, 2], and logits [..., T] of being hit."""
        place, move, clock = actors[..., :2], actors[..., 2:4], actors[..., 4:]
        pose, action = (t[..., None, :].expand(*actors.shape[:-1], t.shape[-1]) for t in (pose, action))
        direction = _unit(move)
        off = place - pose[..., :2]
        distance, towards, (c, s) = _length(off)[..., None], _unit(off), pose[..., 2:4].unbind(-1)
        aim = torch.stack([along(towards, c, s), _AIM * along(towards, -s, c)], -1)
        there = place + move
        waves = (there[..., None] * self.octaves).flatten(-2)
        lit = (clock > 0).to(clock.dtype)
        hidden = torch.cat([there, direction, towards, distance, aim, lit, action, waves.sin(), waves.cos()], -1)
        hidden = F.silu(self.embed(hidden))
        for layer in self.layers:
            hidden = hidden + F.silu(layer(hidden))
        bend, hit = self.out(hidden).tensor_split((2,), -1)
        move = self._thrown_back(place, _unit(direction + bend) * (self.pace / _STRIDE))
        # Keys hit: nobody is hit who was only in the way, or where training hardly ever was.
        return move, torch.minimum(hit - _UNLIKELY, self.trigger(action))[..., 0]

    def learn_ground(self, places: Tensor) -> None:
        """Take places [..., 2] where actors were for all where they can be."""
        side = math.isqrt(len(self.ground))
        x, y = (_on_map(at.reshape(-1), side).round().long() for at in places.unbind(-1))
        self.ground.zero_()[y * side + x] = 1

    def _thrown_back(self, place: Tensor, move: Tensor) -> Tensor:
        """A move [..., 2] from a place, or what it is when mirrored in one axis, or the other: the first that leads to
        ground. Else the way back.
        """
        x, y = move.unbind(-1)
        others = torch.stack([torch.stack([-x, y], -1), torch.stack([x, -y], -1), move])
        free = looked_up(self.ground, *(place + others).unbind(-1))[..., None] > 0.5
        kept = -move
        for there, other in zip(free, others, strict=True):
            kept = torch.where(there, other, kept)
        return kept


def _unit(vector: Tensor) -> Tensor:
    """Vectors [..., 2] of length 1; of what has none, what it is."""
    return vector / _length(vector)[..., None].clamp_min(1e-6)


def along(vector: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """How far vectors [..., 2] go in direction (x, y)."""
    return vector[..., 0] * x + vector[..., 1] * y


def _length(vector: Tensor) -> Tensor:
    """Of vectors [..., 2]."""
    return torch.linalg.vector_norm(vector, dim=-1)


def looked_up(table: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Values [...] of a square map, rows from south to north [side * side, 1], at places (x, y), each [...], between
    its points.
    """
    side = math.isqrt(len(table))
    column, row = _on_map(x, side), _on_map(y, side)
    west, south = column.floor(), row.floor()
    index = south.long() * side + west.long()
    around = F.embedding(torch.stack([index, index + 1, index + side, index + side + 1]), table)[..., 0]
    south_west, south_east, north_west, north_east = around.unbind(0)
    share = column - west
    return between(between(south_west, south_east, share), between(north_west, north_east, share), row - south)


def _on_map(at: Tensor, side: int) -> Tensor:
    """Column, or row, not whole, of places along an axis of a map of side * side points."""
    return ((at / REACH + 1) * ((side - 1) / 2)).clamp(0.0, side - 1.001)


def between(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """As torch.lerp, in a third of its operations in ONNX."""
    return a + (b - a) * share
