"""Turn whatever the caller holds (arrays, tensors, lists of maps of different sizes) into checked numpy pairs.

Every error is a ValueError that names the image by its position, because a test set has hundreds of them.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np


def to_numpy(value: Any) -> np.ndarray:
    """Return `value` as a numpy array; torch tensors are detached and moved to the CPU, without importing torch."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # numpy has no bfloat16; float32 holds its values exactly
            value = value.float()
        return value.numpy()
    return np.asarray(value)


def split_images(batch: Any, spatial_dims: int | None, what: str = "scores") -> list[Any]:
    """Split a batch into a list with one entry per image, each (H, W) or (D, H, W), or None where the entry is None.

    A list, a tuple, another iterable or an object array has one entry per image. A plain array or tensor is split
    along its first axis, except that one of rank 2 (rank 3 if `spatial_dims` is 3) is a single image. Then leading
    axes of size 1 are dropped from each entry, and what is left decides:

    | shape of an entry | `spatial_dims` None | 2 | 3 |
    |---|---|---|---|
    | (H, W), (1, H, W), (1, 1, H, W) | image | image | volume of depth 1 (error for rank 2) |
    | (D, H, W), (1, D, H, W) with D > 1 | volume | error | volume |

    So (N, H, W) and (N, 1, H, W) are N images, (N, D, H, W) and (N, 1, D, H, W) are N volumes. A volume of depth 1 and
    an image of the same size give the same metrics, so that ambiguity does no harm.
    """
    if spatial_dims not in (None, 2, 3):
        raise ValueError(f"spatial_dims must be None, 2 or 3, got {spatial_dims!r}")
    if hasattr(batch, "dtype"):
        array = to_numpy(batch)
        if array.dtype != object and array.ndim == (spatial_dims or 2):
            array = array[None]
        batch = array
    if not isinstance(batch, Iterable) or getattr(batch, "ndim", 1) == 0:
        raise ValueError(f"{what} are {batch!r}; expected an array, a tensor or a list with one map per image")
    return [
        None if item is None else _one_image(to_numpy(item), spatial_dims, what, i) for i, item in enumerate(batch)
    ]


def _one_image(array: np.ndarray, spatial_dims: int | None, what: str, index: int) -> np.ndarray:
    """Drop leading axes of size 1 and check the rank of one entry of a batch."""
    while array.ndim > (spatial_dims or 2) and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in ((2, 3) if spatial_dims is None else (spatial_dims,)):
        expected = "a 2-D or 3-D" if spatial_dims is None else f"a {spatial_dims}-D"
        raise ValueError(
            f"{what} of image {index}: shape {array.shape} is not {expected} map with at most one channel"
        )
    return array


def check_scores(scores: Any, index: int, allow_infinite: bool = True) -> np.ndarray:
    """Return one map as float32 or float64 (whichever holds its values exactly), or raise a ValueError.

    NaN has no rank and always raises. Infinite scores have one (-log of a density that underflows is +inf) and are
    kept, unless `allow_infinite` is False.
    """
    array = np.asarray(scores)
    if array.size == 0:
        raise ValueError(f"scores of image {index} are empty: shape {array.shape}")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"scores of image {index} have dtype {array.dtype}; expected real numbers")
    if array.dtype not in (np.float32, np.float64):
        exact_in_single = array.dtype.kind == "b" or array.dtype.itemsize <= 2
        array = array.astype(np.float32 if exact_in_single else np.float64)
    low, high = array.min(), array.max()  # min and max propagate NaN: no temporary of the map's size
    if np.isnan(low):
        where = tuple(int(i) for i in np.argwhere(np.isnan(array))[0])
        raise ValueError(f"scores of image {index} contain NaN (first at {where})")
    if not allow_infinite and (np.isinf(low) or np.isinf(high)):
        raise ValueError(f"scores of image {index} are not finite: they range from {low} to {high}")
    return array


def check_mask(mask: Any, shape: tuple[int, ...], index: int) -> np.ndarray | None:
    """Return one mask as a boolean array of `shape`, or None when it has no anomalous pixel."""
    if mask is None:
        return None
    array = np.asarray(mask)
    if array.shape != shape:
        raise ValueError(f"image {index}: scores have shape {shape} but the mask has shape {array.shape}")
    if array.dtype != bool:
        if array.dtype.kind not in "fiu":
            raise ValueError(f"mask of image {index} has dtype {array.dtype}; expected bool or the numbers 0 and 1")
        binary = array.astype(bool)
        if (binary != array).any():
            odd = array[binary != array].flat[0]
            raise ValueError(f"mask of image {index} is not binary: it contains {odd}; pass `mask > 0`")
        array = binary
    return array if array.any() else None


def iterate_pairs(
    scores: Any, masks: Any, spatial_dims: int | None = None, allow_infinite: bool = True
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield (map, mask) per image: a float array (H, W) or (D, H, W), a boolean one or None (no anomalous pixel)."""
    maps = split_images(scores, spatial_dims, "scores")
    truths = split_images(masks, spatial_dims, "masks")
    if not maps:
        raise ValueError("scores are empty: no image to evaluate")
    if len(maps) != len(truths):
        raise ValueError(f"{len(maps)} score maps but {len(truths)} masks; they must pair up image by image")
    for index, (score_map, mask) in enumerate(zip(maps, truths, strict=True)):
        if score_map is None:
            raise ValueError(f"scores of image {index} are None; only a mask may be None (a good image)")
        checked = check_scores(score_map, index, allow_infinite)
        yield checked, check_mask(mask, checked.shape, index)


def check_limit(limit: float) -> float:
    """Return the false-positive-rate limit as a float in (0, 1]."""
    if not 0 < limit <= 1:
        raise ValueError(f"limit must lie in (0, 1], got {limit!r}")
    return float(limit)
