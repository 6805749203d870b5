"""Density of the observed pixels under healed reconstructions."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from tiny_models import GRID, decode_all, some_grids, tiny_vqvae

from iltm_anomaly.scoring import (
    bandwidth,
    combine,
    negative_log_density,
    observed_surprise,
    resampling_gate,
    smooth,
    to_pixels,
)
from iltm_anomaly.settings import InferenceSettings
from iltm_anomaly.tokenizers.vqvae import decoding


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def naive_density(reconstructions, image, floor):
    """One kernel density estimate per value, by the book, in float64."""
    samples, observed = reconstructions.double().numpy(), image.double().numpy()
    density = np.empty(observed.shape)
    for index in np.ndindex(*observed.shape):
        values = samples[(slice(None), *index)]
        width = 1.06 * values.std() * len(values) ** -0.2 + floor
        density[index] = stats.norm.pdf(observed[index], values, width).mean()
    return density


# the kernel density


@pytest.mark.parametrize("floor", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("count", [1, 7, 50])
def test_equals_a_naive_density(count, floor):
    # near the reconstructions, where the naive form does not underflow
    centre = rand(3, 4, 5)
    reconstructions = (centre + 0.1 * (rand(count, 3, 4, 5, seed=1) - 0.5)).clamp(0, 1)
    image = (centre + 0.1 * (rand(3, 4, 5, seed=2) - 0.5)).clamp(0, 1)
    exact = naive_density(reconstructions, image, floor)
    absolute = negative_log_density(reconstructions, image, floor, relative=False)
    np.testing.assert_allclose(np.exp(-absolute.double().numpy()), exact, rtol=1e-4)
    np.testing.assert_allclose(absolute.numpy(), -np.log(exact), atol=1e-5, rtol=1e-5)


def test_relative_is_over_the_height_of_a_kernel():
    reconstructions, image = rand(9, 3, 4), rand(3, 4, seed=1)
    widths = bandwidth(reconstructions.var(0, correction=0), len(reconstructions), 0.05)
    absolute = negative_log_density(reconstructions, image, 0.05, relative=False)
    relative = negative_log_density(reconstructions, image, 0.05)
    torch.testing.assert_close(relative, absolute - torch.log(widths * math.sqrt(2 * math.pi)), rtol=1e-4, atol=1e-5)
    assert relative.min() >= 0


@pytest.mark.parametrize("floor", [0.01, 0.2])
def test_equal_reconstructions_peak_at_their_value(floor):
    image = rand(3, 4)
    reconstructions = image.expand(20, 3, 4)
    density = torch.exp(-negative_log_density(reconstructions, image, floor, relative=False))
    torch.testing.assert_close(density, torch.full_like(image, 1 / math.sqrt(2 * math.pi) / floor), rtol=1e-4, atol=0)
    assert density[0, 0].item() == pytest.approx(0.399 / floor, rel=1e-3)
    assert not negative_log_density(reconstructions, image, floor).any()


@pytest.mark.parametrize("relative", [True, False])
def test_density_falls_with_the_distance(relative):
    reconstructions = (0.3 + 0.05 * (rand(20) - 0.5)).unsqueeze(1).expand(20, 50)
    for direction in (0.7, -0.3):
        surprise = negative_log_density(reconstructions, 0.3 + torch.linspace(0.03, 1, 50) * direction, 0.01, relative)
        assert (surprise.diff() > 0).all() and surprise.isfinite().all()


def test_far_outliers_stay_finite_and_exact():
    """100 widths away every term of the sum is zero in float32."""
    reconstructions, image = torch.zeros(20, 1), torch.ones(1)
    assert negative_log_density(reconstructions, image, 0.01).item() == pytest.approx(0.5 * 100**2, rel=1e-5)


def test_inputs_stay():
    reconstructions, image = rand(5, 3, 4), rand(3, 4, seed=1)
    copies = reconstructions.clone(), image.clone()
    negative_log_density(reconstructions, image, 0.05)
    assert torch.equal(copies[0], reconstructions) and torch.equal(copies[1], image)


@pytest.mark.parametrize("passes", [2, 20])
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.2])
def test_zero_is_the_middle_of_what_the_decoder_draws(spread, passes):
    drawn = 0.5 + spread * torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    middle = torch.tensor([0.5])
    assert negative_log_density(drawn, middle, 0.02, draws_per_sample=passes).item() == pytest.approx(0, abs=0.05)
    if spread:
        assert negative_log_density(drawn, middle, 0.02) > 0.2


def test_only_the_spread_of_the_decoder_lowers_the_peak():
    """Two healed samples that differ, each drawn alike by every pass, are no spread of the decoder."""
    reconstructions = torch.tensor([0.2, 0.8]).repeat_interleave(10).unsqueeze(1)
    image = torch.tensor([0.4])
    plain = negative_log_density(reconstructions, image, 0.05)
    assert negative_log_density(reconstructions, image, 0.05, draws_per_sample=10).item() == pytest.approx(
        plain.item()
    )
    assert negative_log_density(reconstructions, image, 0.05, draws_per_sample=20) < plain


# the map


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("elements", [1, 20000, 1 << 20])
@pytest.mark.parametrize("relative, decoder_spread", [(True, False), (False, False), (True, True)])
def test_map_is_the_density_of_all_reconstructions(monkeypatch, dims, elements, relative, decoder_spread):
    monkeypatch.setattr(decoding, "STRIP_ELEMENTS", elements)
    vqvae = tiny_vqvae(spatial_dims=dims, dropout=0.3)
    codes = some_grids(dims)
    image = rand(3, *(8 * n for n in GRID[dims]), seed=4)
    images, _ = decode_all(vqvae, codes, 4, seed=6)
    settings = InferenceSettings(
        num_dropout_passes=4,
        bandwidth_floor=0.05,
        relative_density=relative,
        decoder_spread=decoder_spread,
        likelihood_share=0.0,
    )
    result = observed_surprise(vqvae, codes, image, settings, None, torch.Generator().manual_seed(6))
    assert result.values.shape == image.shape[1:] and result.values.isfinite().all()
    torch.testing.assert_close(result.expected, images.mean(0), rtol=1e-4, atol=1e-5)
    expected = negative_log_density(images, image, 0.05, relative)
    if decoder_spread:
        widths = bandwidth(images.var(0, correction=0), len(images), 0.05)
        of_decoder = images.unflatten(0, (len(codes), 4)).var(1).mean(0)
        assert of_decoder.max() > 0.1 * widths.square().min()
        expected += torch.log(widths / (widths.square() + of_decoder).sqrt())
    torch.testing.assert_close(result.values, expected.mean(0), rtol=1e-4, atol=1e-4)  # over channels


def test_map_is_lowest_where_the_image_is_as_reconstructed():
    vqvae, codes = tiny_vqvae(), some_grids(2)
    healed = decode_all(vqvae, codes, 4)[0].mean(0)
    image = healed.clone()
    image[:, 10:14, 20:24] = 1 - image[:, 10:14, 20:24].round()
    settings = InferenceSettings(num_dropout_passes=4, bandwidth_floor=0.05)
    surprise = observed_surprise(vqvae, codes, image, settings, None, torch.Generator().manual_seed(0)).values
    assert surprise[10:14, 20:24].min() > surprise[:8].max()


def test_both_parts_must_find_a_pixel_abnormal():
    tokens, pixels = torch.tensor([4.0, 4.0, 0.0, 1.0]), torch.tensor([9.0, 0.0, 9.0, 1.0])
    torch.testing.assert_close(combine(tokens, pixels, 0.5), torch.tensor([6.0, 0.0, 0.0, 1.0]))
    torch.testing.assert_close(combine(tokens, pixels, 1.0), tokens)
    absolute = torch.tensor([-1.0, 2.0, 0.0, 1.0])  # a density above 1
    assert torch.equal(combine(tokens, absolute, 0.0), absolute)
    # with a floor tokens count where pixels say nothing
    torch.testing.assert_close(combine(tokens, pixels, 0.5, 0.25), (tokens * (pixels + 0.25)).sqrt())
    # the units of either change the scale alone
    torch.testing.assert_close(combine(tokens, 4 * pixels, 0.5), 2 * combine(tokens, pixels, 0.5))


# tokens to pixels


def test_tokens_to_pixels():
    tokens = rand(3, 4)
    nearest = to_pixels(tokens, (24, 32), "nearest")
    assert torch.equal(nearest, tokens.repeat_interleave(8, 0).repeat_interleave(8, 1))
    linear = to_pixels(tokens, (24, 32))
    centres = linear[3:24:8, 3:32:8] + linear[4:24:8, 4:32:8] + linear[3:24:8, 4:32:8] + linear[4:24:8, 3:32:8]
    torch.testing.assert_close(centres[1:-1, 1:-1] / 4, tokens[1:-1, 1:-1], atol=0.1, rtol=0)
    assert linear.min() >= tokens.min() and linear.max() <= tokens.max()
    volume = rand(2, 3, 4)
    assert to_pixels(volume, (16, 24, 32)).shape == (16, 24, 32)
    repeated = volume.repeat_interleave(8, 0).repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert torch.equal(to_pixels(volume, (16, 24, 32), "nearest"), repeated)


def test_smoothing():
    values = rand(9, 11)
    assert smooth(values, 0) is values or torch.equal(smooth(values, 0), values)
    blurred = smooth(values, 1.5)
    np.testing.assert_allclose(
        blurred.numpy(), ndimage.gaussian_filter(values.numpy(), 1.5, mode="nearest"), rtol=1e-6
    )
    assert blurred.std() < values.std() and blurred.dtype == torch.float32
    torch.testing.assert_close(smooth(torch.full((9, 11), 0.7), 2.0), torch.full((9, 11), 0.7))


@pytest.mark.parametrize("dims", [2, 3])
def test_gate_is_the_lineages(dims):
    """Mask repeated to 8 pixels a token, Gaussian filter of 6 pixels, y / (0.075 max y) > 0.05."""
    grid = {2: (10, 12), 3: (3, 10, 9)}[dims]
    resampled = torch.zeros(grid, dtype=torch.bool)
    resampled[(*[1] * (dims - 2), 4, 3)] = resampled[(*[1] * (dims - 2), 5, 8)] = True
    repeated = resampled.numpy().astype(float)
    for axis in range(dims):
        repeated = repeated.repeat(8, axis)
    filtered = ndimage.gaussian_filter(repeated, 6, mode="constant")
    expected = np.clip(filtered / (0.075 * filtered.max()), 0, 1) > 0.05
    gate = resampling_gate(resampled, tuple(8 * n for n in grid))
    assert gate.dtype == torch.bool and 0.02 < expected.mean() < 0.8
    assert (gate.numpy() != expected).mean() < 1e-3  # float32 against float64 at the very edge


def test_gate_is_open_near_resampled_tokens_only():
    resampled = torch.zeros(12, 12, dtype=torch.bool)
    assert not resampling_gate(resampled, (96, 96)).any()
    resampled[2, 3] = True
    gate = resampling_gate(resampled, (96, 96))
    assert gate[16:24, 24:32].all() and gate[12, 28]
    rows, columns = gate.nonzero().unbind(1)
    assert rows.max() < 24 + 20 and columns.max() < 32 + 20, "a few standard deviations of 6 pixels"
    coarse = resampling_gate(resampled, (48, 48))
    assert coarse.float().mean().item() == pytest.approx(gate.float().mean().item(), rel=0.1), "the width is in tokens"
