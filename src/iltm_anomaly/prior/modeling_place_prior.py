"""`PlacePriorModel`: the highest uptake that bodies usually have at each place, as far as the rounds have kept it."""

import torch
from torch import Tensor, nn

from iltm_anomaly.modeling import SafetensorsModel
from iltm_anomaly.prior.configuration_place_prior import PlacePriorConfig


class PlacePriorModel(SafetensorsModel):
    """How hot a place may be.

    Attributes:
        highest: (D, H, W) float32, logarithm of uptake as of `uptake_map.log_uptake`.
    """

    config_class = PlacePriorConfig
    main_input_name = "codes"

    def __init__(self, config: PlacePriorConfig):
        super().__init__(config)
        self.highest = nn.Parameter(torch.zeros(config.grid_shape), requires_grad=False)
        self.post_init()
        self.eval()

    def forward(self, codes: Tensor) -> Tensor:
        """Logarithms (B, D, H, W) float32 of the highest usual uptake, of codes (B, D, H, W)."""
        return self.highest.float().flatten()[codes]
