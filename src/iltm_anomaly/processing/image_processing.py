"""Images and volumes of any kind to `pixel_values`, and maps back to the size of the input."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs

from iltm_anomaly.data.images import ImageReadError, check_unit_range, read_image
from iltm_anomaly.data.volume_grid import VolumeGrid, cropped_to_foreground, resize, thinned
from iltm_anomaly.processing.checks import VOLUME_AXES, check_pair, check_size, check_spacing
from iltm_anomaly.processing.images import as_source, flatten_images, resized
from iltm_anomaly.processing.volumes import as_grid, as_volume, flatten_volumes
from iltm_anomaly.processing.volumes import window as percentile_window

__all__ = ["ILTMImageProcessor", "ImageReadError", "read_image"]


MAX_WINDOW_VOXELS = 20_000  # of one volume, for quantiles over a data set

# Keys that transformers itself writes into the file or passes on while loading.
_SERVICE_KEYS = frozenset({"image_processor_type", "feature_extractor_type", "processor_class", "auto_map"})


class ILTMImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings that `from_pretrained(..., name=value)` may override."""

    num_channels: int
    size_divisor: int
    spacing: list[float] | None
    intensity_range: list[float] | None
    intensity_percentiles: list[float] | None
    intensity_power: float
    foreground: float | None


