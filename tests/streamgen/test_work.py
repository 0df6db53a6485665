"""Counted work against PyTorch's own counter of operations, and against what its operators are given and give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from streamgen.config import AutoencoderConfig
from streamgen.models.attention import CacheAttention
from streamgen.models.autoencoder import Autoencoder
from streamgen.models.rollout import RollingCache
from streamgen.work import CONTEXT_TOKENS, Work, commit_work, decoder_work, face_work, frame_flops, pass_work
from tests.streamgen.test_state import _config as student_config
from tests.toy import WITH_FACE, WITH_POSE, toy_transformer, toy_transformer_config


class _Moved(TorchDispatchMode):
    """Counts the numbers that products and attention read and write."""

    _PRODUCTS = ("mm", "addmm", "bmm", "convolution", "_scaled_dot_product_flash_attention_for_cpu")

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in self._PRODUCTS:
            first = out[0] if isinstance(out, tuple) else out
            self.numbers += sum(x.numel() for x in (*args, first) if isinstance(x, Tensor) and x.ndim > 1)
        return out


def _measured(call: Callable[[], Any]) -> tuple[int, int]:
    """Operations, and numbers moved."""
    # The counter knows matrix products, not the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        call()
    with _Moved() as moved, torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        call()
    return counter.get_total_flops(), moved.numbers


def _agrees(work: Work, call: Callable[[], Any]) -> None:
    flops, numbers = _measured(call)
    assert work.flops == pytest.approx(flops, rel=0.01)
    assert work.weights + work.activations + work.cache == pytest.approx(numbers, rel=0.05)


@pytest.mark.parametrize("change", [{}, {"ffn_conv": True}, {"text_dim": 24}, {"detail_dim": 8}, WITH_POSE, WITH_FACE])
def test_a_pass(change: dict[str, Any]) -> None:
    config = toy_transformer_config(**{"sink": 2, "ffn_conv": False} | change, block_size=2)
    model, cache = toy_transformer(config), RollingCache.empty(config, 1)
    x = torch.zeros(1, 2, config.in_channels, config.height, config.width)
    context = None if config.text_dim is None else torch.zeros(1, CONTEXT_TOKENS, config.text_dim)
    face = x if config.face_dim else None

    def whole_pass() -> None:
        attend = CacheAttention(config, model.space, *cache.inputs()[:4])
        model(x, torch.zeros(1, 2), attend, torch.zeros(1, 2, 5), x, context, shown_BFCHW=face)

    _agrees(pass_work(config), whole_pass)
    if config.face_dim:
        _agrees(face_work(config), lambda: model.face(*cache.reference, torch.zeros(1, 2, 5)))


def test_weights_are_the_models() -> None:
    config = toy_transformer_config(sink=2, ffn_conv=False)
    model = toy_transformer(config)
    products = [m.weight for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv3d)]
    assert pass_work(config).weights == sum(weight.numel() for weight in products)


@pytest.mark.parametrize("warp_dim", [0, 16])
def test_the_decoder(warp_dim: int) -> None:
    latents, picture = torch.zeros(1, 4, 4, 6), torch.zeros(1, 3, 32, 48)
    config = AutoencoderConfig(latent_channels=4, warp_dim=warp_dim)
    student, vae = student_config().model_copy(update={"vae": config}), Autoencoder(config)
    _agrees(decoder_work(student), lambda: vae.decode(latents, (latents, picture)))


def test_a_frame_is_its_share_of_a_block() -> None:
    config = student_config()
    transformer = config.transformer
    steps = frame_flops(config, 3) - frame_flops(config, 2)
    assert steps * transformer.block_size == pass_work(transformer).flops
    assert commit_work(transformer).flops < pass_work(transformer).flops
    assert (Work(1, 2, 3, 4) + Work(1, 1, 1, 1)) * 2 == Work(4, 6, 8, 10)
