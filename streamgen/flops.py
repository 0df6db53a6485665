"""Floating-point operations of a student, from its configuration: a multiply-add counts as two.

Matrix products, convolutions and attention are counted; norms, activations and rotations are not.
"""

from __future__ import annotations

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
    VIEW_DETAIL,
    VIEW_HARMONICS,
    VIEW_LAYERS,
    StudentConfig,
    TransformerConfig,
)


def pass_flops(config: TransformerConfig) -> int:
    """One pass of the transformer over a block, with a full cache."""
    tokens = config.block_size * config.tokens
    keys = (config.slots + config.block_size) * config.tokens
    d = config.dim
    embed = 2 * tokens * d * config.patch**2 * config.input_channels
    per_frame = config.freq_dim * d + d * d + 6 * d * d
    if config.action_dim is not None:
        per_frame += (config.action_dim + 1) * d + d * d
    if config.pose_scale:
        per_frame += _motion_products(config) + _view_products(config)
    attention = 2 * tokens * 4 * d * d + 4 * tokens * keys * d
    ffn = 4 * tokens * d * config.ffn_dim + (2 * 9 * tokens * config.ffn_dim if config.ffn_conv else 0)
    return embed + 2 * config.block_size * per_frame + config.num_layers * (attention + ffn) + _head_flops(config)


def _motion_products(config: TransformerConfig) -> int:
    """Multiplications of moving one pose."""
    actions = config.action_dim or 0
    features = POSE_CHANNELS + actions + 4 * OCTAVES
    return 3 * actions + 4 + MOTION_DIM * (features + MOTION_LAYERS * MOTION_DIM + 2)


def _view_products(config: TransformerConfig) -> int:
    """Multiplications of the view from one pose."""
    dim, channels = config.view_dim, config.picture_channels
    features = 4 + 2 * VIEW_HARMONICS + 4 * OCTAVES
    column = features * dim + VIEW_LAYERS * dim * dim + dim * channels * config.height
    return config.width * (column + config.height * 2 * 9 * channels * VIEW_DETAIL)


def face_flops(config: TransformerConfig) -> int:
    """Drawing the face of one frame: once, however many passes look at it."""
    dim, channels, pixels = config.face_dim, config.picture_channels, config.height * config.width
    if not dim:
        return 0
    blocks, wide = 2 * FACE_BLOCKS, 2 * dim
    convolutions = 9 * pixels * dim * (channels + 2 + channels) + blocks * pixels * 18 * dim**2
    convolutions += pixels // 4 * (2 * 16 * dim * wide + FACE_DEEP_BLOCKS * 18 * wide**2)
    codes = 2 * (config.action_dim or 0) * FACE_CODE + FACE_CODE**2
    codes += 4 * FACE_CODE * (blocks * dim + FACE_DEEP_BLOCKS * wide)
    return 2 * (convolutions + codes)


def _head_flops(config: TransformerConfig) -> int:
    """What comes after the last layer: the linear head, and the detail head where there is one."""
    tokens, out, detail = config.block_size * config.tokens, config.picture_channels, config.detail_dim
    linear = 2 * tokens * config.dim * config.patch**2 * (out + 2 * DETAIL_LAYERS * detail)
    pixels = config.block_size * config.height * config.width
    return linear + 2 * 9 * pixels * detail * (config.input_channels + DETAIL_LAYERS * detail + out)


def decoder_flops(config: StudentConfig) -> int:
    """Decoding one latent frame."""
    pixels = config.transformer.height * config.transformer.width
    dims, blocks = config.vae.decoder_dims, config.vae.decoder_blocks
    products = 9 * pixels * config.vae.latent_channels * dims[0]
    for level, (dim, count) in enumerate(zip(dims, blocks, strict=True)):
        products += 4**level * pixels * count * 18 * dim**2
        if level + 1 < len(dims):
            products += 4**level * pixels * dim * 4 * dims[level + 1]
    finest: int = 4 ** (len(dims) - 1) * pixels
    return 2 * (products + finest * 9 * dims[-1] * 3 * PIXEL_PATCH**2)


def frame_flops(config: StudentConfig, steps: int) -> int:
    """A frame: `steps` denoising passes and the commit, which needs no head, shared by the block's frames, and its
    decoding.
    """
    transformer = config.transformer
    block = (steps + 1) * pass_flops(transformer) - _head_flops(transformer)
    return block // transformer.block_size + face_flops(transformer) + decoder_flops(config)
