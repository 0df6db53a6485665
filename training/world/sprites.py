"""The lantern that the player carries: four sprite frames, drawn here, so that no foreign artwork is on screen."""

import numpy as np

from training.world.paint import Mask, Picture, box, cover, disc, grid, inside, plain, ramp, rgb, shade

WIDTH, HEIGHT = 120, 96  # sprite pixels on the engine's 320x200 screen


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
