"""A Gaussian density of embeddings. Its covariance is shrunk by the rule of Ledoit and Wolf (Journal of Multivariate Analysis
88(2), 2004), and so can be inverted even if there are fewer embeddings than dimensions."""

import torch
from torch import Tensor, nn


def ledoit_wolf(samples: Tensor) -> tuple[Tensor, float]:
    """Shrunk covariance (1 - a) S + a tr(S)/D I, S being the covariance of samples (N, D).

    Returns:
        The shrunk covariance (D, D) float64, and the optimal share a, 0 to 1.

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
    # squared distances per dimension: of S to its target, and, as far as the samples tell, of S to the true covariance
    to_target = (covariance - scale * identity).square().sum() / size
    spread = (centred.square().sum(1).square().sum() / count - covariance.square().sum()) / (count * size)
    share = float(torch.minimum(spread, to_target) / to_target) if float(to_target) > 0 else 1.0
    return (1 - share) * covariance + share * scale * identity, share


class GaussianDensity(nn.Module):
    """Mahalanobis distances under a Gaussian: the further, the less likely.

    Args:
        size: D, the length of an embedding.
    """

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("whitening", torch.zeros(size, size))

    @torch.no_grad()
    def fit(self, samples: Tensor) -> None:
        """Sets mean and covariance from embeddings (N, D). The floor added to the covariance matters only if all are equal."""
        covariance, _ = ledoit_wolf(samples)
        floor = 1e-9 * covariance.diagonal().mean().clamp(min=1e-12)
        covariance += floor * torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
        factor = torch.linalg.cholesky(covariance)
        identity = torch.eye(len(factor), dtype=torch.float64, device=factor.device)
        self.get_buffer("whitening").copy_(torch.linalg.solve_triangular(factor, identity, upper=False))
        self.get_buffer("mean").copy_(samples.double().mean(0))

    def forward(self, samples: Tensor) -> Tensor:
        """Embeddings (N, D) -> distances (N,) float32."""
        return ((samples.float() - self.get_buffer("mean")) @ self.get_buffer("whitening").T).norm(dim=1)
