"""Counted operations against PyTorch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from streamgen.config import AutoencoderConfig
from streamgen.flops import decoder_flops, pass_flops
from streamgen.models.attention import CacheAttention
from streamgen.models.autoencoder import Autoencoder
from streamgen.models.rollout import RollingCache
from tests.streamgen.test_state import _config as student_config
from tests.toy import WITH_POSE, toy_transformer, toy_transformer_config


@pytest.mark.parametrize("change", [{}, WITH_POSE])
def test_pass_and_decoder(change: dict[str, Any]) -> None:
    config = toy_transformer_config(sink=2, block_size=2, ffn_conv=False, **change)
    model, cache = toy_transformer(config), RollingCache.empty(config, 1)
    x = torch.zeros(1, 2, config.in_channels, config.height, config.width)
    # The counter knows matrix products, not the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        attend = CacheAttention(config, model.space, *cache.inputs())
        model(x, torch.zeros(1, 2), attend, torch.zeros(1, 2, 5), x)
    assert pass_flops(config) == pytest.approx(counter.get_total_flops(), rel=0.01)
    student = student_config()
    vae = Autoencoder(AutoencoderConfig(latent_channels=4))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vae.decode(torch.zeros(1, 4, 4, 6))
    assert decoder_flops(student) == pytest.approx(counter.get_total_flops(), rel=0.01)
