"""What the arena is painted with: walls, pillars, floors and the sky, lit by one low sun.

Light is baked into the pictures (the engine adds none), so every wall and pillar is a picture
as large as the thing itself, one texel per map unit.
"""

from collections.abc import Sequence

import numpy as np

from training.world.paint import (
    Colour,
    Mask,
    Picture,
    arch,
    box,
    cover,
    disc,
    grid,
    inside,
    plain,
    ramp,
    rgb,
    shade,
    sway,
)

SUN_AZIMUTH_DEG = 205.0  # map angle (0 = east, 90 = north) at which the sun stands
SUN_ELEVATION_DEG = 33.0
SKY_ROWS_PER_TANGENT = 124.0  # how the engine lays a sky's rows on a 90 degree view of 5:4 (measured)

CREAM, SAND, OCHRE = rgb("ecdcbc"), rgb("dcbc8e"), rgb("d2a252")
TERRACOTTA, BRICK, ROSE = rgb("c07c58"), rgb("a05c48"), rgb("d6a48e")
WOOD, DARK_WOOD, BRONZE = rgb("96683f"), rgb("664630"), rgb("80583a")
LEAF = rgb("6b8a4e")
SAGE, TEAL, BLUE = rgb("98a67c"), rgb("6a9490"), rgb("7f9db2")
SLATE, PLUM, STONE = rgb("66788a"), rgb("7e6470"), rgb("bcae98")

WARM_LIGHT: Colour = (1.06, 1.0, 0.90)
COOL_SHADE: Colour = (0.69, 0.68, 0.75)


def sunlight(normal_deg: float) -> Colour:
    """Light factor of an upright surface whose outward normal points to `normal_deg`."""
    facing = max(0.0, float(np.cos(np.radians(normal_deg - SUN_AZIMUTH_DEG)))) ** 0.7
    red, green, blue = (c + (w - c) * facing for c, w in zip(COOL_SHADE, WARM_LIGHT, strict=True))
    return (red, green, blue)


def _masonry(width: int, height: int, colour: Colour, seed: int) -> tuple[Picture, Mask, Mask]:
    """The common ground of all walls: plaster with slow variation, darker foot, plinth and cornice."""
    x, y = grid(width, height)
    wall = plain(width, height, colour)
    wall *= 1 + 0.035 * sway(x, y, seed, 130)[..., None]
    shade(wall, ramp(y, height * 0.45, height), (0.84, 0.81, 0.80))
    return wall, x, y


def _finish(wall: Picture, x: Mask, y: Mask, plinth: Colour, light: Colour) -> Picture:
    height, width = y.shape
    cover(wall, inside(box(x, y, -9, height - 22, width + 9, height + 9)), plinth)
    shade(wall, inside(box(x, y, -9, height - 24, width + 9, height - 21)), (0.8, 0.78, 0.78))
    cover(wall, inside(box(x, y, -9, -9, width + 9, 12)), plinth)
    shade(wall, inside(box(x, y, -9, 12, width + 9, 16), 3), (0.78, 0.76, 0.78))
    corner = np.minimum(x, width - x)
    shade(wall, ramp(corner, 60, 0), (0.84, 0.82, 0.84))
    return wall * np.asarray(light, np.float32)


def east_wall(width: int, height: int) -> Picture:
    """Golden sandstone with five deep arches: the side that the sun shines on."""
    wall, x, y = _masonry(width, height, SAND, 1)
    for k in range(5):
        cx = width * (k + 0.5) / 5
        cover(wall, inside(arch(x, y, cx, 50, 24, height)), CREAM)
        opening = inside(arch(x, y, cx, 40, 34, height))
        cover(wall, opening, BRICK if k == 2 else TERRACOTTA)
        # The sun comes in from the left of the opening, so its left edge throws the shadow.
        shade(wall, opening * ramp(x, cx - 4, cx - 40), (0.72, 0.70, 0.74))
    return _finish(wall, x, y, CREAM, sunlight(180))


