"""Data sets of volumes."""

from __future__ import annotations

import glob
import logging
import os
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, NamedSplit, Value

from iltm_anomaly.data.dicom import find_dicom_folders
from iltm_anomaly.data.images import VolumeReadError
from iltm_anomaly.data.mvtec import refuse_half_a_category, refuse_hidden_categories
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

logger = logging.getLogger(__name__)

Entry = tuple[Path, str | None, Path | None]  # volume, defect and ground truth


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
            mask = None if subfolder.name == GOOD else first_file(truth, [*(f"{stem}_{n}" for n in MASK_NAMES), stem])
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
