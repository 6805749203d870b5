"""Volumes: NIfTI files and DICOM series to arrays with their place in space, and back; data sets of volumes.

Arrays keep the order of axes of their file. Where they are turned (`to_ras`), the first axis runs to the patient's right,
the second to the front, the third to the head, as in nibabel and MONAI; D, H, W elsewhere in the package mean these three.
"""

from __future__ import annotations

import glob
import logging
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform

from iltm_anomaly.data.images import ImageReadError, check_name, data_files
from iltm_anomaly.data.mvtec import refuse_half_a_category, refuse_hidden_categories
from iltm_anomaly.data.schema import GOOD, label_of

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

VOLUME_SUFFIXES = (".nii", ".nii.gz")
"""Suffixes (lower case) of the files that a folder is searched for."""

MASK_NAMES = ("mask", "lesion", "lesions", "seg", "label")
"""Last part of the name of a file that is the ground truth of another one: `P1_lesion.nii` of `P1.nii` or `P1_suv.nii`."""

LENGTHS = {1: "metres", 3: "micrometres"}
"""Units in the header (`xyzt_units`) other than millimetres, or unknown ones, which are taken for them."""

_ROUNDING = 1e-3


class VolumeReadError(ImageReadError):
    """A volume that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class VolumeGrid:
    """Where the voxels of a volume are.

    Args:
        shape: voxels along each axis of the array.
        affine: 4 rows of 4 numbers, voxel indices to millimetres (right, anterior, superior).
        box: first voxel and the one after the last along each RAS axis, of the part that is looked at; None for all of it.
        window: the volume's values that became 0 and 1; None unless its own percentiles decided about them.
    """

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    box: tuple[tuple[int, int], ...] | None = None
    window: tuple[float, float] | None = None

    @classmethod
    def of(cls, shape: Sequence[int], affine: np.ndarray | None = None) -> VolumeGrid:
        """From a shape and a (4, 4) array; without one voxels are 1 mm and axes are RAS already."""
        rows = np.eye(4) if affine is None else np.asarray(affine, dtype=float)
        first, second, third = (int(side) for side in shape)
        return cls((first, second, third), tuple(tuple(float(value) for value in row) for row in rows))

    @property
    def matrix(self) -> np.ndarray:
        """The affine as a (4, 4) float64 array."""
        return np.array(self.affine)

    @cached_property
    def _orientation(self) -> np.ndarray:
        return io_orientation(self.matrix)  # (3, 2): axis of the patient and direction, for each axis of the array

    @property
    def ras_shape(self) -> tuple[int, int, int]:
        """Voxels to the right, front and head."""
        return tuple(self.shape[i] for i in self._ras_axes)  # type: ignore[return-value]

    @property
    def ras_spacing(self) -> tuple[float, float, float]:
        """Millimetres between voxels to the right, front and head."""
        lengths = np.linalg.norm(self.matrix[:3, :3], axis=0)
        return tuple(float(lengths[i]) for i in self._ras_axes)  # type: ignore[return-value]

    @property
    def ras_box(self) -> tuple[slice, ...]:
        """`box`, or the whole volume, to index an array in RAS order with."""
        return tuple(slice(*ends) for ends in self.box or [(0, side) for side in self.ras_shape])

    @property
    def ras_extent(self) -> np.ndarray:
        """(3,) millimetres of the box to the right, front and head."""
        return np.array([part.stop - part.start for part in self.ras_box]) * self.ras_spacing

    @property
    def _ras_axes(self) -> list[int]:
        return [int(axis) for axis in np.argsort(self._orientation[:, 0])]

    def to_ras(self, values: np.ndarray) -> np.ndarray:
        """An array on this grid (shape) -> (ras_shape), turned and flipped but not resampled."""
        return apply_orientation(values, self._orientation)

    def from_ras(self, values: np.ndarray) -> np.ndarray:
        """Inverse of `to_ras`."""
        return apply_orientation(values, ornt_transform(axcodes2ornt("RAS"), self._orientation))


@dataclass(frozen=True)
class Volume:
    """
    Args:
        values: (D, H, W) float32, axes as in the file.
        grid: where they are.
        path: of the file, if it came from one.
    """

    values: np.ndarray
    grid: VolumeGrid
    path: Path | None = None


def read_volume(source: str | os.PathLike | nib.spatialimages.SpatialImage, scaled: bool = True) -> Volume:
    """Reads a NIfTI file, a folder with one DICOM series (needs the extra `dicom`), or takes a loaded nibabel image.

    Values are the stored ones times the file's own slope plus its intercept.

    Args:
        source: file, folder or image.
        scaled: False does not ask for a usable slope, as it does not matter to a mask.

    Raises:
        VolumeReadError: missing, empty, truncated or unknown file; not one three-dimensional image; a single slice;
            NaN or infinite voxels; voxel size, orientation or scaling that are missing or impossible. Names the file,
            the reason and what to do.
    """
    if isinstance(source, nib.spatialimages.SpatialImage):
        file = source.get_filename()
        if file is None or not _is_image_of(source, Path(file)):
            return _from_image(source, str(file or "the nibabel image"))
        _check_header(Path(file), file)
        return replace(_from_image(source, file), path=Path(file))
    path = Path(source)
    if path.is_dir():
        return _read_dicom_series(path)
    name = f"{path}"
    check_name(path)
    if not path.exists():
        raise VolumeReadError(f"cannot read volume {name}: no such file")
    if path.stat().st_size == 0:
        raise VolumeReadError(f"cannot read volume {name}: the file is empty (0 bytes)")
    if not is_volume_file(path):
        hint = "; of a DICOM series give the folder" if is_dicom_file(path) else ""
        raise VolumeReadError(f"cannot read volume {name}: not a NIfTI file ({' or '.join(VOLUME_SUFFIXES)}){hint}")
    try:
        _check_header(path, name, scaled)
        image: Any = nib.load(path)
        volume = _from_image(image, name)
    except VolumeReadError:
        raise
    except Exception as error:  # damaged files make nibabel raise nearly anything
        raise VolumeReadError(
            f"cannot read volume {name}: the file is truncated or damaged ({error or type(error).__name__})"
        ) from error
    return Volume(volume.values, volume.grid, path)


def _is_image_of(image: Any, path: Path) -> bool:
    """Whether a file is still the one that an image was loaded from."""
    if not (is_volume_file(path) and path.is_file()):
        return False
    try:
        found: Any = nib.load(path)
    except Exception:  # damaged since: the image may be whole
        return False
    return found.shape == image.shape and image.affine is not None and np.allclose(found.affine, image.affine)


def _check_header(path: Path, name: str, scaled: bool = True) -> None:
    """Looks at the header as it is stored: nibabel repairs voxel sizes and scaling on loading, and hides what was wrong."""
    with nib.openers.ImageOpener(str(path), "rb") as file:
        start = file.read(nib.Nifti2Header.sizeof_hdr)
    kind = nib.Nifti2Header if start[4:6] == b"n+" else nib.Nifti1Header
    start = start[: kind.sizeof_hdr]
    if (start[4:6] != b"n+" and start[344:346] not in (b"n+", b"ni")) or len(start) < kind.sizeof_hdr:
        raise VolumeReadError(
            f"cannot read volume {name}: the file is truncated or no NIfTI file: it has no such header"
        )
    header = kind(start, check=False)
    spacing = [float(size) for size in header["pixdim"][1:4]]
    if not all(math.isfinite(size) and size > 0 for size in spacing):
        raise VolumeReadError(
            f"cannot read volume {name}: its voxels measure {' x '.join(f'{size:g}' for size in spacing)} mm; "
            "every side must be positive: correct pixdim in the header"
        )
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        raise VolumeReadError(
            f"cannot read volume {name}: it has no affine (sform_code and qform_code are 0), so left and right, up and down "
            "are unknown; save it again with the affine of its scan"
        )
    unit = LENGTHS.get(int(header["xyzt_units"]) & 7)
    if unit is not None:
        raise VolumeReadError(
            f"cannot read volume {name}: its header gives lengths in {unit}; save it again in millimetres (xyzt_units, "
            "pixdim and affine)"
        )
    if scaled and (float(header["scl_slope"]) == 0 or math.isinf(float(header["scl_slope"]))):
        raise VolumeReadError(
            f"cannot read volume {name}: its rescale slope (scl_slope) is {float(header['scl_slope']):g}, so what its voxels "
            "mean is unknown; set it to 1 if they are right as stored"
        )


def _from_image(image: Any, name: str) -> Volume:
    shape = tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        kind = f"{len(shape)}-D, of shape {shape}"
        remedy = "choose one frame or channel of it" if len(shape) > 3 else "give a stack of slices"
        raise VolumeReadError(f"cannot read volume {name}: it is {kind}, not one 3-D volume; {remedy}")
    if min(shape) < 2:
        raise VolumeReadError(
            f"cannot read volume {name}: it is a single slice, {' x '.join(map(str, shape))} voxels; "
            "give the whole stack, or treat it as an image"
        )
    if image.affine is None:
        raise VolumeReadError(
            f"cannot read volume {name}: it has no affine; save it again with the affine of its scan"
        )
    affine = np.asarray(image.affine, dtype=float)
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine[:3, :3])) > 1e-6 * sides.prod():
        raise VolumeReadError(
            f"cannot read volume {name}: its affine is singular or not finite, so voxels have no size: {affine[:3].tolist()}"
        )
    data = np.asanyarray(image.dataobj)
    if data.dtype.kind not in "iufb":
        raise VolumeReadError(f"cannot read volume {name}: its voxels are of type {data.dtype}, not numbers")
    values = np.ascontiguousarray(data.reshape(shape), dtype=np.float32)
    return Volume(_finite(values, f"cannot read volume {name}: it"), VolumeGrid.of(shape, affine))


def _finite(values: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise VolumeReadError(
            f"{what} holds {count} NaN or infinite voxels; replace them, for instance by 0 outside the body"
        )
    return values


def is_dicom_file(path: str | os.PathLike) -> bool:
    """Whether a file says that it is DICOM; its name need not."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def find_dicom_folders(folder: str | os.PathLike) -> list[Path]:
    """Folders, this one or any below, that hold DICOM files, sorted by path."""

    def is_slice(path: Path) -> bool:
        return path.name != "DICOMDIR" and is_dicom_file(path)  # that one is the index of a disc

    return sorted({path.parent for path in data_files(Path(folder), True, is_slice)})


