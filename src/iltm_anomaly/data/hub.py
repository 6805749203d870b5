"""Data sets that `datasets` reads (from the Hub, parquet or metadata folders, `save_to_disk`) in our columns."""

import logging
import math
import os
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, DatasetDict, Image
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from iltm_anomaly.data import GOOD, GOOD_NAMES
from iltm_anomaly.data.images import ImageReadError, readable_images
from iltm_anomaly.data.layout import is_saved, unknown_category
from iltm_anomaly.data.schema import dataset_features, label_of, normalise_mask

logger = logging.getLogger(__name__)


def download_tree(name: str, category: str | None, **load_kwargs) -> Path | None:
    """The folder of a Hub data set whose files lie as MVTec AD lays them out, downloaded; None if they do not, or the Hub cannot
    be asked. `datasets` would take it for images in folders, and find no masks.

    Args:
        name: Hub id.
        category: of which files are downloaded, if it is a folder of the repository.
        load_kwargs: revision and token are used.
    """
    access = {key: load_kwargs[key] for key in ("revision", "token") if key in load_kwargs}
    try:
        files = HfApi().list_repo_files(name, repo_type="dataset", **access)
    except (OSError, HTTPError):  # load_hub_dataset says what is wrong
        return None
    if not all(any(f"/{part}/" in f"/{file}" for file in files) for part in ("train", "ground_truth")):
        return None
    if any(file.endswith(".parquet") or Path(file).name.startswith("metadata.") for file in files):
        return None
    wanted = f"{category}/*" if any(file.startswith(f"{category}/") for file in files) else None
    return Path(snapshot_download(name, repo_type="dataset", allow_patterns=wanted, **access))


def load_hub_dataset(name: str, category: str | None, require_masks: bool, **load_kwargs) -> DatasetDict:
    """Loads a data set through `datasets` and brings it to the columns of `load_mvtec`.

    Args:
        name: Hub id, or a local folder that `is_dataset_folder`.
        category: a configuration of the data set, or a value of its column `category`.
        require_masks: whether a defective test image must have a mask.
        load_kwargs: passed on to `datasets.load_dataset`.

    Returns:
        DatasetDict as of `load_mvtec`.

    Raises:
        FileNotFoundError: neither a folder here nor a data set on the Hub (or the Hub cannot be reached).
        ValueError: no such category, no column image, no split train, or defective test images without mask.
    """
    loaded = _load(name, category, load_kwargs)
    if "train" not in loaded:
        raise ValueError(f"data set {name} has no split train; it has: {', '.join(map(str, loaded))}")
    splits = {}
    for split in ("train", "test"):
        source = loaded[split] if split in loaded else loaded["train"].select([])
        splits[split] = _standardise(source, f"{split} split of {name}", split == "test", require_masks)
    return DatasetDict(splits)


def image_splits(name: str) -> dict[str, Dataset]:
    """The images of a data set that `datasets` reads, by split: a column `image` of {"path", "bytes"} each, not decoded yet.

    Args:
        name: Hub id, or a local folder that `is_dataset_folder`.

    Raises:
        FileNotFoundError: neither a folder here nor a data set on the Hub (or the Hub cannot be reached).
        ValueError: a split has no column `image`, and not one other column of images.
    """
    splits = {}
    for split, rows in _load(name, None, {}).items():
        images = [column for column, feature in rows.features.items() if isinstance(feature, Image)]
        column = "image" if "image" in rows.column_names else images[0] if len(images) == 1 else None
        if column is None:
            raise ValueError(
                f"split {split} of {name} has no column image, and {len(images) or 'no'} others of images; it has: "
                f"{', '.join(rows.column_names)}. Rename the one with the images"
            )
        chosen = rows.select_columns([column]).rename_columns({column: "image"})
        splits[str(split)] = chosen.cast_column("image", Image(decode=False))
    return splits


def _load(name: str, category: str | None, load_kwargs: dict[str, Any]) -> DatasetDict:
    """Every split as it is stored, or the rows of one category. Without a split train, the caller refuses it."""
    try:
        configs, loaded = _read(name, category, load_kwargs)
    except Exception as error:  # damaged files make `datasets` raise nearly anything
        if isinstance(error, (FileNotFoundError, ConnectionError, HfHubHTTPError)) and not os.path.isdir(name):
            raise FileNotFoundError(
                f"{name} is neither a folder here (looked in {Path.cwd()}) nor a data set that could be loaded "
                f"from the Hub: {type(error).__name__}: {error}"
            ) from error
        said = " ".join(str(error.__cause__ or error).split())[:500]
        raise ValueError(
            f"`datasets` cannot read {name}: {said or type(error).__name__}. Mend or replace the file it speaks of, or, if that "
            "is a table beside images, take it away"
        ) from error
    if category is None or category in configs or "train" not in loaded:
        return loaded
    if "category" not in loaded["train"].column_names:
        raise ValueError(unknown_category(category, configs or ["(none)"], name))
    categories = {key: _names(split, "category") for key, split in loaded.items()}
    known = sorted({value for values in categories.values() for value in values})
    if category not in known:
        raise ValueError(unknown_category(category, known, name))
    rows = {key: [row for row, value in enumerate(v) if value == category] for key, v in categories.items()}
    return DatasetDict({key: split.select(rows[key]) for key, split in loaded.items()})


