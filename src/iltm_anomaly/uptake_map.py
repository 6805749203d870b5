"""The map of a pipeline on tissues: uptake, weighed by how often tokens of the same tissue were given up in training.

Both are in one unit: twice the odds count as much as a certain factor of uptake, so that the map reads as an SUV. It is the naive
Bayes estimate of a voxel's odds of being abnormal, given its uptake and, by itself, what the CT shows there.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from iltm_anomaly.prior import TissuePriorModel
from iltm_anomaly.settings import UptakeSettings
from iltm_anomaly.tokenizers.tissue import TissueTokenizerModel, voxels_of

NO_UPTAKE = 0.1  # in units of the file, such as SUV: added before logarithms, which would make noise in air count
BROADER = (
    3.0  # odds are smoothed over so many times the width that uptake is: tissue tells of a region, not of a voxel
)
LEVELS = 100  # that findings are counted at


def log_uptake(units: Tensor, smoothing: float, background: float = NO_UPTAKE) -> Tensor:
    """Logarithm of smoothed uptake (D, H, W) in units of the file, such as SUV, above a background."""
    return (smoothed(units, smoothing).clamp(min=0) + background).log()


def smoothed(values: Tensor, sigma: float) -> Tensor:
    """Gaussian filter over the voxels of one volume, mirrored at its borders, on the CPU."""
    return torch.from_numpy(ndimage.gaussian_filter(values.float().cpu().numpy(), sigma))


def log_map(uptake: Tensor, log_odds: Tensor, settings: UptakeSettings) -> Tensor:
    """Logarithm of the map: of `log_uptake` and of each voxel's log odds, both (D, H, W)."""
    return uptake + settings.tissue_weight * smoothed(log_odds, BROADER * settings.smoothing)


@torch.no_grad()
def score_volumes(
    tokenizer: TissueTokenizerModel,
    prior: TissuePriorModel,
    pixel_values: Tensor,
    settings: UptakeSettings,
    in_units: Callable[[Tensor], Tensor],
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Volumes (B, C, D, H, W) in [0, 1] -> maps (D, H, W), healed volumes (C, D, H, W), log-likelihoods and healed tokens
    (B, D, H, W), all on the CPU; likelihoods up to a constant.

    Args:
        in_units: takes uptake from [0, 1] to units of the file.
    """
    # 1. voxels become tokens, of tissues that the prior knows; where no CT is there is nothing to know
    codes = tokenizer.encode(pixel_values)
    known = pixel_values[:, -1].flatten(1).amax(1) > 0
    log_odds = (prior(codes) * known[:, None, None, None]).cpu()
    maps, healed = torch.zeros(codes.shape), torch.zeros(codes.shape, dtype=torch.bool)
    for number, volume in enumerate(pixel_values):
        box = voxels_of(volume)
        uptake = log_uptake(in_units(volume[0][box].cpu()), settings.smoothing)
        # 2. uptake and odds become a map; padding stays 0
        value = log_map(uptake, log_odds[number][box], settings)
        maps[number][box] = value.exp()
        healed[number][box] = value > (torch.inf if settings.token_limit is None else settings.token_limit)
    # 3. in place of tokens that stand out stands what is usual for their tissue
    expected = tokenizer.expect(codes).cpu()
    pictures = pixel_values.float().cpu().clone()
    pictures[:, :1] = torch.where(healed[:, None], expected, pictures[:, :1])
    return list(maps), list(pictures), -maps.clamp(min=NO_UPTAKE / 10).log(), healed


def findings(maps: Sequence[np.ndarray], level: float) -> float:
    """Connected regions (26 neighbours) of maps from a level on, a map in the mean."""
    return sum(ndimage.label(one >= level, structure=np.ones((3, 3, 3)))[1] for one in maps) / len(maps)


def findings_threshold(maps: Sequence[np.ndarray], most: float, least: float) -> float:
    """The lowest value, from `least` on, at which maps of training volumes have no more than so many `findings`; lesions are
    among them. Further up a hot lesion falls into pieces, which does not count."""
    highest = max(float(one.max()) for one in maps)
    levels = np.geomspace(least, max(highest, least), LEVELS)
    return next((float(level) for level in levels if findings(maps, level) <= most), highest)
