"""A decoder that looks at a reference: where it finds what, and how much of that it shows."""

from __future__ import annotations

import pytest
import torch

from streamgen.config import AutoencoderConfig
from streamgen.models.autoencoder import Autoencoder, _finer


@pytest.fixture
def looking() -> Autoencoder:
    torch.manual_seed(0)
    sizes = {"encoder_dims": (8, 8, 8), "decoder_dims": (8, 8, 8), "decoder_blocks": (1, 1, 1)}
    config = AutoencoderConfig.model_validate({"latent_channels": 4, "warp_dim": 8} | sizes)
    return Autoencoder(config).requires_grad_(False)


def test_it_sees_what_the_flow_points_at_as_far_as_the_mask_lets_it(looking: Autoencoder) -> None:
    warp = looking.decoder.warp
    assert warp is not None
    z, reference, picture = torch.randn(2, 4, 4, 6), torch.randn(2, 4, 4, 6), torch.rand(2, 3, 64, 96) * 2 - 1
    alone = looking.decode(z)
    right, down = 5, 3
    warp.conv_flow.bias.copy_(torch.tensor([2 * right / 96, 2 * down / 64]))
    moved = picture.roll((-down, -right), (-2, -1))[..., : 64 - down, : 96 - right]
    for mask, wanted in ((30.0, moved), (-30.0, alone[..., : 64 - down, : 96 - right])):
        warp.fine[-1].bias[2] = mask
        shown = looking.decode(z, (reference, picture))[..., : 64 - down, : 96 - right]
        torch.testing.assert_close(shown, wanted, rtol=0, atol=2e-5)
    # Beyond its edges it goes on as it is there.
    warp.fine[-1].bias[2] = 30.0
    beyond = looking.decode(z, (reference, picture))[..., : 64 - down, 96 - right :]
    edge = picture.roll(-down, -2)[..., : 64 - down, -1:].expand_as(beyond)
    torch.testing.assert_close(beyond, edge, rtol=0, atol=2e-5)
    assert torch.equal(looking.decode(z), alone)


@pytest.mark.parametrize("scale", [2, 4])
def test_interpolation_is_bilinear(scale: int) -> None:
    x = torch.randn(2, 3, 5, 7)
    wanted = torch.nn.functional.interpolate(x, scale_factor=float(scale), mode="bilinear", align_corners=False)
    torch.testing.assert_close(_finer(x, scale), wanted, rtol=0, atol=1e-6)


def test_what_is_found_first_is_corrected_by_how_it_fits(looking: Autoencoder) -> None:
    """What it shows depends on both latents and on both pictures."""
    for parameter in looking.decoder.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    z, reference, picture = torch.randn(1, 4, 4, 6), torch.randn(1, 4, 4, 6), torch.rand(1, 3, 64, 96) * 2 - 1
    bent = looking.decoder.shown(z, (reference, picture)).bent
    for other in ((z + 0.5, (reference, picture)), (z, (reference + 0.5, picture)), (z, (reference, picture.flip(1)))):
        changed = looking.decoder.shown(*other).bent
        assert bent is not None and changed is not None
        # Colours alone move nothing by much, but they do: the last of the three is not just the first with its colours.
        assert not torch.allclose(changed, bent.flip(1) if other[1][1] is not picture else bent, atol=1e-4)


def test_it_learns_in_bf16_too(looking: Autoencoder) -> None:
    """Whatever autocast makes of its products, what is mixed is exact."""
    for parameter in looking.decoder.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    z, reference, picture = torch.randn(1, 4, 4, 6), torch.randn(1, 4, 4, 6), torch.rand(1, 3, 8, 12) * 2 - 1
    picture = torch.nn.functional.interpolate(picture, scale_factor=8, mode="bilinear")
    exact = looking.decoder.shown(z, (reference, picture))
    with torch.autocast("cpu", torch.bfloat16):
        shown = looking.decoder.shown(z, (reference, picture))
        frames = shown.frames()
    assert shown.bent is not None and shown.mask is not None and exact.mask is not None
    assert frames.dtype == shown.bent.dtype == shown.mask.dtype == torch.float32
    torch.testing.assert_close(frames, exact.frames(), rtol=0, atol=0.1)
    torch.testing.assert_close(shown.mask, exact.mask, rtol=0, atol=0.02)