class ILTMImageProcessor(BaseImageProcessor):
    """Turns images or volumes into `pixel_values` for `VQVAEModel`, and maps back to their own sizes.

    Every image is resized to `size` without keeping its aspect ratio (as the results on MVTec AD are reported),
    scaled to [0, 1] by the full range of its type and, where `size` is no multiple of `size_divisor`, padded at the
    bottom and right with its edge pixels; `restore_map` crops that padding again.

    A `size` with a depth makes it a processor of volumes. A volume is turned to RAS (its first axis to the right, the second to
    the front, the third to the head), resampled to `spacing` and centred in a grid of `size` voxels, surrounded by zeros; along
    an axis where it is too long for that it is resampled more coarsely, until it fits. Without `spacing` it is stretched
    to `size`. `restore_map` goes all the way back to the file's own grid. With `foreground` only the box around the subject is
    looked at: scanners record much air; outside the box a map has what `restore_map` is told to put there.

    Args:
        size: `{"height": H, "width": W}`, or one number for a square; `{"depth": D, "height": H, "width": W}` for volumes.
            Default 256, that of the `paper` preset.
        resample: Pillow filter, as `PIL.Image.Resampling` or its number. Default Lanczos.
        rescale_factor: what 8-bit values are multiplied by; 16-bit values are scaled by their own full range.
        num_channels: 3 for colour (grey is repeated; the default for images), 1 for grey (colour becomes ITU-R 601 luma; volumes
            have one).
        size_divisor: the model's downsampling: 8 for three levels.
        spacing: working size of a voxel in mm, one number or one per RAS axis; for volumes.
        intensity_range: (low, high), the values that become 0 and 1, what lies beyond is clipped: (0, 15) for SUV. Without it
            voxels must lie in [0, 1]. It is the same for all volumes: a hot lesion must not darken the rest of its own.
        intensity_percentiles: (low, high), such as (0.5, 99.5), percentiles of a volume's own voxels that take the place of
            `intensity_range`: for MRI, whose units differ from scan to scan. Of all its voxels, with `foreground` too.
        intensity_power: exponent applied after that; 0.5 evens out the noise of counts, which grows with their root.
        foreground: value, in units of the file, above which a voxel belongs to the subject; see `cropped_to_foreground`. None
            looks at everything.

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
        num_channels: int | None = None,
        size_divisor: int = 8,
        spacing: float | Sequence[float] | None = None,
        intensity_range: Sequence[float] | None = None,
        intensity_power: float = 1.0,
        foreground: float | None = None,
        intensity_percentiles: Sequence[float] | None = None,
        **kwargs,
    ):
        unknown = sorted(set(kwargs) - _SERVICE_KEYS)
        if unknown:
            raise ValueError(
                f"unknown setting(s) {', '.join(unknown)}; ILTMImageProcessor takes size, resample, rescale_factor, "
                "num_channels, size_divisor, spacing, intensity_range, intensity_percentiles, intensity_power, foreground"
            )
        super().__init__(**kwargs)
        self.size = check_size(256 if size is None else size)
        try:
            self.resample = int(Image.Resampling(resample))
        except ValueError:
            raise ValueError(f"resample must be one of PIL.Image.Resampling (0 to 5), got {resample!r}") from None
        self.rescale_factor = float(rescale_factor)
        self.num_channels = num_channels or (1 if self.is_volumetric else 3)
        self.size_divisor = size_divisor
        self.spacing = check_spacing(spacing)
        self.intensity_range = check_pair("intensity_range", intensity_range)
        self.intensity_percentiles = check_pair("intensity_percentiles", intensity_percentiles, 0, 100)
        self.intensity_power = float(intensity_power)
        self.foreground = None if foreground is None else float(foreground)
        if self.foreground is not None and not np.isfinite(self.foreground):
            raise ValueError(f"foreground must be a finite number, got {foreground}")
        if not 0 < self.rescale_factor < np.inf:
            raise ValueError(f"rescale_factor must be positive, got {rescale_factor}")
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels must be 1 (grey) or 3 (colour), got {num_channels}")
        if self.is_volumetric and self.num_channels != 1:
            raise ValueError(f"volumes have one channel, got num_channels {num_channels}")
        if self.intensity_range is not None and self.intensity_percentiles is not None:
            raise ValueError(
                "give only one of intensity_range and intensity_percentiles: either says what becomes 0 and 1"
            )
        if not 0 < self.intensity_power < np.inf:
            raise ValueError(f"intensity_power must be positive, got {intensity_power}")
        windows = self.intensity_range or self.intensity_percentiles or self.intensity_power != 1
        if not self.is_volumetric and (self.spacing or windows or self.foreground is not None):
            raise ValueError("spacing, intensity_... and foreground are for volumes: give size a depth")
        if not isinstance(size_divisor, int) or size_divisor < 1:
            raise ValueError(f"size_divisor must be at least 1 and a whole number, got {size_divisor!r}")

    @classmethod
    def for_volumes(
        cls,
        volumes: Iterable[Any],
        size: Sequence[int] | None = None,
        spacing: float | Sequence[float] | None = None,
        intensity_range: Sequence[float] | None = None,
        intensity_power: float = 1.0,
        foreground: float | None = None,
        stretch: bool = False,
        size_divisor: int = 8,
        intensity_percentiles: Sequence[float] | None = None,
    ) -> "ILTMImageProcessor":
        """A processor for training volumes; what is not given follows from them.

        Args:
            volumes: as for `preprocess`; each is read once, if anything is to be found out.
            size: voxels along the RAS axes; by default the smallest grid that holds every volume at `spacing`.
            spacing: by default the median over volumes.
            intensity_range: by default from the 0.1 to the 99.9 percentile of the voxels of all volumes together.
            intensity_percentiles, intensity_power, foreground, size_divisor: as in the class.
            stretch: every volume, or its box, fills the grid, so that people of any height and girth lie alike; the grid is as
                large as the median one at `spacing`, which the processor then has none of.

        Raises:
            ValueError: as `preprocess`, or if there is no volume.
        """
        grids, samples = [], []
        find_range = intensity_range is None and intensity_percentiles is None
        if size is None or spacing is None or find_range:
            for number, item in enumerate(flatten_volumes(volumes)):
                volume = as_volume(item, f"volume {number} (counted from 0)")
                grids.append(volume.grid if foreground is None else cropped_to_foreground(volume, foreground))
                samples.append(thinned(volume.values, MAX_WINDOW_VOXELS))
            if not grids:
                raise ValueError("no volumes given: the list is empty")
        if spacing is None:
            spacing = [float(value) for value in np.median([grid.ras_spacing for grid in grids], axis=0)]
        steps = check_spacing(spacing)
        assert steps is not None
        if size is None:
            extents = (np.median if stretch else np.max)([grid.ras_extent for grid in grids], axis=0)
            voxels = np.ceil(extents / steps - 1e-3)
            size = [int(-(-count // size_divisor) * size_divisor) for count in voxels]
        if find_range:
            intensity_range = percentile_window(np.concatenate(samples), (0.1, 99.9))
        return cls(
            size=dict(zip(VOLUME_AXES, size, strict=True)),
            spacing=None if stretch else steps,
            intensity_range=intensity_range,
            intensity_percentiles=intensity_percentiles,
            intensity_power=intensity_power,
            foreground=foreground,
            size_divisor=size_divisor,
        )

    @property
    def is_volumetric(self) -> bool:
        """Whether this is a processor of volumes."""
        return "depth" in self.size

    @property
    def spatial_size(self) -> tuple[int, ...]:
        """(height, width) that images are resized to, before padding; (depth, height, width) of volumes."""
        return tuple(self.size[axis] for axis in VOLUME_AXES if axis in self.size)

    @property
    def padded_size(self) -> tuple[int, ...]:
        """Spatial size of `pixel_values`: `size` rounded up to multiples of `size_divisor`."""
        return tuple(-(-length // self.size_divisor) * self.size_divisor for length in self.spatial_size)

    def as_list(self, images: Any) -> list[Any]:
        """One image or volume in any form that `preprocess` takes, or any nesting of them, as a flat list.

        Raises:
            TypeError: something that is no image at all.
        """
        return flatten_volumes(images) if self.is_volumetric else flatten_images(images)

    def preprocess(self, images, return_tensors: str | None = "pt", **kwargs) -> BatchFeature:
        """Converts one image or several, or volumes.

        Args:
            images: path, PIL image, numpy array (H, W) or (H, W, C), torch tensor (H, W) or (C, H, W), a batch of
                arrays (N, H, W, C) or tensors (N, C, H, W), or a list (or other iterable, such as a `datasets`
                column) of these. C is 1, 3 or 4 (alpha, laid on white). uint8 is scaled by `rescale_factor`, uint16
                by 65535, bool is 0 and 1, floats must lie in [0, 1]. EXIF rotation is applied to PIL images as it is
                to files.
                Volumes: a NIfTI file, a folder with one DICOM series, a nibabel image (`datasets` decodes to these), an
                array or tensor (D, H, W), batches and lists of these; an array is taken to be RAS, with voxels of 1 mm.
            return_tensors: "pt" for a torch tensor, "np" for a numpy array.

        Returns:
            BatchFeature with `pixel_values` (B, C, H, W) float32 in [0, 1] and `original_sizes`, a list of B (height,
            width) after EXIF rotation; (B, 1, D, H, W) and a list of B `VolumeGrid` for volumes.

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
        flat = self.as_list(images)
        if not flat:
            raise ValueError("no images given: the list is empty")
        arrays: list[np.ndarray] = []
        sizes: list[Any] = []
        kind, prepare = ("volume", self._prepare_volume) if self.is_volumetric else ("image", self._prepare)
        for index, image in enumerate(flat):
            name = kind if len(flat) == 1 else f"{kind} {index} (of {len(flat)}, counted from 0)"
            array, original_size = prepare(image, name)
            arrays.append(array)
            sizes.append(original_size)
        pixel_values = np.stack(arrays)
        return BatchFeature(
            {
                "pixel_values": pixel_values if return_tensors == "np" else torch.from_numpy(pixel_values),
                "original_sizes": sizes,
            }
        )

    def to_uint8(self, image) -> np.ndarray:
        """One image (or volume) as caches of training images hold it: its pixel values times 255, (C, *spatial) uint8."""
        pixel_values = self.preprocess(image)["pixel_values"][0]
        return (pixel_values * 255).round().to(torch.uint8).numpy()

    def restore_map(self, anomaly_map, original_size: Sequence[int] | VolumeGrid, outside: float = 0.0) -> np.ndarray:
        """Brings a map of the model's size back to the input's own size.

        Args:
            anomaly_map: (H, W) or (D, H, W) tensor or array as large as `pixel_values`; the padding is cropped first.
            original_size: (height, width) or `VolumeGrid` of the input, from `original_sizes`.
            outside: value of the voxels of a volume that the model does not see, outside the body or too far from it.

        Returns:
            (height, width) or (D, H, W) float32 array on the input's own grid, linearly interpolated (averaged where the
            input is smaller than the map).
        """
        values = torch.as_tensor(anomaly_map).detach().to("cpu", torch.float32)
        if tuple(values.shape) != self.padded_size:
            raise ValueError(
                f"map must have the size of pixel_values, {self.padded_size}, got {tuple(values.shape)}; "
                "pass one map at a time"
            )
        if self.is_volumetric:
            return self._restore_volume(values.numpy(), as_grid(original_size), outside)
        assert not isinstance(original_size, VolumeGrid)
        height, width = self.spatial_size
        values = values[:height, :width]
        target = tuple(int(length) for length in original_size)
        if target != (height, width):
            values = torch.nn.functional.interpolate(
                values[None, None], size=target, mode="bilinear", align_corners=False, antialias=True
            )[0, 0]
        return values.contiguous().numpy()

    def restore_image(
        self, pixel_values, original_size: Sequence[int] | VolumeGrid | None = None
    ) -> Image.Image | np.ndarray:
        """Turns one image of the model back into a PIL image, a volume into an array.

        Args:
            pixel_values: (C, *spatial) or (1, C, *spatial) tensor or array in [0, 1] (clamped).
            original_size: (height, width) or `VolumeGrid` to go back to; without it the image keeps the model's size, of an
                image without the padding.

        Returns:
            PIL image in mode "RGB", or "L" where `num_channels` is 1; for volumes (D, H, W) float32 in the input's own units,
            or, with `intensity_percentiles` and without the grid that `preprocess` returned, in [0, 1].
        """
        values = torch.as_tensor(pixel_values).detach().to("cpu", torch.float32)
        if values.ndim == len(self.spatial_size) + 2 and len(values) == 1:
            values = values[0]
        if tuple(values.shape) != (self.num_channels, *self.padded_size):
            raise ValueError(
                f"pixel_values must be one image of shape {(self.num_channels, *self.padded_size)}, "
                f"got {tuple(values.shape)}"
            )
        if self.is_volumetric:
            window = original_size.window if isinstance(original_size, VolumeGrid) else None
            low, high = window or self.intensity_range or (0.0, 1.0)
            voxels = values[0].clamp(0, 1).pow(1 / self.intensity_power).mul(high - low).add(low).numpy()
            return voxels if original_size is None else self._restore_volume(voxels, as_grid(original_size), low)
        assert not isinstance(original_size, VolumeGrid)
        height, width = self.spatial_size
        pixels = values[:, :height, :width].clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels[..., 0] if self.num_channels == 1 else pixels)
        if original_size is not None and tuple(original_size) != (height, width):
            image = image.resize((int(original_size[1]), int(original_size[0])), Image.Resampling.BICUBIC)
        return image

    # Volumes

    def _placement(self, grid: VolumeGrid) -> tuple[tuple[int, ...], tuple[slice, ...]]:
        """Voxels that a volume has at the working spacing, RAS, and where in the padded grid they lie."""
        if self.spacing is None:
            shape = self.spatial_size
        else:
            wanted = grid.ras_extent / self.spacing
            shape = tuple(
                min(side, max(1, round(count))) for side, count in zip(self.spatial_size, wanted.tolist(), strict=True)
            )
        starts = [(side - length) // 2 for side, length in zip(self.padded_size, shape, strict=True)]
        return shape, tuple(slice(start, start + length) for start, length in zip(starts, shape, strict=True))

    def to_model_grid(self, values: np.ndarray, grid: VolumeGrid) -> np.ndarray:
        """An array on a volume's own grid (D, H, W), brought to the model's: turned, resampled and padded with zeros. Float32."""
        shape, place = self._placement(grid)
        padded = np.zeros(self.padded_size, dtype=np.float32)
        padded[place] = resize(grid.to_ras(values)[grid.ras_box].astype(np.float32), shape)
        return padded

    def _prepare_volume(self, item: Any, name: str) -> tuple[np.ndarray, VolumeGrid]:
        """One volume of any form -> (1, D, H, W) float32 in [0, 1] on the padded grid, and its own grid."""
        volume = as_volume(item, name)
        grid, values = volume.grid, volume.values
        if self.foreground is not None:
            grid = cropped_to_foreground(volume, self.foreground)
        percentiles = self.intensity_percentiles
        grid = replace(grid, window=None if percentiles is None else percentile_window(values, percentiles))
        if window := grid.window or self.intensity_range:
            low, high = window
            values = np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
        else:
            try:
                values = check_unit_range(values, str(volume.path or name))
            except ValueError as error:
                raise ValueError(
                    f"{error}, or give the processor an intensity_range or intensity_percentiles"
                ) from None
        # before resampling, so that padding and the space between voxels are on the scale that the model sees
        values = values**self.intensity_power if self.intensity_power != 1 else values
        return self.to_model_grid(values, grid)[None], grid

    def _restore_volume(self, values: np.ndarray, grid: VolumeGrid, outside: float = 0.0) -> np.ndarray:
        _, place = self._placement(grid)
        whole = np.full(grid.ras_shape, outside, dtype=np.float32)
        box = grid.ras_box
        whole[box] = resize(values[place], [part.stop - part.start for part in box])
        return np.ascontiguousarray(grid.from_ras(whole))

    # Images

    def _prepare(self, image: Any, name: str) -> tuple[np.ndarray, tuple[int, int]]:
        """One image of any form -> (C, H, W) float32 in [0, 1] at the padded size, and its own (height, width)."""
        source = as_source(image, name)
        own = (source.height, source.width) if isinstance(source, Image.Image) else source.shape[:2]
        values = resized(source, self.spatial_size, self.num_channels, self.resample, self.rescale_factor)
        padding = [(0, padded - length) for padded, length in zip(self.padded_size, values.shape[:2], strict=True)]
        values = np.pad(values, [*padding, (0, 0)], mode="edge")
        return np.ascontiguousarray(values.transpose(2, 0, 1)), own
