"""`ILTMImageProcessor`: images and volumes of any kind to `pixel_values`, and maps back to the size of the input."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs

from iltm_anomaly.data.thinning import thinned
from iltm_anomaly.data.volume_files import find_context
from iltm_anomaly.data.volume_grid import VolumeGrid
from iltm_anomaly.processing.images import (
    VOLUME_AXES,
    check_size,
    decode_image,
    flatten_images,
    resize_image,
    restore_image,
    restore_map,
)
from iltm_anomaly.processing.volumes import (
    as_volume,
    check_pair,
    check_spacing,
    common_size,
    context_values,
    cropped_to_foreground,
    flatten_volumes,
    from_model_grid,
    percentile_window,
    place_in_grid,
    restore_values,
    scale_values,
    to_model_grid,
    usable_context_range,
)

SAMPLED_VOXELS = 20_000
"""Voxels of each volume from which percentiles over a data set are taken."""

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
    context_range: list[float] | None


class ILTMImageProcessor(BaseImageProcessor):
    """Turns images or volumes into `pixel_values` for the models, and maps back to their own sizes.

    Every image is resized to `size` without keeping its aspect ratio (as the results on MVTec AD are reported), and scaled to
    [0, 1] by the full range of its type. Where `size` is no multiple of `size_divisor`, it is padded at the bottom and right with
    its edge pixels; `restore_map` crops that padding again.

    A `size` with a depth makes a processor of volumes. A volume is turned to RAS (its axes run to the right, front and head),
    resampled to `spacing`, and centred in a grid of `size` voxels, surrounded by zeros. Along an axis that is too long for the
    grid, it is resampled more coarsely. Without `spacing` it is stretched to `size`. With `foreground`, only the box around the
    subject is looked at, because scanners record much air. `restore_map` goes back to the grid of the file.

    Args:
        size: `{"height": H, "width": W}`, or one number for a square; `{"depth": D, "height": H, "width": W}` for volumes.
            Default 256, that of the `paper` preset.
        resample: Pillow filter, as `PIL.Image.Resampling` or its number. Default Lanczos.
        rescale_factor: what 8-bit values are multiplied by; 16-bit values are divided by 65535.
        num_channels: 3 for colour (grey is repeated; the default for images), 1 for grey (colour becomes ITU-R 601 luma). Volumes
            have one, with `context_range` two.
        size_divisor: downsampling of the model: 8 for three levels.
        spacing: for volumes, distance of voxels in mm, one number or one per RAS axis.
        intensity_range: for volumes, (low, high), the values that become 0 and 1, such as (0, 15) for SUV. It is the same for all
            volumes, so that a hot lesion does not darken the rest of its own. Without it, voxels must lie in [0, 1].
        intensity_percentiles: in place of `intensity_range`, (low, high) percentiles of the voxels of each volume by itself, such
            as (0.5, 99.5): for MRI, whose units differ from scan to scan. All voxels count, with `foreground` too.
        intensity_power: for volumes, exponent applied after that. Noise of counts grows with their root, and 0.5 evens it out.
        foreground: for volumes, value in units of the file above which a voxel belongs to the subject; `cropped_to_foreground`
            says how its box is found. None looks at everything.
        context_range: for volumes, (low, high), values that become 0 and 1 of a second channel: of the CT beside the file of each
            volume, on its grid, `P1_ct.nii.gz` of `P1_suv.nii.gz`. A volume without one has zeros there.

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
        context_range: Sequence[float] | None = None,
        **kwargs,
    ):
        unknown = sorted(set(kwargs) - _SERVICE_KEYS)
        if unknown:
            raise ValueError(
                f"unknown setting(s) {', '.join(unknown)}; ILTMImageProcessor takes size, resample, rescale_factor, "
                "num_channels, size_divisor, spacing, intensity_range, intensity_percentiles, intensity_power, foreground, "
                "context_range"
            )
        super().__init__(**kwargs)
        self.size = check_size(256 if size is None else size)
        try:
            self.resample = int(Image.Resampling(resample))
        except ValueError:
            raise ValueError(f"resample must be one of PIL.Image.Resampling (0 to 5), got {resample!r}") from None
        self.rescale_factor = float(rescale_factor)
        self.context_range = check_pair("context_range", context_range)
        self.num_channels = num_channels or (self._volume_channels if self.is_volumetric else 3)
        self.size_divisor = size_divisor
        self.spacing = check_spacing(spacing)
        self.intensity_range = check_pair("intensity_range", intensity_range)
        self.intensity_percentiles = check_pair("intensity_percentiles", intensity_percentiles, 0, 100)
        self.intensity_power = float(intensity_power)
        self.foreground = None if foreground is None else float(foreground)
        self._check_settings()

    def _check_settings(self) -> None:
        if self.foreground is not None and not np.isfinite(self.foreground):
            raise ValueError(f"foreground must be a finite number, got {self.foreground}")
        for name in ("rescale_factor", "intensity_power"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name):g}")
        if self.is_volumetric and self.num_channels != self._volume_channels:
            raise ValueError(f"volumes have one channel, two with context_range, got num_channels {self.num_channels}")
        if not self.is_volumetric and self.num_channels not in (1, 3):
            raise ValueError(f"num_channels must be 1 (grey) or 3 (colour), got {self.num_channels}")
        if self.intensity_range and self.intensity_percentiles:
            raise ValueError(
                "give only one of intensity_range and intensity_percentiles: either says what becomes 0 and 1"
            )
        windows = (self.intensity_range, self.intensity_percentiles, self.context_range)
        of_volumes = any(windows) or self.intensity_power != 1 or self.spacing or self.foreground is not None
        if not self.is_volumetric and of_volumes:
            raise ValueError("spacing, intensity_..., foreground and context_range are for volumes: give size a depth")
        if not isinstance(self.size_divisor, int) or self.size_divisor < 1:
            raise ValueError(f"size_divisor must be at least 1 and a whole number, got {self.size_divisor!r}")

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
        context_range: Sequence[float] | None = None,
    ) -> "ILTMImageProcessor":
        """Makes a processor for training volumes; settings that are not given follow from the volumes.

        Args:
            volumes: as for `preprocess`; each is read once, unless all settings are given.
            size: voxels along the RAS axes; by default the smallest grid that holds every volume at `spacing`.
            spacing: by default the median over volumes.
            intensity_range: by default from the 0.1 to the 99.9 percentile of the voxels of all volumes together.
            intensity_percentiles, intensity_power, foreground, size_divisor: as in the class.
            stretch: every volume, or its box, fills the grid, so that people of any height and girth lie alike. The default
                `size` is then that of the median volume at `spacing`, and the processor has no spacing.
            context_range: as in the class, but where no volume has a CT it is left out, with a warning.

        Raises:
            ValueError: as `preprocess`, or if there is no volume.
        """
        grids, samples, names, contexts = [], [], [], []
        find_range = intensity_range is None and intensity_percentiles is None
        if size is None or spacing is None or find_range:
            for number, item in enumerate(flatten_volumes(volumes)):
                name = f"volume {number} (counted from 0)"
                volume = as_volume(item, name)
                names.append(str(volume.path or name))
                grids.append(volume.grid if foreground is None else cropped_to_foreground(volume, foreground))
                samples.append(thinned(volume.values, SAMPLED_VOXELS))
                contexts.append(find_context(volume.path))
            if not grids:
                raise ValueError("no volumes given: the list is empty")
        if spacing is None:
            spacing = [float(value) for value in np.median([grid.ras_spacing for grid in grids], axis=0)]
        steps: Any = check_spacing(spacing)
        if size is None:
            size = common_size(grids, names, steps, stretch, size_divisor)
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
            context_range=usable_context_range(names, contexts, context_range),
        )

    @property
    def is_volumetric(self) -> bool:
        """Whether this is a processor of volumes."""
        return "depth" in self.size

    @property
    def _volume_channels(self) -> int:
        return 1 if self.context_range is None else 2

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
            kwargs: settings in place of the processor's own, for this call; a map is brought back by a processor that has them.

        Returns:
            BatchFeature with `pixel_values` (B, C, H, W) float32 in [0, 1] and `original_sizes`, a list of B (height,
            width) after EXIF rotation; (B, C, D, H, W) and a list of B `VolumeGrid` for volumes.

        Raises:
            ImageReadError: a file that cannot be read (a ValueError, names the file and the reason).
            ValueError: no image, wrong rank or type, NaN or infinite values, floats outside [0, 1]; names the image.
            TypeError: something that is no image at all.
        """
        if kwargs:
            return ILTMImageProcessor(**self.to_dict() | kwargs).preprocess(images, return_tensors)
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f'return_tensors must be "pt" or "np", got {return_tensors!r}')
        flat = self.as_list(images)
        if not flat:
            raise ValueError("no images given: the list is empty")
        kind, prepare = ("volume", self._prepare_volume) if self.is_volumetric else ("image", self._prepare_image)
        names = [f"{kind} {index} (of {len(flat)}, counted from 0)" for index in range(len(flat))]
        prepared = [prepare(image, name) for image, name in zip(flat, names if len(flat) > 1 else [kind], strict=True)]
        pixel_values: Any = np.stack([array for array, _ in prepared])
        if return_tensors != "np":
            pixel_values = torch.from_numpy(pixel_values)
        return BatchFeature({"pixel_values": pixel_values, "original_sizes": [size for _, size in prepared]})

    def _prepare_image(self, image: Any, name: str) -> tuple[np.ndarray, tuple[int, ...]]:
        """One image of any form -> (C, H, W) float32 in [0, 1] at the padded size, and its own (height, width)."""
        decoded = decode_image(image, name)
        own = decoded.size[::-1] if isinstance(decoded, Image.Image) else decoded.shape[:2]
        height, width = self.spatial_size
        values = resize_image(decoded, (height, width), self.num_channels, self.resample, self.rescale_factor)
        padding = [(0, padded - side) for padded, side in zip(self.padded_size, (height, width), strict=True)]
        values = np.pad(values, [*padding, (0, 0)], mode="edge")
        return np.ascontiguousarray(values.transpose(2, 0, 1)), own

    def _prepare_volume(self, item: Any, name: str) -> tuple[np.ndarray, VolumeGrid]:
        """One volume of any form -> (C, D, H, W) float32 in [0, 1] on the padded grid, and its own grid."""
        volume = as_volume(item, name)
        grid, values = volume.grid, volume.values
        if self.foreground is not None:
            grid = cropped_to_foreground(volume, self.foreground)
        if self.intensity_percentiles is not None:
            grid = replace(grid, window=percentile_window(values, self.intensity_percentiles))
        # before resampling, so that padding and the space between voxels are on the scale that the model sees
        window = grid.window or self.intensity_range
        values = scale_values(values, window, self.intensity_power, str(volume.path or name))
        channels = [values]
        if self.context_range is not None:
            channels.append(context_values(volume, self.context_range, name))
        return np.stack([self.to_model_grid(channel, grid) for channel in channels]), grid

    def to_uint8(self, image) -> np.ndarray:
        """One image or volume as a cache of training images holds it: pixel values times 255, (C, *spatial) uint8."""
        pixel_values = self.preprocess(image)["pixel_values"][0]
        return (pixel_values * 255).round().to(torch.uint8).numpy()

    def to_model_grid(self, values: np.ndarray, grid: VolumeGrid) -> np.ndarray:
        """Brings an array (D, H, W) on a volume's own grid to that of `pixel_values`: (*padded_size) float32, zeros around it."""
        return to_model_grid(values, grid, self._place(grid), self.padded_size)

    def _place(self, grid: VolumeGrid) -> tuple[slice, ...]:
        return place_in_grid(grid, self.spatial_size, self.padded_size, self.spacing)

    def in_units(self, values: torch.Tensor) -> torch.Tensor:
        """Values in [0, 1] of any shape as those of a file of volumes, with `intensity_range`."""
        return torch.from_numpy(restore_values(values, self.intensity_range or (0.0, 1.0), self.intensity_power))

    def to_unit_range(self, values: torch.Tensor) -> torch.Tensor:
        """Inverse of `in_units`; values beyond `intensity_range` are clipped."""
        window = self.intensity_range or (0.0, 1.0)
        return torch.from_numpy(scale_values(values.numpy(), window, self.intensity_power, "values"))

    def restore_map(self, anomaly_map, original_size: Sequence[int] | VolumeGrid, outside: float = 0.0) -> np.ndarray:
        """Brings a map of the model's size back to the input's own size.

        Args:
            anomaly_map: (H, W) or (D, H, W) tensor or array as large as `pixel_values`; the padding is cropped first.
            original_size: (height, width) or `VolumeGrid` of the input, from `original_sizes`.
            outside: value of the voxels of a volume that the model does not see, outside the box of `foreground`.

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
            grid = _as_grid(original_size)
            return from_model_grid(values.numpy(), grid, self._place(grid), outside)
        height, width = self.spatial_size
        return restore_map(values[:height, :width], _as_size(original_size))

    def restore_image(
        self, pixel_values, original_size: Sequence[int] | VolumeGrid | None = None
    ) -> Image.Image | np.ndarray:
        """Turns one image of the model back into a PIL image, a volume into an array.

        Args:
            pixel_values: (C, *spatial) or (1, C, *spatial) tensor or array in [0, 1] (clamped).
            original_size: (height, width) or `VolumeGrid` to go back to. None keeps the size of the model, without padding for
                an image, with padding for a volume.

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
            grid = None if original_size is None else _as_grid(original_size)
            low, high = (grid and grid.window) or self.intensity_range or (0.0, 1.0)
            voxels = restore_values(values[0], (low, high), self.intensity_power)
            return voxels if grid is None else from_model_grid(voxels, grid, self._place(grid), low)
        height, width = self.spatial_size
        size = (height, width) if original_size is None else _as_size(original_size)
        return restore_image(values[:, :height, :width], size)


def _as_grid(size: Sequence[int] | VolumeGrid) -> VolumeGrid:
    return size if isinstance(size, VolumeGrid) else VolumeGrid.of(size)


def _as_size(size: Sequence[int] | VolumeGrid) -> tuple[int, ...]:
    assert not isinstance(size, VolumeGrid)
    return tuple(int(length) for length in size)
