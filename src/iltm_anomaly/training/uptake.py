"""Runs on tissues: codes of tissues once, then rounds of what is given up in each, calibrated and saved in every round.

A round gives up the tokens whose map is highest, and learns how often that happens in each tissue; a training volume is judged by
what the others tell, never by itself.
"""

import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from iltm_anomaly import uptake_map
from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.prior import TissuePriorConfig, TissuePriorModel, relative_log_odds
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.progress import progress
from iltm_anomaly.seeds import sample_seed
from iltm_anomaly.settings import UptakeSettings
from iltm_anomaly.thresholds import FINDINGS, findings_told
from iltm_anomaly.tokenizers.features.fitting import fit_codebook
from iltm_anomaly.tokenizers.tissue import TissueTokenizerConfig, TissueTokenizerModel, voxels_of
from iltm_anomaly.training.calibrated_rounds import CalibratedRounds
from iltm_anomaly.training.context import RunContext
from iltm_anomaly.training.processes import on_main

logger = logging.getLogger(__name__)

FEWEST_VOLUMES = 2  # one is judged by the others
SAMPLED_VOXELS = 8000  # of each volume, that codes are fitted to
STREAM_VOXELS, STREAM_CODES = 19, 20  # random streams beside those of `training.context` and `training.features`


@dataclass
class TissueTokens:
    """The tokens of one training volume, without its padding.

    Args:
        box: where they lie on the model's grid.
        codes: (d, h, w) int16.
        uptake: (d, h, w) float32, `uptake_map.log_uptake`.
    """

    box: tuple[slice, ...]
    codes: Tensor
    uptake: Tensor


def fit_uptake(
    run: RunContext, pixels: PixelCache, processor: ILTMImageProcessor
) -> tuple[ILTMAnomalyPipeline, list[dict[str, Any]]]:
    """The pipeline of the last round, and a report of each; every round is saved as a pipeline of its own.

    Raises:
        ValueError: for fewer than `FEWEST_VOLUMES` volumes.
    """
    if len(pixels) < FEWEST_VOLUMES:
        raise ValueError(
            f"{len(pixels)} training volume is too few to tell what is normal: give {FEWEST_VOLUMES} at least"
        )
    return on_main(run.accelerator, lambda: _fit(run, pixels, processor))


def _fit(
    run: RunContext, pixels: PixelCache, processor: ILTMImageProcessor
) -> tuple[ILTMAnomalyPipeline, list[dict[str, Any]]]:
    rounds = CalibratedRounds(run)
    settings = UptakeSettings(**run.recipe.inference)
    config = TissueTokenizerConfig(in_channels=processor.num_channels, **run.recipe.tissues)
    tokenizer = fit_codes(TissueTokenizerModel(config), pixels, run.seed)
    bar = progress(range(len(pixels)), desc="reading tissues", unit="volume", hidden=not run.shows_bars)
    tokens = [_tokens_of(tokenizer, _volume(pixels, number), processor, settings) for number in bar]
    given_up = [torch.zeros(one.codes.shape, dtype=torch.bool) for one in tokens]
    while True:
        pipeline, maps = fit_round(tokenizer, tokens, given_up, processor, settings, run.recipe)
        if rounds.finish(pipeline, _weights_of(given_up, tokens, processor.padded_size)):
            break
        found = [one > pipeline.settings.token_limit for one in maps]
        before, now = (torch.cat([~one.flatten() for one in some]) for some in (given_up, found))
        if rounds.settle(before, now):
            break
        given_up = found
    logger.info("threshold %.4g%s", pipeline.settings.score_threshold, findings_told(pipeline.training_report))
    return pipeline, rounds.reports


def _volume(pixels: PixelCache, number: int) -> Tensor:
    return pixels[number].float() / 255


@torch.no_grad()
def fit_codes(tokenizer: TissueTokenizerModel, pixels: PixelCache, seed: int) -> TissueTokenizerModel:
    """Gives a tokenizer the codebook of a sample of the voxels of training volumes; returns it."""
    sampled = []
    for number in range(len(pixels)):
        volume = _volume(pixels, number)
        found = tokenizer.surroundings(volume[-1][voxels_of(volume)]).flatten(0, 2)
        generator = torch.Generator().manual_seed(sample_seed(seed, STREAM_VOXELS, number))
        sampled.append(found[torch.randperm(len(found), generator=generator)[:SAMPLED_VOXELS]])
    rows = torch.cat(sampled)
    spread = rows.std(0).clamp(min=1e-6)
    generator = torch.Generator().manual_seed(sample_seed(seed, STREAM_CODES))
    tokenizer.get_buffer("spread").copy_(spread)
    tokenizer.codebook.copy_(fit_codebook(rows / spread, tokenizer.vocab_size, generator))
    return tokenizer


