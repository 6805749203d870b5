"""All metrics of a test set in one call, and the paper's mean and standard deviation over images."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ._inputs import check_limit, iterate_pairs
from .ranking import sorted_aupr, sorted_auroc, sorted_best_f1, split_images
from .region_overlap import RegionPool, sorted_aupro


@dataclass(frozen=True)
class PerImage:
    """A metric computed image by image.

    Attributes:
        mean, std: over the images where the metric is defined; std is the population's (divided by n).
        values: (N,) one value per image, NaN where it is undefined (a good image, or one without a normal pixel).
    """

    mean: float
    std: float
    values: np.ndarray


def per_image_auroc(scores: Any, masks: Any, *, spatial_dims: int | None = None) -> PerImage:
    """Pixel AUROC of each defective image alone, with mean and standard deviation over images.

    This is how the "+-" of the ILTM paper's Table 2 reads best: the paper says only "standard deviation", and spreads
    of 1 to 25 points within a category fit images, not seeds.

    Args:
        scores, masks, spatial_dims: as for `aupro`.

    Raises:
        ValueError: for invalid input, or if the metric is defined for no image.
    """
    values = [_image_metrics(*pair)[0] for pair in iterate_pairs(scores, masks, spatial_dims)]
    return _summarise(values, "pixel AUROC")


def per_image_aupro(scores: Any, masks: Any, limit: float = 0.3, *, spatial_dims: int | None = None) -> PerImage:
    """AUPRO of each defective image alone, with mean and standard deviation over images; see `per_image_auroc`."""
    limit = check_limit(limit)
    values = [_image_metrics(*pair, limit)[1] for pair in iterate_pairs(scores, masks, spatial_dims)]
    return _summarise(values, "AUPRO")


def _image_metrics(
    score_map: np.ndarray, mask: np.ndarray | None, limit: float = 0.3, into: RegionPool | None = None
) -> tuple[float, float]:
    """Pixel AUROC and AUPRO of one image, NaN where they are undefined; its pixels join the pool `into`."""
    image = RegionPool()
    image.add(score_map, mask)
    values = (np.nan, np.nan)
    if mask is not None and not mask.all():
        normal, anomalous, weights = image.sorted_pixels()
        values = (
            sorted_auroc(normal, anomalous),
            sorted_aupro(normal, anomalous, weights, limit, image.regions),
        )
    if into is not None:
        into.merge(image)
    return values


def _summarise(values: list[float], metric: str) -> PerImage:
    array = np.array(values)
    defined = array[~np.isnan(array)]
    if not defined.size:
        raise ValueError(f"per-image {metric} is undefined: no image has both normal and anomalous pixels")
    return PerImage(float(defined.mean()), float(defined.std()), array)


def evaluate_maps(
    maps: Any,
    masks: Any,
    image_scores: Any = None,
    labels: Any = None,
    limit: float = 0.3,
    *,
    spatial_dims: int | None = None,
) -> dict[str, float | None]:
    """All metrics of one test set; the pixels are pooled and sorted once.

    Args:
        maps, masks, limit, spatial_dims: as for `aupro`.
        image_scores: (N,) one score per image; the maximum of each map if None.
        labels: (N,) 1 for anomalous images; "the mask has an anomalous pixel" if None.

    Returns:
        Pooled over pixels: `pixel_auroc`, `aupro`, `aupr`, `best_dice`. Over images: `image_auroc`, `image_aupr`,
        `image_best_f1`. Per defective image: `per_image_auroc_mean`, `per_image_auroc_std`, `per_image_aupro_mean`,
        `per_image_aupro_std`. A metric that is undefined for these images (no good image, no anomalous pixel) is None.

    Raises:
        ValueError: for invalid input, naming the image.
    """
    limit = check_limit(limit)
    pool = RegionPool()
    maxima: list[float] = []
    has_defect: list[bool] = []
    per_image: list[tuple[float, float]] = []
    for score_map, mask in iterate_pairs(maps, masks, spatial_dims):
        maxima.append(float(score_map.max()))
        has_defect.append(mask is not None)
        per_image.append(_image_metrics(score_map, mask, limit, into=pool))

    result = _pooled(pool, limit)
    good, anomalous = split_images(
        maxima if image_scores is None else image_scores, has_defect if labels is None else labels
    )
    if good.size + anomalous.size != pool.images:
        raise ValueError(f"{pool.images} maps but {good.size + anomalous.size} image scores")
    both = bool(good.size and anomalous.size)
    result["image_auroc"] = sorted_auroc(good, anomalous) if both else None
    result["image_aupr"] = sorted_aupr(good, anomalous) if anomalous.size else None
    result["image_best_f1"] = sorted_best_f1(good, anomalous)[0] if anomalous.size else None
    for name, values in zip(("auroc", "aupro"), np.array(per_image).T, strict=True):
        defined = values[~np.isnan(values)]
        result[f"per_image_{name}_mean"] = float(defined.mean()) if defined.size else None
        result[f"per_image_{name}_std"] = float(defined.std()) if defined.size else None
    return result


def _pooled(pool: RegionPool, limit: float) -> dict[str, float | None]:
    """The metrics of the pooled pixels, from one full sort; None where they are undefined."""
    normal, anomalous, weights = pool.sorted_pixels()
    both = bool(normal.size and anomalous.size)
    return {
        "pixel_auroc": sorted_auroc(normal, anomalous) if both else None,
        "aupro": sorted_aupro(normal, anomalous, weights, limit, pool.regions) if both else None,
        "aupr": sorted_aupr(normal, anomalous) if anomalous.size else None,
        "best_dice": sorted_best_f1(normal, anomalous)[0] if anomalous.size else None,
    }
