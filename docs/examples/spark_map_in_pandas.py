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
# # A folder with Spark
#
# For one machine `iltm-anomaly detect` does it, and for several `accelerate launch scripts/detect.py`: this is for
# those who have a Spark cluster. Run with pyspark 4.3.0 on Java 17, in local mode. The model must lie where every
# worker sees it, or on the Hub.

# %%
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from pyspark.sql import SparkSession

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.data.images import find_images

MODEL = os.environ.get("ILTM_MODEL", "demo/run")  # of `make demo`
IMAGES = os.environ.get("ILTM_IMAGES", "demo/data/part/test")
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)

# %% [markdown]
# Each task loads the model once, for all of its batches. An image that cannot be read or scored has an error in place
# of a score.

# %%
model = str(Path(MODEL).resolve()) if Path(MODEL).exists() else MODEL


def score(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Paths in, scores and verdicts out."""
    pipe = ILTMAnomalyPipeline.from_pretrained(model)
    for batch in batches:
        rows = []
        for path in batch["path"]:
            try:
                result = pipe(path)[0]
                rows.append((path, result.score, result.decision, None))
            except ValueError as error:
                rows.append((path, None, None, str(error)))
        yield pd.DataFrame(rows, columns=["path", "score", "verdict", "error"])


# %%
spark = SparkSession.builder.master("local[1]").getOrCreate()  # of a cluster: without `master`
paths = [(str(path.resolve()),) for path in find_images(IMAGES, recursive=True)]
scored = spark.createDataFrame(paths, "path string").mapInPandas(
    score, "path string, score double, verdict string, error string"
)
scored.write.mode("overwrite").parquet(Path("scored_by_spark").resolve().as_uri())
spark.stop()
