"""Recurrence: what is normal comes back in other images, a defect does so less.

The surprise of a training token is its distance to the nearest tokens among *other* training images, never its own. In round 0 of
a run all tokens vouch for each other; in later rounds those that were rejected vouch for nobody, so that defects which resemble
each other lose each other's support. No label is involved, and the time grows linearly with the number of images.
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from iltm_anomaly.seeds import sample_seed

OTHER_IMAGES = 60  # that each image is compared with; more change little
SUPPORT = 0.1  # share of these that must hold a token for it to be normal: one photograph is often taken several times
NEIGHBOURHOOD = (
    0.7  # standard deviation, in tokens, of the window that surprise is averaged over: defects cover several
)
STREAM = 16  # the random stream that other images are drawn from
SCALE = 2.0  # the limit, in distances from the median to the 90th percentile
REJECTED_AT = 1.35  # limits, from where on a token has no weight at all


@torch.no_grad()
def recurrence_surprise(tokens: Tensor, keep: Tensor, seed: int) -> Tensor:
    """How far each token is from the same thing in other images.

    Args:
        tokens: (N, h, w, D) of N training images, in any floating-point type.
        keep: (N, h, w) bool, which tokens vouch for others.
        seed: of the run.

    Returns:
        (N, h, w) float32: of the distances to the nearest kept token of each of `OTHER_IMAGES` other images the one that
        `SUPPORT` of them do not exceed, averaged over neighbouring tokens; 0 where there is no other image.
    """
    images, grid = len(tokens), tokens.shape[1:3]
    others = min(OTHER_IMAGES, images - 1)
    if others < 1:
        return torch.zeros(tokens.shape[:3])
    flat, kept = tokens.flatten(1, 2), keep.flatten(1)
    norms = torch.stack([image.float().square().sum(1) for image in flat]).masked_fill(~kept, torch.inf)
    rank = max(1, round(SUPPORT * others))
    found = []
    for number, image in enumerate(flat):
        generator = torch.Generator().manual_seed(sample_seed(seed, STREAM, number))
        chosen = torch.randperm(images - 1, generator=generator)[:others]
        chosen += chosen >= number  # not itself
        own = image.float()
        rows = flat[chosen].float().flatten(0, 1)
        squared = torch.addmm(norms[chosen].flatten(), own, rows.T, alpha=-2).unflatten(1, (others, -1)).amin(2)
        nearest = (squared + own.square().sum(1, keepdim=True)).clamp(min=0).sqrt()
        found.append(nearest.kthvalue(rank, 1).values.view(grid))
    surprise = torch.stack(found)
    finite = surprise[surprise.isfinite()]
    surprise = surprise.clamp(max=finite.max().item() if len(finite) else 0.0)  # where nobody is left to vouch
    averaged = ndimage.gaussian_filter(surprise.numpy(), (0, NEIGHBOURHOOD, NEIGHBOURHOOD), mode="nearest")
    return torch.from_numpy(averaged)


def recurrence_weights(surprise: Tensor, abnormal_share: float) -> tuple[Tensor, float]:
    """Weights of training tokens by their surprise, and the limit from where on they are below 1.

    The limit is `SCALE` times as far above the median as the 90th percentile is: distances are heavy-tailed, and deviations about
    the median would reject 3 to 5 % of normal tokens. Defects gather in a few images: where more than `abnormal_share` of them
    reach the limit, what lies beyond it is in part a rare normal detail, and it is raised until only that share does. Beyond it
    weights fall as (limit / surprise)^4, to 0 from `REJECTED_AT` limits on: a redescending influence, as in Tukey's and Geman and
    McClure's M-estimators, so that what is only rare keeps most of its weight.

    Args:
        surprise: (N, *grid) of all training images.
        abnormal_share: the largest share of training images, 0 to 1, that may be abnormal.

    Returns:
        Weights (N, *grid) from 0 to 1, and the limit.
    """
    values = surprise.numpy()
    median, high = np.quantile(values, [0.5, 0.9])
    limit = float(median + SCALE * (high - median))
    raised = float(np.quantile(values.reshape(len(values), -1).max(1), 1 - abnormal_share))
    limit = max(limit, raised)
    weights = (limit / surprise.clamp(min=1e-12)).clamp(max=1) ** 4
    return weights.masked_fill(surprise > REJECTED_AT * limit, 0.0), limit
