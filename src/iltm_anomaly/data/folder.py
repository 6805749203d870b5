"""Plain folders of unlabelled images, and `load_images`, which loads whatever a user points at."""

import os
from pathlib import Path

from datasets import Dataset, DatasetDict

from iltm_anomaly.data.images import IMAGE_SUFFIXES, find_images
from iltm_anomaly.data.layout import (
    existing_folder,
    is_category,
    is_dataset_folder,
    list_categories,
    refuse_half_a_category,
    refuse_hidden_categories,
)
from iltm_anomaly.data.mvtec import load_mvtec, read_rows
from iltm_anomaly.data.schema import build_dataset


def load_folder(path: str | os.PathLike, recursive: bool = True) -> Dataset:
    """Loads a folder of images of which nobody knows which are defective.

    Args:
        path: folder.
        recursive: also take the images of its subfolders. Hidden files and folders are left out.

    Returns:
        Dataset with the columns of `load_mvtec`: image; mask None; label -1 (unknown); defect None. Sorted by path.
        Files that cannot be read are reported as warnings and left out.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no image in it, or none that can be read.
    """
    folder = existing_folder(path)
    images = find_images(folder, recursive=recursive)
    if not images:
        raise ValueError(f"no image in {folder}: no file ends in {', '.join(IMAGE_SUFFIXES)}")
    refuse_hidden_categories(folder, images)
    rows, unreadable = read_rows((image, None, None) for image in images)
    if not rows:
        raise ValueError(f"no readable image in {folder} (the first of {len(unreadable)}: {unreadable[0][1]})")
    return build_dataset(rows, "train")


def load_images(root_or_hub_id: str | os.PathLike, category: str | None = None, **kwargs) -> DatasetDict:
    """Loads whatever a user points at: a data set in the layout of MVTec AD, one of `datasets`, or a plain folder.

    Args:
        root_or_hub_id: as for `load_mvtec`, or a plain folder of unlabelled images.
        category: as for `load_mvtec`; not allowed for a plain folder.
        kwargs: as for `load_mvtec`.

    Returns:
        DatasetDict: train and test, or only train for a plain folder.

    Raises:
        As `load_mvtec` and `load_folder`.
    """
    root = Path(root_or_hub_id).expanduser()
    if not root.is_dir():
        return load_mvtec(root_or_hub_id, category, **kwargs)
    if category is not None or is_category(root) or is_dataset_folder(root) or list_categories(root):
        return load_mvtec(root, category, **kwargs)
    refuse_half_a_category(root)
    return DatasetDict({"train": load_folder(root)})
