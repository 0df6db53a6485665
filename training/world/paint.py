"""Small drawing kit for the arena's pictures: float images, soft shapes, and their way into paletted PNG lumps.

A picture is float32 [height, width, 3] in 0..1, row 0 on top. A mask is float32 [height, width] in 0..1. Edges are
anti-aliased and no detail is finer than a few map units, because the engine scales textures without mipmaps and an
autoencoder reads the result.
"""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.float32]
Mask = NDArray[np.float32]
Field = NDArray[np.floating[Any]]
Colour = tuple[float, float, float]


def rgb(hex_colour: str) -> Colour:
    """'c8a070' as three floats in 0..1."""
    return (int(hex_colour[0:2], 16) / 255, int(hex_colour[2:4], 16) / 255, int(hex_colour[4:6], 16) / 255)


def blend(start: str, end: str, share: float) -> Colour:
    """The colour that lies `share` (0 to 1) of the way from hex colour `start` to `end`."""
    a, b = rgb(start), rgb(end)
    return (a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1]), a[2] + share * (b[2] - a[2]))


def grid(width: int, height: int) -> tuple[Mask, Mask]:
    """Pixel-centre coordinates x (right) and y (down), each [height, width]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + np.float32(0.5)
    return x, y


def plain(width: int, height: int, colour: Colour) -> Picture:
    """A picture of one colour."""
    return np.broadcast_to(np.asarray(colour, np.float32), (height, width, 3)).copy()


def cover(picture: Picture, mask: Mask, colour: Colour, opacity: float = 1.0) -> None:
    """Lay `colour` over `picture` in place where `mask` is 1."""
    alpha = (mask * np.float32(opacity))[..., None]
    picture += alpha * (np.asarray(colour, np.float32) - picture)


def shade(picture: Picture, mask: Mask, factor: Colour) -> None:
    """Multiply `picture` in place by `factor` where `mask` is 1."""
    picture *= 1 + mask[..., None] * (np.asarray(factor, np.float32) - 1)


def inside(distance: Field, softness: float = 1.5) -> Mask:
    """Mask of a shape from its signed distance (negative inside), with an edge `softness` pixels wide."""
    return np.clip(0.5 - distance / np.float32(softness), 0, 1).astype(np.float32)


def ramp(values: Mask, start: float, end: float) -> Mask:
    """Smooth step from 0 at `start` to 1 at `end` (`end` may lie below `start`)."""
    t = np.clip((values - np.float32(start)) / np.float32(end - start), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def box(x: Mask, y: Mask, left: float, top: float, right: float, bottom: float) -> Mask:
    """Signed distance to an upright rectangle."""
    dx = np.maximum(np.float32(left) - x, x - np.float32(right))
    dy = np.maximum(np.float32(top) - y, y - np.float32(bottom))
    return np.maximum(dx, dy)


def disc(x: Mask, y: Mask, cx: float, cy: float, radius: float) -> Mask:
    """Signed distance to a disc."""
    return (np.hypot(x - np.float32(cx), y - np.float32(cy)) - np.float32(radius)).astype(np.float32)


def arch(x: Mask, y: Mask, cx: float, half_width: float, top: float, bottom: float) -> Mask:
    """Signed distance (near the edge) to a round-headed opening standing on `bottom`."""
    head = disc(x, y, cx, top + half_width, half_width)
    body = box(x, y, cx - half_width, top + half_width, cx + half_width, bottom)
    return np.minimum(head, body)


def sway(x: Mask, y: Mask, seed: int, size: float) -> Mask:
    """Slow variation in about -1..1 with features of `size` pixels: a few cosines, never noise."""
    rng = np.random.default_rng(seed)
    total = np.zeros_like(x)
    for _ in range(5):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        frequency = 2 * np.pi / (size * rng.uniform(0.8, 2.0))
        total += np.cos(frequency * (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))) + np.float32(phase))
    return (total / 3).astype(np.float32)


def to_image(picture: Picture) -> Image.Image:
    """The picture as 8-bit RGB."""
    return Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8), "RGB")


def choose_palette(pictures: list[Picture]) -> bytes:
    """768 bytes of PLAYPAL fitted to the pictures.

    Index 0 is black and left unused: the engine takes it for transparent. Median cut is integer arithmetic, hence the
    same bytes everywhere.
    """
    samples = [p[::5, ::5].reshape(-1, 3) for p in pictures]
    # Each picture counts the same, however large: the floor must not starve the banners of colours.
    picks = [s[np.linspace(0, len(s) - 1, 4000).astype(int)] for s in samples]
    strip = to_image(np.concatenate(picks)[None])
    chosen = strip.quantize(255, method=Image.Quantize.MEDIANCUT, kmeans=3).getpalette() or []
    return bytes([0, 0, 0, *(chosen + [0] * 765)[:765]])


def to_png(picture: Picture, palette: bytes, alpha: Mask | None = None, offset: tuple[int, int] | None = None) -> bytes:
    """A paletted PNG; pixels whose `alpha` is below one half get the transparent index 0.

    `offset` becomes ZDoom's grAb chunk (sprite origin, pixels from the top left corner).
    """
    holder = Image.new("P", (1, 1))
    # Black twice would let the quantiser choose index 0; repeat a real colour there instead.
    holder.putpalette(palette[3:6] + palette[3:])
    indexed = np.asarray(to_image(picture).quantize(palette=holder, dither=Image.Dither.NONE)).copy()
    indexed[indexed == 0] = 1
    if alpha is not None:
        indexed[alpha < 0.5] = 0
    image = Image.fromarray(indexed, "P")
    image.putpalette(palette)
    out = io.BytesIO()
    if alpha is None:
        image.save(out, "PNG")
    else:
        image.save(out, "PNG", transparency=0)
    data = out.getvalue()
    if offset is None:
        return data
    body = b"grAb" + struct.pack(">ii", *offset)
    chunk = struct.pack(">I", 8) + body + struct.pack(">I", zlib.crc32(body))
    header_end = 8 + 25  # signature, then the IHDR chunk
    return data[:header_end] + chunk + data[header_end:]
