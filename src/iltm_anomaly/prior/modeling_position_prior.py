"""`PositionPriorModel`: how far a token is from what its position usually holds, alone and together with those around it."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iltm_anomaly.modeling import SafetensorsModel
from iltm_anomaly.prior.configuration_position_prior import PositionPriorConfig
from iltm_anomaly.tokenizers.features.fitting import fit_metric

POSITIONS_AT_ONCE = 32  # whose covariances are decomposed together
WINDOW = 6  # tokens along each side that a coarse token is the mean of; there is one for every 2 x 2 tokens
LEAST_VARIANCE = 1e-6  # of every direction: a decomposition of zeros may end in NaN


def coarse_tokens(tokens: Tensor) -> Tensor:
    """Tokens (N, h, w, D), in their own type -> means of `WINDOW` x `WINDOW` of them, (N, ceil(h / 2), ceil(w / 2), D)."""
    padding = (WINDOW - 2) // 2
    return torch.cat(
        [
            F.avg_pool2d(
                image[None].float().permute(0, 3, 1, 2),
                WINDOW,
                2,
                padding,
                ceil_mode=True,
                count_include_pad=False,
            )
            .permute(0, 2, 3, 1)
            .to(image.dtype)
            for image in tokens
        ]
    )


def block_means(weights: Tensor) -> Tensor:
    """Weights (N, h, w) of tokens -> those of coarse tokens, the means of the 2 x 2 tokens in the middle of each."""
    return F.avg_pool2d(weights[:, None], 2, ceil_mode=True)[:, 0]


class PositionGaussians(nn.Module):
    """A Gaussian for each of P positions (as in PaDiM, Defard et al. 2021), its covariance of low rank and shrunk towards that of
    all positions: variances l_1 to l_R along directions u_1 to u_R, and one variance along all others.

    Attributes:
        mean: (P, D) float32.
        directions: (P, D, R), orthonormal.
        variances: (P, R); `rest` (P,): the mean variance of the other directions.
    """

    def __init__(self, positions: int, size: int, rank: int):
        super().__init__()
        shapes = {"mean": (size,), "directions": (size, rank), "variances": (rank,), "rest": ()}
        # parameters: for transformers a model without any has no device and no type
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(positions, *shape), requires_grad=False))

    def forward(self, tokens: Tensor, shrinkage: float) -> Tensor:
        """Mahalanobis distances (B, P) of tokens (B, P, D)."""
        mean, directions, variances, rest = (
            getattr(self, name).float() for name in ("mean", "directions", "variances", "rest")
        )
        offsets = tokens.transpose(0, 1) - mean[:, None]  # (P, B, D)
        along = torch.bmm(offsets, directions).square()
        other = (offsets.square().sum(2) - along.sum(2)).clamp(min=0)
        squared = other / (rest[:, None] + shrinkage) + (along / (variances[:, None] + shrinkage)).sum(2)
        return squared.sqrt().T

    def fit(self, tokens: Tensor, weights: Tensor, metric: Tensor) -> None:
        """Takes the Gaussians from tokens (N, P, D), of any floating-point type, and their weights (N, P)."""
        for start in range(0, tokens.shape[1], POSITIONS_AT_ONCE):
            part = slice(start, start + POSITIONS_AT_ONCE)
            weight = weights[:, part].T[..., None]  # (P, N, 1)
            observed = (tokens[:, part].float() @ metric).transpose(0, 1)  # (P, N, D)
            self._fit_part(part, observed, weight, weight.sum(1).clamp(min=1.0))

    def _fit_part(self, part: slice, observed: Tensor, weight: Tensor, count: Tensor) -> None:
        mean = (observed * weight).sum(1) / count
        offsets = (observed - mean[:, None]) * (weight / count[..., None]).sqrt()
        total, (_, images, size) = offsets.square().sum((1, 2)), offsets.shape
        rank = self.get_parameter("variances").shape[1]
        if images < size:  # the same eigenvalues from the smaller matrix
            values, inner = decomposed(offsets @ offsets.transpose(1, 2))
            values, inner = values[:, -rank:].clamp(min=1e-9), inner[:, :, -rank:]
            vectors = offsets.transpose(1, 2) @ inner / values.sqrt()[:, None]
        else:
            values, vectors = decomposed(offsets.transpose(1, 2) @ offsets)
            values, vectors = values[:, -rank:].clamp(min=0), vectors[:, :, -rank:]
        found = values.shape[1]  # fewer images than the rank
        self.get_parameter("mean")[part] = mean
        self.get_parameter("directions")[part] = 0
        self.get_parameter("directions")[part, :, :found] = vectors
        self.get_parameter("variances")[part, :found] = values
        self.get_parameter("rest")[part] = (total - values.sum(1)).clamp(min=0) / max(1, size - found)


def decomposed(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of symmetric matrices (P, n, n)."""
    values, vectors = torch.linalg.eigh(matrices + LEAST_VARIANCE * torch.eye(matrices.shape[-1]))
    return values - LEAST_VARIANCE, vectors


