"""What a student's block costs, from its configuration: operations, and the numbers that must be moved for them.

Matrix products, convolutions and attention are counted. Norms, activations and rotations are not: fused with the
product before them they move nothing. Nor is what a view looks up along its rays, a hundredth of a pass.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from streamgen.config import (
    DETAIL_LAYERS,
    FACE_BLOCKS,
    FACE_CODE,
    FACE_DEEP_BLOCKS,
    MOTION_DIM,
    MOTION_LAYERS,
    OCTAVES,
    PIXEL_PATCH,
    POSE_CHANNELS,
    VIEW_FEATURES,
    VIEW_LEVELS,
    VIEW_RAYS,
    WARP_BLOCKS,
    WARP_FINE,
    WARP_NEAR,
    StudentConfig,
    TransformerConfig,
)

CONTEXT_TOKENS = 512
"""Of a text, as the Wan 2.1 family takes it."""


@dataclass(frozen=True, slots=True)
class Work:
    """flops: floating-point operations of a row, a multiply-add counts as two. weights: numbers that are read once for
    however many rows. activations, cache: numbers that a row reads and writes; keys and values of earlier frames that
    it reads.
    """

    flops: int = 0
    weights: int = 0
    activations: int = 0
    cache: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: int) -> Work:
        return Work(*(times * each for each in astuple(self)))


def _linear(rows: int, inputs: int, outputs: int) -> Work:
    return Work(2 * rows * inputs * outputs, inputs * outputs, rows * (inputs + outputs))


def _convolution(pixels: int, side: int, inputs: int, outputs: int, stride: int = 1) -> Work:
    """pixels: of what comes out."""
    taps = side**2
    return Work(2 * pixels * taps * inputs * outputs, taps * inputs * outputs, pixels * (stride**2 * inputs + outputs))


def _interpolation(frames: int, channels: int, height: int, width: int, scale: int) -> Work:
    """As two products with fixed matrices: of columns, then of rows."""
    count = frames * channels
    columns, rows = (
        Work(2 * count * scale * side * side * other, scale * side**2, count * (1 + scale) * side * other)
        for side, other in ((height, width), (width, scale * height))
    )
    return columns + rows


def _attention(tokens: int, past: int, own: int, dim: int) -> Work:
    """Of `tokens` queries to `past` keys of a cache and `own` new ones."""
    return Work(4 * tokens * (past + own) * dim, 0, 2 * (tokens + own) * dim, 2 * past * dim)


def pass_work(config: TransformerConfig) -> Work:
    """One pass of the transformer over a block, with a full cache."""
    tokens, d = config.block_size * config.tokens, config.dim
    work = _linear(tokens, config.patch**2 * config.input_channels, d)
    work += _linear(config.block_size, config.freq_dim, d) + _linear(config.block_size, d, 7 * d)
    if config.action_dim is not None:
        work += _linear(config.block_size, config.action_dim + 1, d) + _linear(config.block_size, d, d)
    if config.pose_scale:
        work += _motion_work(config) + _view_work(config)
    layer = _linear(tokens, d, d) * 4 + _attention(tokens, config.slots * config.tokens, tokens, d)
    layer += _linear(tokens, d, config.ffn_dim) + _linear(tokens, config.ffn_dim, d)
    if config.ffn_conv:
        layer += Work(18 * tokens * config.ffn_dim, 9 * config.ffn_dim, 2 * tokens * config.ffn_dim)
    if config.text_dim is not None:
        work += _linear(CONTEXT_TOKENS, config.text_dim, d) + _linear(CONTEXT_TOKENS, d, d)
        layer += (_linear(tokens, d, d) + _linear(CONTEXT_TOKENS, d, d)) * 2 + _attention(tokens, 0, CONTEXT_TOKENS, d)
    return work + layer * config.num_layers + _head_work(config)


def _motion_work(config: TransformerConfig) -> Work:
    """Moving the pose and the actors through a block, frame by frame."""
    actions = config.action_dim or 0
    work = _linear(1, actions, 3) + _linear(1, 2, 2)
    work += _linear(1, POSE_CHANNELS + actions + 4 * OCTAVES, MOTION_DIM)
    work += _linear(1, MOTION_DIM, MOTION_DIM) * MOTION_LAYERS + _linear(1, MOTION_DIM, 2)
    if config.actors:
        told = 10 + actions + 4 * OCTAVES
        work += _linear(config.actors, told, MOTION_DIM) + _linear(config.actors, MOTION_DIM, 3)
        work += _linear(config.actors, MOTION_DIM, MOTION_DIM) * MOTION_LAYERS
        work += _linear(config.actors, actions, 1)
    return work * config.block_size


def _view_work(config: TransformerConfig) -> Work:
    """The views from a block's poses."""
    dim, channels = config.view_dim, config.picture_channels
    pixels = config.block_size * config.height * config.width
    work = _linear(pixels, VIEW_RAYS**2 * (VIEW_LEVELS * VIEW_FEATURES + 2), dim) + _linear(pixels, dim, channels)
    return work + _convolution(pixels, 3, dim, dim) * 2


