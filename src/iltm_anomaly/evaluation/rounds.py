"""The rounds of a run: the prior of each, how each is calibrated, and which tokens each has masked."""

from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor

from iltm_anomaly import masking
from iltm_anomaly.data.cache import CacheDamagedError, PixelCache
from iltm_anomaly.data.volume_files import read_mask
from iltm_anomaly.evaluation.ground_truth import has_ground_truth, pixel_mask
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.prior import PerformerPriorModel
from iltm_anomaly.training.suspects import WEIGHTS_FILE

# What the training report says of a round ("round" is its number), and what the round has trained: a prior, or a whole
# pipeline on features or tissues.
Round = tuple[dict[str, Any], Any]


def load_rounds(pipeline: ILTMAnomalyPipeline, run_folder: Path | None) -> list[Round]:
    """All rounds of a run folder; without one the pipeline's own round alone.

    Raises:
        ValueError: if the training report does not number them, or one is not there.
    """
    entries = pipeline.training_report.get("rounds") or [{"round": 0}]
    if any(entry.get("round") is None for entry in entries):
        raise ValueError(
            "training_report.json has rounds without a number: continue or repeat the run to have it written anew"
        )
    if run_folder is None:
        return [(entries[-1], pipeline.prior if pipeline.draws_codes else pipeline)]
    folders = [run_folder / "rounds" / f"round_{entry['round']}" for entry in entries]
    if not pipeline.draws_codes:
        return list(zip(entries, map(ILTMAnomalyPipeline.from_pretrained, folders), strict=True))
    priors = [PerformerPriorModel.from_pretrained(folder).eval().to(pipeline.device) for folder in folders]
    return list(zip(entries, priors, strict=True))


def each_round(
    pipeline: ILTMAnomalyPipeline, rounds: list[Round], run_folder: Path | None
) -> Iterator[dict[str, Any]]:
    """Gives the pipeline the prior of one round after the other, and yields what the training report says of the round.

    Which tokens a round heals depends on how likely its own prior finds the training images. The pipeline was saved with the
    limit of the last round; those of the rounds before are measured on the training images.

    Raises:
        ValueError: if the run's cache of the training images is damaged or was deleted.
    """
    if not pipeline.draws_codes:
        settings = pipeline.settings  # the last round alone has a second view
        for number, (entry, own) in enumerate(rounds, 1):
            device = pipeline.device
            pipeline.tokenizer, pipeline.prior, pipeline.noise = own.tokenizer, own.prior, own.noise
            pipeline.settings = settings if number == len(rounds) else own.settings
            pipeline.to(device)
            yield entry
        return
    limit = pipeline.settings.surprise_limit
    if len(rounds) > 1 and run_folder is not None:
        codes = _training_codes(pipeline, run_folder)
        for entry, prior in rounds[:-1]:
            pipeline.prior = prior
            pipeline.calibrate_surprise_limit(codes)
            yield entry
    entry, pipeline.prior = rounds[-1]
    pipeline.settings.surprise_limit = limit
    yield entry


def _training_codes(pipeline: ILTMAnomalyPipeline, run_folder: Path) -> Tensor:
    try:
        return pipeline.encode(PixelCache(run_folder / "images.arrow"))
    except CacheDamagedError as error:
        raise ValueError(
            f"{error}: earlier rounds cannot be measured without the training images; `evaluate {run_folder / 'model'}` "
            "measures the last one"
        ) from error


