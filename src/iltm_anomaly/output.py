"""What a pipeline gives: `ILTMAnomalyOutput` of a call, and `AnomalyResult`, that of one image, which can be looked at and
saved."""

import io
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from iltm_anomaly.data.volume_files import volume_stem
from iltm_anomaly.drawing import draw_projections, overlay
from iltm_anomaly.processing.images import decode_image
from iltm_anomaly.processing.volumes import as_volume
from iltm_anomaly.settings import Settings, lowest_value
from iltm_anomaly.thresholds import abnormal_pixels
from iltm_anomaly.tiles import ScoredImage


class NonFiniteScoreError(ValueError):
    """The score of an image is NaN or infinite, so that nothing can be said of it."""


@dataclass
class ILTMAnomalyOutput:
    """What was found in all images of a call; `output[0]` is what was found in the first.

    Args:
        scores: (B,) float32, higher is more anomalous: the highest value of each map, of features the mean of its highest ones;
            of an image in tiles the highest score of a tile.
        anomaly_maps: (H, W) or (D, H, W) float32 per image, at the image's own size; higher is more anomalous.
        masks: bool maps of the same sizes, True where an image whose score reaches the threshold is abnormal
            (`thresholds.abnormal_pixels`).
        healed_images: the image as the model expected it: a PIL image each, an array for volumes. Of features: the image with
            patches of training images in place of the tokens that were healed.
        token_log_likelihoods: (B, *grid) float32, natural log, always finite; of features up to a constant. Of images in tiles a
            list of (tiles, *grid), row by row.
        resampled_tokens: (B, *grid) bool, tokens that were healed; of images in tiles a list as well.
        images: the images as they were given, such as paths; they are read again when they are to be shown.
        threshold: score from which on an image is abnormal; None if the pipeline has none.
        lowest: value of a map where nothing is abnormal.
    """

    scores: Tensor
    anomaly_maps: list[np.ndarray]
    masks: list[np.ndarray]
    healed_images: list[Any]
    token_log_likelihoods: Tensor | list[Tensor]
    resampled_tokens: Tensor | list[Tensor]
    images: list[Any] = field(default_factory=list, repr=False)
    threshold: float | None = None
    lowest: float = 0.0

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int) -> "AnomalyResult":
        """What was found in one image."""
        return AnomalyResult(
            image=self.images[index],
            score=float(self.scores[index]),
            threshold=self.threshold,
            anomaly_map=self.anomaly_maps[index],
            mask=self.masks[index],
            healed_image=self.healed_images[index],
            unlikely_share=float(self.resampled_tokens[index].float().mean()),
            lowest=self.lowest,
        )

    def __iter__(self) -> Iterator["AnomalyResult"]:
        return (self[index] for index in range(len(self)))


def collected(
    found: Iterable[ScoredImage], images: list[Any], settings: Settings, in_tiles: bool
) -> ILTMAnomalyOutput:
    """What was found in images, one after the other, as one output; nothing is abnormal without a threshold."""
    scored = []
    for number, one in enumerate(found, 1):
        _check_score(one.score, number)
        scored.append(one)
    maps, scores = [one.anomaly_map for one in scored], [one.score for one in scored]
    limit = math.inf if settings.score_threshold is None else settings.score_threshold
    likelihoods, resampled = [one.log_likelihood for one in scored], [one.resampled for one in scored]
    return ILTMAnomalyOutput(
        scores=torch.tensor(scores),
        anomaly_maps=maps,
        masks=[abnormal_pixels(values, score, limit) for values, score in zip(maps, scores, strict=True)],
        healed_images=[one.healed for one in scored],
        token_log_likelihoods=likelihoods if in_tiles else torch.stack(likelihoods),
        resampled_tokens=resampled if in_tiles else torch.stack(resampled),
        images=images,
        threshold=settings.score_threshold,
        lowest=lowest_value(settings),
    )


def _check_score(score: float, number: int) -> None:
    """Raises NonFiniteScoreError unless the score of image `number` is finite."""
    if not math.isfinite(score):
        raise NonFiniteScoreError(
            f"the score of image {number} is {score}: its values are too large to compute with, or weights or image processor of "
            "the pipeline are damaged. If other images fail too, get the folder of the pipeline again"
        )


