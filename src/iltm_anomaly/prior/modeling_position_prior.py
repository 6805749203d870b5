"""`PositionPriorModel`: how far a token is from what its position usually holds."""

import math

import torch
from torch import Tensor, nn

from iltm_anomaly.modeling import SafetensorsModel
from iltm_anomaly.prior.configuration_position_prior import PositionPriorConfig

POSITIONS_AT_ONCE = 32  # whose covariances are decomposed together


class PositionPriorModel(SafetensorsModel):
    """A Gaussian for each position of the grid (as in PaDiM, Defard et al. 2021), its covariance of low rank and shrunk towards
    that of all positions: variances l_1 to l_R along directions u_1 to u_R, and one variance along all others.

    Attributes:
        mean: (P, D) float32, P positions in raster order.
        directions: (P, D, R), orthonormal.
        variances: (P, R); `rest` (P,): the mean variance of the other directions.
    """

    config_class = PositionPriorConfig
    main_input_name = "observed"

    def __init__(self, config: PositionPriorConfig):
        super().__init__(config)
        positions, size, rank = math.prod(config.grid_shape), config.hidden_size, config.rank
        shapes = {"mean": (size,), "directions": (size, rank), "variances": (rank,), "rest": ()}
        # parameters: for transformers a model without any has no device and no type
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(positions, *shape), requires_grad=False))
        self.post_init()
        self.eval()

    def forward(self, observed: Tensor) -> Tensor:
        """Mahalanobis distances (B, *grid) of observed tokens (B, D, *grid) from the Gaussian of their position.

        Raises:
            ValueError: if the grid or D are not those of the configuration.
        """
        expected = (self.config.hidden_size, *self.config.grid_shape)
        if tuple(observed.shape[1:]) != expected:
            raise ValueError(f"observed must be (B, {', '.join(map(str, expected))}), got {tuple(observed.shape)}")
        mean, directions, variances, rest = (
            getattr(self, name).float() for name in ("mean", "directions", "variances", "rest")
        )
        offsets = observed.float().flatten(2).permute(2, 0, 1) - mean[:, None]  # (P, B, D)
        along = torch.bmm(offsets, directions).square()
        other = (offsets.square().sum(2) - along.sum(2)).clamp(min=0)
        added = self.config.shrinkage
        squared = other / (rest[:, None] + added) + (along / (variances[:, None] + added)).sum(2)
        return squared.sqrt().T.unflatten(1, self.config.grid_shape)

    @torch.no_grad()
    def fit(self, features: Tensor, weights: Tensor, metric: Tensor) -> "PositionPriorModel":
        """Takes the Gaussians from the tokens of training images; returns itself.

        Args:
            features: (N, *grid, D), any number of them in float16.
            weights: (N, *grid) from 0 to 1.
            metric: (D, D), by which features are multiplied to become what is observed.
        """
        tokens, weights = features.flatten(1, -2), weights.flatten(1)
        for start in range(0, tokens.shape[1], POSITIONS_AT_ONCE):
            part = slice(start, start + POSITIONS_AT_ONCE)
            weight = weights[:, part].T[..., None]  # (P, N, 1)
            observed = (tokens[:, part].float() @ metric).transpose(0, 1)  # (P, N, D)
            self._fit_part(part, observed, weight, weight.sum(1).clamp(min=1.0))
        return self

    def _fit_part(self, part: slice, observed: Tensor, weight: Tensor, count: Tensor) -> None:
        mean = (observed * weight).sum(1) / count
        offsets = (observed - mean[:, None]) * (weight / count[..., None]).sqrt()
        total, (_, images, size), rank = offsets.square().sum((1, 2)), offsets.shape, self.config.rank
        if images < size:  # the same eigenvalues from the smaller matrix
            values, inner = torch.linalg.eigh(offsets @ offsets.transpose(1, 2))
            values, inner = values[:, -rank:].clamp(min=1e-9), inner[:, :, -rank:]
            vectors = offsets.transpose(1, 2) @ inner / values.sqrt()[:, None]
        else:
            values, vectors = torch.linalg.eigh(offsets.transpose(1, 2) @ offsets)
            values, vectors = values[:, -rank:].clamp(min=0), vectors[:, :, -rank:]
        found = values.shape[1]  # fewer images than the rank
        self.get_parameter("mean")[part] = mean
        self.get_parameter("directions")[part] = 0
        self.get_parameter("directions")[part, :, :found] = vectors
        self.get_parameter("variances")[part, :found] = values
        self.get_parameter("rest")[part] = (total - values.sum(1)).clamp(min=0) / max(1, size - found)
