"""A run on frozen features: tokens of the training images are fitted, judged by recurrence, weighted, and fitted again."""

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iltm_anomaly import feature_map, recurrence
from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.prior import PositionPriorConfig, PositionPriorModel, block_means, coarse_tokens
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.progress import progress
from iltm_anomaly.seeds import sample_seed
from iltm_anomaly.settings import FeatureSettings
from iltm_anomaly.thresholds import TrainingScores
from iltm_anomaly.tokenizers.features import FeatureTokenizerModel
from iltm_anomaly.tokenizers.features.fitting import (
    FITTED_TOKENS,
    fit_codebook,
    fit_detail,
    fit_metric,
    nearest,
    residual_lengths,
)
from iltm_anomaly.training.calibrated_rounds import CalibratedRounds
from iltm_anomaly.training.checkpoint import remove_checkpoint
from iltm_anomaly.training.context import RunContext
from iltm_anomaly.training.processes import on_main, over_processes
from iltm_anomaly.training.suspects import report_suspects

logger = logging.getLogger(__name__)

FEWEST_IMAGES = 4  # of which halves have something to judge each other by
FEW_IMAGES = 30  # of fewer the scores say too little of those of others
IMAGES_AT_ONCE = 8
STREAM_TOKENS, STREAM_HALVES = 17, 18  # random streams beside those of `training.context`


@dataclass
class TrainingTokens:
    """
    Args:
        features: (N, h, w, D) float16, before the metric.
        pixels: the images that they are of.
        seed: of the run.
    """

    features: Tensor
    pixels: PixelCache
    seed: int


def fit_features(
    run: RunContext, pixels: PixelCache, processor: ILTMImageProcessor
) -> tuple[ILTMAnomalyPipeline, list[dict[str, Any]]]:
    """The pipeline of the last round, and a report of each; every round is saved as a pipeline of its own.

    Raises:
        ValueError: for fewer than `FEWEST_IMAGES` images.
    """
    if len(pixels) < FEWEST_IMAGES:
        raise ValueError(
            f"{len(pixels)} training image(s) are too few to tell what is normal: give {FEWEST_IMAGES} at least"
        )
    if len(pixels) < FEW_IMAGES and run.accelerator.is_main_process:
        logger.warning(
            "the threshold comes from %d images alone, and may call good ones abnormal: choose your own by what you see",
            len(pixels),
        )
    started = time.monotonic()
    made = FeatureTokenizerModel.from_backbone(in_channels=run.recipe.num_channels, **run.recipe.features)
    tokenizer = run.placed(made)
    features = run.folder.cached(
        "features.bin",
        pixels.digest,
        lambda: over_processes(
            run.accelerator, len(pixels), IMAGES_AT_ONCE, lambda rows: extract(tokenizer, pixels, rows, run.shows_bars)
        ),
    )
    tokens = TrainingTokens(features, pixels, run.seed)
    seconds = time.monotonic() - started
    return on_main(run.accelerator, lambda: _fit_rounds(run, tokenizer.cpu(), tokens, processor, seconds))


@torch.no_grad()
def extract(
    tokenizer: FeatureTokenizerModel, pixels: PixelCache, rows: range | None = None, show_progress: bool = False
) -> Tensor:
    """Features (N, h, w, D) float16 of images, those in `rows` or all."""
    rows, found = range(len(pixels)) if rows is None else rows, []
    starts = range(rows.start, rows.stop, IMAGES_AT_ONCE)
    for start in progress(starts, desc="extracting features", unit="batch", hidden=not show_progress):
        batch = pixels[start : min(start + IMAGES_AT_ONCE, rows.stop)].to(tokenizer.device).float() / 255
        found.append(tokenizer.features(batch).half().cpu())
    return torch.cat(found)


def _fit_rounds(
    run: RunContext,
    tokenizer: FeatureTokenizerModel,
    tokens: TrainingTokens,
    processor: ILTMImageProcessor,
    seconds: float,
) -> tuple[ILTMAnomalyPipeline, list[dict[str, Any]]]:
    """As `fit_features`; `seconds` were spent before round 0."""
    rounds, weights = CalibratedRounds(run, seconds, ("rejected", "reject")), torch.ones(tokens.features.shape[:3])
    while True:
        pipeline, scores = fit_round(tokenizer, tokens, weights, processor)
        pipeline.settings.tile = run.recipe.tile
        if rounds.finish(pipeline, weights.half()):
            break
        found, limit = judge(tokens, weights, run.recipe.rounds.abnormal_share)
        if rounds.settle(weights > 0.5, found > 0.5, surprise_limit=limit):
            break
        weights = found
    remove_checkpoint(run.output / "features.bin")
    report_suspects(run.output, tokens.pixels, scores, weights, pipeline.settings.score_threshold)
    return pipeline, rounds.reports


def judge(tokens: TrainingTokens, weights: Tensor, abnormal_share: float) -> tuple[Tensor, float]:
    """New weights (N, h, w) of all tokens by their recurrence among those that `weights` keep, and the limit of it. Coarse
    tokens are judged, each for the 2 x 2 in its middle: a quarter of the tokens is a sixteenth of the work."""
    blocks = coarse_tokens(tokens.features)
    kept = block_means(weights) > 0.5
    surprise = recurrence.recurrence_surprise(blocks, kept, tokens.seed)
    found, limit = recurrence.recurrence_weights(surprise, abnormal_share)
    height, width = weights.shape[1:]
    found = found.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :height, :width]
    return found, limit


