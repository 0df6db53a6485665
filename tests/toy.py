"""A toy student with random weights: every part of a real one, small enough for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from streamgen.actions import WORLD_KEYS
from streamgen.config import AutoencoderConfig, SpeechConfig, StudentConfig, TransformerConfig
from streamgen.face import CURVES, SPEECH
from streamgen.models.autoencoder import Autoencoder
from streamgen.models.export import write_student
from streamgen.models.speech import SpeechEncoder
from streamgen.models.transformer import CausalVideoTransformer
from training.recipe import TeacherForcingRecipe


def toy_transformer_config(**changes: object) -> TransformerConfig:
    settings = {
        "in_channels": 4,
        "height": 4,
        "width": 6,
        "dim": 48,
        "ffn_dim": 96,
        "num_heads": 2,
        "num_layers": 2,
        "window": 6,
        "action_dim": len(WORLD_KEYS),
        "concat_previous": True,
        "ffn_conv": True,
        "detail_dim": 8,
    }
    return TransformerConfig.model_validate(settings | changes)


WITH_POSE = {
    "in_channels": 13,
    "residual": True,
    "pose_scale": 512.0,
    "view_dim": 16,
    "view_rows": 1024,
    "ground_map": 24,
}
"""Changes to a `toy_transformer_config` that give it a pose; the picture stays as it is."""

WITH_ACTORS = WITH_POSE | {"in_channels": 18, "actors": 2, "fixtures": 1}
"""The same with two actors, and something that beats in place."""

WITH_FACE = {"sink": 2, "residual": True, "face_dim": 8}
"""Changes that give it a face."""


def toy_transformer(config: TransformerConfig, seed: int = 0) -> CausalVideoTransformer:
    """Random weights everywhere: nothing is zero, so nothing drops out of a comparison."""
    torch.manual_seed(seed)
    model = CausalVideoTransformer(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter += torch.randn_like(parameter) * 0.05
    if config.residual:
        # What is added to the frame before, frame after frame, must stay in the range of numbers.
        last: list[torch.nn.Module] = [model.head.head, model.detail.conv_out]
        for parameter in (each for module in last for each in module.parameters()):
            parameter *= 0.1
    if config.pose_scale:
        model.pose.motion.by_speed.weight *= 0.3  # nor may a viewer go faster and faster
    return model


def toy_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """Random weights: nothing is zero, so what bends a reference bends it."""
    autoencoder = Autoencoder(config).eval().requires_grad_(False)
    for parameter in autoencoder.decoder.parameters():
        parameter += torch.randn_like(parameter) * 0.05
    return autoencoder


def toy_recipe(config: TransformerConfig, **changes: object) -> TeacherForcingRecipe:
    """A recipe for `toy_transformer`s, for what reads settings from one; its autoencoder does not exist."""
    settings = {
        "stage": "teacher_forcing",
        "name": "toy",
        "steps": 1,
        "learning_rate": 1e-3,
        "autoencoder": "nowhere",
        "clips": 1,
        "clip_length": 12,
        "model": config.model_dump(),
    }
    return TeacherForcingRecipe.model_validate(settings | changes)


TWO_STEPS: dict[int, tuple[float, ...]] = {1: (1.0,), 2: (1.0, 0.5)}


def toy_student(
    folder: Path, seed: int = 0, step_plans: dict[int, tuple[float, ...]] = TWO_STEPS, **changes: object
) -> Path:
    """Write a student folder with two starts of 20 frames."""
    transformer = toy_transformer(toy_transformer_config(**changes), seed)
    config = transformer.config
    channels = config.picture_channels
    vae = AutoencoderConfig(latent_channels=channels, encoder_dims=(8, 8), decoder_dims=(8, 8), decoder_blocks=(1, 1))
    student = StudentConfig(
        name="toy",
        fps=17.5,
        width=config.width * 8,
        height=config.height * 8,
        keys=WORLD_KEYS,
        step_plans=step_plans,
        steps=max(step_plans),
        transformer=config,
        vae=vae,
    )
    latents = torch.randn(2, 20, config.in_channels, config.height, config.width)
    actions = (torch.rand(2, 20, len(WORLD_KEYS)) < 0.3).float()
    write_student(folder, student, transformer, Autoencoder(vae), latents, actions, "# A toy\n")
    return folder


def toy_talker(folder: Path, **changes: object) -> Path:
    """Write the folder of a student that speech drives: two people, two starts of 20 frames each, 64x64 pixels. Its
    decoder looks at the reference.
    """
    settings = {"width": 4, "action_dim": len(CURVES), "sink": 1, "window": 4, "num_layers": 1}
    settings |= {"residual": True, "face_dim": 8} | changes
    transformer = toy_transformer(toy_transformer_config(**settings))
    config = transformer.config
    vae = AutoencoderConfig(
        latent_channels=4, encoder_dims=(8, 8, 8), decoder_dims=(8, 8, 8), decoder_blocks=(1, 1, 1), warp_dim=8
    )
    speech = SpeechEncoder(SpeechConfig(window=16, dim=16, curves=len(SPEECH)))
    student = StudentConfig(
        name="talker",
        fps=25.0,
        width=64,
        height=64,
        identities=("anna", "ben"),
        likeness=3.0,
        step_plans={1: (1.0,)},
        steps=1,
        transformer=config,
        vae=vae,
        speech=speech.config,
    )
    latents, actions = torch.randn(4, 20, 4, 4, 4), torch.randn(4, 20, len(CURVES))
    pictures = torch.randint(256, (4, 64, 64, 3), dtype=torch.uint8)
    autoencoder = toy_autoencoder(vae)
    write_student(folder, student, transformer, autoencoder, latents, actions, "# A talker\n", speech, pictures)
    return folder
