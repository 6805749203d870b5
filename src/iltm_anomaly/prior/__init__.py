"""Stage 2: a causal Performer over the VQ-VAE's codes."""

from iltm_anomaly.prior.configuration_performer_prior import PerformerPriorConfig
from iltm_anomaly.prior.modeling_performer_prior import PerformerPriorModel, PriorOutput, PriorState

__all__ = ["PerformerPriorConfig", "PerformerPriorModel", "PriorOutput", "PriorState"]