@torch.no_grad()
def fit_round(
    tokenizer: FeatureTokenizerModel, tokens: TrainingTokens, weights: Tensor, processor: ILTMImageProcessor
) -> tuple[ILTMAnomalyPipeline, Tensor]:
    """Metric, codebook and prior of the weighted tokens (N, h, w), calibrated: each half of the images is judged by what was
    fitted to the other half. Their scores (N,) come along."""
    metric = fit_metric(tokens.features, weights)
    detail = fit_detail(tokens.features, weights, metric, tokenizer.get_buffer("detail").shape[1])
    codebook, patches = _codes_with_patches(tokenizer, tokens, weights, metric)
    tokenizer.set_codes(metric, codebook, detail, patches)
    prior = _fit_prior(tokens.features, weights, metric)
    settings, usual, scores, kept = calibrate(tokenizer, tokens, weights)
    return ILTMAnomalyPipeline(tokenizer, prior, processor, settings, kept.to_report(), usual), scores


def _fit_prior(features: Tensor, weights: Tensor, metric: Tensor) -> PositionPriorModel:
    grid, size = tuple(features.shape[1:3]), features.shape[3]
    config = PositionPriorConfig(grid_shape=grid, hidden_size=size, rank=min(16, size))
    return PositionPriorModel(config).fit(features, weights, metric)


def _sample(weights: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of image, row and column of at most `FITTED_TOKENS` of the tokens that have weight, drawn by the seed."""
    images, rows, columns = torch.where(weights > 0.5)
    generator = torch.Generator().manual_seed(sample_seed(seed, STREAM_TOKENS))
    chosen = torch.randperm(len(images), generator=generator)[:FITTED_TOKENS]
    return images[chosen], rows[chosen], columns[chosen]


def _fit_codes(features: Tensor, weights: Tensor, metric: Tensor, count: int, seed: int) -> Tensor:
    sampled = features[_sample(weights, seed)].float() @ metric
    return fit_codebook(sampled, count, torch.Generator().manual_seed(sample_seed(seed, STREAM_TOKENS, 1)))


def _codes_with_patches(
    tokenizer: FeatureTokenizerModel, tokens: TrainingTokens, weights: Tensor, metric: Tensor
) -> tuple[Tensor, Tensor]:
    """The codebook (K, D), and the patch (K, C, p, p) uint8 of the training token that is nearest to each code."""
    codebook = _fit_codes(tokens.features, weights, metric, tokenizer.vocab_size, tokens.seed)
    images, rows, columns = _sample(weights, tokens.seed)
    owners = nearest(codebook, tokens.features[images, rows, columns].float() @ metric)
    side = tokenizer.pixels_per_token
    patches = torch.empty_like(tokenizer.get_buffer("patches"))
    for image in images[owners].unique().tolist():  # images are read from the disk one by one
        pixels = tokens.pixels[image]
        for code in (images[owners] == image).nonzero().flatten().tolist():
            top, left = int(rows[owners[code]]) * side, int(columns[owners[code]]) * side
            patches[code] = pixels[:, top : top + side, left : left + side]
    return codebook, patches


def calibrate(
    tokenizer: FeatureTokenizerModel, tokens: TrainingTokens, weights: Tensor
) -> tuple[FeatureSettings, Tensor, Tensor, TrainingScores]:
    """The settings of a round's pipeline and what looks are divided by (3, h, w), from training images alone, and the scores (N,)
    of these, and these as the pipeline keeps them."""
    distances = _distances_of_halves(tokenizer, tokens, weights)
    keep, settings = weights > 0.5, FeatureSettings()
    settings.code_scale = feature_map.distance_scale(distances.code[keep])
    settings.position_scale = feature_map.distance_scale(distances.position[keep])
    looks = feature_map.looks_of(distances, settings)
    usual = feature_map.calibrate_looks(looks, keep, settings)
    looks = feature_map.calibrated(looks, settings, usual)
    settings.token_limit = feature_map.token_limit(feature_map.surprise_of(looks, settings), keep)
    side, spatial = tokenizer.pixels_per_token, tuple(tokens.pixels.shape[2:])
    highest = [feature_map.map_of(looks[:, number], settings, spatial, side)[1] for number in range(len(weights))]
    clean = keep.flatten(1).all(1)
    scores = feature_map.calibrate_scores(torch.stack(highest), clean, settings)
    good = feature_map.looks_good(clean)
    return settings, usual, scores, TrainingScores(scores[good].numpy(), None, scores[~good].numpy())


def _distances_of_halves(
    tokenizer: FeatureTokenizerModel, tokens: TrainingTokens, weights: Tensor
) -> feature_map.Distances:
    """Distances (N, h, w) of all training tokens, by what was fitted to the other half of the images, in the tokenizer's
    metrics."""
    count, metric, detail = len(weights), tokenizer.get_buffer("metric"), tokenizer.get_buffer("detail")
    generator = torch.Generator().manual_seed(sample_seed(tokens.seed, STREAM_HALVES))
    half = torch.randperm(count, generator=generator).argsort() % 2
    found = feature_map.Distances(*torch.empty(4, *weights.shape))
    for side in (0, 1):
        theirs = half != side
        codebook = _fit_codes(tokens.features[theirs], weights[theirs], metric, tokenizer.vocab_size, tokens.seed)
        prior = _fit_prior(tokens.features[theirs], weights[theirs], metric)
        for image in (half == side).nonzero().flatten().tolist():
            observed = tokens.features[image].float() @ metric
            codewords = codebook[nearest(observed.flatten(0, 1), codebook)].view(observed.shape)
            found.code[image], found.detail[image] = residual_lengths(observed - codewords, detail)
            position, surroundings = prior(observed.permute(2, 0, 1)[None])
            found.position[image], found.surroundings[image] = position[0], surroundings[0]
    return found
