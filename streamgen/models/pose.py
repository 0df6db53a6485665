"""A world that stays as it is: where the keys lead, and what is to be seen from there.

All is learned before the transformer, which draws its frames from what is to be seen and from the frames before.
A pose is x, y, cosine and sine of yaw, what the last frame added to x and y, the height of the eye and what the last
frame added to that, in units of `pose_scale`, and the beat of what stays in place and moves, as flames do: [..., 9].
Actors, such as what flies about, have x, y, what the last frame added to them, and a clock that a hit starts: [..., 5].
The state S of a world is the viewer's pose and that of every actor: [..., 9 + 5 T].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from streamgen.config import (
    ACTOR_CHANNELS,
    POSE_CHANNELS,
    SPRITE_BEATS,
    SPRITE_CLOCKS,
    SPRITE_SIDES,
    VIEW_FEATURES,
    VIEW_LEVELS,
    VIEW_RAYS,
    VIEW_STEPS,
    TransformerConfig,
)
from streamgen.models.motion import EYE, REACH, Course, Motion, along, between, looked_up

_NO_TIME = 1e-3
"""Of a clock in a latent, far below a frame's."""
_NEAREST, _GAPS = 0.028, (0.007, 0.045)
"""Where a ray's first step is, nearer than walls let a viewer come, and how far it is to the next one there and at its
end: less than the narrowest thing that it must not step over."""
_HALVINGS = 4
"""Of the step in which a ray meets something, to find where."""
_HALF = 0.09
"""Of the width of what pictures of actors and fixtures show."""
_CLOSE = 0.3, 0.6
"""How far one may be from the middle of a picture to see it at the finest, and at the next resolution."""
_BEHIND = 100.0
"""Of the edge between what is before an actor and what is behind it, in 1 / distance."""
_FINEST = 1 / 256
"""How far the features of the finest level lie apart; those of each further one twice as far."""
_FADES = 3.0
"""A level counts no more where rays lie so many times as far apart as its features, and in full up to one time less:
what is finer would flicker."""
_NEVER = 1e3
"""Further apart than rays ever lie: the coarsest level sees whatever is far."""
_LOWEST, _HIGHEST = -0.25, 1.5
"""Between which heights have features of their own."""
_ROW, _FLOOR = 1553, (884, 753)
"""Of a grid's features, how far apart those of neighbours in y are kept, and in z: 884 * 1024 + 753."""
_HORIZON = 1.42
"""How far away the sky is."""
_SLOWER, _FASTER = 0.1, 10.0
"""What the height of actors and the tables are times their parameters: an optimiser that takes steps of one size for
all parameters (Adam) moves them that much slower, and faster."""


class Pose(nn.Module):
    """What a transformer with `pose_scale` knows of its world."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self._block_size = config.block_size
        self.motion = Motion(config)
        if config.actors:
            self.course = Course(config)
        self.view = View(config)

    def stand(
        self,
        heights: Tensor,
        floors: Tensor,
        eye: float,
        half_width: float,
        fixtures: Tensor,
        rate: float,
    ) -> None:
        """Take what the data say of the ground, the camera and what beats in place, in units of the pose.

        Of a square that reaches REACH each way, rows from south to north: `heights` [side, side], and `floors`
        [side, side], how high a viewer's feet are; the eye's height above those, and `half_width` of the picture for
        one of the way ahead; `fixtures` [K, 3], x, y and height of the middles of what beats, and how much of its cycle
        a frame takes.
        """
        self.view.heights.copy_(heights.reshape(-1, 1))
        self.view.half_width.fill_(half_width)
        self.view.fixtures.copy_(fixtures)
        self.motion.floors.copy_(floors.reshape(-1, 1))
        self.motion.eye.fill_(eye)
        self.motion.rate.fill_(rate)

    def forward(self, state_BFS: Tensor, action_BFA: Tensor) -> Tensor:
        """The state of every frame [B, F, S], from the state before its block and the actions from there on."""
        size, states = self._block_size, []
        state = state_BFS[:, ::size]
        for frame in range(size):
            state = self.moved(state, action_BFA[:, frame::size])
            states.append(state)
        return torch.stack(states, 2).flatten(1, 2)

    def moved(self, state: Tensor, action: Tensor) -> Tensor:
        """States [..., S] one frame later, under actions [..., A]."""
        pose, actors = split(state)
        pose = self.motion(pose, action)
        if not actors.shape[-2]:
            return pose
        return torch.cat([pose, self.course(actors, pose, action).flatten(-2)], -1)


def split(state: Tensor) -> tuple[Tensor, Tensor]:
    """Of a state [..., S]: the viewer's pose [..., 9] and the actors [..., T, 5]."""
    pose, actors = state.tensor_split((POSE_CHANNELS,), -1)
    return pose, actors.unflatten(-1, (-1, ACTOR_CHANNELS)) if actors.shape[-1] else actors[..., None]


