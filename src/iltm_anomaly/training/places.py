"""Runs on places: how hot each place of a body may be, in rounds of what is given up, calibrated and saved in every round.

Round 0 asks the half of the volumes that take up less at a place how far the others may go above: uptake varies by factors, as
much up as down, and no lesion takes up less. Volumes that stand out most then give up what does, and what the others have tells
how hot a place may be; a training volume is judged by these others, never by itself.
"""

import logging
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.prior import PlacePriorConfig, PlacePriorModel
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.progress import progress
from iltm_anomaly.settings import PlaceSettings
from iltm_anomaly.thresholds import TrainingScores
from iltm_anomaly.tokenizers.place import PlaceTokenizerConfig, PlaceTokenizerModel
from iltm_anomaly.training.calibrated_rounds import CalibratedRounds
from iltm_anomaly.training.context import RunContext
from iltm_anomaly.training.processes import on_main
from iltm_anomaly.training.suspects import report_suspects
from iltm_anomaly.uptake_map import log_uptake

logger = logging.getLogger(__name__)

FEWEST_VOLUMES = 4  # others that one is judged by
LOW = 0.1  # quantile that the lower half is measured by
ABOVE = 2.0  # as far above the median, in distances of `LOW` from it, a place may be hot in round 0
LEAST = 1.5  # times the highest usual uptake, from where on a volume may be called abnormal
HIGH = 0.97  # quantile of the volumes that is the highest usual uptake in later rounds


def fit_places(
    run: RunContext, pixels: PixelCache, processor: ILTMImageProcessor
) -> tuple[ILTMAnomalyPipeline, list[dict[str, Any]]]:
    """The pipeline of the last round, and a report of each; every round is saved as a pipeline of its own.

    Raises:
        ValueError: for fewer than `FEWEST_VOLUMES` volumes.
    """
    if len(pixels) < FEWEST_VOLUMES:
        raise ValueError(
            f"{len(pixels)} training volume(s) are too few to tell what is normal: give {FEWEST_VOLUMES} at least"
        )
    return on_main(run.accelerator, lambda: _fit(run, pixels, processor))


