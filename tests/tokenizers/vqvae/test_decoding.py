"""Many decodings of one image, with channels dropped."""

import math

import pytest
import torch
from tiny_models import decode_all, some_grids, tiny_vqvae

from iltm_anomaly.tokenizers.vqvae import decoding
from iltm_anomaly.tokenizers.vqvae.decoding import draw_channel_masks


@pytest.mark.parametrize(
    ("dims", "elements", "expected"),
    [(2, 1, 12), (2, 9000, 4), (2, 1 << 20, 1), (3, 1, 8), (3, 120_000, 3), (3, 1 << 20, 1)],
)
def test_strips_equal_the_decoder(monkeypatch, dims, elements, expected):
    monkeypatch.setattr(decoding, "STRIP_ELEMENTS", elements)
    vqvae = tiny_vqvae(spatial_dims=dims, dropout=0.0)
    codes = some_grids(dims)
    images, strips = decode_all(vqvae, codes, 3)
    exact = vqvae.decode(codes).detach().clamp(0, 1).repeat_interleave(3, 0)
    assert ((exact > 0) & (exact < 1)).float().mean() > 0.05
    torch.testing.assert_close(images, exact, rtol=1e-4, atol=1e-5)
    assert strips == expected


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("elements", [1, 1 << 20])
def test_dropout_takes_channels_of_the_features(monkeypatch, dims, elements):
    """Every reconstruction is decoder_head(features * mask) for its own mask."""
    monkeypatch.setattr(decoding, "STRIP_ELEMENTS", elements)
    vqvae = tiny_vqvae(spatial_dims=dims, dropout=0.4)
    codes = some_grids(dims, samples=5, distinct=3)
    images, _ = decode_all(vqvae, codes, 6, seed=8)
    masks = draw_channel_masks(5, 6, 4, 0.4, torch.Generator().manual_seed(8))
    assert len(masks.flatten(0, 1).unique(dim=0)) > 5, "every pass of every sample has a mask of its own"
    features = vqvae.decode_trunk(codes)
    for sample in range(5):
        for number in range(6):
            dropped = features[sample] * masks[sample, number].view(-1, *[1] * dims)
            exact = vqvae.decoder_head(dropped[None])[0].detach().clamp(0, 1)
            torch.testing.assert_close(images[6 * sample + number], exact, rtol=1e-4, atol=1e-5)


def test_channel_masks():
    masks = draw_channel_masks(50, 40, 8, 0.25, torch.Generator().manual_seed(0))
    assert masks.shape == (50, 40, 8) and masks.unique().tolist() == pytest.approx([0, 4 / 3])
    assert masks.mean().item() == pytest.approx(1, abs=0.02)
    assert (draw_channel_masks(2, 3, 4, 0.0, torch.Generator().manual_seed(0)) == 1).all()


def test_mean_over_many_passes_approaches_the_decoder():
    vqvae = tiny_vqvae(dropout=0.2)
    with torch.no_grad():  # inside [0, 1], so that the clamp does not bend the mean
        vqvae.decoder_head.weight.mul_(0.1)
        vqvae.decoder_head.bias.fill_(0.5)
    codes = some_grids(2, samples=1)
    images, _ = decode_all(vqvae, codes, 4000)
    spread = images.std(0) / math.sqrt(4000)
    assert ((images.mean(0) - vqvae.decode(codes)[0].detach()).abs() < 5 * spread + 1e-5).all() and spread.max() > 0


def test_equal_code_maps_are_decoded_once(monkeypatch):
    vqvae, decoded = tiny_vqvae(), []
    trunk = vqvae.decode_trunk
    monkeypatch.setattr(vqvae, "decode_trunk", lambda codes: (decoded.append(len(codes)), trunk(codes))[1])
    images, _ = decode_all(vqvae, some_grids(2, samples=20, distinct=2), 3)
    assert sum(decoded) == 2 and images.shape == (60, 3, 24, 32)
    decoded.clear()
    decode_all(vqvae, some_grids(2, samples=40, distinct=40), 1)
    assert sum(decoded) == 40 and max(decoded) <= 16, "in parts, so that memory stays bounded"


def test_mode_and_global_random_state_do_not_matter():
    vqvae, codes = tiny_vqvae(dropout=0.3), some_grids(2)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, _ = decode_all(vqvae, codes, 4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    second, _ = decode_all(vqvae.train(), codes, 4)
    assert torch.equal(first, second) and vqvae.training


def test_half_precision_decoder():
    vqvae, codes = tiny_vqvae(dropout=0.0), some_grids(2)
    exact, _ = decode_all(vqvae, codes, 1)
    images, _ = decode_all(vqvae.bfloat16(), codes, 1)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, exact, rtol=0, atol=0.03)
