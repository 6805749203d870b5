"""Images in any form: to arrays of the size that a model takes, and back."""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from iltm_anomaly.data.images import BACKGROUND, check_unit_range, read_image, to_rgb

VOLUME_AXES = ("depth", "height", "width")

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in grey: ITU-R 601, as in Pillow's `convert("L")`."""

IMAGE_FORMS = (
    "a path, a PIL image, a numpy array (H, W) or (H, W, C), a torch tensor (H, W) or (C, H, W), a batch (N, H, W, C) or "
    "(N, C, H, W), or a list of these, with C = 1, 3 or 4"
)


def flatten_images(images: Any) -> list[Any]:
    """One image in any of `IMAGE_FORMS`, or any nesting of them, as a flat list.

    Raises:
        TypeError: something that is no image at all.
    """
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images]
    if isinstance(images, (np.ndarray, Tensor)):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, dict) or not isinstance(images, Iterable):
        raise TypeError(f"cannot use a {type(images).__name__} as images; give {IMAGE_FORMS}")
    return [image for item in images for image in flatten_images(item)]


def decode_image(image: Any, name: str) -> Image.Image | np.ndarray:
    """Reads one image in any of `IMAGE_FORMS`; `name` is what error messages call it.

    Returns:
        PIL image in mode "RGB" for 8-bit images; (H, W, 3) float32 in [0, 1] for 16-bit and float arrays.

    Raises:
        ValueError: an unreadable file (`ImageReadError`), an empty image, a wrong shape or type, or values out of range.
        TypeError: something that is no image at all.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, (np.ndarray, Tensor)):
        return _decode_array(image, name)
    if not isinstance(image, Image.Image):
        raise TypeError(f"{name} is a {type(image).__name__}; give {IMAGE_FORMS}")
    if 0 in image.size:
        raise ValueError(f"{name} is empty: its size is {image.size}")
    try:
        return to_rgb(ImageOps.exif_transpose(image))
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}: {error}") from error


def _decode_array(image: np.ndarray | Tensor, name: str) -> Image.Image | np.ndarray:
    is_tensor = isinstance(image, Tensor)
    if isinstance(image, Tensor):
        image = tensor_to_numpy(image)
    values = image[..., None] if image.ndim == 2 else np.moveaxis(image, 0, -1) if is_tensor else image
    if image.ndim not in (2, 3) or values.shape[-1] not in (1, 3, 4):
        layout = "tensors are (C, H, W)" if is_tensor else "numpy arrays are (H, W, C)"
        raise ValueError(f"{name} has shape {tuple(image.shape)} ({layout}); give {IMAGE_FORMS}")
    if 0 in values.shape:
        raise ValueError(f"{name} is empty: its shape is {tuple(image.shape)}")
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8:  # treated like a file, so that both give the same pixels
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


def tensor_to_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor of any device and type as an array; bfloat16, which numpy does not have, becomes float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def resize_image(
    image: Image.Image | np.ndarray, size: tuple[int, int], num_channels: int, resample: int, rescale_factor: float
) -> np.ndarray:
    """Resizes what `decode_image` returns, to (height, width, num_channels) float32 in [0, 1]; `size` is (height, width).

    A PIL image is resized in 8 bits, like a data set that was prepared in advance. An array is resized in float32.
    """
    height, width = size
    if isinstance(image, Image.Image):
        image = image.convert("L") if num_channels == 1 else image
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling(resample))
        values = np.asarray(image, dtype=np.float32) * np.float32(rescale_factor)
        return values.reshape(height, width, num_channels)
    values = (image @ LUMA)[..., None] if num_channels == 1 else image
    if values.shape[:2] == size:
        return values
    # Pillow has no colour images of floats, so that channels are resized one by one.
    channels = [Image.fromarray(np.ascontiguousarray(channel)) for channel in np.moveaxis(values, -1, 0)]
    resized = [np.asarray(channel.resize((width, height), Image.Resampling(resample))) for channel in channels]
    return np.clip(np.stack(resized, axis=-1), 0.0, 1.0)  # Lanczos overshoots


def restore_map(values: Tensor, size: tuple[int, ...]) -> np.ndarray:
    """Resizes a map (H, W) to (height, width) `size`: linearly interpolated, and averaged where it becomes smaller. Float32."""
    if tuple(values.shape) != size:
        values = torch.nn.functional.interpolate(
            values[None, None], size=size, mode="bilinear", align_corners=False, antialias=True
        )[0, 0]
    return values.contiguous().numpy()


def restore_image(values: Tensor, size: tuple[int, ...]) -> Image.Image:
    """(C, H, W) in [0, 1], clamped, as a PIL image of (height, width) `size`: mode "RGB", or "L" for one channel."""
    pixels = values.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[..., 0] if len(values) == 1 else pixels)
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def check_size(size: int | dict[str, int] | Any) -> dict[str, int]:
    """A size of a processor as a dictionary, its axes in the order of arrays; ValueError for anything else."""
    if isinstance(size, int):
        size = {"height": size, "width": size}
    try:
        sides = dict(size)
        valid = set(sides) in ({"height", "width"}, set(VOLUME_AXES))
        valid = valid and all(isinstance(side, int) and side >= 1 for side in sides.values())
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            f'size must be {{"height": H, "width": W}} in whole pixels or one number, with "depth" for volumes, got {size!r}'
        )
    return {axis: sides[axis] for axis in VOLUME_AXES if axis in sides}
