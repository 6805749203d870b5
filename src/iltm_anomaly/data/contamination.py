"""The protocol of contaminated training: known defective images hidden among the good ones.

Per seed the defective test images are split once, stratified by defect type, into a pool (half) and held-out images
(the other half). The test set is the held-out images and all good test images, so it is the same at every fraction,
and no training image is ever tested on. Defect types are read for this split and for nothing else.

That is the protocol "disjoint". With "overlap" the test set is the same, but the defective training images are copies of held-out
ones, each turned and shifted a little: defects that are tested on come back in training, as the same part may before a camera.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from iltm_anomaly.data.moved_copies import moved_copies
from iltm_anomaly.data.schema import label_of
from iltm_anomaly.seeds import raw_integers, sample_seed

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

logger = logging.getLogger(__name__)

DISJOINT, OVERLAP = "disjoint", "overlap"
PROTOCOLS = {
    DISJOINT: "no training image is tested on",
    OVERLAP: "the defective training images are copies of test images, turned and shifted a little",
}
_MARK = "contamination record: "


@dataclass(frozen=True)
class ContaminationRecord:
    """What `contaminate` chose, as plain numbers, so that a report can hold it and `apply_record` can repeat it.

    Attributes:
        fraction: share of defective images asked for, in [0, 1); that of the chosen ones differs by rounding.
        seed: seed of the split and of the choice.
        train_size: number of training images asked for, or None for all good ones and as many defective as needed.
        good_indices: rows of the original train split that are trained on.
        pool_indices: rows of the original test split that are added to them, as copies with the protocol "overlap".
        test_indices: rows of the original test split that are tested on.
        source_rows: rows of the original train and test split.
        protocol: of `PROTOCOLS`.
    """

    fraction: float
    seed: int
    train_size: int | None
    good_indices: tuple[int, ...]
    pool_indices: tuple[int, ...]
    test_indices: tuple[int, ...]
    source_rows: tuple[int, int]
    protocol: str = DISJOINT

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `json` can write. "disjoint" is not named, as in records from when there was no other, so that what
        has their digest is still found."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if (key, value) != ("protocol", DISJOINT)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ContaminationRecord:
        """Inverse of `to_dict`, also after a round trip through JSON.

        Raises:
            ValueError: if the values are not those of a record.
        """
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        try:
            record = cls(**fields)
            train, test = record.source_rows
            chosen = ((record.good_indices, train), (record.pool_indices, test), (record.test_indices, test))
            valid = all(type(row) is int and 0 <= row < rows for indices, rows in chosen for row in indices)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the contamination record of the training report is damaged: {error}") from None
        if not valid:
            raise ValueError("the contamination record of the training report is damaged: it names rows that are none")
        return record


def contaminate(
    dataset: DatasetDict, fraction: float, seed: int, train_size: int | None = None, protocol: str = DISJOINT
) -> DatasetDict:
    """Hides defective images in the training set, so that they are `fraction` of it.

    Pool images come in a fixed order per seed (defect types interleaved) and good ones too, so a larger fraction
    contains the pool images of a smaller one. Indices do not depend on machine or library version.

    Args:
        dataset: DatasetDict with train (good images only) and test, columns as of `load_mvtec`.
        fraction: share of defective images among the training images, in [0, 1).
        seed: non-negative seed. Another seed splits the defective images anew, so the test set differs.
        train_size: number of training images in all, so that fractions compare at equal size; None takes all good.
        protocol: "disjoint", or "overlap" to train on copies of defective images that are tested on.

    Returns:
        DatasetDict: train (good images, then defective ones) with a bool column `contaminated`, and the reduced test.
        `contamination_record` gives the chosen indices.

    Raises:
        ValueError: fraction out of range or unknown protocol; train split not all good; too few defective images in the
            pool (names the largest fraction, and the `train_size` at which this one is possible) or too few good ones;
            nothing left to train or test on.

    Example:
        >>> dataset = contaminate(load_mvtec("../shared/data/mvtec", "bottle"), 0.1, seed=0)
        >>> sum(dataset["train"]["contaminated"]), dataset["train"].num_rows
        (23, 232)
    """
    return apply_record(dataset, draw_record(dataset, fraction, seed, train_size, protocol))


def draw_record(
    dataset: DatasetDict, fraction: float, seed: int, train_size: int | None = None, protocol: str = DISJOINT
) -> ContaminationRecord:
    """What `contaminate` chooses, with the same arguments and errors; no image is read."""
    _check_arguments(dataset, fraction, seed, train_size, protocol)
    test_defects = dataset["test"]["defect"][:]
    pool, held_out = _split_defective(test_defects, seed)
    good_test = [row for row, defect in enumerate(test_defects) if label_of(defect) == 0]
    test_indices = sorted(good_test + held_out)
    if not test_indices:
        raise ValueError(
            "no test image would be left: the test split is empty, so no fraction is possible, not even 0; "
            "add images to test/good or test/<defect>"
        )
    num_good = dataset["train"].num_rows
    good_count, pool_count = _counts(num_good, len(pool), fraction, train_size)
    if protocol == OVERLAP:  # as many as of the pool, so that the two compare
        pool = held_out[: len(pool)]
    order = np.argsort(raw_integers(sample_seed(seed, 1), num_good), kind="stable")
    return ContaminationRecord(
        fraction=float(fraction),
        seed=int(seed),
        train_size=None if train_size is None else int(train_size),
        good_indices=tuple(sorted(order[:good_count].tolist())),
        pool_indices=tuple(sorted(pool[:pool_count])),
        test_indices=tuple(test_indices),
        source_rows=(num_good, len(test_defects)),
        protocol=protocol,
    )


def largest_train_size(dataset: DatasetDict, fraction: float) -> int:
    """The largest `train_size` at which `contaminate` can reach `fraction`, whatever the seed; 0 if it is out of reach."""
    pool = sum(label_of(defect) == 1 for defect in dataset["test"]["defect"][:]) // 2
    return _possible(dataset["train"].num_rows, pool, fraction)


def apply_record(dataset: DatasetDict, record: ContaminationRecord) -> DatasetDict:
    """Repeats the choice of a record on the data set it was made from.

    Args:
        dataset: the original DatasetDict, as it was given to `contaminate`.
        record: from `contamination_record`, or `ContaminationRecord.from_dict` of a report.

    Raises:
        ValueError: the data set has other numbers of rows than the one of the record.
    """
    from datasets import DatasetDict, Value, concatenate_datasets

    rows = (dataset["train"].num_rows, dataset["test"].num_rows)
    if rows != tuple(record.source_rows):
        raise ValueError(
            f"the record was made from {record.source_rows[0]} train and {record.source_rows[1]} test images, but "
            f"this data set has {rows[0]} and {rows[1]}; images were added, removed or could not be read"
        )
    flag = Value("bool")
    train = dataset["train"].add_column("contaminated", [False] * rows[0], feature=flag)
    parts = [train.select(record.good_indices)]
    if record.pool_indices:
        pool = dataset["test"].add_column("contaminated", [True] * rows[1], feature=flag)
        pool = pool.select(record.pool_indices)
        overlap = record.protocol == OVERLAP
        parts.append(moved_copies(pool, record.seed, record.pool_indices) if overlap else pool)
    splits = {
        "train": concatenate_datasets(parts, info=parts[0].info, split=dataset["train"].split),
        "test": dataset["test"].select(record.test_indices),
    }
    return DatasetDict({name: _attach(split, record) for name, split in splits.items()})


def contamination_record(dataset: DatasetDict | Dataset) -> ContaminationRecord | None:
    """The record that `contaminate` left in a data set; it survives select, map and save_to_disk. None without one."""
    splits = list(dataset.values()) if isinstance(dataset, dict) else [dataset]
    for split in splits:
        _, mark, text = (split.info.description or "").rpartition(_MARK)
        if mark:
            return ContaminationRecord.from_dict(json.loads(text))
    return None


def _attach(split: Dataset, record: ContaminationRecord) -> Dataset:
    # The description is the one field of the info that datasets carries through every operation and file format.
    split.info.description = f"{split.info.description or ''}\n{_MARK}{json.dumps(record.to_dict())}".strip()
    return split


def _check_arguments(dataset: DatasetDict, fraction: float, seed: int, train_size: int | None, protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be {' or '.join(PROTOCOLS)}, got {protocol!r}")
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), got {fraction}: training needs good images too")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if train_size is not None and train_size < 1:
        raise ValueError(f"train_size must be at least 1, got {train_size}")
    absent = [name for name in ("train", "test") if name not in dataset]
    if absent:
        raise ValueError(f"dataset has no split {' and '.join(absent)}; contaminate needs train and test")
    train_labels = [label_of(defect) for defect in dataset["train"]["defect"][:]]
    if not train_labels:
        raise ValueError("the train split is empty: no good image to train on")
    if any(train_labels):
        raise ValueError(
            f"{sum(label != 0 for label in train_labels)} of the {len(train_labels)} training images are not known to "
            "be good; contaminate starts from a clean train split (use a set that is contaminated already as it is)"
        )
    unknown = sum(label_of(defect) < 0 for defect in dataset["test"]["defect"][:])
    if unknown:
        raise ValueError(f"{unknown} test images are unlabelled; contaminate needs the defect type of each")


def _split_defective(defects: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Splits the rows of defective images into (pool, held out), each in the order of use: half of each defect type.

    Where a type has an odd number, the odd image is held out, except that types give it to the pool, largest type
    first, until the pool has half of all.
    """
    rows = [row for row, defect in enumerate(defects) if label_of(defect) == 1]
    keys = dict(zip(rows, raw_integers(sample_seed(seed, 0), len(rows)).tolist(), strict=True))
    types: dict[str, list[int]] = {}
    for row in sorted(rows, key=keys.__getitem__):
        types.setdefault(defects[row], []).append(row)
    spare = len(rows) // 2 - sum(len(members) // 2 for members in types.values())
    position: dict[int, tuple[float, int]] = {}
    pool: list[int] = []
    held_out: list[int] = []
    for name in sorted(types, key=lambda name: (-len(types[name]), name)):
        members = types[name]
        count = len(members) // 2
        if len(members) % 2 and spare > 0:
            count, spare = count + 1, spare - 1
        for part, found in ((members[:count], pool), (members[count:], held_out)):
            # Even spacing interleaves the types, so that any first part of the pool is stratified too.
            position |= {row: ((rank + 0.5) / len(part), keys[row]) for rank, row in enumerate(part)}
            found += part
    return sorted(pool, key=position.__getitem__), sorted(held_out, key=position.__getitem__)


