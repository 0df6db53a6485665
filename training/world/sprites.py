"""The lantern that the player carries, wisps and flames: all drawn here, so that no foreign artwork is on screen."""

import numpy as np

from training.world.paint import Mask, Picture, blend, box, cover, disc, grid, inside, plain, ramp, rgb, shade

WIDTH, HEIGHT = 120, 96  # of the lantern: sprite pixels on the engine's 320x200 screen
TEXELS = 2  # per map unit, of all else
WISP_SIZE = 160  # texels both ways
FLAME_WIDTH, FLAME_HEIGHT = 80, 110  # texels


def lantern(recoil: int, glow: float) -> tuple[Picture, Mask]:
    """Picture and alpha of the hand-held lantern, `recoil` pixels lower, its light at `glow` (0 idle to 1 flash)."""
    x, y = grid(WIDTH, HEIGHT)
    cx, top = WIDTH / 2, 36.0 + recoil
    picture = plain(WIDTH, HEIGHT, rgb("6a4830"))
    grip = box(x, y, cx - 9, top + 26, cx + 9, HEIGHT + 9)
    collar = box(x, y, cx - 17, top + 22, cx + 17, top + 31)
    bulb = disc(x, y, cx, top + 10, 17)
    shade(picture, ramp(x, cx - 2, cx + 12), (0.65, 0.63, 0.66))
    cover(picture, inside(collar), rgb("c99a52"))
    shade(picture, inside(collar) * ramp(x, cx, cx + 18), (0.68, 0.66, 0.66))
    cover(picture, inside(bulb), rgb("a8b8a4"))
    cover(picture, ramp(disc(x, y, cx - 3, top + 8, 0), 15, 2), rgb("e8d8a8"))
    shape = np.minimum(np.minimum(grip, collar), bulb)
    if glow > 0:
        halo = disc(x, y, cx, top + 10, 17 + 20 * glow)
        rays = halo + 7 * np.cos(8 * np.arctan2(y - (top + 10), x - cx)).astype(np.float32)
        flash = np.minimum(rays, bulb)
        cover(picture, inside(flash) * (shape > 0), rgb("f0b860"))
        cover(picture, ramp(disc(x, y, cx, top + 10, 0), 17 + 16 * glow, 10), rgb("fff2c8"))
        shape = np.minimum(shape, flash)
    return picture, inside(shape, 1)


FRAMES: dict[str, tuple[int, float]] = {"A": (0, 0.0), "B": (0, 1.0), "C": (10, 0.55), "D": (5, 0.0)}


def wisp() -> dict[str, tuple[Picture, Mask]]:
    """Pictures and alphas of a wisp by frame: A whole, B to E bursting, F to L an ember that grows whole again."""
    frames = {"A": _orb(1.0)}
    frames |= {name: _burst(stage / 3) for stage, name in enumerate("BCDE")}
    return frames | {name: _orb(stage / 7) for stage, name in enumerate("FGHIJKL")}


def _orb(grown: float) -> tuple[Picture, Mask]:
    """A glowing ball, dark red and small at 0, whole at 1: a warm white core in a violet rim, 40 map units across."""
    centre = WISP_SIZE / 2
    radius = TEXELS * (8 + 12 * grown)
    distance = disc(*grid(WISP_SIZE, WISP_SIZE), centre, centre, 0)
    picture = plain(WISP_SIZE, WISP_SIZE, blend("4a0a12", "5a22b4", grown))
    cover(picture, ramp(distance, radius, radius * 0.55), blend("a01c14", "c060f0", grown))
    cover(picture, ramp(distance, radius * 0.7, radius * 0.35), blend("f0602a", "fff4d6", grown))
    return picture, inside(distance - radius, 1)


def _burst(spent: float) -> tuple[Picture, Mask]:
    """A star of light that opens into a ring as it is `spent` (0 to 1), around the ember to come."""
    x, y = grid(WISP_SIZE, WISP_SIZE)
    centre = WISP_SIZE / 2
    distance = disc(x, y, centre, centre, 0)
    outer = TEXELS * (27 + 11 * spent)
    wave = (1 + 0.14 * np.cos(8 * np.arctan2(y - centre, x - centre))).astype(np.float32)
    ring = np.maximum(distance - outer * wave, outer * wave * max(0.0, 0.9 * spent - 0.25) - distance)
    picture, core = _orb(0)
    cover(picture, inside(ring), rgb("d88cff"))
    cover(picture, inside(ring + 7), rgb("ffe9a8"))
    cover(picture, inside(ring + 13), rgb("fffbe8"))
    return picture, np.maximum(inside(ring, 1), core)


def flame(phase: int) -> tuple[Picture, Mask]:
    """One of a fire's four pictures: three tongues that take turns in standing high and lean to and fro."""
    x, y = grid(FLAME_WIDTH, FLAME_HEIGHT)
    picture = plain(FLAME_WIDTH, FLAME_HEIGHT, rgb("d8501c"))
    shape = np.full_like(x, 99)
    for tongue in (-1, 0, 1):
        turn = np.pi / 2 * (phase + 1.3 * tongue)
        height = FLAME_HEIGHT * (0.88 - 0.25 * abs(tongue) + 0.11 * np.sin(turn))
        up = np.clip((FLAME_HEIGHT - y) / np.float32(height), 0, 1)
        middle = FLAME_WIDTH / 2 + 16 * tongue * (1 - 0.4 * up) + 9 * up * np.cos(turn)
        half = 17 * np.sqrt(1 - up) * (0.65 + up)  # a belly above the foot, a point at the top
        shape = np.minimum(shape, np.maximum(np.abs(x - middle) - half, FLAME_HEIGHT - height - y)).astype(np.float32)
    low = ramp(y, FLAME_HEIGHT * 0.05, FLAME_HEIGHT * 0.6)
    cover(picture, inside(shape + 5, 4), rgb("f39a2c"))
    cover(picture, inside(shape + 11, 4) * low, rgb("ffd75a"))
    cover(picture, inside(shape + 15, 4) * low, rgb("fff3c0"))
    return picture, inside(shape, 1)