@dataclass(repr=False)
class AnomalyResult:
    """What was found in one image or volume; a notebook shows it as a picture.

    Args:
        image: as it was given, such as a path.
        score: higher is more anomalous.
        threshold: score from which on it is abnormal; None if the pipeline has none.
        anomaly_map, mask: (H, W) or (D, H, W), float32 and bool, see `ILTMAnomalyOutput`.
        healed_image: as the model expected it: a PIL image, or an array of a volume.
        unlikely_share: share of the tokens that were unlikely, and were healed; from 0 to 1.
        lowest: value of a map where nothing is abnormal.
    """

    image: Any
    score: float
    threshold: float | None
    anomaly_map: np.ndarray
    mask: np.ndarray
    healed_image: Any
    unlikely_share: float
    lowest: float = 0.0

    @property
    def is_abnormal(self) -> bool | None:
        """The decision at the threshold; None without one."""
        return None if self.threshold is None else bool(self.mask.any())

    @property
    def decision(self) -> str:
        """The same as a word or two."""
        return {None: "no threshold", True: "abnormal", False: "normal"}[self.is_abnormal]

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.anomaly_map.shape[::-1]))
        limit = "" if self.threshold is None else f" (threshold {self.threshold:.4g})"
        return f"AnomalyResult(score {self.score:.4g}{limit}: {self.decision}, {size})"

    def overlay(self, truth: np.ndarray | None = None) -> Image.Image:
        """The image under its map, of a volume its projections plain and under the map, in RGB; at most 2048 pixels a side.
        Without a threshold the colours are scaled to the map's own maximum.

        Args:
            truth: bool, of the map's size, to be drawn as an outline.

        Raises:
            ImageReadError: if the image was given as a file that is no longer there.
        """
        limit = float(self.anomaly_map.max()) if self.threshold is None else self.threshold
        if self.anomaly_map.ndim == 2:
            return overlay(self._picture(), self.anomaly_map, limit, truth, self.lowest)
        volume = as_volume(self.image, "volume")
        grid = volume.grid
        outline = None if truth is None else grid.to_ras(truth)
        values, coloured = grid.to_ras(volume.values), grid.to_ras(self.anomaly_map)
        return draw_projections(values, coloured, limit, grid.ras_spacing, outline, self.lowest)

    def plot(self) -> Any:
        """A figure of matplotlib: the input, its overlay and the healed image side by side, of a volume the projections.
        Show it in a notebook by its name, or save it by `figure.savefig`."""
        from matplotlib.figure import Figure  # not of pyplot, which would keep every figure

        panels = [("where it differs", self.overlay())]
        if self.anomaly_map.ndim == 2:
            panels = [("input", self._picture()), *panels, ("healed", self.healed_image)]
        width = 3.2 * len(panels) if len(panels) > 1 else 12
        figure = Figure(figsize=(width, 3.8), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (title, picture) in zip(axes, panels, strict=True):
            axis.imshow(picture, cmap="gray")
            axis.set_title(title)
            axis.axis("off")
        figure.suptitle(repr(self).removeprefix("AnomalyResult(").removesuffix(")"))
        return figure

    def save(self, folder: str | Path, name: str | None = None) -> list[Path]:
        """Writes NAME_overlay.png, NAME_map.npy (float32), NAME_mask.png (black and white; .npy of a volume) and, of an image,
        NAME_healed.png into a folder, which is made if need be.

        Args:
            folder: to write into; files of the same names are replaced.
            name: beginning of the files' names; by default that of the image's file, or "image".

        Returns:
            The files.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        stem = self._name() if name is None else name
        paths = {key: folder / f"{stem}_{key}" for key in ("overlay.png", "map.npy")}
        self.overlay().save(paths["overlay.png"])
        np.save(paths["map.npy"], self.anomaly_map)
        if self.anomaly_map.ndim == 2:
            for key, picture in (("mask.png", Image.fromarray(self.mask)), ("healed.png", self.healed_image)):
                paths[key] = folder / f"{stem}_{key}"
                picture.save(paths[key])
        else:
            paths["mask.npy"] = folder / f"{stem}_mask.npy"
            np.save(paths["mask.npy"], self.mask)
        return list(paths.values())

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.plot().savefig(buffer, format="png", dpi=80)
        return buffer.getvalue()

    def _picture(self) -> Image.Image:
        """The input in RGB."""
        decoded = decode_image(self.image, "image")
        if isinstance(decoded, Image.Image):
            return decoded
        return Image.fromarray((255 * decoded).round().astype(np.uint8))

    def _name(self) -> str:
        path = getattr(self.image, "path", None) or getattr(self.image, "filename", None) or self.image
        if not isinstance(path, str | os.PathLike) or not str(path):
            return "image"
        return volume_stem(path) if self.anomaly_map.ndim == 3 else Path(path).stem
