"""Data sets in the layout of MVTec AD, from a folder or from the Hub."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from iltm_anomaly.data.hub import HUB_ID, is_dataset_folder, load_hub_dataset
from iltm_anomaly.data.images import ImageReadError, find_images, read_image
from iltm_anomaly.data.schema import GOOD, build_dataset, mask_to_png, normalise_mask, unknown_category

if TYPE_CHECKING:
    from datasets import DatasetDict

logger = logging.getLogger(__name__)

_NAMED_IN_ERRORS = 5  # files that an error message lists before it counts the rest


def load_mvtec(
    root_or_hub_id: str | os.PathLike, category: str | None = None, require_masks: bool = True, **load_kwargs
) -> DatasetDict:
    """Loads one category of a data set in the layout of MVTec AD.

        <root>/<category>/train/good/NNN.png
        <root>/<category>/test/good/NNN.png
        <root>/<category>/test/<defect>/NNN.png
        <root>/<category>/ground_truth/<defect>/NNN_mask.png

    A mask may also be a folder `ground_truth/<defect>/NNN` of several, as in MVTec LOCO AD; their union is taken.

    Every file is read once to see that it can be: images that cannot (truncated, 0 bytes, not an image) are reported
    as warnings and left out. The data set holds paths, so the images themselves are read again on access.

    A train folder may hold more than `good`: other subfolders are defects that are known (with masks where they
    exist), and images directly in `train` are unlabelled (label -1, defect None).

    Args:
        root_or_hub_id: folder that holds categories, or that is a category itself; or a folder that `datasets` reads
            (parquet, metadata file, `save_to_disk`); or a Hub id "org/name" where there is no such folder. A data set
            of `datasets` needs a column image; mask, label and defect are taken where they exist.
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
    root = Path(root_or_hub_id).expanduser()
    if not root.exists():
        if HUB_ID.fullmatch(str(root_or_hub_id)):
            return load_hub_dataset(str(root_or_hub_id), category, require_masks, **load_kwargs)
        raise FileNotFoundError(f"no such folder: {root} (looked in {Path.cwd()})")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file; give the folder of the data set")
    if is_dataset_folder(root):
        return load_hub_dataset(str(root), category, require_masks, **load_kwargs)
    return _load_category(_find_category(root, category), require_masks)


def list_categories(root: str | os.PathLike) -> list[str]:
    """Names of the categories (subfolders that hold a `train` folder) below a folder, sorted."""
    return sorted(path.name for path in Path(root).iterdir() if is_category(path))


def is_category(folder: str | os.PathLike) -> bool:
    """Whether a folder is laid out as a category of MVTec AD: it holds a `train` folder."""
    return (Path(folder) / "train").is_dir()


def refuse_half_a_category(folder: Path) -> None:
    """Raises ValueError for a folder with test or ground_truth and without train: read as a plain folder, its masks would be
    trained on."""
    if not (folder / "train").is_dir() and any((folder / name).is_dir() for name in ("test", "ground_truth")):
        raise ValueError(
            f"{folder} has a folder test or ground_truth and none named train: give the one that holds all three"
        )


def refuse_hidden_categories(folder: Path, files: Iterable[Path]) -> None:
    """Raises ValueError if a file of a plain folder is ground truth, or a test image of a category below: it would be trained
    on."""
    holding = {path for parent in {file.parent for file in files} for path in (parent, *parent.parents)}
    for path in sorted(path for path in holding if folder in path.parents):
        category = path.parent
        if path.name == "ground_truth" or (path.name == "test" and is_category(category)):
            known = is_category(category)
            remedy = f"Give {category.parent} and the category {category.name}" if known else "Move it elsewhere"
            raise ValueError(f"{path} lies in the plain folder {folder}: it would be trained on. {remedy}")


def read_rows(
    entries: Iterable[tuple[Path, str | None, Path | None]],
    needs_masks: bool = True,
) -> tuple[list[dict[str, Any]], list[tuple[Path, str]]]:
    """Reads image files, with their masks, to see whether they can be used.

    Args:
        entries: (image path, defect type or None, mask path or None) of each image.
        needs_masks: False, for training, leaves out a mask that cannot be used and keeps its image.

    Returns:
        Rows (image, mask, defect) of the images that can be used, in the given order, and (path, reason) of the
        others, which are also logged as warnings.

    Raises:
        ValueError: a mask of another size than its image.
    """
    rows, unreadable = [], []
    # Decoding releases the GIL. At full size (1024 x 1024) it is what loading takes time for.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for result in pool.map(partial(_read_row, needs_masks=needs_masks), entries):
            if isinstance(result, dict):
                rows.append(result)
            else:
                logger.warning("left out: %s", result[1])
                unreadable.append(result)
    return rows, unreadable


