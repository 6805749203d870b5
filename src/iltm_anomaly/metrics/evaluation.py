"""All metrics of a test set in one call, and the paper's mean and standard deviation over images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._inputs import check_limit, iterate_pairs
from .ranking import _split_images, sorted_aupr, sorted_auroc, sorted_best_f1
from .region_overlap import RegionPool, normalised_area


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
    values = [_image_auroc_of_pixels(m, k) for m, k in iterate_pairs(scores, masks, spatial_dims)]
    return _summarise(values, "pixel AUROC")


def per_image_aupro(scores: Any, masks: Any, limit: float = 0.3, *, spatial_dims: int | None = None) -> PerImage:
    """AUPRO of each defective image alone, with mean and standard deviation over images; see `per_image_auroc`."""
    limit = check_limit(limit)
    values = [_image_aupro(m, k, limit) for m, k in iterate_pairs(scores, masks, spatial_dims)]
    return _summarise(values, "AUPRO")


def _image_auroc_of_pixels(score_map: np.ndarray, mask: np.ndarray | None) -> float:
    if mask is None or mask.all():
        return np.nan
    return sorted_auroc(np.sort(score_map[~mask]), np.sort(score_map[mask]))


def _image_aupro(score_map: np.ndarray, mask: np.ndarray | None, limit: float) -> float:
    if mask is None or mask.all():
        return np.nan
    pool = RegionPool()
    pool.add(score_map, mask)
    return pool.aupro(limit)


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
    aurocs: list[float] = []
    aupros: list[float] = []
    for score_map, mask in iterate_pairs(maps, masks, spatial_dims):
        pool.add(score_map, mask)
        maxima.append(float(score_map.max()))
        has_defect.append(mask is not None)
        aurocs.append(_image_auroc_of_pixels(score_map, mask))
        aupros.append(_image_aupro(score_map, mask, limit))

    result: dict[str, float | None] = dict(_pooled(pool, limit))
    good, anomalous = _split_images(
        maxima if image_scores is None else image_scores, has_defect if labels is None else labels
    )
    if good.size + anomalous.size != pool.images:
        raise ValueError(f"{pool.images} maps but {good.size + anomalous.size} image scores")
    both = bool(good.size and anomalous.size)
    result["image_auroc"] = sorted_auroc(good, anomalous) if both else None
    result["image_aupr"] = sorted_aupr(good, anomalous) if anomalous.size else None
    result["image_best_f1"] = sorted_best_f1(good, anomalous)[0] if anomalous.size else None
    for name, values in (("auroc", aurocs), ("aupro", aupros)):
        defined = np.array(values)[~np.isnan(values)]
        result[f"per_image_{name}_mean"] = float(defined.mean()) if defined.size else None
        result[f"per_image_{name}_std"] = float(defined.std()) if defined.size else None
    return result


def _pooled(pool: RegionPool, limit: float) -> Iterator[tuple[str, float | None]]:
    """The metrics of the pooled pixels, from one full sort."""
    normal = pool.take_normal()
    normal.sort()
    anomalous, weights = pool.take_anomalous()
    both = bool(normal.size and anomalous.size)

    def area() -> float:
        wanted = min(normal.size, max(1, int(np.ceil(limit * normal.size))))
        top = normal[normal.size - wanted :]
        tied = int(np.searchsorted(normal, top[0], side="right") - np.searchsorted(normal, top[0], side="left"))
        return normalised_area(top, normal.size, tied, anomalous, weights, limit, pool.regions)

    metrics: list[tuple[str, bool, Callable[[], float]]] = [
        ("pixel_auroc", both, lambda: sorted_auroc(normal, anomalous)),
        ("aupro", both, area),
        ("aupr", bool(anomalous.size), lambda: sorted_aupr(normal, anomalous)),
        ("best_dice", bool(anomalous.size), lambda: sorted_best_f1(normal, anomalous)[0]),
    ]
    for name, defined, compute in metrics:
        yield name, compute() if defined else None
