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
# # A service
#
# An image in; its score, verdict and boxes out as JSON, or its overlay as PNG. It needs the extra
# `service`:
#
#     ILTM_MODEL=runs/mine uvicorn --app-dir docs/examples service:app --limit-concurrency 16
#     curl -F file=@part.png localhost:8000/score
#     curl -F file=@part.png localhost:8000/overlay -o overlay.png
#
# `Dockerfile` beside it makes an image of it. Whom it answers is for a proxy in front of it to decide.

# %%
import io
import os
from pathlib import Path
from threading import Lock
from typing import Any

from fastapi import FastAPI, HTTPException, Response, UploadFile

from iltm_anomaly import AnomalyResult, ILTMAnomalyPipeline
from iltm_anomaly.data.images import read_image
from iltm_anomaly.evaluation.regions import regions_of

MOST_BYTES = 20 * 2**20  # of a request; a larger one is answered with 413 and not read to its end

# %%
pipe = ILTMAnomalyPipeline.from_pretrained(os.environ.get("ILTM_MODEL", "demo/run"))
app = FastAPI(title="iltm-anomaly", max_body_size=MOST_BYTES)
one_at_a_time = Lock()  # so that no more than one is decoded and scored, however many are sent

# %% [markdown]
# Files come from strangers: the package's own reader takes no format but those of images, whatever a file is called,
# and none of more than 100 million pixels.


# %%
def score(file: UploadFile) -> AnomalyResult:
    """What is found in an uploaded image; 422 with the reason if it cannot be used."""
    try:
        return pipe(read_image(Path(file.filename or "image").name, file.file.read()))[0]
    except ValueError as error:
        raise HTTPException(422, str(error)) from error


@app.post("/score")
def score_as_json(file: UploadFile) -> dict[str, Any]:
    """Score, verdict, and the boxes [left, top, right, bottom] of what is abnormal, the largest first."""
    with one_at_a_time:
        result = score(file)
        boxes, areas = regions_of(result.mask)
    height, width = result.mask.shape
    return {
        "score": result.score,
        "threshold": result.threshold,
        "verdict": result.decision,
        "size": [width, height],
        "boxes": boxes,
        "areas": areas,
    }


@app.post("/overlay", response_class=Response)
def overlay_as_png(file: UploadFile) -> Response:
    """The image under its map."""
    buffer = io.BytesIO()
    with one_at_a_time:
        score(file).overlay().save(buffer, "png")
    return Response(buffer.getvalue(), media_type="image/png")
