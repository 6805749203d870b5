"""Data sets that `datasets` reads (from the Hub, parquet or metadata folders, `save_to_disk`) in our columns."""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iltm_anomaly.data.images import ImageReadError, readable_images
from iltm_anomaly.data.schema import GOOD, dataset_features, label_of, normalise_mask, unknown_category

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# What other data sets call an image without a defect.
_GOOD_NAMES = frozenset({"good", "normal", "ok", "0"})


def is_dataset_folder(folder: Path) -> bool:
    """Whether a local folder is one that `datasets` reads: saved to disk, or with parquet or metadata files."""
    if _is_saved(folder):
        return True
    if any(path.suffix == ".parquet" for pattern in ("*", "*/*") for path in folder.glob(pattern)):
        return True
    tables = (path for pattern in ("metadata.*", "*/metadata.*") for path in folder.glob(pattern))
    return any(path.suffix in (".csv", ".jsonl") and _names_files(path) for path in tables)


def _is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of several splits, or of one, wrote a folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _names_files(table: Path) -> bool:
    """Whether a metadata file has the column that tells `datasets` of which file a row speaks: any other is somebody's notes."""
    with open(table, encoding="utf-8", errors="replace") as file:
        return "file_name" in file.readline()


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
    from datasets import DatasetDict

    loaded = _load(name, category, load_kwargs)
    if "train" not in loaded:
        raise ValueError(f"data set {name} has no split train; it has: {', '.join(map(str, loaded))}")
    splits = {}
    for split in ("train", "test"):
        source = loaded[split] if split in loaded else loaded["train"].select([])
        splits[split] = _standardise(source, f"{split} split of {name}", split == "test", require_masks)
    return DatasetDict(splits)


def _load(name: str, category: str | None, load_kwargs: dict[str, Any]) -> DatasetDict:
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    if _is_saved(Path(name)):
        configs, loaded = [], datasets.load_from_disk(name)
        if isinstance(loaded, datasets.Dataset):
            loaded = datasets.DatasetDict({"train": loaded})
    else:
        try:
            access = {key: load_kwargs[key] for key in ("revision", "token") if key in load_kwargs}
            configs = datasets.get_dataset_config_names(name, **access)
            loaded = datasets.load_dataset(name, category if category in configs else None, **load_kwargs)
        except (FileNotFoundError, ConnectionError, HfHubHTTPError) as error:
            raise FileNotFoundError(
                f"{name} is neither a folder here (looked in {Path.cwd()}) nor a data set that could be loaded "
                f"from the Hub: {type(error).__name__}: {error}"
            ) from error
        except (datasets.exceptions.DatasetsError, ValueError) as error:  # of pyarrow too
            raise ValueError(f"`datasets` cannot read {name}: {error.__cause__ or error}") from error
    if category is None or category in configs:
        return loaded
    if "train" not in loaded:
        return loaded  # which the caller refuses
    if "category" in loaded["train"].column_names:
        names = sorted({value for split in loaded.values() for value in _names(split, "category")})
        if category not in names:
            raise ValueError(unknown_category(category, names, name))
        return datasets.DatasetDict(
            {
                key: split.select([row for row, value in enumerate(_names(split, "category")) if value == category])
                for key, split in loaded.items()
            }
        )
    raise ValueError(unknown_category(category, configs or ["(none)"], name))


def _names(split: Dataset, column: str) -> list[Any]:
    # Class labels by their names; other values as they are.
    from datasets import ClassLabel

    feature, values = split.features[column], split[column][:]
    if isinstance(feature, ClassLabel):
        return [None if value is None or value < 0 else feature.int2str(value) for value in values]
    return values


def _defects(split: Dataset) -> list[str | None]:
    column = next((name for name in ("defect", "defect_type", "label") if name in split.column_names), None)
    if column is None:
        return [None] * len(split)
    return [_defect_name(value, column) for value in _names(split, column)]


def _defect_name(value: Any, column: str) -> str | None:
    if isinstance(value, float) and (math.isnan(value) or value.is_integer()):  # of a table with a gap
        value = None if math.isnan(value) else int(value)
    if value is None or (isinstance(value, int) and value < 0):
        return None
    if isinstance(value, (bool, int)):
        return "defective" if value else GOOD
    if not isinstance(value, str):
        raise ValueError(f"column {column} holds {value!r}; it must hold names, or 0 for good and 1 for defective")
    return GOOD if value.lower() in _GOOD_NAMES else value


def _standardise(split: Dataset, name: str, is_test: bool, require_masks: bool) -> Dataset:
    from datasets import Image

    if "image" not in split.column_names:
        raise ValueError(f"{name} has no column image; it has: {', '.join(split.column_names)}")
    features = dataset_features()
    sources = split.select_columns(["image"]).cast_column("image", Image(decode=False))["image"]
    sizes = {row: (image.height, image.width) for row, image in readable_images(sources)}
    readable = list(sizes)
    split = split if len(readable) == len(split) else split.select(readable)
    defects = _defects(split)
    masks: list[Any] = [None] * len(split)
    unreadable = set()
    if "mask" in split.column_names:
        for row, source in enumerate(split.cast_column("mask", Image(decode=False))["mask"]):
            if source is not None and defects[row] != GOOD:
                try:
                    stored, size, marks = normalise_mask(source["bytes"] or source["path"])
                    if size != (expected := sizes[readable[row]]):
                        raise ValueError(
                            f"the mask in row {readable[row]} of the {name} is {size[1]} x {size[0]} pixels, its image "
                            f"{expected[1]} x {expected[0]}; resize one of them"
                        )
                except ValueError as error:  # ImageReadError too
                    if is_test and not isinstance(error, ImageReadError):
                        raise
                    what = "left out" if is_test else "mask left out, training needs none"
                    logger.warning("%s: row %d of the %s: %s", what, readable[row], name, error)
                    if is_test:
                        unreadable.add(row)
                    continue
                if not marks:
                    logger.warning("the mask in row %d of the %s marks no pixel; left out", readable[row], name)
                    continue
                masks[row] = features["mask"].encode_example(stored)
    if unreadable:
        kept = [row for row in range(len(split)) if row not in unreadable]
        split, readable = split.select(kept), [readable[row] for row in kept]
        defects, masks = [defects[row] for row in kept], [masks[row] for row in kept]
    missing = [row for row, mask in enumerate(masks) if mask is None and label_of(defects[row]) == 1]
    if is_test and require_masks and missing:
        raise ValueError(
            f"{len(missing)} defective image(s) of the {name} have no mask, the first in row {readable[missing[0]]} "
            "(require_masks=False loads them with mask None)"
        )
    images = split.select_columns(["image"]).cast_column("image", features["image"])
    images = images.add_column("mask", masks, feature=features["mask"])
    images = images.add_column("label", [label_of(defect) for defect in defects], feature=features["label"])
    return images.add_column("defect", defects, feature=features["defect"])