def _read_dicom_series(folder: Path) -> Volume:
    """One DICOM series, with its rescale slope and intercept applied."""
    try:
        import SimpleITK
    except ImportError:
        raise VolumeReadError(
            f"cannot read {folder}: reading DICOM series needs SimpleITK; pip install 'iltm-anomaly[dicom]'"
        ) from None
    warns = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # what matters of it is an error of `_check_slices`
    try:
        return _from_dicom_files(folder, SimpleITK)
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(warns)


def _from_dicom_files(folder: Path, SimpleITK: Any) -> Volume:
    series = SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        found = "no DICOM series" if not series else f"{len(series)} DICOM series"
        raise VolumeReadError(f"cannot read {folder}: it holds {found}; give a folder with the slices of one")
    reader = SimpleITK.ImageSeriesReader()
    reader.MetaDataDictionaryArrayUpdateOn()
    files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    reader.SetFileNames(files)
    # PET has a slope for every slice; by itself the reader would take the type that the first one's values fit into
    reader.SetOutputPixelType(SimpleITK.sitkFloat32)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise VolumeReadError(f"cannot read the DICOM series in {folder}: {error}") from error
    _check_slices(reader, len(files), folder)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    affine[:2] *= -1  # DICOM counts to the left and to the back
    values = SimpleITK.GetArrayFromImage(image).transpose()  # (z, y, x) -> (x, y, z)
    volume = _from_image(nib.Nifti1Image(values.astype(np.float32), affine), str(folder))
    return Volume(volume.values, volume.grid, folder)


