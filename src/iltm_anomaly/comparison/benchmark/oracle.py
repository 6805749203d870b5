"""What rejecting tokens could give at most: a run on features whose masks are the true defects."""

from pathlib import Path

import torch
from datasets import Dataset

from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.evaluation.ground_truth import pixel_mask
from iltm_anomaly.masking import defect_tokens
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.training.features import TrainingTokens, extract, fit_round


def oracle_pipeline(run: Path, train: Dataset) -> ILTMAnomalyPipeline:
    """The pipeline of a finished run, fitted again without the tokens of defects.

    Args:
        run: folder of the run.
        train: its training images, with their masks.
    """
    pipeline = ILTMAnomalyPipeline.from_pretrained(run)
    pixels, processor = PixelCache(run / "images.arrow"), pipeline.image_processor
    height, width = processor.spatial_size
    masks = torch.stack([torch.from_numpy(pixel_mask(row["mask"], (width, height))) for row in train])
    defect, _ = defect_tokens(masks, pipeline.tokenizer.grid_shape((height, width)))
    tokens = TrainingTokens(extract(pipeline.tokenizer, pixels), pixels, pipeline.training_report["seed"])
    return fit_round(pipeline.tokenizer, tokens, (~defect).float(), processor)[0]