def _fit(
    run: RunContext, pixels: PixelCache, processor: ILTMImageProcessor
) -> tuple[ILTMAnomalyPipeline, list[dict[str, Any]]]:
    rounds = CalibratedRounds(run)
    settings = PlaceSettings(**run.recipe.inference)
    bar = progress(range(len(pixels)), desc="reading uptake", unit="volume", hidden=not run.shows_bars)
    units = (processor.in_units(pixels[number][0].float() / 255) for number in bar)
    uptake = np.stack([log_uptake(one, settings.smoothing, settings.background).numpy() for one in units])
    tokenizer = PlaceTokenizerModel(PlaceTokenizerConfig(grid_shape=processor.padded_size))
    (usual,) = ranked(uptake, [len(uptake) // 2])
    tokenizer.usual.copy_(processor.to_unit_range(torch.from_numpy(usual).exp() - settings.background))
    config = PlacePriorConfig(grid_shape=processor.padded_size, **run.recipe.places)
    keep, share = np.ones(uptake.shape, dtype=bool), run.recipe.rounds.abnormal_share
    while True:
        prior, above = fit_highest(config, uptake, keep, settings, is_first=rounds.number == 0)
        calibrated, kept, scores = calibrate(above, settings, share)
        pipeline = ILTMAnomalyPipeline(tokenizer, prior, processor, calibrated, kept.to_report())
        if rounds.finish(pipeline, torch.from_numpy(keep.astype(np.uint8))):
            break
        found = kept_tokens(above, share, config.reach)
        if rounds.settle(torch.from_numpy(keep), torch.from_numpy(found)):
            break
        keep = found
    report_suspects(run.output, pixels, scores, torch.from_numpy(keep).float(), pipeline.settings.score_threshold)
    return pipeline, rounds.reports


def ranked(values: np.ndarray, ranks: list[int]) -> list[np.ndarray]:
    """Of values (N, D, H, W) the ones of some ranks over N, each (D, H, W); rank 0 is the lowest."""
    found = np.empty((len(ranks), *values.shape[1:]), dtype=values.dtype)
    for row in range(values.shape[1]):  # a slice after the other, for less memory
        columns = np.ascontiguousarray(np.moveaxis(values[:, row], 0, -1))
        found[:, row] = np.moveaxis(np.partition(columns, sorted(set(ranks)))[..., ranks], -1, 0)
    return list(found)


@torch.no_grad()
def fit_highest(
    config: PlacePriorConfig, uptake: np.ndarray, keep: np.ndarray, settings: PlaceSettings, is_first: bool
) -> tuple[PlacePriorModel, np.ndarray]:
    """The prior of a round, and how far above it the training volumes are (N, D, H, W), each by what the others have. A place is
    always allowed to be as hot as the background: so air does not stand out, nor fat where others have air.

    Args:
        uptake: (N, D, H, W) float32, `uptake_map.log_uptake`.
        keep: (N, D, H, W) bool, False where a token vouches for none.
        is_first: round 0, in which all do.
    """

    lowest, least = np.log(np.float32(settings.background)), np.log(np.float32(2 * settings.background))

    def even(values: np.ndarray) -> np.ndarray:
        return np.maximum(ndimage.gaussian_filter(values, settings.smoothing), least)

    count, window = len(uptake), 2 * config.reach + 1
    near = np.stack(
        [ndimage.maximum_filter(np.where(kept, one, lowest), window) for one, kept in zip(uptake, keep, strict=True)]
    )
    prior = PlacePriorModel(config)
    if is_first:
        low, middle = ranked(near, [int(LOW * count), count // 2])
        highest = even(middle + ABOVE * (middle - low))
        above = uptake - highest
    else:
        rank = round(HIGH * (count - 1))
        below, top = ranked(near, [rank - 1, rank])
        highest = even(top)
        above = np.stack([one - even(np.where(own >= top, below, top)) for one, own in zip(uptake, near, strict=True)])
    prior.highest.copy_(torch.from_numpy(highest))
    return prior, above


def kept_tokens(above: np.ndarray, abnormal_share: float, reach: int) -> np.ndarray:
    """Which tokens vouch for others, of how far volumes are above the highest usual uptake, both (N, D, H, W).

    A volume that is among the share that stands out most gives up every region above what is usual that reaches as high as the
    least of these do, and `reach` voxels about it.
    """
    peaks = above.reshape(len(above), -1).max(1)
    limit = np.quantile(peaks, 1 - abnormal_share)
    keep = np.ones(above.shape, dtype=bool)
    for number in np.flatnonzero(peaks >= limit):
        regions, count = ndimage.label(above[number] > 0, np.ones((3, 3, 3)))
        is_hot = ndimage.maximum(above[number], regions, np.arange(1, count + 1)) >= limit
        hot = np.append(False, is_hot)[regions]
        keep[number] = ~ndimage.binary_dilation(hot, iterations=reach) if reach else ~hot
    return keep


def calibrate(
    above: np.ndarray, settings: PlaceSettings, abnormal_share: float
) -> tuple[PlaceSettings, TrainingScores, Tensor]:
    """The settings of a round's pipeline, its scores as it keeps them, and the scores (N,) of the training volumes.

    The threshold lies between the two groups that the volumes' highest values fall into, and at `LEAST` where these do not differ
    much, as where nothing is abnormal.
    """
    peaks = above.reshape(len(above), -1).max(1)
    threshold, scores = max(splitting_value(peaks), np.log(LEAST)), np.exp(peaks)
    calibrated = PlaceSettings(background=settings.background, smoothing=settings.smoothing)
    calibrated.token_limit = float(np.quantile(peaks, 1 - abnormal_share))
    calibrated.score_threshold = float(np.exp(threshold))
    good = peaks < threshold
    calibrated.false_alarm_share = float(1 - good.mean())
    return calibrated, TrainingScores(scores[good], 0.0, scores[~good]), torch.from_numpy(scores)


def splitting_value(values: np.ndarray) -> float:
    """The value that splits others (N,) into two groups that each vary least, in the middle between them (Otsu's threshold)."""
    ranked = np.sort(values)
    count = np.arange(1, len(ranked))
    lower = np.cumsum(ranked)[:-1]
    between = (lower / count - (ranked.sum() - lower) / count[::-1]) ** 2 * count * count[::-1]
    place = int(between.argmax())
    return float(ranked[place] + ranked[place + 1]) / 2