MAX_SHIFT = 0.1  # mm, of slices across their normal
SLICE_TAGS = {"0028|0030": ("pixel spacing", 2), "0020|0032": ("position", 3), "0020|0037": ("orientation", 6)}


def _check_slices(reader: Any, count: int, folder: Path) -> None:
    """What ITK reads without complaint: slices without a place, missing or twice, a slope of 0, counts that are no SUV."""

    def numbers(number: int, tag: str) -> list[float]:
        text = reader.GetMetaData(number, tag) if reader.HasMetaDataKey(number, tag) else ""
        return [float(value) for value in text.split("\\")] if text.strip() else []

    name = f"cannot read the DICOM series in {folder}:"
    if numbers(0, "0028|0002") not in ([], [1.0]):
        raise VolumeReadError(
            f"{name} it is in colour, with {numbers(0, '0028|0002')[0]:g} samples a voxel; give a grey one"
        )
    for number in range(count):
        if numbers(number, "0028|1053") == [0.0]:
            raise VolumeReadError(
                f"{name} slice {number} has a rescale slope (0028,1053) of 0, so what its voxels mean is unknown; set it to 1 if "
                "they are right as stored"
            )
        for tag, (what, length) in (
            SLICE_TAGS.items() if count > 1 else ()
        ):  # else the frames of one file, placed within it
            found = numbers(number, tag)
            if len(found) != length or (what == "pixel spacing" and not min(found) > 0):
                raise VolumeReadError(
                    f"{name} slice {number} has no usable {what} ({tag.replace('|', ',')}), but {found}; export the series again"
                )
    if count > 1:
        tables = {tag: np.array([numbers(number, tag) for number in range(count)]) for tag in SLICE_TAGS}
        places = tables.pop("0020|0032")
        for tag, given in tables.items():
            other = np.flatnonzero(np.abs(given - given[0]).max(1) > _ROUNDING)
            if other.size:
                raise VolumeReadError(
                    f"{name} slice {other[0]} has another {SLICE_TAGS[tag][0]} ({tag.replace('|', ',')}) than slice 0, "
                    f"{given[other[0]].tolist()} and {given[0].tolist()}, so they are no stack; export them apart"
                )
        turn = tables["0020|0037"][0]
        normal = np.cross(turn[:3], turn[3:])
        aside = places - places[0] - np.outer((places - places[0]) @ normal, normal)
        if (shift := float(np.linalg.norm(aside, axis=1).max())) > MAX_SHIFT:
            raise VolumeReadError(
                f"{name} its slices do not lie straight above each other but are shifted sideways by up to {shift:.3g} mm, as "
                "with a tilted gantry; resample the series to an upright one"
            )
        steps = np.diff(np.sort(places @ normal))
        if not steps.min() > 0.5 * np.median(steps) or steps.max() > 1.5 * np.median(steps):
            raise VolumeReadError(
                f"{name} its {count} slices lie {steps.min():g} to {steps.max():g} mm apart, so some are missing or damaged, or "
                "it has several frames; give one slice for every place"
            )
    if reader.HasMetaDataKey(0, "0054|1001") and reader.GetMetaData(0, "0054|1001").strip() == "BQML":
        logger.warning("%s: its values are Bq/ml, not SUV; a recipe with a range of SUV does not suit them", folder)