def planes(state: Tensor, config: TransformerConfig) -> Tensor:
    """States [..., S] as the last channels of latents [..., C, h, w]: of the viewer's pose each number fills a channel,
    of the actors' all of them, from left to right.
    """
    pose, actors = split(state)
    filled = pose[..., None, None].expand(*pose.shape, config.height, config.width)
    if not config.actors:
        return filled
    share = config.width // config.actors
    stripes = actors.transpose(-1, -2)[..., None, :, None]
    stripes = stripes.expand(*stripes.shape[:-3], config.height, config.actors, share).flatten(-2)
    return torch.cat([filled, stripes], -3)


def from_planes(filled: Tensor, config: TransformerConfig) -> Tensor:
    """States [..., S] of a latent's last channels: what `planes` gave, the mean of what it was spread over."""
    pose, actors = filled.tensor_split((POSE_CHANNELS,), -3)
    state = pose.mean((-2, -1))
    if not config.actors:
        return state
    place, clock = actors.unflatten(-1, (config.actors, -1)).mean((-3, -1)).split((ACTOR_CHANNELS - 1, 1), -2)
    # A last step's rounding starts no clock.
    each = torch.cat([place, torch.where(clock > _NO_TIME, clock, torch.zeros_like(clock))], -2)
    return torch.cat([state, each.transpose(-1, -2).flatten(-2)], -1)


