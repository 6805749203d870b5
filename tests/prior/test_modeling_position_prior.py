"""Gaussians of positions: distances against numpy, weights, few images, saving."""

import numpy as np
import pytest
import torch

from iltm_anomaly import PositionPriorConfig, PositionPriorModel

GRID, SIZE = (2, 3), 5


def fitted(images: int, rank: int, shrinkage: float = 0.5, weights: torch.Tensor | None = None, seed: int = 0):
    features = torch.randn(images, *GRID, SIZE, generator=torch.Generator().manual_seed(seed))
    weights = torch.ones(images, *GRID) if weights is None else weights
    config = PositionPriorConfig(grid_shape=GRID, hidden_size=SIZE, rank=rank, shrinkage=shrinkage)
    return PositionPriorModel(config).fit(features, weights, torch.eye(SIZE)), features


@pytest.mark.parametrize("images", [3, 40])  # fewer and more than dimensions: two ways to the eigenvalues
def test_at_full_rank_it_is_the_mahalanobis_distance(images):
    prior, features = fitted(images, rank=SIZE)
    found = prior(features.permute(0, 3, 1, 2)).numpy()
    for row, column in np.ndindex(*GRID):
        own = features[:, row, column].double().numpy()
        covariance = np.cov(own.T, ddof=0) + 0.5 * np.eye(SIZE)
        offsets = own - own.mean(0)
        expected = np.sqrt(np.einsum("nd,de,ne->n", offsets, np.linalg.inv(covariance), offsets))
        np.testing.assert_allclose(found[:, row, column], expected, rtol=2e-3)


def test_at_low_rank_the_other_directions_share_a_variance():
    prior, features = fitted(200, rank=2)
    own = features[:, 0, 0].double().numpy()
    values, vectors = np.linalg.eigh(np.cov(own.T, ddof=0))
    variances = np.r_[np.full(SIZE - 2, values[:-2].mean()), values[-2:]] + 0.5
    along = (own - own.mean(0)) @ vectors
    expected = np.sqrt((along**2 / variances).sum(1))
    np.testing.assert_allclose(prior(features.permute(0, 3, 1, 2))[:, 0, 0].numpy(), expected, rtol=2e-3)


def test_tokens_without_weight_do_not_count():
    weights = torch.ones(30, *GRID)
    weights[:5, 1, 1] = 0
    prior, features = fitted(30, 3, weights=weights)
    spoiled = features.clone()
    spoiled[:5, 1, 1] = 1000.0
    other = PositionPriorModel(prior.config).fit(spoiled, weights, torch.eye(SIZE))
    queries = features.permute(0, 3, 1, 2)[5:]
    assert torch.allclose(prior(queries), other(queries), rtol=1e-3)


def test_features_go_through_the_metric():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(30, *GRID, SIZE, generator=generator)
    metric = torch.randn(SIZE, SIZE, generator=generator)
    config = PositionPriorConfig(grid_shape=GRID, hidden_size=SIZE, rank=3)
    weights = torch.ones(30, *GRID)
    one = PositionPriorModel(config).fit(features, weights, metric)
    two = PositionPriorModel(config).fit(features @ metric, weights, torch.eye(SIZE))
    queries = (features @ metric).permute(0, 3, 1, 2)
    assert torch.allclose(one(queries), two(queries), rtol=1e-3)


def test_more_directions_than_images():
    prior, features = fitted(2, rank=4)
    assert bool(prior(features.permute(0, 3, 1, 2)).isfinite().all())


def test_a_position_without_any_weight_is_finite():
    weights = torch.ones(10, *GRID)
    weights[:, 0, 0] = 0
    prior, features = fitted(10, 3, weights=weights)
    assert bool(prior(features.permute(0, 3, 1, 2)).isfinite().all())


def test_another_grid_is_refused():
    prior, _ = fitted(10, 3)
    with pytest.raises(ValueError, match="observed must be"):
        prior(torch.zeros(1, SIZE, 3, 2))


def test_it_is_saved(tmp_path):
    prior, features = fitted(10, 3)
    prior.save_pretrained(tmp_path)
    again = PositionPriorModel.from_pretrained(tmp_path)
    queries = features.permute(0, 3, 1, 2)
    assert torch.equal(prior(queries), again(queries))