def write_volume(values: np.ndarray, path: str | os.PathLike, like: Volume) -> Path:
    """Writes an array (D, H, W) that lies on the grid of another volume, with that one's affine and, where it came from a
    NIfTI file, its header (units, codes, description).

    Raises:
        ValueError: an array of another shape.
    """
    if values.shape != like.grid.shape:
        raise ValueError(f"values have shape {values.shape}, the volume they belong to {like.grid.shape}")
    stored = values.astype(np.uint8) if values.dtype == bool else values
    header: Any = None
    if like.path is not None and like.path.is_file():
        header = nib.load(like.path).header.copy()
        header.set_data_dtype(stored.dtype)
        header["cal_max"] = header["cal_min"] = 0  # the display range of the input, not of this
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    image_type = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = image_type(stored, like.grid.matrix, header if isinstance(header, nib.Nifti1Header) else None)
    if header is None:
        image.header.set_xyzt_units("mm")
    nib.save(image, target)
    return target


def cropped_to_foreground(volume: Volume, threshold: float) -> VolumeGrid:
    """The volume's grid with the box around its subject: the connected regions (26 neighbours) above `threshold`, without those
    of less than a hundredth of the largest; all of the volume if nothing is above."""
    from scipy import ndimage

    grid = volume.grid
    labels, count = ndimage.label(grid.to_ras(volume.values) > threshold, structure=np.ones((3, 3, 3)))
    if not count:
        return grid
    sizes = np.bincount(labels.ravel())[1:]
    regions = [
        region for region, size in zip(ndimage.find_objects(labels), sizes, strict=True) if size >= sizes.max() / 100
    ]
    ends = [(min(p.start for p in parts), max(p.stop for p in parts)) for parts in zip(*regions, strict=True)]
    return replace(grid, box=tuple(ends))


def resize_axis(values: np.ndarray, axis: int, length: int) -> np.ndarray:
    """Resamples one axis over the same extent: linear, with a triangle as wide as the coarser of both steps, so that making it
    smaller averages. Float32."""
    before = values.shape[axis]
    if before == length:
        return values
    ratio = before / length
    centres = (np.arange(length) + 0.5) * ratio - 0.5
    weights = 1 - np.abs(np.arange(before) - np.clip(centres, 0, before - 1)[:, None]) / max(ratio, 1.0)
    weights = np.maximum(weights, 0.0)
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(np.tensordot(weights, values, axes=(1, axis)), 0, axis))


