"""Eq. 7: pixel and Fourier amplitude terms."""

import numpy as np
import pytest
import torch

from iltm_anomaly.tokenizers.vqvae.losses import fourier_amplitude, jukebox_loss, spectral_loss

# even, odd and degenerate widths, since half a spectrum is folded differently in each; images and volumes
SHAPES = [
    (2, 3, 8, 8),
    (2, 3, 6, 7),
    (1, 1, 5, 6),
    (2, 3, 4, 1),
    (2, 3, 4, 2),
    (2, 3, 4, 3),
    (2, 1, 4, 6, 5),
    (1, 2, 5, 4, 8),
]


def pair(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
def test_half_spectrum_equals_the_full_one(shape):
    x, y = pair(shape)
    axes = tuple(range(1, len(shape)))  # channel and space, never the batch
    full = [np.abs(np.fft.fftn(a.double().numpy(), axes=axes, norm="ortho")) for a in (x, y)]
    assert spectral_loss(x, y).item() == pytest.approx(np.mean((full[0] - full[1]) ** 2), rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_parseval(shape):
    x, _ = pair(shape)
    assert spectral_loss(x, torch.zeros_like(x)).item() == pytest.approx(x.square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_zero_for_identical_images(shape):
    x, _ = pair(shape)
    assert jukebox_loss(x, x.clone()).item() == 0


def test_sum_of_its_terms():
    x, y = pair((2, 3, 8, 8))
    pixels = (x - y).square().mean().item()
    assert jukebox_loss(x, y, 0.0).item() == pytest.approx(pixels)
    assert jukebox_loss(x, y, 2.5).item() == pytest.approx(pixels + 2.5 * spectral_loss(x, y).item())


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_amplitude_ignores_circular_shifts(axis):
    x, _ = pair((2, 3, 8, 7))
    shifted = x.roll(2, axis)
    torch.testing.assert_close(fourier_amplitude(shifted), fourier_amplitude(x), atol=1e-5, rtol=0)
    assert spectral_loss(shifted, x).item() < 1e-10 < jukebox_loss(shifted, x, 0.0).item()


@pytest.mark.parametrize("x", [torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5), pair((1, 3, 8, 8))[0]])
def test_gradient_is_finite_where_the_amplitude_or_the_difference_is_zero(x):
    reconstruction = x.clone().requires_grad_()
    jukebox_loss(reconstruction, x).backward()
    assert reconstruction.grad.isfinite().all() and not reconstruction.grad.any()
    blank = torch.zeros_like(x).requires_grad_()
    jukebox_loss(blank, x).backward()
    assert blank.grad.isfinite().all()


def test_computed_in_float32():
    x, y = pair((2, 3, 8, 8))
    loss = jukebox_loss(x.bfloat16(), y.bfloat16())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(jukebox_loss(x.bfloat16().float(), y.bfloat16().float()).item())
