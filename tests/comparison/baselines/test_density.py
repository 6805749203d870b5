"""Ledoit-Wolf shrinkage against its definition, and the distance against a textbook one."""

import pytest
import torch

from iltm_anomaly.comparison.baselines.density import GaussianDensity, ledoit_wolf


def definition(samples: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Ledoit and Wolf (2004), section 3: m, d^2, b^2 and the combination of S and m I, sample by sample."""
    x = samples.double() - samples.double().mean(0)
    count, size = x.shape
    covariance = sum(torch.outer(row, row) for row in x) / count
    m = covariance.trace() / size
    d2 = (covariance - m * torch.eye(size)).square().sum() / size
    b2 = min(sum((torch.outer(row, row) - covariance).square().sum() / size for row in x) / count**2, d2)
    return b2 / d2 * m * torch.eye(size) + (d2 - b2) / d2 * covariance, float(b2 / d2)


@pytest.mark.parametrize("count, size", [(5, 12), (40, 7), (300, 4)])
def test_ledoit_wolf_is_its_definition(count, size):
    generator = torch.Generator().manual_seed(count)
    samples = torch.randn(count, size, generator=generator) @ torch.randn(size, size, generator=generator) + 3
    covariance, share = ledoit_wolf(samples)
    expected, expected_share = definition(samples)
    torch.testing.assert_close(covariance, expected)
    assert share == pytest.approx(expected_share) and 0 < share <= 1


def test_more_samples_shrink_less():
    samples = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 7.0)
    shares = [ledoit_wolf(samples[:count])[1] for count in (4, 40, 2000)]
    assert shares[0] > shares[1] > shares[2]


def test_distance_is_mahalanobis():
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(30, 50, generator=generator)  # fewer samples than dimensions
    density = GaussianDensity(50)
    density.fit(samples)
    queries = torch.randn(8, 50, generator=generator) * 2
    centred = (queries - samples.mean(0)).double()
    expected = (centred @ torch.linalg.inv(ledoit_wolf(samples)[0]) * centred).sum(1).sqrt()
    torch.testing.assert_close(density(queries).double(), expected, rtol=1e-4, atol=0)


def test_equal_samples_do_not_break_it():
    density = GaussianDensity(3)
    density.fit(torch.ones(4, 3))
    assert torch.isfinite(density(torch.rand(2, 3))).all() and float(density(torch.ones(1, 3))) == 0
    with pytest.raises(ValueError, match="at least two samples"):
        density.fit(torch.ones(1, 3))
