"""What the tokenizer of features learns from weighted training tokens: a metric and a codebook."""

import torch
from torch import Tensor

QUERIES_AT_ONCE = 2048
SHRINKAGE = 0.02  # share of the mean variance that is added to every direction of the metric
LEAST = 1e-4  # the same of the variance over all places: images that are all alike still differ by rounding
FITTED_TOKENS = 40_000  # tokens that the codebook is fitted to; more change it little
ITERATIONS = 6  # of k-means


def nearest(queries: Tensor, codebook: Tensor) -> Tensor:
    """Indices (N,) of the row of `codebook` (K, D) that is nearest to each of the queries (N, D)."""
    norms = codebook.square().sum(1)  # |c|^2 - 2 q.c ranks them; distances are computed without its cancellation
    parts = queries.split(QUERIES_AT_ONCE)
    return torch.cat([torch.addmm(norms, part, codebook.T, alpha=-2).argmin(1) for part in parts])


def fit_metric(features: Tensor, weights: Tensor) -> Tensor:
    """The matrix in which the variation of tokens about the mean of their place is the same in all directions: the inverse root
    of their covariance, pooled over all places.

    Args:
        features: (N, h, w, D) of all training images.
        weights: (N, h, w) from 0 to 1.

    Returns:
        (D, D) float32.
    """
    count, mean, size = weights.sum(0).clamp(min=1e-6), torch.zeros(features.shape[1:]), features.shape[-1]
    for image, weight in zip(features, weights, strict=True):
        mean += image.float() * weight[..., None]
    mean /= count[..., None]
    covariance = torch.zeros(size, size)
    for image, weight in zip(features, weights, strict=True):
        offsets = ((image.float() - mean) * weight.sqrt()[..., None]).flatten(0, 1)
        covariance += offsets.T @ offsets
    covariance /= weights.sum().clamp(min=1)
    overall = mean.flatten(0, 1).var(0, correction=0).mean()
    covariance += torch.eye(size) * (SHRINKAGE * covariance.diagonal().mean() + LEAST * overall).clamp(min=1e-12)
    values, vectors = torch.linalg.eigh(covariance)
    return vectors / values.sqrt()


def fit_codebook(tokens: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """k-means: codewords (count, D) of tokens (N, D), N at least 1. A codeword without tokens starts anew at one of them; where
    there are fewer tokens than codewords, some codewords are equal."""
    codebook = tokens[torch.randint(len(tokens), (count,), generator=generator)].clone()
    distinct = torch.randperm(len(tokens), generator=generator)[:count]
    codebook[: len(distinct)] = tokens[distinct]
    for _ in range(ITERATIONS):
        codes = nearest(tokens, codebook)
        sums = torch.zeros_like(codebook).index_add_(0, codes, tokens)
        used = torch.bincount(codes, minlength=count)
        empty = used == 0
        codebook = sums / used.clamp(min=1)[:, None]
        codebook[empty] = tokens[torch.randint(len(tokens), (int(empty.sum()),), generator=generator)]
    return codebook


def fit_detail(features: Tensor, weights: Tensor, metric: Tensor, size: int) -> Tensor:
    """The matrix (D, size) that takes what is observed, features (N, h, w, D) times `metric` (D, D), to the first `size` of the
    features in a metric of their own."""
    own = fit_metric(features[..., :size], weights)
    return torch.linalg.solve(metric, torch.cat([own, own.new_zeros(len(metric) - size, size)]))


def residual_lengths(residuals: Tensor, detail: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths (...) of what tokens differ from their codewords by, (..., D), and of their `detail` (D, size) alone."""
    return residuals.norm(dim=-1), (residuals @ detail.float()).norm(dim=-1)
