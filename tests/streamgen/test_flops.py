"""Counted operations against PyTorch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from streamgen.config import AutoencoderConfig
from streamgen.flops import decoder_flops, face_flops, pass_flops
from streamgen.models.attention import CacheAttention
from streamgen.models.autoencoder import Autoencoder
from streamgen.models.rollout import RollingCache
from tests.streamgen.test_state import _config as student_config
from tests.toy import WITH_FACE, WITH_POSE, toy_transformer, toy_transformer_config


@pytest.mark.parametrize("change", [{}, WITH_POSE, WITH_FACE])
def test_pass_and_decoder(change: dict[str, Any]) -> None:
    config = toy_transformer_config(**{"sink": 2} | change, block_size=2, ffn_conv=False)
    model, cache = toy_transformer(config), RollingCache.empty(config, 1)
    x = torch.zeros(1, 2, config.in_channels, config.height, config.width)
    # The counter knows matrix products, not the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        attend = CacheAttention(config, model.space, *cache.inputs()[:4])
        model(x, torch.zeros(1, 2), attend, torch.zeros(1, 2, 5), x, face_BFCHW=x if config.face_dim else None)
    assert pass_flops(config) == pytest.approx(counter.get_total_flops(), rel=0.01)
    if config.face_dim:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.face(*cache.reference, torch.zeros(1, 1, 5))
        assert face_flops(config) == pytest.approx(counter.get_total_flops(), rel=0.01)
    student = student_config()
    vae = Autoencoder(AutoencoderConfig(latent_channels=4))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.decode(torch.zeros(1, 4, 4, 6))
    assert decoder_flops(student) == pytest.approx(counter.get_total_flops(), rel=0.01)
