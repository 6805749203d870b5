"""Images of a data set that is not stored here: they come one by one through `datasets`."""

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import fsspec
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image


def stream_images(name: str, category: str | None = None, limit: int | None = None) -> Iterator[dict[str, Any] | None]:
    """Yields the image files of the training split of a data set, in its order, not decoded.

    Args:
        name: Hub id, or a local folder that `datasets.load_dataset` reads (images, parquet, WebDataset, ...).
        category: configuration of the data set, a value of its column `category`, or a folder of it.
        limit: how many to yield at most.

    Returns:
        Iterator over {"path", "bytes"} of each row, or None for a row without an image.

    Raises:
        FileNotFoundError: neither a folder here nor a data set on the Hub (or the Hub cannot be reached).
        ValueError: no split train, no column image, or no such category.
    """
    try:
        configs = datasets.get_dataset_config_names(name) if category is not None else []
        config = category if category in configs else None
        split = datasets.load_dataset(name, config, split="train", streaming=True)
        if category != config and "category" not in (split.column_names or ()):
            split = datasets.load_dataset(name, data_dir=category, split="train", streaming=True)
        elif category is not None and category != config:
            split = split.filter(partial(_is_of, category=category, names=split.features["category"]))
    except (FileNotFoundError, ConnectionError, HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"{name} is neither a folder here (looked in {Path.cwd()}) nor a data set that could be streamed "
            f"from the Hub: {type(error).__name__}: {error}"
        ) from error
    if split.column_names is not None and "image" not in split.column_names:
        raise ValueError(f"the training split of {name} has no column image; it has: {', '.join(split.column_names)}")
    split = split.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    return (_with_content(row["image"]) for row in (split if limit is None else split.take(limit)))


def _is_of(row: dict[str, Any], category: str, names: Any) -> bool:
    """Whether a row is of a category, which may be a class label."""
    value = row["category"]
    return category == (names.int2str(value) if isinstance(value, int) and value >= 0 else value)


def _with_content(source: Any) -> dict[str, Any] | None:
    """Reads the file where a row holds its address alone (hf://..., zip://...::hf://...). Of folders of images on the Hub
    `datasets` decodes images whatever it is told: they become files again, without loss."""
    if isinstance(source, Image.Image):
        file = io.BytesIO()
        source.save(file, "TIFF")
        return {"path": getattr(source, "filename", None) or None, "bytes": file.getvalue()}
    if source is None or source["bytes"] is not None or "://" not in (source["path"] or ""):
        return source
    with fsspec.open(source["path"], "rb") as file:
        return source | {"bytes": file.read()}
