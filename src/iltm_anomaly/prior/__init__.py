"""How likely a token is: given the codes before it, at its position or place, or in its tissue."""

from iltm_anomaly.prior.configuration_performer_prior import PerformerPriorConfig
from iltm_anomaly.prior.configuration_place_prior import PlacePriorConfig
from iltm_anomaly.prior.configuration_position_prior import PositionPriorConfig
from iltm_anomaly.prior.configuration_tissue_prior import TissuePriorConfig
from iltm_anomaly.prior.modeling_performer_prior import PerformerPriorModel, PriorOutput, PriorState
from iltm_anomaly.prior.modeling_place_prior import PlacePriorModel
from iltm_anomaly.prior.modeling_position_prior import PositionPriorModel, block_means, coarse_tokens
from iltm_anomaly.prior.modeling_tissue_prior import TissuePriorModel, relative_log_odds

__all__ = [
    "PerformerPriorConfig",
    "PerformerPriorModel",
    "PlacePriorConfig",
    "PlacePriorModel",
    "PositionPriorConfig",
    "PositionPriorModel",
    "PriorOutput",
    "PriorState",
    "TissuePriorConfig",
    "TissuePriorModel",
    "block_means",
    "coarse_tokens",
    "relative_log_odds",
]
