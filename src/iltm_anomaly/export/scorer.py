"""`OnnxScorer`: scores images with a file of `iltm-anomaly export`. It needs numpy, scipy, Pillow and onnxruntime,
neither torch nor transformers."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from iltm_anomaly.data.images import read_image, to_rgb
from iltm_anomaly.thresholds import abnormal_pixels
from iltm_anomaly.tiling import tiling_of

METADATA = "iltm_anomaly"  # key of the file's metadata, whose value is JSON
FORMAT = 1


class OnnxScore(NamedTuple):
    """
    Args:
        score: higher is more anomalous.
        anomaly_map: (H, W) float32 of the image's own size.
        mask: (H, W) bool, True where the map reaches the threshold, in an image whose score does; where none of its pixels does,
            the highest hundredth.
    """

    score: float
    anomaly_map: np.ndarray
    mask: np.ndarray


class OnnxScorer:
    """Scores images as the exported pipeline does with effort "score".

    Args:
        path: of the file.
        threads: of ONNX Runtime; None takes all cores.

    Attributes:
        threshold: score from which on an image is abnormal, infinite for a pipeline that was not calibrated; may be set.
        tile: side in pixels of the overlapping tiles that images are cut into; None takes them whole.

    Raises:
        ImportError: if onnxruntime is not installed.
        ValueError: if the file is none of `iltm-anomaly export`.

    Example:
        >>> scorer = OnnxScorer("part.onnx")
        >>> found = scorer("part.png")
        >>> found.score, found.score >= scorer.threshold, found.mask.any()
    """

    def __init__(self, path: str | os.PathLike, threads: int | None = None):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("scoring with an ONNX file needs onnxruntime: pip install onnxruntime") from error
        if not Path(path).is_file():
            raise ValueError(f"no file {path}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            self.session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
            stored = self.session.get_modelmeta().custom_metadata_map
            about = json.loads(stored[METADATA])
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']}, this version reads {FORMAT}")
            self.size, self.padded_size = tuple(about["size"]), tuple(about["padded_size"])
            self.num_channels, self.resample = int(about["num_channels"]), int(about["resample"])
            self.rescale_factor, self.tile = float(about["rescale_factor"]), about["tile"]
            self.threshold = np.inf if about["score_threshold"] is None else float(about["score_threshold"])
        except Exception as error:  # onnxruntime has classes of its own
            raise ValueError(f"{path} is no file of `iltm-anomaly export`, or of another version: {error}") from error

    def __call__(self, image: Any) -> OnnxScore:
        """Scores an image: a path, a PIL image, or an array (H, W, 3) or (H, W) uint8.

        Raises:
            ImageReadError: if a file cannot be read.
            ValueError: if the score is not finite.
        """
        if isinstance(image, str | os.PathLike):
            picture = read_image(image)
        else:
            picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
            picture = to_rgb(ImageOps.exif_transpose(picture))
        values, score = self._whole(picture) if self.tile is None else self._in_tiles(picture)
        if not np.isfinite(score):
            raise ValueError(f"the score is {score}: the file is damaged, export the model again")
        return OnnxScore(score, values, abnormal_pixels(values, score, self.threshold))

    def _whole(self, picture: Any) -> tuple[np.ndarray, float]:
        """Map and score of a picture in mode "RGB", resized to what the model takes."""
        values, *found = self.session.run(None, {self.session.get_inputs()[0].name: self.prepare(picture)})
        values = np.ascontiguousarray(values[: self.size[0], : self.size[1]])
        if picture.size != values.shape[::-1]:
            values = np.asarray(Image.fromarray(values).resize(picture.size, Image.Resampling.BILINEAR))
        return values, float(found[0] if found else values.max())  # of models on pixels it is that of the map

    def _in_tiles(self, picture: Image.Image) -> tuple[np.ndarray, float]:
        """The maps of its tiles as one, and the highest of their scores."""
        tiling, highest = tiling_of(picture, self.tile), -np.inf
        values = np.zeros((tiling.height, tiling.width), np.float32)
        for number, part in enumerate(tiling.cut(picture)):
            own, score = self._whole(part)
            tiling.add(values, number, own)
            highest = np.maximum(highest, score)  # NaN, if one is
        return values, float(highest)

    def prepare(self, picture: Image.Image) -> np.ndarray:
        """A picture in mode "RGB" -> what the model takes, (1, C, H, W) float32 in [0, 1]."""
        height, width = self.size
        picture = picture.convert("L") if self.num_channels == 1 else picture
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling(self.resample))
        values = np.asarray(picture, np.float32) * np.float32(self.rescale_factor)
        values = values.reshape(height, width, self.num_channels)
        padding = [(0, padded - side) for padded, side in zip(self.padded_size, (height, width), strict=True)]
        values = np.pad(values, [*padding, (0, 0)], mode="edge")
        return np.ascontiguousarray(values.transpose(2, 0, 1)[None])
