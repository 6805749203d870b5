"""How likely a token is: given the codes before it, or at its position."""

from iltm_anomaly.prior.configuration_performer_prior import PerformerPriorConfig
from iltm_anomaly.prior.configuration_position_prior import PositionPriorConfig
from iltm_anomaly.prior.modeling_performer_prior import PerformerPriorModel, PriorOutput, PriorState
from iltm_anomaly.prior.modeling_position_prior import PositionPriorModel, block_means, coarse_tokens

__all__ = [
    "PerformerPriorConfig",
    "PerformerPriorModel",
    "PositionPriorConfig",
    "PositionPriorModel",
    "PriorOutput",
    "PriorState",
    "block_means",
    "coarse_tokens",
]
