"""Effort "score" of a pipeline, from pixels to its map, as one ONNX graph."""

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
from iltm_anomaly.scoring import combine, negative_log_density
from iltm_anomaly.second_view import shrunk

NEEDED = ("onnx", "onnxscript")
REACH = 4.0  # of a Gaussian filter, in standard deviations: scipy's


class Smoothing(nn.Module):
    """`scoring.smooth` of a batch of maps (B, 1, H, W), as two convolutions."""

    def __init__(self, sigma: float):
        super().__init__()
        radius = int(REACH * sigma + 0.5)
        window = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / max(sigma, 1e-12)) ** 2)
        self.window: Tensor
        self.register_buffer("window", window / window.sum())

    def forward(self, maps: Tensor) -> Tensor:
        radius = len(self.window) // 2
        for shape, padding in (((1, 1, -1, 1), (0, 0, radius, radius)), ((1, 1, 1, -1), (radius, radius, 0, 0))):
            maps = F.conv2d(F.pad(maps, padding, mode="replicate"), self.window.view(shape))
        return maps


class ScoreGraph(nn.Module):
    """A pipeline at effort "score", from one image (1, C, H, W) in [0, 1] to its map (H, W), of the size of the model, and of
    features to its score; of pixels that is the largest value of the map at the image's own size."""

    def __init__(self, pipeline: ILTMAnomalyPipeline):
        super().__init__()
        self.tokenizer, self.prior, self.settings = pipeline.tokenizer, pipeline.prior, pipeline.settings.at("score")
        self.has_features = pipeline.has_features
        self.noise: Tensor | None
        is_used = self.has_features or self.settings.reconstruction_noise
        noise = pipeline.noise if is_used else None
        self.register_buffer("noise", None if noise is None else noise.clone())
        self.smooth = Smoothing(self.settings.smoothing * self.tokenizer.pixels_per_token)
        self.pixels = None if pipeline.pixels is None else ScoreGraph(pipeline.pixels)
        self.pixels_size = () if pipeline.pixels is None else pipeline.pixels.image_processor.padded_size

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self._of_features(pixel_values) if self.has_features else self._of_pixels(pixel_values)

    def _of_features(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        settings, spatial = self.settings, pixel_values.shape[2:]
        _, distances = distances_of(self.tokenizer, self.prior, pixel_values)
        looks = calibrated(looks_of(distances, settings), settings, self.noise)
        maps = scored_surprises(looks[:, 0], settings)[:, None]
        maps = self.smooth(F.interpolate(maps, size=spatial, mode="bilinear", align_corners=False))
        count = max(1, round(settings.score_share * spatial.numel()))
        highest = maps.flatten(1).topk(count).values.mean(1)
        summed = highest[1] / (settings.sum_scale or 1.0) + (settings.sum_offset or 0.0)
        own = maps[0, 0]
        if self.pixels is not None and settings.pixel_scale is not None:
            theirs = self.pixels(shrunk(pixel_values, self.pixels_size))[None, None]
            theirs = F.interpolate(theirs, size=spatial, mode="bilinear", align_corners=False)[0, 0]
            own = own + settings.pixel_weight / settings.pixel_scale * (theirs - settings.usual_pixels)
        return own, torch.maximum(highest[0], summed)

    def _of_pixels(self, pixel_values: Tensor) -> Tensor:
        settings, spatial = self.settings, pixel_values.shape[2:]
        codes, observed = self.tokenizer.tokenize(pixel_values)
        tokens = -self.prior.log_likelihood(codes.flatten(1)).view(1, *codes.shape)
        tokens = F.interpolate(tokens, size=spatial, mode="bilinear", align_corners=False)
        floor = settings.bandwidth_floor if self.noise is None else settings.bandwidth_floor + self.noise
        density = negative_log_density(self.tokenizer.expect(codes), observed[0], floor, settings.relative_density)
        maps = self.smooth(torch.cat([tokens, density.mean(0)[None, None]]))[:, 0]
        return combine(maps[0], maps[1], settings.likelihood_share, settings.surprise_floor)


def export_onnx(pipeline: ILTMAnomalyPipeline, output: Path) -> Path:
    """Writes one file with the weights, and in its metadata what `export.scorer.OnnxScorer` needs beside them: how images are
    prepared, and the threshold.

    Raises:
        ImportError: if onnx or onnxscript is not installed.
        ValueError: if the pipeline is of volumes, or has no threshold for effort "score", or `output` is a folder.
        OSError: if the file cannot be written.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ImportError(f"exporting to ONNX needs {' and '.join(missing)}: pip install -c constraints.txt '.[onnx]'")
    if pipeline.image_processor.is_volumetric:
        raise ValueError("models of volumes cannot be exported: score them with the pipeline itself")
    if output.exists() and not output.is_file():
        raise ValueError(f"{output} is no file: give a name such as {output / 'model.onnx'}")
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
            output_names=["anomaly_map", "score"] if pipeline.has_features else ["anomaly_map"],
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
        "tile": settings.tile,
        "score_threshold": settings.at("score").score_threshold,
    }