def masked_token_shares(
    pipeline: ILTMAnomalyPipeline, rounds: list[Round], train: Dataset | None, run_folder: Path | None
) -> list[dict[str, float | None]]:
    """Which shares of defect and of normal tokens the training of each round has masked, 0 to 1.

    A round masks what the prior of the round before finds unlikely, so the shares are known only if all rounds are given, and
    with `train` the ground truth of the training images, which were not cut into tiles; else they are None. They are measured on
    the images as they are: their augmented copies, which the training has seen, have no ground truth.
    """
    shares: list[tuple[float | None, float | None]] = [(None, None)] * len(rounds)
    known = train is not None and has_ground_truth(train) and pipeline.settings.tile is None
    if not pipeline.draws_codes:
        if run_folder is not None and train is not None and known:
            shares = [_rejected_shares(pipeline, run_folder, entry["round"], train) for entry, _ in rounds]
    elif rounds[0][0]["round"] == 0:
        shares[0] = (0.0, 0.0)
        if len(rounds) > 1 and train is not None and known:
            recipe = (pipeline.training_report.get("recipe") or {}).get("rounds") or {}
            known_fields = [f.name for f in fields(masking.RejectionRule) if f.name in recipe]
            rule = masking.RejectionRule(**{name: recipe[name] for name in known_fields})
            codes, pixel_masks = _codes_and_masks(pipeline, train)
            defect, normal = masking.defect_tokens(pixel_masks, tuple(codes.shape[1:]))
            for number, ((_, teacher), (entry, _)) in enumerate(pairwise(rounds), start=1):
                if entry.get("surprise_limit") is None:
                    continue  # not told
                likelihood = teacher.log_likelihood(codes.flatten(1)).view(codes.shape).cpu()
                keep = masking.keep_mask(rule.surprise(likelihood), entry["surprise_limit"])
                shares[number] = masking.masked_shares(keep, defect, normal)
    names = ("masked_share_defect_tokens", "masked_share_normal_tokens")
    return [dict(zip(names, pair, strict=True)) for pair in shares]


def _rejected_shares(
    pipeline: ILTMAnomalyPipeline, run_folder: Path, number: int, train: Dataset
) -> tuple[float | None, float | None]:
    """Shares of defect and of normal tokens that a round of a run on features has rejected."""
    weights = load_file(run_folder / "rounds" / f"round_{number}" / WEIGHTS_FILE)["weights"]
    processor = pipeline.image_processor
    if processor.is_volumetric:
        shares, inside = map(torch.stack, zip(*(_voxels(processor, row) for row in train), strict=True))
        defect, normal = shares >= masking.DEFECT_SHARE, (shares == 0) & inside  # padding is no token
        return masking.masked_shares(weights > 0.5, defect, normal)
    height, width = processor.spatial_size
    masks = torch.stack([torch.from_numpy(pixel_mask(row["mask"], (width, height))) for row in train])
    defect, normal = masking.defect_tokens(masks, tuple(weights.shape[1:]))
    return masking.masked_shares(weights > 0.5, defect, normal)


def _voxels(processor: Any, row: Any) -> tuple[Tensor, Tensor]:
    """Which share of each voxel of the model's grid is marked in a training volume, and which voxels are no padding."""
    grid = processor.preprocess(row["image"])["original_sizes"][0]
    marked = torch.from_numpy(processor.to_model_grid(read_mask(row["mask"], grid), grid))
    return marked, torch.from_numpy(processor.to_model_grid(np.ones(grid.shape), grid)) > 0


def _codes_and_masks(pipeline: ILTMAnomalyPipeline, train: Dataset) -> tuple[Tensor, Tensor]:
    """Codes (N, *grid) of the training images, and their ground truth (N, *spatial) bool at the model's size."""
    processor = pipeline.image_processor
    pixels, masks = [], []
    if processor.is_volumetric:
        for row in train:
            batch = processor.preprocess(row["image"])
            grid = batch["original_sizes"][0]
            pixels.append(batch["pixel_values"])
            masks.append(torch.from_numpy(processor.to_model_grid(read_mask(row["mask"], grid), grid) >= 0.5))
    else:
        height, width = processor.spatial_size
        padding = [(0, full - side) for full, side in zip(processor.padded_size, (height, width), strict=True)]
        for row in train:
            pixels.append(processor.preprocess(row["image"])["pixel_values"])
            masks.append(torch.from_numpy(np.pad(pixel_mask(row["mask"], (width, height)), padding)))
    return pipeline.encode(torch.cat(pixels)), torch.stack(masks)
