"""Data sets of volumes, from folders or patterns of NIfTI files."""

import glob
import logging
import os
from functools import partial
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, NamedSplit, Value

from iltm_anomaly.data.dicom import find_dicom_folders
from iltm_anomaly.data.layout import (
    Entry,
    is_category,
    list_category,
    refuse_half_a_category,
    refuse_hidden_categories,
)
from iltm_anomaly.data.schema import GOOD, label_of
from iltm_anomaly.data.volume_files import (
    MASK_NAMES,
    VOLUME_SUFFIXES,
    find_mask_beside,
    find_volumes,
    first_file,
    is_mask_name,
    is_volume_file,
    read_mask,
    read_volume,
    volume_stem,
)
from iltm_anomaly.data.volume_grid import VolumeGrid, VolumeReadError

logger = logging.getLogger(__name__)


def load_volumes(root: str | os.PathLike, category: str | None = None) -> DatasetDict:
    """Loads volumes: a folder in the layout of MVTec AD, a plain folder, or a pattern such as `'scans/*_suv.nii.gz'`.

        <root>/train/good/NAME.nii.gz       <root>/train/NAME.nii.gz            (unlabelled)
        <root>/test/good/NAME.nii.gz        <root>/test/<defect>/NAME.nii.gz
        <root>/ground_truth/<defect>/NAME_mask.nii.gz

    In a plain folder, and beside the files of a pattern, ground truth is found by its name (`find_mask_beside`). Every file is
    read once; one that cannot be used is reported as a warning and left out.

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
    text = os.path.expanduser(os.fspath(root))
    if glob.has_magic(text) and not Path(text).exists():
        if category is not None:
            raise ValueError(f"{text} is a pattern, which has no category {category!r}: leave it out")
        files = [Path(path) for path in sorted(glob.glob(text, recursive=True)) if is_volume_file(path)]
        if not files:
            raise FileNotFoundError(f"no NIfTI file matches {text}")
        return DatasetDict({"train": _build_unlabelled([path for path in files if not is_mask_name(path)], text)})
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
    if is_category(folder):
        return _load_category(folder)
    volumes = find_volumes(folder, recursive=True)
    refuse_hidden_categories(folder, volumes)
    if not volumes:
        dicom = "; DICOM must be converted to NIfTI for training" if find_dicom_folders(folder) else ""
        raise ValueError(f"no volume in {folder}: no file ends in {' or '.join(VOLUME_SUFFIXES)}{dicom}")
    return DatasetDict({"train": _build_unlabelled(volumes, str(folder))})


def find_mask(folder: Path, path: Path, defect: str) -> Path | None:
    """Ground truth of a volume with lesions of the category in `folder`; None if there is none."""
    stem = volume_stem(path)
    return first_file(folder / "ground_truth" / defect, [*(f"{stem}_{name}" for name in MASK_NAMES), stem])


def _load_category(folder: Path) -> DatasetDict:
    entries = list_category(folder, "volume", find_volumes, partial(find_mask, folder))
    for path, defect, mask in entries.get("test", []):
        if defect not in (None, GOOD) and mask is None:
            expected = folder / "ground_truth" / defect / f"{volume_stem(path)}_mask.nii.gz"
            raise ValueError(f"{path} has no ground truth: expected {expected}")
    return DatasetDict({split: _build(found, split, str(folder / split)) for split, found in entries.items()})


def _build_unlabelled(volumes: list[Path], where: str) -> Dataset:
    return _build([(path, None, find_mask_beside(path)) for path in volumes], "train", where)


def _build(entries: list[Entry], split: str, where: str) -> Dataset:
    """Reads every file once and makes a data set of those that can be used; `where` names the folder in messages."""
    rows: list[Entry] = []
    problem: str | None = None
    for path, defect, mask in entries:
        try:
            grid = read_volume(path).grid
            if split == "train":
                mask = _usable_mask(mask, grid)
            elif mask is not None and not read_mask(mask, grid).any():
                logger.warning("left out: %s marks no voxel although its volume is of defect type %r", mask, defect)
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


def _usable_mask(mask: Path | None, grid: VolumeGrid) -> Path | None:
    """Ground truth of a training volume, or None, with a warning, where it cannot be used: training needs none."""
    try:
        read_mask(mask, grid)
    except ValueError as error:
        logger.warning("ground truth left out, training needs none: %s", error)
        return None
    return mask
