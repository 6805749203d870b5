"""Images of a data set that is never stored: read one by one through `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec


def stream_images(name: str, category: str | None = None, limit: int | None = None) -> Iterator[dict[str, Any] | None]:
    """The image files of the training split of a data set, in its order, not decoded: {"path", "bytes"} or None of each.

    Args:
        name: Hub id, or a local folder that `datasets.load_dataset` reads (images, parquet, WebDataset, ...).
        category: configuration of the data set.
        limit: take only the first ones.

    Raises:
        FileNotFoundError: neither a folder here nor a data set on the Hub (or the Hub cannot be reached).
        ValueError: no split train, or no column image.
    """
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        split = datasets.load_dataset(name, category, split="train", streaming=True)
    except (FileNotFoundError, ConnectionError, HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"{name} is neither a folder here (looked in {Path.cwd()}) nor a data set that could be streamed "
            f"from the Hub: {type(error).__name__}: {error}"
        ) from error
    if split.column_names is not None and "image" not in split.column_names:
        raise ValueError(f"the training split of {name} has no column image; it has: {', '.join(split.column_names)}")
    split = split.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    return (_with_content(row["image"]) for row in (split if limit is None else split.take(limit)))


def _with_content(source: dict[str, Any] | None) -> dict[str, Any] | None:
    # of folders of images on the Hub a row has only the address: hf://..., or zip://...::hf://...
    if source is None or source["bytes"] is not None or "://" not in (source["path"] or ""):
        return source
    with fsspec.open(source["path"], "rb") as file:
        return source | {"bytes": file.read()}
