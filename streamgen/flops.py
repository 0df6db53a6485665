"""Floating-point operations of a student, from its configuration: a multiply-add counts as two.

Matrix products, convolutions and attention are counted; norms, activations and rotations are not.
"""

from __future__ import annotations

from streamgen.config import (
    DETAIL_LAYERS,
    POSE_CHANNELS,
    POSE_DIM,
    POSE_OCTAVES,
    StudentConfig,
    TransformerConfig,
)


def pass_flops(config: TransformerConfig) -> int:
    """One pass of the transformer over a block, with a full cache."""
    tokens = config.block_size * config.tokens
    keys = (config.slots + config.block_size) * config.tokens
    d, patch = config.dim, config.patch**2 * config.in_channels
    embed = 2 * tokens * d * patch * (2 if config.concat_previous else 1)
    per_frame = config.freq_dim * d + d * d + 6 * d * d
    if config.action_dim is not None:
        per_frame += (config.action_dim + 1) * d + d * d
    if config.pose_scale:
        actions = (config.action_dim or 0) + 1
        per_frame += POSE_DIM * (POSE_CHANNELS * (1 + 2 * POSE_OCTAVES) + actions + config.tokens * d) + 3 * (
            d + actions
        )
    attention = 2 * tokens * 4 * d * d + 4 * tokens * keys * d
    ffn = 4 * tokens * d * config.ffn_dim + (2 * 9 * tokens * config.ffn_dim if config.ffn_conv else 0)
    return embed + 2 * config.block_size * per_frame + config.num_layers * (attention + ffn) + _head_flops(config)


def _head_flops(config: TransformerConfig) -> int:
    """What comes after the last layer: the linear head, and the detail head where there is one."""
    tokens, out, detail = config.block_size * config.tokens, config.picture_channels, config.detail_dim
    inputs = config.in_channels * (2 if config.concat_previous else 1)
    linear = 2 * tokens * config.dim * config.patch**2 * (out + 2 * DETAIL_LAYERS * detail)
    pixels = config.block_size * config.height * config.width
    return linear + 2 * 9 * pixels * detail * (inputs + DETAIL_LAYERS * detail + out)


def decoder_flops(config: StudentConfig) -> int:
    """Decoding one latent frame."""
    pixels = config.transformer.height * config.transformer.width
    (coarse, fine), (coarse_blocks, fine_blocks) = config.vae.decoder_dims, config.vae.decoder_blocks
    low = 2 * pixels * (9 * config.vae.latent_channels * coarse + coarse_blocks * 18 * coarse**2 + coarse * 4 * fine)
    high = 2 * 4 * pixels * (fine_blocks * 18 * fine**2 + 9 * fine * 48)
    return low + high


def frame_flops(config: StudentConfig, steps: int) -> int:
    """A frame: `steps` denoising passes and the commit, which needs no head, shared by the block's frames, and its
    decoding.
    """
    transformer = config.transformer
    block = (steps + 1) * pass_flops(transformer) - _head_flops(transformer)
    return block // transformer.block_size + decoder_flops(config)
