"""The map of a pipeline on pixels, from the surprise of its codes and that of its pixels."""

import torch
from torch import Tensor

from iltm_anomaly import masking
from iltm_anomaly.healing import heal_grids
from iltm_anomaly.prior import PerformerPriorModel
from iltm_anomaly.scoring import anomaly_map
from iltm_anomaly.settings import InferenceSettings
from iltm_anomaly.tokenizers.base import TokenizerModel


@torch.no_grad()
def score_images(
    tokenizer: TokenizerModel,
    prior: PerformerPriorModel,
    pixel_values: Tensor,
    settings: InferenceSettings,
    noise: Tensor | None,
    seed: int,
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor, list[None]]:
    """Images (B, C, *spatial) in [0, 1] -> maps (*spatial), healed images (C, *spatial), log-likelihoods and resampled tokens
    (B, *grid), all on the CPU, and no scores: those are the largest values of maps. Every image is healed with random numbers of
    the same `seed`; `noise` as of `anomaly_map`."""
    spatial = tuple(pixel_values.shape[2:])
    # 1. images become codes, and what is observed of them
    codes, observed = tokenizer.tokenize(pixel_values)
    # 2. the prior tells how likely each code is, given those before it
    log_likelihood = prior.log_likelihood(codes.flatten(1)).unflatten(1, codes.shape[1:])
    # 3. unlikely codes are drawn again
    keep = keep_mask(log_likelihood, settings, tokenizer.vocab_size)
    generators = [torch.Generator().manual_seed(seed) for _ in codes]
    healed = heal_grids(prior, codes, log_likelihood, keep, settings.num_samples, generators, settings.accept_likelier)
    # 4. what is observed is compared with what the healed codes lead one to expect
    scored = [
        anomaly_map(tokenizer, prior, own, drawn, seen, spatial, settings, noise, generator)
        for own, drawn, seen, generator in zip(codes, healed, observed, generators, strict=True)
    ]
    maps, healed_images = ([values.cpu() for values in column] for column in zip(*scored, strict=True))
    resampled = torch.stack([one.resampled for one in healed])
    return maps, healed_images, log_likelihood.cpu(), resampled.cpu(), [None] * len(maps)


def keep_mask(log_likelihood: Tensor, settings: InferenceSettings, vocab_size: int) -> Tensor:
    """(B, *grid) -> bool, False where a token is to be healed."""
    rule, limit = settings.rule, settings.surprise_limit
    if rule.token_threshold is None and limit is None:  # not calibrated yet
        rule = masking.RejectionRule(masking.default_token_threshold(vocab_size))
    surprise = rule.surprise(log_likelihood)
    if rule.token_threshold is not None or limit is None:
        limit = rule.limit(surprise)
    return masking.keep_mask(surprise, limit)
