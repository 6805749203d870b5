"""The map of a pipeline on features: how far each token is from the codes, and from what its position usually holds.

Both distances are put on one scale by the training images alone, and their weighted sum is divided by how much it usually varies
at a position. Training images are judged by models that were fitted to the other half of them.
"""

import math

import numpy as np
import torch
from torch import Tensor

from iltm_anomaly.masking import NORMAL_MAD
from iltm_anomaly.prior import PositionPriorModel
from iltm_anomaly.scoring import smooth, to_pixels
from iltm_anomaly.settings import FeatureSettings
from iltm_anomaly.tokenizers.features import FeatureTokenizerModel

EVENNESS = 3.0  # usual variation added to each position's own, so that still positions are not blown up
QUARTILES = 4.0  # from the median to the threshold, in distances to the upper quartile: 3 in 1000 of normally distributed scores
LEAST_SCALE = 0.1  # of distances in a metric in which tokens usually vary by 1: images that are all alike do by less
HIGH = 0.9  # quantile of distances that sets their scale


def combined(to_code: Tensor, to_position: Tensor, settings: FeatureSettings, usual: Tensor | None) -> Tensor:
    """Two distances (B, *grid) as one surprise (B, *grid), about 0 where all is usual.

    Args:
        settings: calibrated or not; without calibration distances have the scale that they have.
        usual: (*grid), of `usual_variation`, or None.
    """
    share = settings.code_share
    surprise = share * to_code / (settings.code_scale or 1.0) + (1 - share) * to_position / (
        settings.position_scale or 1.0
    )
    surprise = surprise if usual is None else surprise / usual.to(surprise.device)
    return surprise - (settings.usual_surprise or 0.0)


def token_limit(surprise: Tensor, keep: Tensor) -> float:
    """Surprise that one in a thousand of the kept training tokens reaches; arguments as of `usual_variation`."""
    return float(np.quantile(surprise[keep].numpy(), 0.999))


@torch.no_grad()
def score_images(
    tokenizer: FeatureTokenizerModel,
    prior: PositionPriorModel,
    pixel_values: Tensor,
    settings: FeatureSettings,
    usual: Tensor | None,
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Images (B, C, *spatial) in [0, 1] -> maps (*spatial), healed images (C, *spatial), log-likelihoods and healed tokens
    (B, *grid), all on the CPU; likelihoods up to a constant."""
    spatial = tuple(pixel_values.shape[2:])
    # 1. images become tokens, which are compared with the codes and with what their positions usually hold
    codes, observed = tokenizer.tokenize(pixel_values)
    to_code, to_position = (observed - tokenizer.expect(codes)).square().sum(1).sqrt(), prior(observed)
    surprise = combined(to_code, to_position, settings, usual)
    # 2. in place of surprising tokens stand the normal patches that are most like them
    healed = surprise > (math.inf if settings.token_limit is None else settings.token_limit)
    pictures = []
    for own, where, pixels in zip(codes, healed, pixel_values, strict=True):
        pasted = tokenizer.show_codes(own)
        pictures.append(pasted.where(to_pixels(where, spatial, "nearest") > 0, pixels.float()).cpu())
    # 3. surprise becomes a map
    maps = [to_map(one, spatial, settings, tokenizer.pixels_per_token) for one in surprise]
    likelihood = -(to_code.square() + to_position.square()) / 2
    return maps, pictures, likelihood.cpu(), healed.cpu()


def to_map(surprise: Tensor, spatial: tuple[int, ...], settings: FeatureSettings, pixels_per_token: int) -> Tensor:
    """Surprise of the tokens of one image (*grid) -> map (*spatial) on the CPU."""
    return smooth(to_pixels(surprise.cpu(), spatial), settings.smoothing * pixels_per_token)


def image_score(values: Tensor | np.ndarray, share: float) -> float:
    """Mean of the highest values of a map, a `share` of it."""
    flat = torch.as_tensor(values).flatten()
    return float(flat.topk(max(1, round(share * len(flat)))).values.mean())


def distance_scale(distances: Tensor) -> float:
    """From the median of distances (N,) to their 90th percentile."""
    median, high = np.quantile(distances.numpy(), [0.5, HIGH])
    return max(float(high - median), LEAST_SCALE)


def usual_variation(surprise: Tensor, keep: Tensor) -> Tensor:
    """How much surprise usually varies at each position, over what it varies in all.

    Args:
        surprise: (N, *grid) of training images, each judged by a model that has not seen it.
        keep: (N, *grid) bool, tokens that were not rejected.

    Returns:
        (*grid) float32, about 1: robust standard deviations, evened out by `EVENNESS` of the median one.
    """
    values = torch.where(keep, surprise, torch.nan)
    deviation = NORMAL_MAD * (values - values.nanmedian(0).values).abs().nanmedian(0).values
    typical = deviation.nanmedian().clamp(min=0.01)
    return (deviation.nan_to_num(nan=float(typical)) + EVENNESS * typical) / ((1 + EVENNESS) * typical)


def threshold_of(scores: Tensor, clean: Tensor) -> tuple[float, float]:
    """From which score on an image is called abnormal, and which share of all training images reaches it.

    Args:
        scores: (N,) of training images, each judged by models that have not seen it.
        clean: (N,) bool, images that no token was rejected in; defects may be left in some of them.
    """
    own = (scores[clean] if int(clean.sum()) >= len(scores) / 2 else scores).numpy()
    # The tail of the logarithms, drawn out from the median and the upper quartile: a few defects in it move neither.
    median, upper = np.quantile(np.log(np.maximum(own, 1e-6)), [0.5, 0.75])
    threshold = float(np.exp(median + (upper - median) * QUARTILES))
    return threshold, float((scores >= threshold).float().mean())