def north_wall(width: int, height: int) -> Picture:
    """Cream plaster with one wide landscape mural: a sun over green and blue hills."""
    wall, x, y = _masonry(width, height, CREAM, 2)
    left, right, top, bottom = width * 0.16, width * 0.84, 24.0, height - 34.0
    cover(wall, inside(box(x, y, left - 8, top - 8, right + 8, bottom + 8)), WOOD)
    panel = inside(box(x, y, left, top, right, bottom))
    cover(wall, panel, rgb("efd2a2"))
    cover(wall, panel * inside(disc(x, y, width * 0.38, height * 0.50, 26)), rgb("d98e5a"))
    u = (x - width / 2) / 100
    for base, swing, phase, colour in (
        (0.52, 12, 0.2, rgb("8fa9ae")),
        (0.61, 9, 1.7, SAGE),
        (0.70, 7, 3.9, rgb("72855f")),
    ):
        ridge = height * base - swing * np.sin(u * 1.6 + phase) - 0.4 * swing * np.sin(u * 3.1 + 2 * phase)
        cover(wall, panel * inside((ridge - y).astype(np.float32)), colour)
    return _finish(wall, x, y, STONE, sunlight(270))


def west_wall(width: int, height: int) -> Picture:
    """Timber: broad upright planks, two beams. Used on both sides of the alcove."""
    wall, x, y = _masonry(width, height, WOOD, 3)
    for k in range(0, width + 1, 58):
        cover(wall, inside(np.abs(x - k) - 3, 3), DARK_WOOD, 0.75)
    for beam in (34, height - 46):
        cover(wall, inside(box(x, y, -9, beam, width + 9, beam + 13)), DARK_WOOD)
    return _finish(wall, x, y, DARK_WOOD, tuple(min(1.0, c * 1.16) for c in sunlight(0)))  # type: ignore[arg-type]


def alcove_back(width: int, height: int) -> Picture:
    """The back of the alcove: dark teal with a glowing ochre disc."""
    wall, x, y = _masonry(width, height, rgb("5d8280"), 4)
    distance = disc(x, y, width / 2, height * 0.46, 0)
    cover(wall, ramp(distance, 95, 25), rgb("d9a860"), 0.55)
    cover(wall, inside(distance - 30), rgb("f2d492"))
    cover(wall, inside(np.abs(distance - 44) - 3), rgb("e2b46c"))
    return _finish(wall, x, y, DARK_WOOD, (0.98, 0.95, 0.92))


def alcove_side(width: int, height: int) -> Picture:
    """Plain plaster cheeks of the alcove."""
    wall, x, y = _masonry(width, height, rgb("7d938c"), 5)
    return _finish(wall, x, y, DARK_WOOD, (0.85, 0.83, 0.86))


def south_wall(width: int, height: int) -> Picture:
    """Rose plaster over a slate wainscot, with a great blue double door and two shuttered windows."""
    wall, x, y = _masonry(width, height, ROSE, 6)
    cover(wall, inside(box(x, y, -9, height - 52, width + 9, height + 9)), PLUM, 0.75)
    cx = width / 2
    cover(wall, inside(arch(x, y, cx, 74, 16, height)), CREAM)
    cover(wall, inside(arch(x, y, cx, 62, 28, height)), SLATE)
    cover(wall, inside(np.abs(x - cx) - 2.5) * inside(arch(x, y, cx, 62, 28, height)), rgb("46566a"))
    for side in (-1, 1):
        wx = cx + side * width * 0.31
        cover(wall, inside(box(x, y, wx - 48, 30, wx + 48, 84)), CREAM)
        cover(wall, inside(box(x, y, wx - 41, 37, wx + 41, 78)), BLUE)
        cover(wall, inside(box(x, y, wx - 3, 30, wx + 3, 84)), CREAM)
    return _finish(wall, x, y, STONE, tuple(min(1.0, c * 1.14) for c in sunlight(90)))  # type: ignore[arg-type]