def _read(name: str, category: str | None, load_kwargs: dict[str, Any]) -> tuple[list[str], DatasetDict]:
    """Configurations of a data set, and its splits, as `datasets` gives them."""
    if is_saved(Path(name)):
        loaded = datasets.load_from_disk(name)
        return [], DatasetDict({"train": loaded}) if isinstance(loaded, Dataset) else loaded
    access = {key: load_kwargs[key] for key in ("revision", "token") if key in load_kwargs}
    configs = datasets.get_dataset_config_names(name, **access)
    return configs, datasets.load_dataset(name, category if category in configs else None, **load_kwargs)


def _names(split: Dataset, column: str) -> list[Any]:
    """Values of a column, class labels by their names (None where they are missing or negative)."""
    feature, values = split.features[column], split[column][:]
    if isinstance(feature, ClassLabel):
        return [None if value is None or value < 0 else feature.int2str(value) for value in values]
    return values


def _defects(split: Dataset) -> list[str | None]:
    """Defect type of each row, None where nobody knows."""
    column = next((name for name in ("defect", "defect_type", "label") if name in split.column_names), None)
    if column is None:
        return [None] * len(split)
    return [_defect_name(value, column) for value in _names(split, column)]


def _defect_name(value: Any, column: str) -> str | None:
    if isinstance(value, float) and (math.isnan(value) or value.is_integer()):  # a table with gaps stores integers so
        value = None if math.isnan(value) else int(value)
    if value is None or (isinstance(value, int) and value < 0):
        return None
    if isinstance(value, (bool, int)):
        return "defective" if value else GOOD
    if not isinstance(value, str):
        raise ValueError(f"column {column} holds {value!r}; it must hold names, or 0 for good and 1 for defective")
    return GOOD if value.lower() in GOOD_NAMES else value


def _standardise(split: Dataset, name: str, is_test: bool, require_masks: bool) -> Dataset:
    """Brings a split to our columns; rows that cannot be read are reported as warnings and left out."""
    if "image" not in split.column_names:
        raise ValueError(f"{name} has no column image; it has: {', '.join(split.column_names)}")
    features = dataset_features()
    sources = split.select_columns(["image"]).cast_column("image", Image(decode=False))["image"]
    sizes = {row: (image.height, image.width) for row, image in readable_images(sources)}
    split = split if len(sizes) == len(split) else split.select(list(sizes))
    defects = _defects(split)
    masks = _read_masks(split, defects, sizes, name, is_test)
    if len(masks) < len(split):
        split = split.select(list(masks))
    rows = list(sizes)
    missing = [rows[p] for p, mask in masks.items() if mask is None and label_of(defects[p]) == 1]
    if is_test and require_masks and missing:
        raise ValueError(
            f"{len(missing)} defective image(s) of the {name} have no mask, the first in row {missing[0]}: "
            "add a column mask, or take the rows out"
        )
    defects = [defects[position] for position in masks]
    images = split.select_columns(["image"]).cast_column("image", features["image"])
    images = images.add_column("mask", list(masks.values()), feature=features["mask"])
    images = images.add_column("label", [label_of(defect) for defect in defects], feature=features["label"])
    return images.add_column("defect", defects, feature=features["defect"])


def _read_masks(
    split: Dataset, defects: list[str | None], sizes: dict[int, tuple[int, int]], name: str, is_test: bool
) -> dict[int, Any]:
    """What to store as mask of each row, or None, by position in `split`; rows to leave out of a test split are missing.

    `sizes` holds the number of each row in the whole data set, and (height, width) of its image.

    Raises:
        ValueError: in a test split, a mask of another size than its image.
    """
    masks: dict[int, Any] = dict.fromkeys(range(len(split)))
    if "mask" not in split.column_names:
        return masks
    sources = split.cast_column("mask", Image(decode=False))["mask"]
    feature = dataset_features()["mask"]
    for position, (row, size) in enumerate(sizes.items()):
        source = sources[position]
        if source is None or defects[position] == GOOD:
            continue
        try:
            stored, mask_size, marks = normalise_mask(source["bytes"] or source["path"])
            if mask_size != size:
                raise ValueError(
                    f"the mask in row {row} of the {name} is {mask_size[1]} x {mask_size[0]} pixels, its image "
                    f"{size[1]} x {size[0]}; resize one of them"
                )
        except ValueError as error:  # ImageReadError too
            if is_test and not isinstance(error, ImageReadError):
                raise
            what = "left out" if is_test else "mask left out, training needs none"
            logger.warning("%s: row %d of the %s: %s", what, row, name, error)
            if is_test:
                del masks[position]
            continue
        if marks:
            masks[position] = feature.encode_example(stored)
        else:
            logger.warning("the mask in row %d of the %s marks no pixel; left out", row, name)
    return masks
