"""Images of any kind to `pixel_values`, and maps back to the size of the input."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs

from .data.images import BACKGROUND, ImageReadError, check_unit_range, read_image, to_rgb, upright

__all__ = ["ILTMImageProcessor", "ImageReadError", "read_image"]

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601, as Pillow's convert("L")

ACCEPTED_FORMS = (
    "a path, a PIL image, a numpy array (H, W) or (H, W, C), a torch tensor (H, W) or (C, H, W), a batch of either "
    "with one more axis in front, or a list of these, with C = 1, 3 or 4"
)

# Keys that transformers itself writes into the file or passes on while loading.
_SERVICE_KEYS = frozenset({"image_processor_type", "feature_extractor_type", "processor_class", "auto_map"})


class ILTMImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings that `from_pretrained(..., name=value)` may override."""

    num_channels: int
    size_divisor: int


class ILTMImageProcessor(BaseImageProcessor):
    """Turns images into `pixel_values` for `VQVAEModel`, and maps back to the images' own sizes.

    Every image is resized to `size` without keeping its aspect ratio (as the results on MVTec AD are reported),
    scaled to [0, 1] by the full range of its type and, where `size` is no multiple of `size_divisor`, padded at the
    bottom and right with its edge pixels; `restore_map` crops that padding again.

    Args:
        size: `{"height": H, "width": W}`, or one number for a square. Default 256 (`method.md` 6).
        resample: Pillow filter, as `PIL.Image.Resampling` or its number. Default Lanczos.
        rescale_factor: what 8-bit values are multiplied by; 16-bit values are scaled by their own full range.
        num_channels: 3 for colour (grey is repeated), 1 for grey (colour becomes ITU-R 601 luma).
        size_divisor: the model's downsampling: 8 for three levels.

    Example:
        >>> processor = ILTMImageProcessor(size={"height": 128, "width": 128})
        >>> inputs = processor("part.png")                      # inputs.pixel_values: (1, 3, 128, 128) in [0, 1]
        >>> processor.restore_map(anomaly_map, inputs.original_sizes[0])
    """

    model_input_names = ["pixel_values"]  # noqa: RUF012 - the base class declares it this way
    valid_kwargs = ILTMImageProcessorKwargs

    def __init__(
        self,
        size: int | dict[str, int] | None = None,
        resample: int = Image.Resampling.LANCZOS,
        rescale_factor: float = 1 / 255,
        num_channels: int = 3,
        size_divisor: int = 8,
        **kwargs,
    ):
        unknown = sorted(set(kwargs) - _SERVICE_KEYS)
        if unknown:
            raise ValueError(
                f"unknown setting(s) {', '.join(unknown)}; ILTMImageProcessor takes size, resample, rescale_factor, "
                "num_channels, size_divisor"
            )
        super().__init__(**kwargs)
        self.size = _check_size(256 if size is None else size)
        try:
            self.resample = int(Image.Resampling(resample))
        except ValueError:
            raise ValueError(f"resample must be one of PIL.Image.Resampling (0 to 5), got {resample!r}") from None
        self.rescale_factor = float(rescale_factor)
        self.num_channels = num_channels
        self.size_divisor = size_divisor
        if self.rescale_factor <= 0:
            raise ValueError(f"rescale_factor must be positive, got {rescale_factor}")
        if num_channels not in (1, 3):
            raise ValueError(f"num_channels must be 1 (grey) or 3 (colour), got {num_channels}")
        if size_divisor < 1:
            raise ValueError(f"size_divisor must be at least 1, got {size_divisor}")

    @property
    def spatial_size(self) -> tuple[int, int]:
        """(height, width) that images are resized to, before padding."""
        return self.size["height"], self.size["width"]

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) of `pixel_values`: `size` rounded up to multiples of `size_divisor`."""
        height, width = (-(-length // self.size_divisor) * self.size_divisor for length in self.spatial_size)
        return height, width

    def preprocess(self, images, return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """Converts one image or several.

        Args:
            images: path, PIL image, numpy array (H, W) or (H, W, C), torch tensor (H, W) or (C, H, W), a batch of
                arrays or tensors with one more axis in front, or a list (or other iterable, such as a `datasets`
                column) of these. C is 1, 3 or 4 (alpha, laid on white). uint8 is scaled by `rescale_factor`, uint16
                by 65535, bool is 0 and 1, floats must lie in [0, 1]. EXIF rotation is applied to PIL images as it is
                to files.
            return_tensors: "pt" for a torch tensor, "np" for a numpy array.

        Returns:
            BatchFeature with `pixel_values` (B, C, H, W) float32 in [0, 1] and `original_sizes`, a list of B (height,
            width) after EXIF rotation.

        Raises:
            ImageReadError: a file that cannot be read (a ValueError, names the file and the reason).
            ValueError: no image, wrong rank or type, NaN or infinite values, floats outside [0, 1]; names the image.
            TypeError: something that is no image at all.
        """
        if kwargs:
            raise ValueError(
                f"preprocess takes no {', '.join(sorted(kwargs))}: settings belong to the processor, since maps are "
                "brought back with the same ones; make a second ILTMImageProcessor instead"
            )
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f'return_tensors must be "pt" or "np", got {return_tensors!r}')
        flat = _flatten(images)
        if not flat:
            raise ValueError("no images given: the list is empty")
        arrays, sizes = [], []
        for index, image in enumerate(flat):
            name = "image" if len(flat) == 1 else f"image {index} (of {len(flat)}, counted from 0)"
            array, original_size = self._prepare(image, name)
            arrays.append(array)
            sizes.append(original_size)
        pixel_values = np.stack(arrays)
        return BatchFeature(
            {
                "pixel_values": pixel_values if return_tensors == "np" else torch.from_numpy(pixel_values),
                "original_sizes": sizes,
            }
        )

    def restore_map(self, anomaly_map, original_size: Sequence[int]) -> np.ndarray:
        """Brings a map of the model's size back to the input's own size.

        Args:
            anomaly_map: (H, W) tensor or array as large as `pixel_values`; the padding is cropped first.
            original_size: (height, width) of the input, from `original_sizes`.

        Returns:
            (height, width) float32 array, bilinearly interpolated (averaged where the input is smaller than the map).
        """
        values = torch.as_tensor(anomaly_map).detach().to("cpu", torch.float32)
        if tuple(values.shape) != self.padded_size:
            raise ValueError(
                f"map must have the size of pixel_values, {self.padded_size}, got {tuple(values.shape)}; "
                "pass one (H, W) map at a time"
            )
        height, width = self.spatial_size
        values = values[:height, :width]
        target = tuple(int(length) for length in original_size)
        if target != (height, width):
            values = torch.nn.functional.interpolate(
                values[None, None], size=target, mode="bilinear", align_corners=False, antialias=True
            )[0, 0]
        return values.contiguous().numpy()

    def restore_image(self, pixel_values, original_size: Sequence[int] | None = None) -> Image.Image:
        """Turns one image of the model back into a PIL image.

        Args:
            pixel_values: (C, H, W) or (1, C, H, W) tensor or array in [0, 1] (clamped); the padding is cropped.
            original_size: (height, width) to resize to; without it the image keeps the model's size.

        Returns:
            PIL image in mode "RGB", or "L" where `num_channels` is 1.
        """
        values = torch.as_tensor(pixel_values).detach().to("cpu", torch.float32)
        if values.ndim == 4 and len(values) == 1:
            values = values[0]
        if tuple(values.shape) != (self.num_channels, *self.padded_size):
            raise ValueError(
                f"pixel_values must be one image of shape {(self.num_channels, *self.padded_size)}, "
                f"got {tuple(values.shape)}"
            )
        height, width = self.spatial_size
        pixels = values[:, :height, :width].clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels[..., 0] if self.num_channels == 1 else pixels)
        if original_size is not None and tuple(original_size) != (height, width):
            image = image.resize((int(original_size[1]), int(original_size[0])), Image.Resampling.BICUBIC)
        return image

    def _prepare(self, image: Any, name: str) -> tuple[np.ndarray, tuple[int, int]]:
        # One image of any form -> (C, H, W) float32 in [0, 1] at the padded size, and its own (height, width).
        if isinstance(image, (str, os.PathLike)):
            source: Image.Image | np.ndarray = read_image(image)
        elif isinstance(image, Image.Image):
            if 0 in image.size:
                raise ValueError(f"{name} is empty: its size is {image.size}")
            try:
                source = to_rgb(upright(image))
            except (ValueError, OSError) as error:
                raise ValueError(f"{name}: {error}") from error
        elif isinstance(image, (np.ndarray, torch.Tensor)):
            source = _read_array(image, name)
        else:
            raise TypeError(f"{name} is a {type(image).__name__}; give {ACCEPTED_FORMS}")
        if isinstance(source, Image.Image):
            original_size = (source.height, source.width)
            values = self._resize_pil(source)
        else:
            original_size = source.shape[:2]
            values = self._resize_array(source)
        padding = [(0, padded - length) for padded, length in zip(self.padded_size, values.shape[:2], strict=True)]
        values = np.pad(values, [*padding, (0, 0)], mode="edge")
        return np.ascontiguousarray(values.transpose(2, 0, 1)), original_size

    def _resize_pil(self, image: Image.Image) -> np.ndarray:
        # Resized in 8 bits, as a prepared data set is.
        if self.num_channels == 1:
            image = image.convert("L")
        height, width = self.spatial_size
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling(self.resample))
        values = np.asarray(image, dtype=np.float32) * np.float32(self.rescale_factor)
        return values.reshape(height, width, self.num_channels)

    def _resize_array(self, values: np.ndarray) -> np.ndarray:
        # (H, W, 3) float32 in [0, 1]; channel by channel, because Pillow has no float colour mode.
        if self.num_channels == 1:
            values = (values @ LUMA)[..., None]
        height, width = self.spatial_size
        if values.shape[:2] == (height, width):
            return values
        channels = [
            Image.fromarray(np.ascontiguousarray(values[..., channel])).resize(
                (width, height), Image.Resampling(self.resample)
            )
            for channel in range(values.shape[2])
        ]
        return np.clip(
            np.stack([np.asarray(channel) for channel in channels], axis=-1), 0.0, 1.0
        )  # Lanczos overshoots


def _check_size(size: int | dict[str, int] | Any) -> dict[str, int]:
    if isinstance(size, int):
        size = {"height": size, "width": size}
    try:
        height, width = size["height"], size["width"]
        valid = set(dict(size)) == {"height", "width"} and min(height, width) >= 1
    except (KeyError, TypeError, ValueError):
        valid = False
    if not valid or not isinstance(height, int) or not isinstance(width, int):
        raise ValueError(f'size must be {{"height": H, "width": W}} in whole pixels or one number, got {size!r}')
    return {"height": height, "width": width}


def _flatten(images: Any) -> list[Any]:
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images]
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, dict) or not isinstance(images, Iterable):
        raise TypeError(f"cannot use a {type(images).__name__} as images; give {ACCEPTED_FORMS}")
    return [image for item in images for image in _flatten(item)]


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
    if values.dtype == np.uint16:
        values = values.astype(np.float32) / 65535
    elif np.issubdtype(values.dtype, np.floating):
        values = check_unit_range(values, name)
    else:
        raise ValueError(f"{name} has type {values.dtype}; give uint8, uint16, bool, or floats in [0, 1]")
    if values.shape[-1] == 4:
        alpha = values[..., 3:]
        values = values[..., :3] * alpha + (1 - alpha) * np.asarray(BACKGROUND, np.float32) / 255
    return np.repeat(values, 3, axis=-1) if values.shape[-1] == 1 else values
