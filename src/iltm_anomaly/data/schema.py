"""The columns that every data set of the package has, and ground-truth masks brought to one form."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, NamedSplit, Value
from datasets import Image as ImageFeature
from PIL import Image

from iltm_anomaly.data import GOOD
from iltm_anomaly.data.images import ImageReadError, open_image

UNLABELLED = -1
"""Label of an image of which nobody knows whether it is good; -1 is what `datasets.ClassLabel` means by "unknown"."""


def dataset_features() -> Features:
    """Columns image, mask (one channel, 0 and 255, or None), label (0 good, 1 defective, -1 unknown), defect (string).

    `defect` is "good" for good images and None where nobody knows.
    """
    return Features(
        {
            "image": ImageFeature(),
            "mask": ImageFeature(mode="L"),
            "label": ClassLabel(names=["good", "defective"]),
            "defect": Value("string"),
        }
    )


def label_of(defect: str | None) -> int:
    """0 for "good", 1 for any other defect type, -1 for None."""
    return UNLABELLED if defect is None else int(defect != GOOD)


def build_dataset(rows: Sequence[dict[str, Any]], split: str) -> Dataset:
    """Makes a `datasets.Dataset` of rows with keys image, mask and defect, in the given order.

    Images and masks may be paths (the data set then holds the paths, and reads the files on access), PIL images, or
    `{"bytes", "path"}`. The fingerprint covers size and time of change of every file, so that what `map` has cached for a
    folder is not used again once the folder's content has changed.
    """
    features = dataset_features()
    columns = {
        "image": [features["image"].encode_example(_as_source(row["image"])) for row in rows],
        "mask": [
            None if row["mask"] is None else features["mask"].encode_example(_as_source(row["mask"])) for row in rows
        ],
        "label": [label_of(row["defect"]) for row in rows],
        "defect": [row["defect"] for row in rows],
    }
    digest = hashlib.sha256()
    for image, mask, defect in zip(columns["image"], columns["mask"], columns["defect"], strict=True):
        digest.update(repr((defect, _state(image), _state(mask))).encode())
    dataset = Dataset.from_dict(columns, features=features, split=NamedSplit(split))
    return Dataset(dataset.data, info=dataset.info, split=dataset.split, fingerprint=digest.hexdigest()[:32])


def normalise_mask(source: str | Path | bytes) -> tuple[str | dict[str, Any], tuple[int, int], bool]:
    """Brings a mask of any mode to one channel of 0 and 255.

    A mask of integers up to 127 holds classes: every pixel but 0 is defect. In any other mask, pixels above half of its own
    maximum are defect. So masks of 0 and 255 and of 16 bits both work, and soft edges are cut in the middle.

    Args:
        source: path of a mask, or the bytes of its file.

    Returns:
        What to store (the path itself if the file has this form already, else PNG bytes), (height, width), and whether
        any pixel is defect.

    Raises:
        ImageReadError: the mask cannot be read.
    """
    if isinstance(source, bytes):
        try:
            image = open_image("in memory", source)
        except ImageReadError as error:
            raise ImageReadError(f"cannot read mask from {len(source)} bytes: {error}") from error
    else:
        image = open_image(source)
    if image.mode == "L" or image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
    else:
        values = np.asarray(image.convert("RGB")).max(axis=-1)
    top = values.max(initial=0)
    are_classes = values.dtype.kind in "iu" and top < 128
    is_defect = values > (0 if are_classes else top / 2)
    size = (image.height, image.width)
    if not isinstance(source, bytes) and image.mode == "L" and np.array_equal(values, is_defect * np.uint8(255)):
        return str(source), size, bool(top > 0)
    return mask_to_png(is_defect), size, bool(top > 0)


def mask_to_png(is_defect: np.ndarray) -> dict[str, Any]:
    """(H, W) bool array -> `{"bytes", "path"}` of a one-channel PNG with 0 and 255."""
    buffer = io.BytesIO()
    Image.fromarray(is_defect.astype(np.uint8) * np.uint8(255)).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _as_source(value: Any) -> Any:
    return str(Path(value).absolute()) if isinstance(value, (str, Path)) else value


def _state(source: dict[str, Any] | None) -> Any:
    """What changes when an image does: of a file its size and time of change, else the digest of its bytes."""
    if source is None:
        return None
    if source["bytes"] is not None:
        return hashlib.sha256(source["bytes"]).hexdigest()
    status = Path(source["path"]).stat()
    return source["path"], status.st_size, status.st_mtime_ns