class View(nn.Module):
    """What is to be seen of a world in some state: states [..., S] to latent pictures [..., C, h, w].

    Where the ground is, and how the camera sees, the data say (`Pose.stand`); what it looks like is learned from frames
    and poses. Each latent pixel looks along VIEW_RAYS x VIEW_RAYS rays, each of which ends where the ground rises above
    it, or far away in the sky. What it sees there are features of that place in space, kept on grids of several
    spacings by their hash (Mueller et al. 2022, "Instant neural graphics primitives"); fine ones fade where rays lie
    further apart than they do. Actors and fixtures are pictures that always face the viewer; nearer ground hides them.
    What moves besides, the transformer draws.
    """

    heights: Tensor
    half_width: Tensor
    fixtures: Tensor
    starts: Tensor
    distances: Tensor
    sides: Tensor
    ups: Tensor
    levels: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim, channels = config.view_dim, config.picture_channels
        self._shape = config.height, config.width
        columns = config.width * VIEW_RAYS
        # One table, the finest level first: engines look up once what each level would be asked for.
        rows = config.view_rows >> 2 * torch.arange(VIEW_LEVELS)
        self.grids = nn.Parameter(torch.randn(int(rows.sum()), VIEW_FEATURES) * 0.02 / _FASTER)
        self._actors = config.actors > 0
        if config.actors:
            self.hover = nn.Parameter(torch.tensor(EYE / _SLOWER))
        pictures = SPRITE_CLOCKS * self._actors + SPRITE_BEATS * bool(config.fixtures)
        if pictures:
            points = [pictures * side**2 for side in SPRITE_SIDES]
            starts = [[side, sum(points[:at])] for at, side in enumerate(SPRITE_SIDES)]
            self.register_buffer("starts", torch.tensor(starts, dtype=torch.float), persistent=False)
            self.shares = nn.Parameter(torch.zeros(sum(points), 1))
            self.sprites = nn.Parameter(torch.randn(sum(points), VIEW_LEVELS * VIEW_FEATURES) * 0.1 / _FASTER)
        self.embed = nn.Linear(VIEW_RAYS**2 * (VIEW_LEVELS * VIEW_FEATURES + 2), dim)
        self.where = nn.Parameter(torch.zeros(config.height, config.width, dim))
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.out = nn.Conv2d(dim, channels, 1)
        self.register_buffer("heights", torch.zeros(config.ground_map**2, 1))
        self.register_buffer("half_width", torch.tensor(1.0))
        self.register_buffer("fixtures", torch.zeros(config.fixtures, 3))
        # Of a picture twice as wide as its distance: how far to the left a column's rays go, and up a row's, for one of
        # the way ahead.
        self.register_buffer("sides", _from_middle(columns) / (columns / 2), persistent=False)
        self.register_buffer("ups", _from_middle(config.height * VIEW_RAYS) / (columns / 2), persistent=False)
        spacings = _FINEST * 2.0 ** torch.arange(VIEW_LEVELS)
        fades = _FADES * spacings
        fades[-1] = _NEVER
        levels = torch.stack([rows.float(), (rows.cumsum(0) - rows).float(), spacings, fades])
        self.register_buffer("levels", levels, persistent=False)
        gaps = torch.logspace(math.log10(_GAPS[0]), math.log10(_GAPS[1]), VIEW_STEPS - 1)
        self.register_buffer("distances", _NEAREST + F.pad(gaps.cumsum(0), (1, 0)), persistent=False)

    def forward(self, state: Tensor) -> Tensor:
        x = self.embed(self._seen(*split(state.flatten(0, -2)))) + self.where * _FASTER
        x = F.silu(x).permute(0, 3, 1, 2)
        x = x + F.silu(self.conv1(x))
        x = x + F.silu(self.conv2(x))
        out: Tensor = self.out(x).unflatten(0, state.shape[:-1])
        return out

    def _seen(self, pose_N9: Tensor, actors_NT5: Tensor) -> Tensor:
        """What the rays of every latent pixel meet, [N, h, w, features]. Distances are those ahead."""
        x, y, c, s = (pose_N9[:, at, None] for at in range(4))
        sides, slopes = self.sides * self.half_width, self.ups * self.half_width
        eye = pose_N9[:, 6, None, None]
        # For one of the way ahead, [N, columns].
        dx, dy = c - s * sides, s + c * sides
        hit, far = self._met((x, y), (dx, dy), slopes, eye)
        met, skyward = hit > 0, _HORIZON / (1 + sides * sides).sqrt()
        where = [
            torch.where(met, at[..., None] + far * d[:, None], (skyward * d)[:, None]) for at, d in ((x, dx), (y, dy))
        ]
        where.append(torch.where(met, eye + far * slopes[:, None], _HORIZON * slopes[:, None]))
        features = self._features(where, torch.where(met, far, _HORIZON) * (sides[0] - sides[1]))
        until = torch.where(met, far, self.distances[-1])
        if actors_NT5.shape[1] or len(self.fixtures):
            sprite, share = self._pictured(actors_NT5, pose_N9, until, sides, slopes)
            features = between(features, sprite, share)
        return self._by_latent_pixels(torch.cat([features, hit[..., None], (until.log() * hit)[..., None]], -1))

    def _met(
        self, here: tuple[Tensor, Tensor], along: tuple[Tensor, Tensor], slopes: Tensor, eye: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of rays [N, rows, columns]: 1 where the ground rises above them and 0 where not, and at what distance.

        here: x and y, each [N, 1]; along: what a column adds to them for one of the way ahead, each [N, columns];
        slopes [rows]; eye: its height [N, 1, 1].
        """
        (x, y), (dx, dy), slopes = (each[..., None] for each in here), along, slopes[:, None]

        def ground(distance: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
            return looked_up(self.heights, x + distance * dx, y + distance * dy)

        risen = (ground(self.distances, dx[..., None], dy[..., None]) - eye) / self.distances
        # How many steps a ray goes before it meets something.
        steps = (_running_max(risen)[:, None] <= slopes[..., None]).sum(-1)
        hit = (steps < len(self.distances)).to(risen.dtype)
        steps = steps.clamp(1, len(self.distances) - 1)
        near, far = (F.embedding(at, self.distances[:, None])[..., 0] for at in (steps - 1, steps))

        def above(distance: Tensor) -> Tensor:
            """By how much the ground rises above the rays."""
            return ground(distance, dx[:, None], dy[:, None]) - eye - slopes * distance

        for _ in range(_HALVINGS):
            middle = (near + far) / 2
            beyond = above(middle) > 0
            near, far = torch.where(beyond, near, middle), torch.where(beyond, middle, far)
        # Within what is left, the ground is a plane.
        short, over = above(torch.stack([near, far])).unbind(0)
        return hit, near + (far - near) * (short / (short - over - 1e-9)).clamp(0.0, 1.0)

    def _features(self, place: Sequence[Tensor], apart: Tensor) -> Tensor:
        """[..., levels * features] of places (x, y and height, each [...]) where rays lie `apart` [...]."""
        ranges = (-REACH, REACH), (-REACH, REACH), (_LOWEST, _HIGHEST)
        rows, first, spacing, fades = self.levels.view(4, VIEW_LEVELS, *[1] * apart.dim())
        at = [(each.clamp(low, high) - low) / spacing for each, (low, high) in zip(place, ranges, strict=True)]
        corner = [each.floor() for each in at]
        x, y, z = corner
        # Whole numbers below 2^24, all exact in fp32: engines divide large integers by way of it.
        floors = [_wrapped((z + dz) * _FLOOR[0], 1024) * 1024 + (z + dz) * _FLOOR[1] for dz in (0, 1)]
        around = torch.stack([x + dx + (y + dy) * _ROW + floors[dz] for dz, dy, dx in _CORNERS])
        # All at once: each lookup's gradient is as large as the table.
        found = F.embedding((_wrapped(around, rows) + first).long(), self.grids)
        for each, low in zip(at, corner, strict=True):
            found = between(found[::2], found[1::2], (each - low)[..., None])
        found = found[0] * ((fades - apart) / spacing).clamp(0.0, 1.0)[..., None]
        return found.movedim(0, -2).flatten(-2) * _FASTER

    def _by_latent_pixels(self, rays: Tensor) -> Tensor:
        """[N, h, w, features of all its rays] of features of rays [N, rows, columns, features]."""
        height, width = self._shape
        return rays.unflatten(2, (width, VIEW_RAYS)).unflatten(1, (height, VIEW_RAYS)).transpose(2, 3).flatten(3)

    def _pictured(
        self, actors_NT5: Tensor, pose_N9: Tensor, until: Tensor, sides: Tensor, slopes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of the picture that rays [N, rows, columns] meet before the distances `until` at which they end: its features
        [N, rows, columns, f] and its share [N, rows, columns, 1]; sides [columns] and slopes [rows] as in `_seen`.
        """
        # Of all of them the place [N, T, 2], the height of the middle [N, T], and which picture it is.
        places, middles, looks = [], [], []
        if self._actors:
            clock = actors_NT5[..., 4]
            look = torch.where(clock > 0, 1 + (clock * (SPRITE_CLOCKS - 1)).floor(), torch.zeros_like(clock))
            places.append(actors_NT5[..., :2])
            middles.append((self.hover * _SLOWER).expand(clock.shape))
            looks.append(look.clamp(0, SPRITE_CLOCKS - 1))
        if len(self.fixtures):
            # A quarter of a picture for what rounding takes from a beat.
            look = _wrapped((pose_N9[:, 8:] * SPRITE_BEATS + 0.25).floor(), SPRITE_BEATS)
            x, y, height = self.fixtures.expand(len(pose_N9), -1, 3).unbind(-1)
            places.append(torch.stack([x, y], -1))
            middles.append(height)
            looks.append((look + SPRITE_CLOCKS * self._actors).expand(x.shape))
        place, middle, look = (torch.cat(each, 1) for each in (places, middles, looks))
        off, (c, s) = place - pose_N9[:, None, :2], pose_N9[:, None, 2:4].unbind(-1)
        ahead, aside, lower = along(off, c, s), along(off, -s, c), pose_N9[:, 6:7] - middle
        # Pictures of far ones are coarser: all would flicker that is finer than rays lie apart.
        coarser = (ahead > _CLOSE[0]).long() + (ahead > _CLOSE[1]).long()
        side, start = (F.embedding(coarser, self.starts[:, at : at + 1])[..., 0] for at in range(2))
        each = [ahead, aside, lower, side, start + look * side * side]

        def on_picture(ahead: Tensor, aside: Tensor, lower: Tensor, side: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Whether a ray goes through a picture, and at which column and row, not whole, of its points."""
            across, up = aside - ahead * sides, lower + ahead * slopes[:, None]
            column, row = (((at / (2 * _HALF) + 0.5) * (side - 1)).clamp_min(0) for at in (across, up))
            column, row = (torch.minimum(at, side - 1.001) for at in (column, row))
            return (across.abs() < _HALF) & (up.abs() < _HALF) & (ahead > _NEAREST), column, row

        # Of several the nearest one of those that are seen well, as its nearest point says.
        ahead, aside, lower, side, first = (at[..., None, None] for at in each)
        seen, column, row = on_picture(ahead, aside, lower, side)
        index = (first + row.round() * side + column.round()).long()
        share = (F.embedding(index, self.shares)[..., 0] * _FASTER).sigmoid() * seen * (until[:, None] > ahead)
        which = (share / ahead.clamp_min(_NEAREST)).max(1)[1]
        ahead, aside, lower, side, first = (at.gather(1, which.flatten(1)).view(which.shape) for at in each)
        seen, column, row = on_picture(ahead, aside, lower, side)
        index, side = (first + row.floor() * side + column.floor()).long(), side.long()
        right, higher = column - column.floor(), row - row.floor()
        share, sprite = (_in_square(table, index, side, right, higher) for table in (self.shares, self.sprites))
        share = (share[..., 0] * _FASTER).sigmoid() * ((until - ahead) * _BEHIND).sigmoid() * seen
        return sprite * _FASTER, share[..., None]


_CORNERS = [(dz, dy, dx) for dz in (0, 1) for dy in (0, 1) for dx in (0, 1)]
"""Of a cell; those that follow on each other differ in x."""


def _from_middle(count: int) -> Tensor:
    """Of pixels, from the first: how far each is from the middle."""
    return (count - 1) / 2 - torch.arange(count)


def _wrapped(number: Tensor, size: int | Tensor) -> Tensor:
    """What is left of whole numbers after as many times `size`, a power of two, as they hold."""
    return number - (number / size).floor() * size


def _in_square(table: Tensor, index: Tensor, side: Tensor, right: Tensor, higher: Tensor) -> Tensor:
    """Features [..., f] between those of a point, of the next, and of both one row of `side` points further, of a table
    [N, f].
    """
    here, next_, above, across = (F.embedding(index + step, table) for step in (0, 1, side, side + 1))
    right, higher = right[..., None], higher[..., None]
    return between(between(here, next_, right), between(above, across, right), higher)


def _running_max(x: Tensor) -> Tensor:
    """The greatest so far along the last dimension; ONNX has no operator of that name."""
    reach = 1
    while reach < x.shape[-1]:
        x = torch.maximum(x, F.pad(x[..., :-reach], (reach, 0), value=-1e4))
        reach *= 2
    return x
