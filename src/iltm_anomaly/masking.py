"""The iterative part of ILTM: token likelihoods to weights, weights to a keep-mask, and when to stop.

Fitting the prior to contaminated data is robust M-estimation: minimise sum_i rho(r_i) over residuals r_i = -log p(code_i), the
surprise of a token in nats. With hard rejection a token's weight is w_i = 1[r_i <= limit], and each round refits the prior on
the tokens that the round before kept. Masks are True = keep everywhere.

Two rules choose what is rejected:

- The authors': every token for itself, p < tau; so limit = -log tau, with tau barely above chance (`default_token_threshold`).
- Ours: a defect covers neighbouring tokens, so the residual of a token is averaged with its neighbours' before it is judged,
  and the limit is that of an outlier in robust statistics, median + 3 scaled median absolute deviations (Hampel's
  identifier), which adapts to how predictable the data is at all. No label is involved.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

DEFECT_SHARE = 0.25  # of a token's pixels: from here on it counts as a defect token in reports
NORMAL_MAD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation


class TokenThresholdError(ValueError):
    """The limit would mask so many tokens that nothing is left to learn from."""


def default_token_threshold(vocab_size: int) -> float:
    """tau: a little more likely than chance, 1.3 / K; 0.005 for 256 codes, as in the authors' scripts."""
    return 1.3 / vocab_size


def surprise_limit(token_threshold: float) -> float:
    """The probability tau as a limit on surprise, -log tau; infinite for 0, which rejects nothing.

    Raises:
        ValueError: if it is negative.
    """
    if token_threshold < 0:
        raise ValueError(f"token_threshold is a probability, got {token_threshold}")
    return -math.log(token_threshold) if token_threshold > 0 else math.inf


def token_surprise(log_likelihood: Tensor, neighbourhood: float = 0.0) -> Tensor:
    """-log p of each token, (B, *grid) natural logarithms -> (B, *grid); averaged with its neighbours' by a Gaussian window of
    standard deviation `neighbourhood`, in tokens; 0 judges each for itself."""
    if not neighbourhood:
        return -log_likelihood
    sigma = (0, *[neighbourhood] * (log_likelihood.dim() - 1))
    averaged = ndimage.gaussian_filter(-log_likelihood.cpu().numpy(), sigma, mode="nearest")
    return torch.from_numpy(averaged).to(log_likelihood.device)


def outlier_limit(surprise: Tensor, scale: float = 3.0) -> float:
    """Median + `scale` robust standard deviations of all values, however many of them are outliers (up to half)."""
    values = surprise.cpu().numpy()
    median = np.median(values)
    return float(median + scale * NORMAL_MAD * np.median(np.abs(values - median)))


def score_threshold(scores: Tensor, lowest: float = 0.0) -> float:
    """From which score on an image is abnormal, by the scores (N,) of training images: an outlier is one for which the logarithm
    of its distance to the `lowest` possible score is. It holds as long as fewer than half of them are contaminated."""
    return lowest + math.exp(outlier_limit((scores.float() - lowest).clamp(min=1e-6).log()))


@dataclass(frozen=True)
class RejectionRule:
    """One of the two rules above.

    Args:
        token_threshold: tau, a probability: every token for itself. None takes the outlier rule.
        neighbourhood: of the outlier rule, standard deviation in tokens of the window over which surprise is averaged.
        outlier_scale: of the outlier rule, robust standard deviations above the median.

    Raises:
        ValueError: if a value is out of range.
    """

    token_threshold: float | None = None
    neighbourhood: float = 1.0
    outlier_scale: float = 3.0

    def __post_init__(self):
        if self.token_threshold is not None and not 0 <= self.token_threshold <= 1:
            raise ValueError(f"token_threshold is a probability, from 0 to 1, got {self.token_threshold}")
        if not (0 <= self.neighbourhood < math.inf and 0 <= self.outlier_scale < math.inf):
            raise ValueError(
                f"need neighbourhood >= 0 and outlier_scale >= 0, got {self.neighbourhood} and {self.outlier_scale}"
            )

    def surprise(self, log_likelihood: Tensor) -> Tensor:
        """(B, *grid) natural logarithms -> what is judged, (B, *grid) in nats."""
        return token_surprise(log_likelihood, self.neighbourhood if self.token_threshold is None else 0.0)

    def limit(self, surprise: Tensor) -> float:
        """Largest surprise that is kept; the outlier rule takes it from `surprise`, of all training tokens."""
        if self.token_threshold is not None:
            return surprise_limit(self.token_threshold)
        return outlier_limit(surprise, self.outlier_scale)


def keep_mask(surprise: Tensor, limit: float) -> Tensor:
    """w = 1[r <= limit]: surprise of any shape, in nats -> bool of that shape."""
    return surprise <= limit


def masked_fraction(keep: Tensor) -> float:
    """Share of tokens masked, 0 to 1."""
    return 1.0 - keep.float().mean().item()


def mask_iou(keep_a: Tensor, keep_b: Tensor) -> float:
    """Intersection over union of what two keep-masks of one shape mask; 1 if neither masks anything."""
    union = (~keep_a | ~keep_b).sum().item()
    return (~keep_a & ~keep_b).sum().item() / union if union else 1.0


def check_masked_fraction(keep: Tensor, limit: float, rule: RejectionRule, largest: float = 0.5) -> float:
    """Masked fraction of `keep`, checked; `limit` and the `rule` that it comes from are only quoted.

    Raises:
        TokenThresholdError: if it is above `largest`.
    """
    fraction = masked_fraction(keep)
    if fraction > largest:
        given, remedy = (
            (f"outlier_scale {rule.outlier_scale:g}", "raise outlier_scale")
            if rule.token_threshold is None
            else (f"token_threshold {rule.token_threshold:.2g}", "lower token_threshold")
        )
        raise TokenThresholdError(
            f"a limit of {limit:.2f} nats ({given}) would mask {fraction:.0%} of all training tokens, a round allows "
            f"{largest:.0%}: {remedy}, or train the prior longer so that normal tokens become likely"
        )
    return fraction


def has_converged(previous: Tensor, current: Tensor, iou: float = 0.95, change: float = 0.001) -> bool:
    """True if another round would see nearly the same masks: their overlap is above `iou`, or the masked fraction moved by
    less than `change`."""
    moved = abs(masked_fraction(previous) - masked_fraction(current))
    return mask_iou(previous, current) > iou or moved < change


def defect_tokens(pixel_mask: Tensor, grid_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Which tokens lie on a defect: mask (B, *spatial) of 0 and 1 -> (defect, normal), each (B, *grid) bool.

    A defect token has at least a quarter of its pixels in the mask, a normal token none; those between are neither.
    """
    kernel = tuple(side // cells for side, cells in zip(pixel_mask.shape[1:], grid_shape, strict=True))
    pool = F.avg_pool2d if len(grid_shape) == 2 else F.avg_pool3d
    share = pool(pixel_mask.float().unsqueeze(1), kernel).squeeze(1)
    return share >= DEFECT_SHARE, share == 0


def masked_shares(keep: Tensor, defect: Tensor, normal: Tensor) -> tuple[float | None, float | None]:
    """Shares of defect and of normal tokens that are masked; None where there are no such tokens. All of one shape."""

    def share(where: Tensor) -> float | None:
        return (~keep[where]).float().mean().item() if bool(where.any()) else None

    return share(defect), share(normal)
