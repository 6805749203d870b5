"""Data sets of images in the layout of MVTec AD, from a folder or from the Hub."""

import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict

from iltm_anomaly.data import GOOD, HUB_ID
from iltm_anomaly.data.hub import download_tree, load_hub_dataset
from iltm_anomaly.data.images import ImageReadError, find_images, open_image, read_image
from iltm_anomaly.data.layout import Entry, existing_folder, find_category, is_dataset_folder, list_category
from iltm_anomaly.data.schema import build_dataset, mask_to_png, normalise_mask

logger = logging.getLogger(__name__)

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".jpg")

NAMED_IN_ERRORS = 5
"""Files that an error message lists before it counts the rest."""


def load_mvtec(
    root_or_hub_id: str | os.PathLike, category: str | None = None, require_masks: bool = True, **load_kwargs
) -> DatasetDict:
    """Loads one category of a data set in the layout of MVTec AD.

        <root>/<category>/train/good/NNN.png
        <root>/<category>/test/good/NNN.png
        <root>/<category>/test/<defect>/NNN.png
        <root>/<category>/ground_truth/<defect>/NNN_mask.png

    A mask may also be a folder `ground_truth/<defect>/NNN` of several, as in MVTec LOCO AD; their union is taken.

    A train folder may hold more than `good`: other subfolders are known defects (with masks where they exist), and images
    directly in `train` are unlabelled (label -1, defect None).

    Every file is read once. Images that cannot be read (truncated, 0 bytes, not an image) are reported as warnings and left
    out. The data set holds paths, so images are read again on access.

    Args:
        root_or_hub_id: folder that holds categories, or that is a category itself; or a folder that `datasets` reads
            (parquet, metadata file, `save_to_disk`); or a Hub id "org/name", if no folder has that name. A data set that
            `datasets` reads needs a column image; mask, label and defect are taken where they exist.
        category: name of the category. May be left out where there is only one.
        require_masks: whether a defective test image must have a mask; with False its mask is None.
        load_kwargs: passed on to `datasets.load_dataset` for Hub data (revision, token, cache_dir, ...).

    Returns:
        DatasetDict with train and test (empty where the folder has none), columns image (PIL image in the file's own
        colour mode), mask (one channel, 0 and 255, or None), label (0 good, 1 defective, -1 unknown), defect (string).
        Rows are sorted by defect type (train: good first) and file name.

    Raises:
        FileNotFoundError: no such folder, and no such data set on the Hub.
        ValueError: no such category (names those that exist), no layout that is known, defective test images without a
            mask, a mask of another size than its image, or no readable image.

    Example:
        >>> dataset = load_mvtec("../shared/data/mvtec", "bottle")
        >>> dataset["train"].num_rows, dataset["test"].num_rows
        (209, 83)
    """
    if not Path(root_or_hub_id).expanduser().exists() and HUB_ID.fullmatch(str(root_or_hub_id)):
        tree = download_tree(str(root_or_hub_id), category, **load_kwargs)
        if tree is None:
            return load_hub_dataset(str(root_or_hub_id), category, require_masks, **load_kwargs)
        return _load_category(find_category(tree, category), require_masks)
    root = existing_folder(root_or_hub_id)
    if is_dataset_folder(root):
        return load_hub_dataset(str(root), category, require_masks, **load_kwargs)
    return _load_category(find_category(root, category), require_masks)


def read_rows(
    entries: Iterable[Entry], needs_masks: bool = True
) -> tuple[list[dict[str, Any]], list[tuple[Path, str]]]:
    """Reads image files and their masks, to see whether they can be used.

    Args:
        entries: the images.
        needs_masks: False, for training, leaves out a mask that cannot be used and keeps its image.

    Returns:
        Rows (image, mask, defect) of the images that can be used, in the given order, and (path, reason) of the
        others, which are also logged as warnings.

    Raises:
        ValueError: a mask of another size than its image.
    """
    rows, unreadable = [], []
    # Loading takes its time for decoding, which releases the GIL: threads share the work.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for result in pool.map(partial(_read_row, needs_masks=needs_masks), entries):
            if isinstance(result, dict):
                rows.append(result)
            else:
                logger.warning("left out: %s", result[1])
                unreadable.append(result)
    return rows, unreadable