def _counts(num_good: int, num_pool: int, fraction: float, train_size: int | None) -> tuple[int, int]:
    """Numbers of good and of defective training images."""
    if train_size is None:
        good, defective = num_good, round(fraction * num_good / (1 - fraction))
    else:
        defective = round(fraction * train_size)
        good = train_size - defective
    if fraction > 0 and defective == 0:
        enough = next(count for count in itertools.count(1) if round(fraction * count) > 0)
        raise ValueError(
            f"fraction {fraction} of {good} training images is less than one defective image; "
            f"it takes at least {enough} images"
        )
    if good < 1:
        raise ValueError(
            f"fraction {fraction} of train_size {train_size} leaves no good image; the largest possible fraction is "
            f"{(good + defective - 1) / (good + defective):.3f}"
        )
    possible = _possible(num_good, num_pool, fraction)
    if defective > num_pool:
        size = good + defective if train_size is not None else num_good + num_pool
        largest = math.floor(num_pool / size * 1000) / 1000
        where = f"with all {num_good} good images" if train_size is None else f"at train_size {train_size}"
        enough = round(fraction * possible) > 0
        remedy = f"use train_size={possible} or less" if enough else "more defective images are needed"
        raise ValueError(
            f"fraction {fraction} needs {defective} defective training images, but the pool (half of the defective "
            f"test images) holds {num_pool}; the largest possible fraction {where} is {largest:g}; "
            f"for {fraction} {remedy}"
        )
    if good > num_good:
        raise ValueError(
            f"train_size {train_size} at fraction {fraction} needs {good} good training images, but there are "
            f"{num_good}; use train_size={possible} or less"
        )
    return good, defective


def _possible(num_good: int, num_pool: int, fraction: float) -> int:
    """Most images in all at this fraction: limited by the pool, and by the good images."""
    limits = (num_pool / fraction if fraction > 0 else math.inf, num_good / (1 - fraction), num_good + num_pool)
    return math.floor(min(limits) + 1e-9)