def face_work(config: TransformerConfig) -> Work:
    """Drawing the faces of a block: once, however many passes look at them."""
    dim, channels, frames = config.face_dim, config.picture_channels, config.block_size
    if not dim:
        return Work()
    picture, blocks, wide = config.height * config.width, 2 * FACE_BLOCKS, 2 * dim
    fine, coarse = frames * picture, frames * picture // 4
    # What is seen of the reference is the same for all frames.
    work = _convolution(picture, 3, channels + 2, dim) + _convolution(fine, 3, dim, channels)
    work += _convolution(fine, 3, dim, dim) * (2 * blocks)
    work += _convolution(coarse, 3, wide, wide) * (2 * FACE_DEEP_BLOCKS)
    # Up is down the other way round.
    work += _convolution(coarse, 4, dim, wide, stride=2) * 2
    work += _linear(frames, 2 * (config.action_dim or 0), FACE_CODE) + _linear(frames, FACE_CODE, FACE_CODE)
    return work + _linear(frames, FACE_CODE, 4 * (blocks * dim + FACE_DEEP_BLOCKS * wide))


def _head_work(config: TransformerConfig) -> Work:
    """What comes after the last layer: the linear head, and the detail head where there is one."""
    tokens, out, detail = config.block_size * config.tokens, config.head_channels, config.detail_dim
    work = _linear(tokens, config.dim, config.patch**2 * out)
    if detail:
        pixels = config.block_size * config.height * config.width
        work += _linear(tokens, config.dim, config.patch**2 * 2 * DETAIL_LAYERS * detail)
        work += _convolution(pixels, 3, config.input_channels, detail) + _convolution(pixels, 3, detail, out)
        work += _convolution(pixels, 3, detail, detail) * DETAIL_LAYERS
    return work


def decoder_work(config: StudentConfig) -> Work:
    """Decoding a block. What is looked up of a reference is not counted."""
    frames = config.transformer.block_size * config.transformer.height * config.transformer.width
    dims, blocks = config.vae.decoder_dims, config.vae.decoder_blocks
    work = _convolution(frames, 3, config.vae.latent_channels, dims[0])
    for level, (dim, count) in enumerate(zip(dims, blocks, strict=True)):
        pixels = 4**level * frames
        work += _convolution(pixels, 3, dim, dim) * (2 * count)
        if level + 1 < len(dims):
            work += _convolution(pixels, 1, dim, 4 * dims[level + 1])
    finest, patch, warp = int(4 ** (len(dims) - 1)) * frames, PIXEL_PATCH**2, config.vae.warp_dim
    work += _convolution(finest, 3, dims[-1], 3 * patch)
    if warp:
        work += _convolution(frames, 3, 2 * config.vae.latent_channels + 2, warp)
        work += _convolution(frames, 3, warp, warp) * (2 * WARP_BLOCKS)
        work += _convolution(frames, 1, warp, 2) + _convolution(frames, 1, warp, WARP_NEAR)
        work += _convolution(finest, 3, dims[-1] + 3 * patch + WARP_NEAR, WARP_FINE)
        work += _convolution(finest, 3, WARP_FINE, WARP_FINE) + _convolution(finest, 3, WARP_FINE, 3)
        height, width, scale = (
            config.transformer.height,
            config.transformer.width,
            config.vae.latent_pixel // PIXEL_PATCH,
        )
        count = config.transformer.block_size
        for channels in (2, WARP_NEAR):
            work += _interpolation(count, channels, height, width, scale)
        for channels in (2, 2, 1):
            work += _interpolation(count, channels, scale * height, scale * width, PIXEL_PATCH)
    return work


def commit_work(config: TransformerConfig) -> Work:
    """The pass that writes a block's keys and values, which needs no head; none where a denoising step's are kept."""
    if config.history_level:
        return Work()
    whole, head = pass_work(config), _head_work(config)
    return Work(*(a - b for a, b in zip(astuple(whole), astuple(head), strict=True)))


def frame_flops(config: StudentConfig, steps: int) -> int:
    """Of a frame: its share of a block's `steps` denoising passes, commit, face and decoding."""
    transformer = config.transformer
    block = pass_work(transformer) * steps + commit_work(transformer) + face_work(transformer) + decoder_work(config)
    return block.flops // transformer.block_size