def _read_row(entry: Entry, needs_masks: bool) -> dict[str, Any] | tuple[Path, str]:
    image_path, defect, mask_path = entry
    plain = {"image": image_path, "mask": None, "defect": defect}
    try:
        image = read_image(image_path)
    except ImageReadError as error:
        return image_path, str(error)
    if mask_path is None:
        return plain
    try:
        mask, mask_size, has_defect = _read_mask(mask_path)
        if mask_size != (image.height, image.width):
            raise ValueError(
                f"mask {mask_path} is {mask_size[1]} x {mask_size[0]} pixels but its image {image_path} is "
                f"{image.width} x {image.height}; resize one of them"
            )
    except ValueError as error:  # ImageReadError too
        if not needs_masks:
            logger.warning("mask left out, training needs none: %s", error)
            return plain
        if isinstance(error, ImageReadError):
            return image_path, str(error)
        raise
    if not has_defect:
        logger.warning("mask %s marks no pixel although its image is of defect type %r; left out", mask_path, defect)
    return {"image": image_path, "mask": mask if has_defect else None, "defect": defect}


def marked_pixels(path: Path) -> np.ndarray:
    """Ground truth (H, W) bool of a mask, or of a folder of masks.

    Raises:
        ValueError: if it cannot be read.
    """
    source, size, has_defect = _read_mask(path)
    if not has_defect:
        return np.zeros(size, dtype=bool)
    return np.asarray(open_image(path, source["bytes"] if isinstance(source, dict) else None).convert("L")) > 127


def _read_mask(path: Path) -> tuple[Any, tuple[int, int], bool]:
    """As `normalise_mask`; for a folder, of the union of its masks."""
    if not path.is_dir():
        return normalise_mask(path)
    union: np.ndarray | None = None
    for part in find_images(path):
        source, size, _ = normalise_mask(part)
        marked = np.asarray(open_image(part, source["bytes"] if isinstance(source, dict) else None)) > 0
        if union is not None and union.shape != size:
            raise ValueError(f"masks in {path} differ in size: {part.name} is {size[1]} x {size[0]} pixels")
        union = marked if union is None else union | marked
    if union is None:
        raise ImageReadError(f"cannot read mask {path}: the folder holds no image")
    return mask_to_png(union), union.shape[:2], bool(union.any())


def find_mask(folder: Path, image: Path, defect: str) -> Path | None:
    """The mask, or folder of masks, of a defective image of the category in `folder`; None if there is none."""
    truth = folder / "ground_truth" / defect
    names = [f"{stem}{suffix}" for stem in (f"{image.stem}_mask", image.stem) for suffix in MASK_SUFFIXES]
    parts = truth / image.stem
    return next((truth / name for name in names if (truth / name).is_file()), parts if parts.is_dir() else None)


def _load_category(folder: Path, require_masks: bool) -> DatasetDict:
    find = partial(find_mask, folder)
    entries: dict[str, list[Entry]] = {"test": []} | list_category(folder, "image", find_images, find)
    missing = [image for image, defect, mask in entries["test"] if defect != GOOD and mask is None]
    if missing and require_masks:
        listed = ", ".join(str(path) for path in missing[:NAMED_IN_ERRORS])
        more = f" and {len(missing) - NAMED_IN_ERRORS} more" if len(missing) > NAMED_IN_ERRORS else ""
        raise ValueError(
            f"{len(missing)} defective test image(s) without a mask: {listed}{more}; a mask is expected at "
            f"{folder / 'ground_truth'}/<defect>/<name>_mask.png: add them, or take the images out"
        )
    splits = {}
    for name in ("train", "test"):
        rows, unreadable = read_rows(entries[name], needs_masks=name == "test")
        if not rows and (unreadable or name == "train"):
            reason = f"the first of {len(unreadable)}: {unreadable[0][1]}" if unreadable else "the folder holds none"
            raise ValueError(f"no readable image in {folder / name} ({reason})")
        if name == "test" and require_masks:  # a mask that marks nothing has become None
            rows = [row for row in rows if row["defect"] == GOOD or row["mask"] is not None]
        splits[name] = build_dataset(rows, name)
    return DatasetDict(splits)
