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

    A list, a tuple or an object array is one entry per image. For a plain array or tensor the rank decides:

    | shape | `spatial_dims` None | 2 | 3 |
    |---|---|---|---|
    | (A, B) | one image | one image | error |
    | (A, B, C) | A images B x C | A images B x C | one volume |
    | (A, 1, B, C) | A images B x C | A images B x C | A volumes of depth 1 |
    | (A, B, C, D) | A volumes B x C x D | error | A volumes B x C x D |
    | (A, 1, B, C, D) | A volumes B x C x D | error | A volumes B x C x D |

    An entry of a list is (H, W), (1, H, W), (D, H, W) or (1, D, H, W). A volume of depth 1 and an image of the same
    size give the same metrics, so that case needs no decision.
    """
    if spatial_dims not in (None, 2, 3):
        raise ValueError(f"spatial_dims must be None, 2 or 3, got {spatial_dims!r}")
    if isinstance(batch, Iterable) and not hasattr(batch, "dtype"):
        return [None if item is None else _drop_channel(to_numpy(item), spatial_dims, what, i)
                for i, item in enumerate(batch)]  # fmt: skip
    array = to_numpy(batch)
    if array.dtype == object:
        return split_images(list(array), spatial_dims, what)
    dims = spatial_dims
    if dims is None:
        channel_axis = array.ndim == 4 and array.shape[1] == 1
        dims = 2 if array.ndim <= 3 or channel_axis else 3
    if array.ndim == dims:
        array = array[None]
    if array.ndim not in (dims + 1, dims + 2) or (array.ndim == dims + 2 and array.shape[1] != 1):
        raise ValueError(
            f"{what} of shape {array.shape} is no batch of {dims}-D maps with at most one channel; "
            f"pass spatial_dims=2 or 3, or a list with one map per image"
        )
    return list(array[:, 0] if array.ndim == dims + 2 else array)


def _drop_channel(array: np.ndarray, spatial_dims: int | None, what: str, index: int) -> np.ndarray:
    """Remove a leading channel axis of size 1 from one image of a list."""
    dims = spatial_dims
    if dims is None:
        dims = 3 if array.ndim == 4 or (array.ndim == 3 and array.shape[0] != 1) else 2
    if array.ndim == dims + 1 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != dims:
        raise ValueError(
            f"{what} of image {index}: shape {array.shape} is not a {dims}-D map with at most one channel"
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