def corner_wall(width: int, height: int, name: str) -> Picture:
    """A plaster corner carrying one hanging banner; cloth and emblem differ by corner ('NE', 'NW', 'SW', 'SE')."""
    ground, cloth, mark, normal = {
        "NE": (CREAM, SAGE, CREAM, 225.0),
        "NW": (SAND, BLUE, CREAM, 315.0),
        "SW": (STONE, OCHRE, BRICK, 45.0),
        "SE": (SAND, BRICK, rgb("e6c088"), 135.0),
    }[name]
    wall, x, y = _masonry(width, height, ground, 7)
    cx, half, top, bottom = width / 2, 52.0, 18.0, height - 30.0
    tail = np.abs(x - cx) * 0.35  # a swallow tail
    shape = inside(np.maximum(box(x, y, cx - half, top, cx + half, bottom), y - (bottom - 18 + tail)))
    shade(wall, inside(box(x, y, cx - half + 5, top + 5, cx + half + 6, bottom - 4), 6), (0.86, 0.84, 0.86))
    cover(wall, shape, cloth)
    shade(wall, shape * (0.5 + 0.5 * np.cos((x - cx) / 17)).astype(np.float32), (0.93, 0.92, 0.93))
    cy = height * 0.43
    emblem = {
        "NE": inside(disc(x, y, cx, cy, 24)),
        "NW": inside(np.maximum(disc(x, y, cx, cy, 27), -disc(x, y, cx + 13, cy - 5, 23))),
        "SW": inside((np.abs(x - cx) + np.abs(y - cy) - 31).astype(np.float32)),
        "SE": inside(np.minimum(np.abs(y - cy + 14), np.abs(y - cy - 14)) - 7) * inside(np.abs(x - cx) - 32),
    }[name]
    cover(wall, emblem.astype(np.float32), mark)
    light = tuple(min(1.06, c * 1.1) for c in sunlight(normal))
    return _finish(wall, x, y, STONE, light)  # type: ignore[arg-type]


def pillar(around: int, height: int, kind: str, faces: Sequence[float]) -> Picture:
    """A pillar's skin, unrolled: `around` texels of circumference, counter-clockwise seen from above.

    A round skin starts due east; one of four `faces` (their lengths in texels) with its west face.
    `kind` is one of 'sandstone', 'obelisk', 'glazed', 'timber', 'drum', 'twin', 'hedge', 'brazier'.
    """
    ground = {
        "sandstone": SAND, "obelisk": TERRACOTTA, "glazed": TEAL, "timber": WOOD, "drum": CREAM, "twin": ROSE,
        "hedge": LEAF, "brazier": BRONZE,
    }[kind]  # fmt: skip
    x, y = grid(around, height)
    skin = plain(around, height, ground)
    shade(skin, ramp(y, height * 0.4, height), (0.86, 0.83, 0.83))
    if kind in ("sandstone", "twin"):
        for top, bottom in ((0, 14), (14, 22), (height - 26, height)):
            cover(skin, inside(box(x, y, -9, top, around + 9, bottom)), CREAM if top != 14 else OCHRE)
    elif kind == "obelisk":
        for middle in (0.22, 0.62):
            cover(skin, inside(np.abs(y - height * middle) - 13), CREAM)
            cover(skin, inside(np.abs(y - height * middle) - 5), BRICK)
    elif kind == "glazed":
        for k in range(0, height, 28):
            cover(skin, inside(np.abs(y - k) - 1.5, 2.5), rgb("c6d0bc"), 0.7)
        cover(skin, inside(y - 12), OCHRE)
    elif kind == "timber":
        for k in range(4):
            cover(skin, inside(np.abs(x - around * k / 4) - 6, 3), DARK_WOOD)
        cover(skin, inside(np.abs(y - height * 0.3) - 9), OCHRE)
    elif kind == "hedge":
        _foliage(skin, x, y)
        cover(skin, ramp(y, 9, 2), rgb("a9bd6a"), 0.7)
    elif kind == "brazier":
        cover(skin, inside(y - 9), OCHRE)
        cover(skin, inside(height - 6 - y), rgb("4c3a30"))
    else:
        cover(skin, inside(np.abs(y - height * 0.45) - 12), BLUE)
    turn = 360 * x / around
    normal = 180 + 90 * np.searchsorted(np.cumsum(faces), x, side="right") if faces else turn
    facing = np.maximum(0, np.cos(np.radians(normal - SUN_AZIMUTH_DEG)))[..., None] ** 0.7
    cool = np.asarray(COOL_SHADE, np.float32) * 1.06
    return (skin * (cool + (np.asarray(WARM_LIGHT, np.float32) - cool) * facing)).astype(np.float32)


