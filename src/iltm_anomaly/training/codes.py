"""Codes of the training images, and how likely a prior finds them; both shared out over the processes."""

from typing import Any

import torch
from torch import Tensor

from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.prior import PerformerPriorModel
from iltm_anomaly.prior.modeling_performer_prior import SCORING_BATCH
from iltm_anomaly.progress import progress
from iltm_anomaly.seeds import sample_seed
from iltm_anomaly.tokenizers.base import TokenizerModel, images_at_once
from iltm_anomaly.training.batches import steps_per_epoch, total_steps
from iltm_anomaly.training.context import STREAM_CODES, RunContext
from iltm_anomaly.training.processes import over_processes


@torch.no_grad()
def encode_copies(run: RunContext, tokenizer: TokenizerModel, pixels: PixelCache) -> Tensor:
    """Codes of augmented copies of every image, (N, copies, tokens) int16 or int32.

    They are made once, as the authors did, so that the masks of a round can be made once too.
    """
    copies = range(_number_of_copies(run, len(pixels)))
    at_once = images_at_once(pixels[:1], len(copies))

    def encode(rows: range) -> Tensor:
        codes = []
        for index in progress(rows, desc="extracting codes", unit="image", hidden=not run.shows_bars):
            seeds = [sample_seed(run.seed, STREAM_CODES, index, copy) for copy in copies]
            image = pixels[index]
            parts = [
                tokenizer.encode(run.augmented(image.expand(len(part), *image.shape), part))
                for part in (seeds[start : start + at_once] for start in range(0, len(seeds), at_once))
            ]
            codes.append(torch.cat(parts).flatten(1).to(torch.int32).cpu())
        return torch.stack(codes)

    kind = torch.int16 if tokenizer.vocab_size <= 1 << 15 else torch.int32
    return over_processes(run.accelerator, len(pixels), 1, encode).to(kind)


def _number_of_copies(run: RunContext, images: int) -> int:
    """The recipe's, but never more than epochs, which take them in turn."""
    stage: Any = run.recipe.stage2
    epochs = -(-total_steps(stage, images) // steps_per_epoch(images, stage.batch_size))
    return min(run.recipe.rounds.code_copies or epochs, epochs)


@torch.no_grad()
def log_likelihood(run: RunContext, prior: PerformerPriorModel, codes: Tensor) -> Tensor:
    """Log-likelihood of each of the codes (N, copies, tokens) in the full, unmasked context, by which the authors mask."""
    sequences = codes.flatten(0, 1)

    def score(rows: range) -> Tensor:
        part = sequences[rows.start : rows.stop].to(run.device)
        return prior.log_likelihood(part.long()).cpu()

    return over_processes(run.accelerator, len(sequences), SCORING_BATCH, score).view(codes.shape)
