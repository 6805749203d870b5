"""The score path of a pipeline on features, from pixels to its map, as one ONNX graph."""

import json
import logging
import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from iltm_anomaly import __version__
from iltm_anomaly.export.scorer import FORMAT, METADATA
from iltm_anomaly.feature_map import calibrated, distances_of, looks_of, scored_surprises
from iltm_anomaly.pipeline import ILTMAnomalyPipeline

NEEDED = ("onnx", "onnxscript")
REACH = 4.0  # of a Gaussian filter, in standard deviations: scipy's


class ScoreGraph(nn.Module):
    """A pipeline on features from one image (1, C, H, W) in [0, 1] to its map (H, W), of the size of the model, and its score."""

    def __init__(self, pipeline: ILTMAnomalyPipeline):
        super().__init__()
        self.tokenizer, self.prior, self.settings = pipeline.tokenizer, pipeline.prior, pipeline.settings
        self.usual: Tensor | None
        self.window: Tensor
        self.register_buffer("usual", None if pipeline.noise is None else pipeline.noise.clone())
        sigma = self.settings.smoothing * self.tokenizer.pixels_per_token
        radius = int(REACH * sigma + 0.5)
        window = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / max(sigma, 1e-12)) ** 2)
        self.register_buffer("window", window / window.sum())

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        settings, spatial = self.settings, pixel_values.shape[2:]
        _, distances = distances_of(self.tokenizer, self.prior, pixel_values)
        looks = calibrated(looks_of(distances, settings), settings, self.usual)
        maps = scored_surprises(looks[:, 0], settings)[:, None]
        maps = F.interpolate(maps, size=spatial, mode="bilinear", align_corners=False)
        radius = len(self.window) // 2
        for shape, padding in (((1, 1, -1, 1), (0, 0, radius, radius)), ((1, 1, 1, -1), (radius, radius, 0, 0))):
            maps = F.conv2d(F.pad(maps, padding, mode="replicate"), self.window.view(shape))
        count = max(1, round(settings.score_share * spatial.numel()))
        highest = maps.flatten(1).topk(count).values.mean(1)
        summed = highest[1] / (settings.sum_scale or 1.0) + (settings.sum_offset or 0.0)
        return maps[0, 0], torch.maximum(highest[0], summed)


def export_onnx(pipeline: ILTMAnomalyPipeline, output: Path) -> Path:
    """Writes one file with the weights, and in its metadata what `export.scorer.OnnxScorer` needs beside them: how images are
    prepared, and the threshold.

    Raises:
        ImportError: if onnx or onnxscript is not installed.
        ValueError: if the pipeline is not on features, or was trained on tiles.
        OSError: if the file cannot be written.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ImportError(f"exporting to ONNX needs {' and '.join(missing)}: pip install -c constraints.txt '.[onnx]'")
    if not pipeline.has_features:
        raise ValueError(
            "only models on features can be exported: ONNX takes no causal prior, as models on pixels have"
        )
    if pipeline.settings.tile is not None:
        raise ValueError(
            f"the model was trained on tiles of {pipeline.settings.tile} pixels, and an exported one takes images whole: score "
            "large images with the pipeline itself"
        )
    import onnx  # of an extra

    pipeline.to("cpu", torch.float32)
    shape = (1, pipeline.image_processor.num_channels, *pipeline.image_processor.padded_size)
    for name in ("torch.onnx", "onnx_ir", "onnxscript"):  # they tell of every step
        logging.getLogger(name).setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, about itself
        program = torch.onnx.export(
            ScoreGraph(pipeline).eval(),
            (torch.zeros(shape),),
            input_names=["pixel_values"],
            output_names=["anomaly_map", "score"],
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    del model.metadata_props[:]
    model.metadata_props.append(onnx.StringStringEntryProto(key=METADATA, value=json.dumps(about(pipeline))))
    partial = output.with_name(output.name + ".partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, partial)
    os.replace(partial, output)
    return output


def about(pipeline: ILTMAnomalyPipeline) -> dict[str, Any]:
    """What a scorer must know beside the graph, as plain values."""
    processor, settings = pipeline.image_processor, pipeline.settings
    return {
        "format": FORMAT,
        "version": __version__,
        "size": processor.spatial_size,
        "padded_size": processor.padded_size,
        "num_channels": processor.num_channels,
        "resample": processor.resample,
        "rescale_factor": processor.rescale_factor,
        "score_threshold": settings.score_threshold,
    }
