"""Images in every form that is taken, to arrays."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from iltm_anomaly.data.images import BACKGROUND, check_unit_range, read_image, to_rgb, upright

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601, as Pillow's convert("L")

ACCEPTED_FORMS = (
    "a path, a PIL image, a numpy array (H, W) or (H, W, C), a torch tensor (H, W) or (C, H, W), a batch (N, H, W, C) or "
    "(N, C, H, W), or a list of these, with C = 1, 3 or 4"
)


def flatten_images(images: Any) -> list[Any]:
    """One image or any nesting of them as a flat list; raises TypeError for what is no image."""
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images]
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, dict) or not isinstance(images, Iterable):
        raise TypeError(f"cannot use a {type(images).__name__} as images; give {ACCEPTED_FORMS}")
    return [image for item in images for image in flatten_images(item)]


def as_source(image: Any, name: str) -> Image.Image | np.ndarray:
    """One image of any form as an RGB picture, or (H, W, 3) float32 in [0, 1] where 8 bits would lose something.

    Raises:
        ImageReadError: a file that cannot be read.
        ValueError: an empty image, or shape, type or values that no image has; `name` is quoted.
        TypeError: something that is no image at all.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(f"{name} is empty: its size is {image.size}")
        try:
            return to_rgb(upright(image))
        except (ValueError, OSError) as error:
            raise ValueError(f"{name}: {error}") from error
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return _read_array(image, name)
    raise TypeError(f"{name} is a {type(image).__name__}; give {ACCEPTED_FORMS}")


def resized(
    source: Image.Image | np.ndarray, size: Sequence[int], num_channels: int, resample: int, rescale_factor: float
) -> np.ndarray:
    """What `as_source` returns, at (height, width) `size`: (H, W, `num_channels`) float32 in [0, 1].

    Args:
        num_channels: 3, or 1 for ITU-R 601 luma.
        resample: Pillow filter.
        rescale_factor: what 8-bit values are multiplied by.
    """
    if isinstance(source, Image.Image):
        return _resized_picture(source, size, num_channels, resample, rescale_factor)
    return _resized_array(source, size, num_channels, resample)


def _resized_picture(
    image: Image.Image, size: Sequence[int], num_channels: int, resample: int, rescale_factor: float
) -> np.ndarray:
    # resized in 8 bits, as a prepared data set is
    if num_channels == 1:
        image = image.convert("L")
    height, width = size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling(resample))
    values = np.asarray(image, dtype=np.float32) * np.float32(rescale_factor)
    return values.reshape(height, width, num_channels)


def _resized_array(values: np.ndarray, size: Sequence[int], num_channels: int, resample: int) -> np.ndarray:
    # channel by channel, because Pillow has no float colour mode
    if num_channels == 1:
        values = (values @ LUMA)[..., None]
    height, width = size
    if values.shape[:2] == (height, width):
        return values
    channels = [
        Image.fromarray(np.ascontiguousarray(values[..., channel])).resize((width, height), Image.Resampling(resample))
        for channel in range(values.shape[2])
    ]
    # Lanczos overshoots
    return np.clip(np.stack([np.asarray(channel) for channel in channels], axis=-1), 0.0, 1.0)


def _read_array(image: np.ndarray | torch.Tensor, name: str) -> Image.Image | np.ndarray:
    # 8-bit arrays take the way of files, so that both give the same pixels; the rest -> (H, W, 3) float32 in [0, 1].
    is_tensor = isinstance(image, torch.Tensor)
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.dtype == torch.bfloat16 else image).numpy()  # numpy has no bfloat16
    values = image[..., None] if image.ndim == 2 else np.moveaxis(image, 0, -1) if is_tensor else image
    if image.ndim not in (2, 3) or values.shape[-1] not in (1, 3, 4):
        layout = "tensors are (C, H, W)" if is_tensor else "numpy arrays are (H, W, C)"
        raise ValueError(f"{name} has shape {tuple(image.shape)} ({layout}); give {ACCEPTED_FORMS}")
    if 0 in values.shape:
        raise ValueError(f"{name} is empty: its shape is {tuple(image.shape)}")
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8:
        values = np.ascontiguousarray(values)
        return to_rgb(Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values))
    if values.dtype.newbyteorder("=") == np.uint16:
        values = values.astype(np.float32) / 65535
    elif np.issubdtype(values.dtype, np.floating):
        values = check_unit_range(values, name)
    else:
        raise ValueError(f"{name} has type {values.dtype}; give uint8, uint16, bool, or floats in [0, 1]")
    if values.shape[-1] == 4:
        alpha = values[..., 3:]
        values = values[..., :3] * alpha + (1 - alpha) * np.asarray(BACKGROUND, np.float32) / 255
    return np.repeat(values, 3, axis=-1) if values.shape[-1] == 1 else values
