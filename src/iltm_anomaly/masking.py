"""The iterative part of ILTM: token likelihoods to weights, weights to a keep-mask, and when to stop.

Fitting the prior to contaminated data is robust M-estimation: minimise sum_i rho(r_i) over residuals r_i = -log p(code_i).
With hard rejection the weight of a token is w_i = 1[p_i >= tau], and each round refits the prior on the tokens that the
round before kept. Masks are True = keep everywhere.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

DEFECT_SHARE = 0.25  # of a token's pixels: from here on it counts as a defect token in reports


class TokenThresholdError(ValueError):
    """The threshold would mask so many tokens that nothing is left to learn from."""


def default_token_threshold(vocab_size: int) -> float:
    """tau: a little more likely than chance, 1.3 / K; 0.005 for 256 codes, as in the lineage's scripts."""
    return 1.3 / vocab_size


def keep_mask(log_likelihood: Tensor, threshold: float) -> Tensor:
    """w = 1[p >= tau]: natural log-likelihoods of any shape -> bool of that shape. `threshold` is a probability.

    Raises:
        ValueError: if `threshold` is negative.
    """
    if threshold < 0:
        raise ValueError(f"token_threshold is a probability, got {threshold}")
    return log_likelihood >= (math.log(threshold) if threshold > 0 else -math.inf)


def masked_fraction(keep: Tensor) -> float:
    """Share of tokens masked, 0 to 1."""
    return 1.0 - keep.float().mean().item()


def mask_iou(keep_a: Tensor, keep_b: Tensor) -> float:
    """Intersection over union of what two keep-masks of one shape mask; 1 if neither masks anything."""
    union = (~keep_a | ~keep_b).sum().item()
    return (~keep_a & ~keep_b).sum().item() / union if union else 1.0


def check_masked_fraction(keep: Tensor, threshold: float, limit: float = 0.5) -> float:
    """Masked fraction of `keep`, checked.

    Raises:
        TokenThresholdError: if it is above `limit`: the threshold is too high for this prior.
    """
    fraction = masked_fraction(keep)
    if fraction > limit:
        raise TokenThresholdError(
            f"token_threshold {threshold:g} would mask {fraction:.0%} of all training tokens (limit {limit:.0%}): "
            "lower it, or train the prior longer so that normal tokens become likely"
        )
    return fraction


def has_converged(previous: Tensor | None, current: Tensor, iou: float = 0.95, change: float = 0.001) -> bool:
    """True if another round would see nearly the same masks: their overlap is above `iou`, or the masked fraction moved by
    less than `change`. `previous` is None before the first masked round."""
    if previous is None:
        return False
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