def resize(values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resamples an array to another shape over the same extent, axis by axis (`resize_axis`)."""
    for axis, length in enumerate(shape):
        values = resize_axis(values, axis, length)
    return values


def is_volume_file(path: str | os.PathLike) -> bool:
    """Whether a name ends like one of a NIfTI file."""
    return Path(path).name.lower().endswith(VOLUME_SUFFIXES)


def volume_stem(path: str | os.PathLike) -> str:
    """Name of a file without `.nii` or `.nii.gz`."""
    name = Path(path).name
    for suffix in sorted(VOLUME_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def is_mask_name(path: str | os.PathLike) -> bool:
    """Whether a name is, or ends like, one of ground truth: `mask`, or `P1_lesion`."""
    return volume_stem(path).lower().rpartition("_")[2] in MASK_NAMES


def find_volumes(folder: str | os.PathLike, recursive: bool = False) -> list[Path]:
    """NIfTI files of a folder, as `data_files` lists them. Those named like ground truth are left out; where no volume has the
    rest of that name, as with `no_lesion`, a warning names them."""
    found = data_files(Path(folder), recursive, is_volume_file)
    volumes = [path for path in found if not is_mask_name(path)]
    stems, parents = [volume_stem(path) for path in volumes], {path.parent for path in volumes}
    for path in filter(is_mask_name, found):
        subject = volume_stem(path).rpartition("_")[0]
        is_known = any(stem.startswith(subject) for stem in stems) if subject else path.parent in parents
        if not is_known:
            logger.warning("left out: %s is named like ground truth; rename it if it is a volume", path)
    return volumes


def load_volumes(root: str | os.PathLike, category: str | None = None) -> DatasetDict:
    """Loads volumes: a folder in the layout of MVTec AD, a plain folder, or a pattern such as `'scans/*_suv.nii.gz'`.

        <root>/train/good/NAME.nii.gz       <root>/train/NAME.nii.gz            (unlabelled)
        <root>/test/good/NAME.nii.gz        <root>/test/<defect>/NAME.nii.gz
        <root>/ground_truth/<defect>/NAME_mask.nii.gz

    In a plain folder, and beside the files of a pattern, `NAME_mask` or `NAME_lesion` is ground truth of `NAME`, and of
    `NAME_suv` and the like, and a bare `mask` of the only volume in its folder. Every file is read once; one that cannot be used
    is reported as a warning and left out.

    Args:
        root: folder or pattern (in quotes on the command line).
        category: name of a sub-folder that holds the layout.

    Returns:
        DatasetDict with columns image and mask (paths; mask may be None), label (0 good, 1 lesions, -1 unknown) and defect;
        train and test, or train alone where there is no test folder.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no readable volume, a lesion-bearing test volume without ground truth, or ground truth on another grid.
    """
    from datasets import DatasetDict

    text = os.path.expanduser(os.fspath(root))
    if glob.has_magic(text) and not Path(text).exists():
        if category is not None:
            raise ValueError(f"{text} is a pattern, which has no category {category!r}: leave it out")
        files = [Path(path) for path in sorted(glob.glob(text, recursive=True)) if is_volume_file(path)]
        if not files:
            raise FileNotFoundError(f"no NIfTI file matches {text}")
        matched: list[Entry] = [(path, None, find_mask_beside(path)) for path in files if not is_mask_name(path)]
        return DatasetDict({"train": _build(matched, "train", text)})
    folder = Path(text) / category if category else Path(text)
    if folder.is_file():
        raise ValueError(
            f"{folder} is a file: give its folder, or a pattern in quotes such as '{folder.parent}/*.nii.gz'"
        )
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no such folder: {folder} (looked in {Path.cwd()}); volumes are read from folders, not from the Hub"
        )
    refuse_half_a_category(folder)
    if (folder / "train").is_dir():
        entries_of = {split: _list_split(folder, split) for split in ("train", "test") if (folder / split).is_dir()}
        tested = {mask for _, _, mask in entries_of.get("test", [])}
        # Ground truth is numbered as in test; what a test volume has is never a training volume's.
        entries_of["train"] = [
            (p, defect, None if mask in tested else mask) for p, defect, mask in entries_of["train"]
        ]
        return DatasetDict({split: _build(found, split, str(folder / split)) for split, found in entries_of.items()})
    volumes = find_volumes(folder, recursive=True)
    refuse_hidden_categories(folder, volumes)
    entries: list[Entry] = [(path, None, find_mask_beside(path)) for path in volumes]
    if not entries:
        dicom = "; DICOM must be converted to NIfTI for training" if find_dicom_folders(folder) else ""
        raise ValueError(f"no volume in {folder}: no file ends in {' or '.join(VOLUME_SUFFIXES)}{dicom}")
    return DatasetDict({"train": _build(entries, "train", str(folder))})


def find_mask_beside(path: Path) -> Path | None:
    """Ground truth in the same folder: `P1_suv_mask`, or `P1_mask`, of `P1_suv`; `mask` of the only volume there; any of
    `MASK_NAMES`."""
    stem = volume_stem(path)
    stems = [stem, stem.rpartition("_")[0]]
    named = [f"{s}_{name}" for s in stems if s for name in MASK_NAMES]
    found = _first_file(path.parent, named)
    bare = _first_file(path.parent, MASK_NAMES) if found is None else None
    if bare is None:
        return found
    volumes = [file for file in data_files(path.parent, False, is_volume_file) if not is_mask_name(file)]
    return bare if len(volumes) == 1 else None


def _first_file(folder: Path, stems: Iterable[str]) -> Path | None:
    for stem in stems:
        for suffix in (*reversed(VOLUME_SUFFIXES), *map(str.upper, reversed(VOLUME_SUFFIXES))):
            path = folder / f"{stem}{suffix}"
            if path.is_file():
                return path
    return None


Entry = tuple[Path, str | None, Path | None]


def _list_split(folder: Path, split: str) -> list[Entry]:
    base = folder / split
    entries: list[Entry] = []
    subfolders = sorted(path for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))
    for subfolder in sorted(
        subfolders, key=lambda path: (path.name != GOOD if split == "train" else False, path.name)
    ):
        truth = folder / "ground_truth" / subfolder.name
        for path in find_volumes(subfolder):
            stem = volume_stem(path)
            mask = None if subfolder.name == GOOD else _first_file(truth, [*(f"{stem}_{n}" for n in MASK_NAMES), stem])
            if mask is None and subfolder.name != GOOD and split == "test":
                raise ValueError(f"{path} has no ground truth: expected {truth / f'{stem}_mask.nii.gz'}")
            entries.append((path, subfolder.name, mask))
    loose = find_volumes(base)
    if split == "train":
        entries += [(path, None, None) for path in loose]
    elif loose:
        logger.warning("%d volume(s) directly in %s are in no folder of their kind; left out", len(loose), base)
    return entries


def _build(entries: list[Entry], split: str, where: str) -> Dataset:
    from datasets import Dataset, Features, NamedSplit, Value

    rows: list[Entry] = []
    problem: str | None = None
    for path, defect, mask in entries:
        try:
            volume = read_volume(path)
            try:
                marked = read_mask(mask, volume.grid)
            except ValueError as error:
                if split == "test":
                    raise
                logger.warning("ground truth left out, training needs none: %s", error)
                mask = None
            else:
                if split == "test" and mask is not None and not marked.any():
                    logger.warning(
                        "left out: %s marks no voxel although its volume is of defect type %r", mask, defect
                    )
                    continue
        except VolumeReadError as error:
            problem = str(error)
            logger.warning("left out: %s", error)
            continue
        rows.append((path, defect, mask))
    if not rows and (problem or split == "train"):
        raise ValueError(f"no readable volume in {where} ({problem or 'the folder holds none'})")
    features = Features(
        {"image": Value("string"), "mask": Value("string"), "label": Value("int64"), "defect": Value("string")}
    )
    columns = {
        "image": [str(path.absolute()) for path, _, _ in rows],
        "mask": [None if mask is None else str(mask.absolute()) for _, _, mask in rows],
        "label": [label_of(defect) for _, defect, _ in rows],
        "defect": [defect for _, defect, _ in rows],
    }
    return Dataset.from_dict(columns, features=features, split=NamedSplit(split))


def read_mask(path: str | os.PathLike | None, grid: VolumeGrid) -> np.ndarray:
    """Ground truth (D, H, W) bool on `grid`, everything above 0; all False where `path` is None.

    Raises:
        VolumeReadError: as `read_volume`.
        ValueError: ground truth on another grid.
    """
    if path is None:
        return np.zeros(grid.shape, dtype=bool)
    mask = read_volume(path, scaled=False)
    same = mask.grid.shape == grid.shape and np.allclose(mask.grid.matrix, grid.matrix, atol=_ROUNDING, rtol=_ROUNDING)
    if not same:
        raise ValueError(
            f"mask {path} has {mask.grid.shape} voxels and affine {mask.grid.affine}, its volume {grid.shape} and "
            f"{grid.affine}: resample it onto the volume"
        )
    return mask.values > 0