class PositionPriorModel(SafetensorsModel):
    """Gaussians of the positions of a grid, and of a coarser one whose tokens are means of 6 x 6 others: what covers many tokens
    and is unusual in none of them alone is so in their mean.

    Attributes:
        fine, coarse: `PositionGaussians` of both grids.
        coarse_metric: (D, D) float32, by which means of observed tokens are multiplied to vary alike in all directions.
    """

    config_class = PositionPriorConfig
    main_input_name = "observed"

    def __init__(self, config: PositionPriorConfig):
        super().__init__(config)
        size, rank = config.hidden_size, config.rank
        blocks = math.prod(-(-side // 2) for side in config.grid_shape)
        self.fine = PositionGaussians(math.prod(config.grid_shape), size, rank)
        self.coarse = PositionGaussians(blocks, size, rank)
        self.register_buffer("coarse_metric", torch.eye(size))
        self.post_init()
        self.eval()

    def forward(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Mahalanobis distances (B, *grid) of observed tokens (B, D, *grid) from the Gaussian of their position, and those of the
        coarse tokens around them, interpolated.

        Raises:
            ValueError: if the grid or D are not those of the configuration.
        """
        grid = tuple(self.config.grid_shape)
        expected = (self.config.hidden_size, *grid)
        if tuple(observed.shape[1:]) != expected:
            raise ValueError(f"observed must be (B, {', '.join(map(str, expected))}), got {tuple(observed.shape)}")
        tokens = observed.float().permute(0, 2, 3, 1)
        blocks = coarse_tokens(tokens) @ self.get_buffer("coarse_metric").float()
        own = self.fine(tokens.flatten(1, 2), self.config.shrinkage).unflatten(1, grid)
        around = self.coarse(blocks.flatten(1, 2), self.config.shrinkage).unflatten(1, blocks.shape[1:3])
        return own, F.interpolate(around[:, None], size=grid, mode="bilinear", align_corners=False)[:, 0]

    @torch.no_grad()
    def fit(self, features: Tensor, weights: Tensor, metric: Tensor) -> "PositionPriorModel":
        """Takes the Gaussians from the tokens of training images; returns itself.

        Args:
            features: (N, *grid, D), any number of them in float16.
            weights: (N, *grid) from 0 to 1.
            metric: (D, D), by which features are multiplied to become what is observed.
        """
        self.fine.fit(features.flatten(1, 2), weights.flatten(1), metric)
        blocks, block_weights = coarse_tokens(features), block_means(weights)
        block_metric = fit_metric(blocks, block_weights)
        self.coarse.fit(blocks.flatten(1, 2), block_weights.flatten(1), block_metric)
        self.get_buffer("coarse_metric").copy_(torch.linalg.solve(metric, block_metric))  # for what is observed
        return self
