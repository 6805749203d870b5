# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A folder with Ray Data
#
# For one machine `iltm-anomaly detect` does it, and for several `accelerate launch scripts/detect.py`: this is for
# those who have a Ray cluster. Run with ray 2.60.0 on one machine. The model must lie where every worker sees it, or
# on the Hub.

# %%
import os
from pathlib import Path

import numpy as np
import ray

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.data.images import find_images

MODEL = os.environ.get("ILTM_MODEL", "demo/run")  # of `make demo`
IMAGES = os.environ.get("ILTM_IMAGES", "demo/data/part/test")

# %% [markdown]
# Each worker loads the model once. An image that cannot be read or scored has an error in place of a score.


# %%
class Scorer:
    """Paths in, scores and verdicts out."""

    def __init__(self, model: str):
        self.pipe = ILTMAnomalyPipeline.from_pretrained(model)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        scores, verdicts, errors = [], [], []
        for path in batch["path"]:
            try:
                result = self.pipe(path)[0]
                found = result.score, result.decision, ""
            except ValueError as error:
                found = float("nan"), "", str(error)
            for column, value in zip((scores, verdicts, errors), found, strict=True):
                column.append(value)
        return {**batch, "score": np.array(scores), "verdict": np.array(verdicts), "error": np.array(errors)}


# %% [markdown]
# `concurrency` is the number of workers; with GPUs add `num_gpus=1`.

# %%
rows = [{"path": str(path.resolve())} for path in find_images(IMAGES, recursive=True)]
model = str(Path(MODEL).resolve()) if Path(MODEL).exists() else MODEL
scored = ray.data.from_items(rows).map_batches(Scorer, fn_constructor_args=[model], batch_size=8, concurrency=1)
scored.write_parquet(str(Path("scored_by_ray").resolve()))
