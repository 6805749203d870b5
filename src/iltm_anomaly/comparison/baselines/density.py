"""A Gaussian density of embeddings, its covariance shrunk by the rule of Ledoit and Wolf (Journal of Multivariate Analysis 88(2),
2004), which stays invertible with fewer embeddings than dimensions."""

import torch
from torch import Tensor, nn


def ledoit_wolf(samples: Tensor) -> tuple[Tensor, float]:
    """Shrunk covariance (1 - a) S + a tr(S)/D I of samples (N, D), and the optimal share a.

    Returns:
        ((D, D) float64, a in [0, 1]).

    Raises:
        ValueError: if there are fewer than two samples.
    """
    count, size = samples.shape
    if count < 2:
        raise ValueError(f"a covariance needs at least two samples, got {count}")
    centred = samples.double() - samples.double().mean(0)
    covariance = centred.T @ centred / count
    scale = covariance.diagonal().mean()
    identity = torch.eye(size, dtype=torch.float64, device=samples.device)
    # squared distances, per dimension: of S to its target, and of S to the truth as far as the samples tell
    to_target = (covariance - scale * identity).square().sum() / size
    spread = (centred.square().sum(1).square().sum() / count - covariance.square().sum()) / (count * size)
    share = float(torch.minimum(spread, to_target) / to_target) if float(to_target) > 0 else 1.0
    return (1 - share) * covariance + share * scale * identity, share


class GaussianDensity(nn.Module):
    """Mahalanobis distance, -log density up to a constant and a monotone map.

    Args:
        size: D, length of an embedding.
    """

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("whitening", torch.zeros(size, size))

    @torch.no_grad()
    def fit(self, samples: Tensor) -> None:
        """Sets mean and covariance from embeddings (N, D)."""
        covariance, _ = ledoit_wolf(samples)
        floor = 1e-9 * covariance.diagonal().mean().clamp(min=1e-12)  # all samples equal: any distance will do
        covariance += floor * torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
        factor = torch.linalg.cholesky(covariance)
        identity = torch.eye(len(factor), dtype=torch.float64, device=factor.device)
        self.get_buffer("whitening").copy_(torch.linalg.solve_triangular(factor, identity, upper=False))
        self.get_buffer("mean").copy_(samples.double().mean(0))

    def forward(self, samples: Tensor) -> Tensor:
        """(N, D) -> distances (N,) float32."""
        return ((samples.float() - self.get_buffer("mean")) @ self.get_buffer("whitening").T).norm(dim=1)