def _tokens_of(
    tokenizer: TissueTokenizerModel, volume: Tensor, processor: ILTMImageProcessor, settings: UptakeSettings
) -> TissueTokens:
    box = voxels_of(volume)
    uptake = uptake_map.log_uptake(processor.in_units(volume[0][box]), settings.smoothing)
    return TissueTokens(box, tokenizer.encode(volume[None])[0][box].short(), uptake)


@torch.no_grad()
def fit_round(
    tokenizer: TissueTokenizerModel,
    tokens: list[TissueTokens],
    given_up: list[Tensor],
    processor: ILTMImageProcessor,
    settings: UptakeSettings,
    recipe: Any,
) -> tuple[ILTMAnomalyPipeline, list[Tensor]]:
    """The pipeline of a round, calibrated, and the logarithms of the maps of the training volumes, each by what was given up in
    the others.

    Args:
        given_up: (d, h, w) bool of each volume, what the round before could not explain.
        recipe: `UptakeRecipe`.
    """
    size = tokenizer.vocab_size
    counts = torch.stack([torch.bincount(one.codes.flatten().int(), minlength=size) for one in tokens])
    rejected = torch.stack(
        [torch.bincount(one.codes[out].int(), minlength=size) for one, out in zip(tokens, given_up, strict=True)]
    )
    own = TissueTokenizerModel(tokenizer.config)
    own.load_state_dict(tokenizer.state_dict())
    own.get_buffer("usual").copy_(processor.to_unit_range(_usual_uptake(tokens, given_up, size)))
    prior = TissuePriorModel(TissuePriorConfig(vocab_size=size, grid_shape=processor.padded_size))
    prior.log_odds.copy_(relative_log_odds(rejected.sum(0), counts.sum(0)))
    others = relative_log_odds(rejected.sum(0) - rejected, counts.sum(0) - counts)
    maps = [
        uptake_map.log_map(one.uptake, odds[one.codes.int()], settings)
        for one, odds in zip(tokens, others, strict=True)
    ]
    calibrated = UptakeSettings(tissue_weight=settings.tissue_weight, smoothing=settings.smoothing)
    pooled = torch.cat([one.flatten() for one in maps]).sort().values
    calibrated.token_limit = float(pooled[int((1 - recipe.rounds.rejected_share) * (len(pooled) - 1))])
    units = [one.exp().numpy() for one in maps]
    calibrated.score_threshold = uptake_map.findings_threshold(
        units, recipe.findings, math.exp(calibrated.token_limit)
    )
    reached = [float(one.max()) >= calibrated.score_threshold for one in units]
    calibrated.false_alarm_share = sum(reached) / len(reached)
    report = {FINDINGS: round(uptake_map.findings(units, calibrated.score_threshold), 3)}
    return ILTMAnomalyPipeline(own, prior, processor, calibrated, training_report=report), maps


def _usual_uptake(tokens: list[TissueTokens], given_up: list[Tensor], size: int) -> Tensor:
    """Geometric mean, in units of the file, of the uptake of each code where it was kept; (K,)."""
    total, count = torch.zeros(size), torch.zeros(size)
    for one, out in zip(tokens, given_up, strict=True):
        codes = one.codes[~out].int()
        total.index_add_(0, codes, one.uptake[~out])
        count.index_add_(0, codes, torch.ones(len(codes)))
    return (total / count.clamp(min=1)).exp() - uptake_map.NO_UPTAKE


def _weights_of(given_up: list[Tensor], tokens: list[TissueTokens], grid: tuple[int, ...]) -> Tensor:
    """1 for each token of the grid (N, *grid) that was kept, uint8, padding with it; 0 for those that were given up."""
    weights = torch.ones((len(tokens), *grid), dtype=torch.uint8)
    for own, one, out in zip(weights, tokens, given_up, strict=True):
        own[one.box] = (~out).byte()
    return weights