def _foliage(picture: Picture, x: Mask, y: Mask) -> None:
    """Clumps of lighter and darker leaves over a green picture, in place."""
    clumps = sway(x, y, 21, 34)
    cover(picture, ramp(clumps, 0.1, 0.6), rgb("8fa85c"))
    cover(picture, ramp(clumps, -0.1, -0.6), rgb("4a6a44"))


def leaves(size: int) -> Picture:
    """Top of a hedge, in the sun."""
    top = plain(size, size, LEAF)
    _foliage(top, *grid(size, size))
    return top * np.asarray((1.12, 1.08, 0.95), np.float32)


def coals(size: int) -> Picture:
    """Top of a brazier: embers."""
    bed = plain(size, size, rgb("6a2a18"))
    cover(bed, ramp(sway(*grid(size, size), 22, 14), -0.1, 0.5), rgb("e07a2c"))
    return bed


def rim(width: int, height: int, colour: Colour) -> Picture:
    """A step's edge."""
    return plain(width, height, colour)


def dais_floor(size: int) -> Picture:
    """Top of the dais: concentric cream and terracotta rings about the picture's centre."""
    x, y = grid(size, size)
    floor = plain(size, size, CREAM)
    distance = disc(x, y, size / 2, size / 2, 0)
    for radius, colour in ((84, TERRACOTTA), (66, rgb("e4cca4")), (38, OCHRE), (20, CREAM)):
        cover(floor, inside(distance - radius), colour)
    return floor * np.asarray((1.0, 0.96, 0.9), np.float32)


def water(size: int) -> Picture:
    """Still water of the basin: blue-green, lighter in the middle."""
    x, y = grid(size, size)
    pool = plain(size, size, rgb("6f9a9c"))
    cover(pool, ramp(disc(x, y, size / 2, size / 2, 0), 100, 10), rgb("a3c0b6"))
    return pool


def planks(size: int) -> Picture:
    """Wooden floor of the alcove."""
    _, y = grid(size, size)
    floor = plain(size, size, rgb("a67c50"))
    for k in range(0, size + 1, 32):
        cover(floor, inside(np.abs(y - k) - 1.5, 3), DARK_WOOD, 0.6)
    return floor * np.asarray((0.85, 0.83, 0.85), np.float32)