def _read_row(entry: tuple[Path, str | None, Path | None], needs_masks: bool) -> dict[str, Any] | tuple[Path, str]:
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


def _read_mask(path: Path) -> tuple[Any, tuple[int, int], bool]:
    """As `normalise_mask`; of a folder the union of its masks."""
    if not path.is_dir():
        return normalise_mask(path)
    union: np.ndarray | None = None
    for part in find_images(path):
        source, size, _ = normalise_mask(part)
        with Image.open(io.BytesIO(source["bytes"]) if isinstance(source, dict) else source) as image:
            marked = np.asarray(image) > 0
        if union is not None and union.shape != size:
            raise ValueError(f"masks in {path} differ in size: {part.name} is {size[1]} x {size[0]} pixels")
        union = marked if union is None else union | marked
    if union is None:
        raise ImageReadError(f"cannot read mask {path}: the folder holds no image")
    return mask_to_png(union), union.shape[:2], bool(union.any())


def _find_category(root: Path, category: str | None) -> Path:
    if is_category(root):
        if category is None or category == root.resolve().name:
            return root
        raise ValueError(f"{root} is itself a category (it holds a train folder), so it has no category {category!r}")
    names = list_categories(root)
    if not names:
        raise ValueError(
            f"{root} is not in the layout of MVTec AD: neither it nor a subfolder holds a folder named train; "
            "for a plain folder of images use load_folder"
        )
    if category is None:
        if len(names) > 1:
            raise ValueError(f"{root} holds {len(names)} categories; choose one with category=: {', '.join(names)}")
        return root / names[0]
    if category not in names:
        raise ValueError(unknown_category(category, names, str(root)))
    return root / category


def _load_category(folder: Path, require_masks: bool) -> DatasetDict:
    from datasets import DatasetDict

    train, test = _list_split(folder, "train"), _list_split(folder, "test")
    test_names = {(defect, image.stem) for image, defect, _ in test}
    # Masks are numbered as in test; a mask that a test image has is never a training image's.
    train = [(image, defect, None if (defect, image.stem) in test_names else mask) for image, defect, mask in train]
    missing = [image for image, defect, mask in test if defect != GOOD and mask is None]
    if missing and require_masks:
        listed = ", ".join(str(path) for path in missing[:_NAMED_IN_ERRORS])
        more = f" and {len(missing) - _NAMED_IN_ERRORS} more" if len(missing) > _NAMED_IN_ERRORS else ""
        raise ValueError(
            f"{len(missing)} defective test image(s) without a mask: {listed}{more}; a mask is expected at "
            f"{folder / 'ground_truth'}/<defect>/<name>_mask.png: add them, or take the images out (in Python, "
            "require_masks=False loads them with mask None)"
        )
    splits = {}
    for name, entries in (("train", train), ("test", test)):
        rows, unreadable = read_rows(entries, needs_masks=name == "test")
        if not rows and (unreadable or name == "train"):
            reason = f"the first of {len(unreadable)}: {unreadable[0][1]}" if unreadable else "the folder holds none"
            raise ValueError(f"no readable image in {folder / name} ({reason})")
        if name == "test" and require_masks:  # of a mask that marks nothing
            rows = [row for row in rows if row["defect"] == GOOD or row["mask"] is not None]
        splits[name] = build_dataset(rows, name)
    return DatasetDict(splits)


def _list_split(folder: Path, split: str) -> list[tuple[Path, str | None, Path | None]]:
    base = folder / split
    if not base.is_dir():
        return []
    entries: list[tuple[Path, str | None, Path | None]] = []
    subfolders = [path for path in base.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX"))]
    for subfolder in sorted(
        subfolders, key=lambda path: (path.name != GOOD if split == "train" else False, path.name)
    ):
        defect = subfolder.name
        for image in find_images(subfolder):
            entries.append((image, defect, None if defect == GOOD else _find_mask(folder, defect, image.stem)))
    loose = find_images(base)
    if split == "train":
        entries.extend((image, None, None) for image in loose)
    elif loose:
        logger.warning("%d image(s) directly in %s are in no defect folder; left out", len(loose), base)
    return entries


def _find_mask(folder: Path, defect: str, stem: str) -> Path | None:
    for name in (f"{stem}_mask", stem):
        for suffix in (".png", ".bmp", ".tif", ".tiff", ".jpg"):
            path = folder / "ground_truth" / defect / f"{name}{suffix}"
            if path.is_file():
                return path
    parts = folder / "ground_truth" / defect / stem
    return parts if parts.is_dir() else None
