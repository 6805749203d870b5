"""`TissuePriorModel`: how often tokens of a tissue were given up in training."""

import torch
from torch import Tensor, nn

from iltm_anomaly.modeling import SafetensorsModel
from iltm_anomaly.prior.configuration_tissue_prior import TissuePriorConfig

PSEUDO_TOKENS = 50.0  # of the usual share, that every tissue counts in addition: rare ones say little


def relative_log_odds(given_up: Tensor, counts: Tensor) -> Tensor:
    """Log odds of being given up, by code, over those of all tokens: 0 where no more are than usual, or where none is anywhere.

    A tissue in which few were given up counts as any other: a lesion may be the first one there.

    Args:
        given_up: (..., K), how many tokens of each code were given up.
        counts: (..., K), how many there are.
    """
    total = given_up.sum(-1, keepdim=True)
    usual = total / counts.sum(-1, keepdim=True).clamp(min=1)
    share = (given_up + PSEUDO_TOKENS * usual) / (counts + PSEUDO_TOKENS)
    odds = share.clamp(1e-6, 1 - 1e-6).logit() - usual.clamp(1e-6, 1 - 1e-6).logit()
    return torch.where(total > 0, odds.clamp(min=0), 0.0)


class TissuePriorModel(SafetensorsModel):
    """How much more often than elsewhere tokens of a tissue are abnormal, by what the rounds have given up.

    Attributes:
        log_odds: (K,) float32, `relative_log_odds` of each code.
    """

    config_class = TissuePriorConfig
    main_input_name = "codes"

    def __init__(self, config: TissuePriorConfig):
        super().__init__(config)
        self.log_odds = nn.Parameter(torch.zeros(config.vocab_size), requires_grad=False)
        self.post_init()
        self.eval()

    def forward(self, codes: Tensor) -> Tensor:
        """Log odds (B, *grid) float32 of codes (B, *grid)."""
        return self.log_odds.float()[codes]