def courtyard(
    size: int,
    shadows: list[tuple[float, float, float, float]],
    boxes: list[tuple[float, float, float, float, float]],
    wall_height: float,
) -> Picture:
    """The whole floor in one picture, north on top, one texel per map unit, map origin in the middle.

    Paving of large slabs whose tint drifts with the place, a compass star, and the shadows of walls and pillars:
    `shadows` holds (x, y, radius, height) of each pillar in map units, `boxes` (x, y, half its length east-west, half
    its width, height) of each hedge.
    """
    px, py = grid(size, size)
    x, y = px - size / 2, size / 2 - py  # map coordinates
    floor = plain(size, size, rgb("cdb592"))
    # Where on the floor: rosy in the south, greyer blue in the north, golden in the east, mossy in the west.
    cover(floor, ramp(y, -200, 520), rgb("b9b7aa"), 0.7)
    cover(floor, ramp(y, 200, -520), rgb("c9967a"), 0.7)
    cover(floor, ramp(x, -100, 520), rgb("dcb880"), 0.4)
    cover(floor, ramp(x, 100, -520), rgb("a39d7c"), 0.4)
    slab = 128
    tint = np.random.default_rng(11).uniform(-0.045, 0.045, (size // slab + 2, size // slab + 2)).astype(np.float32)
    floor *= 1 + tint[(py // slab).astype(int), (px // slab).astype(int)][..., None]
    joint = np.minimum(np.abs((px + slab / 2) % slab - slab / 2), np.abs((py + slab / 2) % slab - slab / 2))
    shade(floor, inside(joint - 1.5, 3), (0.84, 0.82, 0.82))
    middle = slice(size // 2 - 160, size // 2 + 160)
    _compass(floor[middle, middle], x[middle, middle], y[middle, middle])
    shadow = np.zeros_like(x)
    away = np.radians(SUN_AZIMUTH_DEG + 180)
    run = 1 / np.tan(np.radians(SUN_ELEVATION_DEG))
    ux, uy = np.float32(np.cos(away)), np.float32(np.sin(away))
    for cx, cy, radius, height in shadows:
        along = (x - np.float32(cx)) * ux + (y - np.float32(cy)) * uy
        across = np.abs((y - np.float32(cy)) * ux - (x - np.float32(cx)) * uy)
        blur = 5 + 0.06 * np.maximum(along, 0)
        reach = ramp(along, height * run + 20, height * run - 20) * (along > 0)
        shadow = np.maximum(shadow, reach * np.clip(0.5 - (across - radius) / blur, 0, 1))
        # Contact shadow: keeps the pillar standing on the floor from every side.
        shadow = np.maximum(shadow, 0.5 * ramp(disc(x, y, cx, cy, radius), 26, 0))
    for cx, cy, half_x, half_y, height in boxes:
        # How far a ray from here to the sun goes on through the box before it leaves it or gets above it.
        enters = np.maximum(np.maximum((x - cx - half_x) / ux, (y - cy - half_y) / uy), 0)
        leaves = np.minimum(np.minimum((x - cx + half_x) / ux, (y - cy + half_y) / uy), height * run)
        shadow = np.maximum(shadow, ramp(leaves - enters, -4, 14))
        around = box(x, y, cx - half_x, cy - half_y, cx + half_x, cy + half_y)
        shadow = np.maximum(shadow, 0.5 * ramp(around, 26, 0))
    reach_x, reach_y = wall_height * run * float(ux), wall_height * run * float(uy)
    edge = np.minimum(x + 512 - reach_x, y + 512 - reach_y)
    shadow = np.maximum(shadow, inside(edge.astype(np.float32), 16))
    shadow = np.maximum(shadow, 0.45 * ramp(512 - np.maximum(np.abs(x), np.abs(y)), 50, 0))
    shade(floor, shadow.astype(np.float32), (0.70, 0.70, 0.78))
    return floor * np.asarray((1.03, 0.99, 0.92), np.float32)


def _compass(floor: Picture, x: Mask, y: Mask) -> None:
    """An eight-pointed star in rings at the origin; its north point is blue."""
    radius = np.hypot(x, y)
    angle = np.degrees(np.arctan2(y, x))
    cover(floor, inside(radius - 150, 3), rgb("e2d0aa"))
    cover(floor, inside(np.abs(radius - 142) - 5, 3), TERRACOTTA)
    for start, reach, width, colour in ((45.0, 92.0, 20.0, SAND), (0.0, 126.0, 26.0, TERRACOTTA)):
        for k in range(4):
            turn = np.radians((angle - start - 90 * k + 180) % 360 - 180)
            along, across = radius * np.cos(turn), np.abs(radius * np.sin(turn))
            point = np.maximum(across - width * (1 - along / reach), -along)
            north = start == 0 and k == 1
            cover(floor, inside(point.astype(np.float32), 2.5), SLATE if north else colour)
    cover(floor, inside(radius - 28, 3), OCHRE)


def sky(width: int, height: int, horizon: int) -> Picture:
    """A full turn of sky: column 0 is due east, columns run counter-clockwise, row `horizon` is at eye height.

    The sun glows in the west-south-west, the opposite side is dusky; every quarter has hills of its own.
    """
    x, y = grid(width, height)
    azimuth = (360 * x / width).astype(np.float32)
    up = np.degrees(np.arctan((horizon - y) / SKY_ROWS_PER_TANGENT)).astype(np.float32)  # elevation in degrees
    from_sun = np.abs((azimuth - SUN_AZIMUTH_DEG + 180) % 360 - 180)
    air = plain(width, height, rgb("86a8c0"))
    cover(air, ramp(up, 70, 8), rgb("d5d6c8"))
    cover(air, ramp(from_sun, 60, 180) * ramp(up, 60, 5), rgb("c9b4b4"), 0.75)
    cover(air, ramp(from_sun, 130, 0) * ramp(up, 75, 5), rgb("f4d6a0"), 0.85)
    for centre, elevation, half, thick in ((40, 34, 55, 4), (120, 44, 50, 5), (250, 40, 45, 4), (330, 32, 40, 4)):
        off = (azimuth - centre + 180) % 360 - 180
        lane = ((up - elevation - 2.5 * np.sin(np.radians(off * 3))) / thick) ** 2 + (off / half) ** 2
        cover(air, ramp(lane.astype(np.float32), 1, 0), rgb("f3e6d2"), 0.6)
    core = np.hypot(from_sun, up - 25).astype(np.float32)
    cover(air, ramp(core, 26, 3), rgb("fbe6b4"), 0.8)
    cover(air, inside(core - 5, 2), rgb("fff4d4"))
    _hills(air, azimuth, up)
    cover(air, ramp(up, -1, -3), rgb("8b8a78"))
    return air


def _hills(air: Picture, azimuth: Mask, up: Mask) -> None:
    def bump(centre: float, half: float, height: float, sharp: float) -> Mask:
        off = np.abs((azimuth - centre + 180) % 360 - 180) / half
        return (height * np.clip(1 - off**sharp, 0, None)).astype(np.float32)

    a = np.radians(azimuth)
    far = 9 + 2 * np.sin(3 * a) + 1.5 * np.sin(7 * a + 1)
    # North: a pale double peak. East: one broad dome. South-east: a table mountain.
    far = np.maximum(far, np.maximum(bump(104, 34, 27, 1.0), bump(76, 26, 20, 1.0)))
    far = np.maximum(far, np.maximum(bump(5, 44, 19, 2.0), bump(300, 24, 19, 8.0)))
    near = 6.5 + 1.5 * np.sin(4 * a + 2) + 1.2 * np.sin(9 * a)
    near = np.maximum(near, np.maximum(bump(160, 30, 14, 2.0), bump(250, 24, 15, 1.6)))
    haze = ramp(np.abs((azimuth - SUN_AZIMUTH_DEG + 180) % 360 - 180), 110, 0)
    ridge = inside((up - far) * 2, 2)
    cover(air, ridge, rgb("8d9cab"))
    cover(air, ridge * haze, rgb("d2ae86"), 0.8)
    cover(air, ridge * inside((20.5 - up) * 2, 2) * ramp(np.abs(azimuth - 100), 40, 30), rgb("e6dccb"), 0.8)
    slope = inside((up - near) * 2, 2)
    cover(air, slope, rgb("7d8f76"))
    cover(air, slope * haze, rgb("a98d62"), 0.8)
