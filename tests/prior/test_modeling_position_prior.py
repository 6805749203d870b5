"""Gaussians of positions, fine and coarse: distances against numpy, weights, few images, saving."""

import numpy as np
import pytest
import torch

from iltm_anomaly import PositionPriorConfig, PositionPriorModel
from iltm_anomaly.prior import coarse_tokens
from iltm_anomaly.prior.modeling_position_prior import decomposed

GRID, SIZE = (2, 3), 5


def fitted(images: int, rank: int, shrinkage: float = 0.5, weights: torch.Tensor | None = None, seed: int = 0):
    features = torch.randn(images, *GRID, SIZE, generator=torch.Generator().manual_seed(seed))
    weights = torch.ones(images, *GRID) if weights is None else weights
    config = PositionPriorConfig(grid_shape=GRID, hidden_size=SIZE, rank=rank, shrinkage=shrinkage)
    return PositionPriorModel(config).fit(features, weights, torch.eye(SIZE)), features


def assert_close(found, expected):
    for one, two in zip(found, expected, strict=True):
        assert torch.allclose(one, two, rtol=1e-3)


@pytest.mark.parametrize("images", [3, 40])  # fewer and more than dimensions: two ways to the eigenvalues
def test_at_full_rank_it_is_the_mahalanobis_distance(images):
    prior, features = fitted(images, rank=SIZE)
    found = prior(features.permute(0, 3, 1, 2))[0].numpy()
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
    np.testing.assert_allclose(prior(features.permute(0, 3, 1, 2))[0][:, 0, 0].numpy(), expected, rtol=2e-3)


def test_tokens_without_weight_do_not_count():
    weights = torch.ones(30, *GRID)
    weights[:5] = 0
    prior, features = fitted(30, 3, weights=weights)
    spoiled = features.clone()
    spoiled[:5] = 1000.0
    other = PositionPriorModel(prior.config).fit(spoiled, weights, torch.eye(SIZE))
    queries = features.permute(0, 3, 1, 2)[5:]
    assert_close(prior(queries), other(queries))


def test_features_go_through_the_metric():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(30, *GRID, SIZE, generator=generator)
    metric = torch.randn(SIZE, SIZE, generator=generator)
    config = PositionPriorConfig(grid_shape=GRID, hidden_size=SIZE, rank=3)
    weights = torch.ones(30, *GRID)
    one = PositionPriorModel(config).fit(features, weights, metric)
    two = PositionPriorModel(config).fit(features @ metric, weights, torch.eye(SIZE))
    queries = (features @ metric).permute(0, 3, 1, 2)
    assert torch.allclose(one(queries)[0], two(queries)[0], rtol=1e-3)


def test_more_directions_than_images():
    prior, features = fitted(2, rank=4)
    assert all(bool(found.isfinite().all()) for found in prior(features.permute(0, 3, 1, 2)))


def test_a_position_without_any_weight_is_finite():
    weights = torch.ones(10, *GRID)
    weights[:, 0, 0] = 0
    prior, features = fitted(10, 3, weights=weights)
    assert all(bool(found.isfinite().all()) for found in prior(features.permute(0, 3, 1, 2)))


def test_another_grid_is_refused():
    prior, _ = fitted(10, 3)
    with pytest.raises(ValueError, match="observed must be"):
        prior(torch.zeros(1, SIZE, 3, 2))


def test_it_is_saved(tmp_path):
    prior, features = fitted(10, 3)
    prior.save_pretrained(tmp_path)
    again = PositionPriorModel.from_pretrained(tmp_path)
    queries = features.permute(0, 3, 1, 2)
    assert all(torch.equal(one, two) for one, two in zip(prior(queries), again(queries), strict=True))


def test_a_coarse_token_is_the_mean_of_those_around_a_block():
    tokens = torch.randn(2, 7, 10, 3, generator=torch.Generator().manual_seed(0))
    found = coarse_tokens(tokens)
    assert found.shape == (2, 4, 5, 3)
    assert torch.allclose(found[:, 1, 2], tokens[:, 0:6, 2:8].mean((1, 2)), atol=1e-6)
    assert torch.allclose(found[:, 0, 0], tokens[:, 0:4, 0:4].mean((1, 2)), atol=1e-6)  # nothing lies beyond the edge
    assert torch.allclose(found[:, 3, 4], tokens[:, 4:, 6:].mean((1, 2)), atol=1e-6)
    assert coarse_tokens(tokens.half()).dtype == torch.float16


def test_what_many_tokens_share_is_seen_by_the_coarse_look_alone():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 12, 12, SIZE, generator=generator)
    config = PositionPriorConfig(grid_shape=(12, 12), hidden_size=SIZE, rank=3)
    prior = PositionPriorModel(config).fit(features, torch.ones(200, 12, 12), torch.eye(SIZE))
    new = torch.randn(50, 12, 12, SIZE, generator=generator)
    shifted = new + 0.8  # of a standard deviation, in every token
    (own, around), (own_shifted, around_shifted) = prior(new.permute(0, 3, 1, 2)), prior(shifted.permute(0, 3, 1, 2))
    assert own.shape == around.shape == (50, 12, 12)
    assert (own_shifted > own.quantile(0.99)).float().mean() < 0.1
    assert (around_shifted > around.quantile(0.99)).float().mean() > 0.9


def test_covariances_of_rounding_errors_are_decomposed():
    """At the white corner of photographs, where nothing varies, float32 ends in NaN or does not converge at all."""
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        offsets = 3e-6 * torch.randn(64, generator=generator)
        offsets[torch.rand(64, generator=generator) < 0.3] = 0
        offsets = torch.round(offsets * 2**22) / 2**22  # the last bit of some features
        values, vectors = decomposed((offsets[:, None] * offsets)[None])
        assert bool(values.isfinite().all() & vectors.isfinite().all())
