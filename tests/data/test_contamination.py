import itertools
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from trees import make_category, save_image

from iltm_anomaly.data.contamination import (
    OVERLAP,
    ContaminationRecord,
    apply_record,
    contaminate,
    contamination_record,
    largest_train_size,
)
from iltm_anomaly.data.moved_copies import move_pixels
from iltm_anomaly.data.mvtec import load_mvtec


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """20 good training images, 5 good and 21 defective test images: 10, 7, 3 and 1 by type. The pool holds 10."""
    folder = tmp_path_factory.mktemp("category")
    make_category(folder, good=20, test_good=5, defects={"a": 10, "b": 7, "c": 3, "d": 1})
    return load_mvtec(folder)


def paths(split):
    from datasets import Image

    return [row["path"] for row in split.cast_column("image", Image(decode=False))["image"]]


def test_fraction_and_columns(dataset):
    result = contaminate(dataset, 0.2, seed=0)
    train = result["train"]
    assert train.column_names == ["image", "mask", "label", "defect", "contaminated"]
    assert train.num_rows == 25 and sum(train["contaminated"]) == 5
    assert train["contaminated"][:] == [bool(label) for label in train["label"][:]]
    assert result["test"].column_names == ["image", "mask", "label", "defect"]
    assert train[24]["mask"] is not None and train[24]["image"].size == (12, 10)


def test_no_image_is_trained_and_tested_on(dataset):
    result = contaminate(dataset, 0.3, seed=3)
    assert not set(paths(result["train"])) & set(paths(result["test"]))
    assert len(set(paths(result["train"]))) == result["train"].num_rows


def test_same_test_set_and_nested_pool_at_every_fraction(dataset):
    records = [contamination_record(contaminate(dataset, fraction, seed=1)) for fraction in (0, 0.05, 0.1, 0.2, 0.33)]
    assert [len(record.pool_indices) for record in records] == [0, 1, 2, 5, 10]
    records.insert(-1, contamination_record(contaminate(dataset, 0.4, seed=1, train_size=20)))
    assert len({record.test_indices for record in records}) == 1
    for smaller, larger in itertools.pairwise(records):
        assert set(smaller.pool_indices) < set(larger.pool_indices)


def test_split_is_stratified_in_halves(dataset):
    for seed in range(5):
        result = contaminate(dataset, 1 / 3, seed)  # uses the whole pool
        pool = Counter(result["train"]["defect"])
        assert pool == {"good": 20, "a": 5, "b": 4, "c": 1}, "the spare image comes from the largest odd type"
        assert Counter(result["test"]["defect"]) == {"good": 5, "a": 5, "b": 3, "c": 2, "d": 1}


def test_first_part_of_the_pool_is_mixed(dataset):
    result = contaminate(dataset, 0.2, seed=0)
    assert len(set(result["train"]["defect"])) >= 3


def test_seeds_split_differently(dataset):
    tests = {contamination_record(contaminate(dataset, 0.2, seed)).test_indices for seed in range(6)}
    assert len(tests) == 6


def test_choice_is_the_same_on_every_machine(dataset):
    record = contamination_record(contaminate(dataset, 0.2, seed=0, train_size=10))
    assert record.pool_indices == (5, 11)
    assert record.good_indices == (0, 1, 6, 7, 8, 11, 12, 18)


def test_train_size(dataset):
    for fraction, defective in ((0, 0), (0.1, 2), (0.25, 5), (0.5, 10)):
        result = contaminate(dataset, fraction, seed=0, train_size=20)
        assert result["train"].num_rows == 20 and sum(result["train"]["contaminated"]) == defective
    goods = [contamination_record(contaminate(dataset, f, 0, train_size=20)).good_indices for f in (0.1, 0.5)]
    assert set(goods[1]) < set(goods[0])


def test_record_survives_and_repeats(dataset, tmp_path):
    from datasets import load_from_disk

    result = contaminate(dataset, 0.2, seed=5)
    record = contamination_record(result)
    assert contamination_record(dataset) is None, "the original is left alone"
    assert contamination_record(result["train"].select([3, 4])) == record
    assert record.seed == 5 and record.fraction == 0.2 and record.train_size is None
    assert (len(record.pool_indices), len(record.good_indices)) == (5, 20)
    stored = ContaminationRecord.from_dict(json.loads(json.dumps(record.to_dict())))
    assert stored == record
    again = apply_record(dataset, stored)
    for split in ("train", "test"):
        assert paths(again[split]) == paths(result[split])
    result.save_to_disk(tmp_path)
    assert contamination_record(load_from_disk(tmp_path)) == record


def test_record_of_another_data_set(dataset):
    record = contamination_record(contaminate(dataset, 0.2, seed=0))
    dataset = type(dataset)(train=dataset["train"].select(range(19)), test=dataset["test"])
    with pytest.raises(ValueError, match="made from 20 train and 26 test images, but this data set has 19 and 26"):
        apply_record(dataset, record)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, 0), r"needs 20 defective .* holds 10; the largest possible fraction with all 20 good images is 0\.333; "
                   r"for 0\.5 use train_size=20 or less"),
        ((0.6, 0, 20), r"needs 12 .* at train_size 20 is 0\.5; for 0\.6 use train_size=16 or less"),
        ((0.1, 0, 40), r"train_size 40 at fraction 0\.1 needs 36 good .* there are 20; use train_size=22 or less"),
        ((0.0, 0, 40), r"needs 40 good .* use train_size=20 or less"),
        ((0.6, 0, 1), r"fraction 0\.6 of train_size 1 leaves no good image"),
        ((0.01, 0), r"is less than one defective image; it takes at least 51 images"),
        ((1.0, 0), r"fraction must be in \[0, 1\), got 1\.0"),
        ((-0.1, 0), r"fraction must be in"),
        ((float("nan"), 0), r"fraction must be in"),
        ((0.1, -1), r"seed must not be negative"),
        ((0.1, 0, 0), r"train_size must be at least 1"),
        ((0.1, 0, 20, "overlapping"), r"protocol must be disjoint or overlap, got 'overlapping'"),
    ],
)  # fmt: skip
def test_impossible_wishes(dataset, arguments, message):
    with pytest.raises(ValueError, match=message):
        contaminate(dataset, *arguments)


@pytest.mark.parametrize("fraction", [0.36, 0.4, 0.5, 0.7, 0.9])
def test_the_named_train_size_works(dataset, fraction):
    with pytest.raises(ValueError) as error:
        contaminate(dataset, fraction, 0)
    size = int(str(error.value).rpartition("train_size=")[2].split()[0])
    record = contamination_record(contaminate(dataset, fraction, 0, train_size=size))
    assert len(record.pool_indices) / size == pytest.approx(fraction, abs=0.5 / size)
    largest = float(str(error.value).partition("images is ")[2].partition(";")[0])
    assert len(contamination_record(contaminate(dataset, largest, 0)).pool_indices) == 10


def test_no_test_images(tmp_path):
    save_image(tmp_path / "train" / "good" / "0.png")
    with pytest.raises(ValueError, match="no test image would be left"):
        contaminate(load_mvtec(tmp_path), 0.0, 0)


def test_no_defective_images(tmp_path):
    make_category(tmp_path, defects={"crack": 1})
    dataset = load_mvtec(tmp_path)
    assert contaminate(dataset, 0.0, 0)["test"].num_rows == 3
    with pytest.raises(ValueError, match=r"holds 0; the largest possible fraction .* is 0; .* more defective images"):
        contaminate(dataset, 0.2, 0)


def test_training_images_must_be_good(category):
    save_image(category / "train" / "loose.png")
    with pytest.raises(ValueError, match="1 of the 7 training images are not known to be good"):
        contaminate(load_mvtec(category), 0.1, 0)


def test_unlabelled_test_images(dataset):
    test = (
        dataset["test"]
        .remove_columns("defect")
        .add_column("defect", [None] * 26, feature=dataset["test"].features["defect"])
    )
    with pytest.raises(ValueError, match="26 test images are unlabelled"):
        contaminate(type(dataset)(train=dataset["train"], test=test), 0.1, 0)
    with pytest.raises(ValueError, match="no split test"):
        contaminate(type(dataset)(train=dataset["train"]), 0.1, 0)


def test_masks_and_images_are_not_read(dataset, tmp_path):
    folder = make_category(tmp_path)
    dataset = load_mvtec(folder)
    for path in folder.rglob("*.png"):
        path.unlink()
    assert contaminate(dataset, 0.25, 0)["train"].num_rows == 8


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A category of photographs, so to speak, and both protocols at a fifth."""
    folder = make_category(tmp_path_factory.mktemp("drawn"), good=20, test_good=5, defects={"a": 10, "b": 7})
    for number, path in enumerate(sorted(folder.rglob("test/*/*.png"))):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        mask = np.zeros((40, 60), dtype=np.uint8)
        mask[10:30, 20:40] = 255
        pixels[mask > 0] = 250
        Image.fromarray(pixels).save(path)
        truth = folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        if truth.exists():
            Image.fromarray(mask).save(truth)
    dataset = load_mvtec(folder)
    return dataset, *(contaminate(dataset, 0.2, 1, protocol=protocol) for protocol in ("disjoint", OVERLAP))


class TestOverlap:
    def test_the_test_set_and_the_good_images_are_those_of_the_other_protocol(self, drawn):
        _, disjoint, overlap = drawn
        assert paths(overlap["test"]) == paths(disjoint["test"])
        assert paths(overlap["train"])[:20] == paths(disjoint["train"])[:20]
        assert overlap["train"]["contaminated"] == disjoint["train"]["contaminated"]
        assert overlap["train"].features == disjoint["train"].features

    def test_defective_training_images_are_copies_of_test_images(self, drawn):
        dataset, _, overlap = drawn
        record = contamination_record(overlap)
        assert len(record.pool_indices) == 5 and set(record.pool_indices) <= set(record.test_indices)
        assert len(set(overlap["train"]["defect"])) == 3, "of both types, in the order of the types too"
        for copy, row in zip(list(overlap["train"])[20:], record.pool_indices, strict=True):
            original = dataset["test"][row]
            assert (copy["defect"], copy["label"], copy["image"].size) == (original["defect"], 1, (60, 40))
            mask, before = np.asarray(copy["mask"]) > 0, np.asarray(original["mask"]) > 0
            assert 0 < (mask != before).sum() < 0.4 * before.sum(), "moved, a little"
            assert 0.9 < mask.sum() / before.sum() < 1.1
            inside = np.asarray(copy["image"])[mask]
            assert (inside > 240).mean() > 0.85, "the mask moves with its defect"

    def test_a_copy_depends_on_seed_and_image_alone(self, drawn):
        dataset, _, overlap = drawn
        more = contaminate(dataset, 0.25, 1, protocol=OVERLAP)

        def copies(split, rows):
            return {row: np.asarray(image) for row, image in zip(rows, list(split["image"])[20:], strict=True)}

        few, many = (copies(d["train"], contamination_record(d).pool_indices) for d in (overlap, more))
        assert set(few) < set(many) and all(np.array_equal(few[row], many[row]) for row in few)
        other = contaminate(dataset, 0.25, 2, protocol=OVERLAP)
        turned = copies(other["train"], contamination_record(other).pool_indices)
        shared = set(many) & set(turned)
        assert shared and not any(np.array_equal(many[row], turned[row]) for row in shared)

    def test_the_record_repeats_it(self, drawn):
        dataset, disjoint, overlap = drawn
        record = contamination_record(overlap)
        assert record.protocol == OVERLAP and "protocol" not in contamination_record(disjoint).to_dict()
        again = apply_record(dataset, ContaminationRecord.from_dict(json.loads(json.dumps(record.to_dict()))))
        assert again["train"]._fingerprint == overlap["train"]._fingerprint
        for one, two in zip(again["train"], overlap["train"], strict=True):
            assert np.array_equal(one["image"], two["image"])

    def test_both_draw_as_many(self, dataset):
        with pytest.raises(ValueError, match=r"the pool .* holds 10"):
            contaminate(dataset, 0.5, 0, protocol=OVERLAP)
        train = contaminate(dataset, 1 / 3, 0, protocol=OVERLAP)["train"]
        assert sum(train["contaminated"]) == 10 and train[29]["image"].size == (12, 10)


def test_pixels_are_turned_about_the_middle_and_shifted():
    values = np.zeros((41, 61), dtype=np.uint8)
    values[20, 50] = 200
    turned = move_pixels(values, 90, 0, 0, interpolate=False)
    assert np.argwhere(turned).tolist() == [[0, 30]], "right of the middle is above it, a quarter turn later"
    assert np.argwhere(move_pixels(values, 0, 4 / 41, -6 / 61, interpolate=False)).tolist() == [[24, 44]]
    edge = move_pixels(np.full((9, 9, 3), 77, dtype=np.uint8), 3, 0.3, -0.3, interpolate=True)
    assert (edge == 77).all(), "what comes in is the edge"


def test_bottle(real_data):
    bottle = load_mvtec(real_data / "mvtec", "bottle")
    result = contaminate(bottle, 0.1, seed=0)
    assert sum(result["train"]["contaminated"]) == 23 and result["train"].num_rows == 232
    assert result["test"].num_rows == 20 + 32
    for fraction, defective in ((0, 0), (0.1, 16), (0.2, 31)):
        train = contaminate(bottle, fraction, seed=0, train_size=155)["train"]
        assert train.num_rows == 155 and sum(train["contaminated"]) == defective
    with pytest.raises(ValueError, match=r"with all 209 good images is 0\.129.*train_size=155 or"):
        contaminate(bottle, 0.2, seed=0)


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 20), (0.1, 22), (0.2, 25), (0.4, 25), (0.5, 20)])
def test_the_largest_train_size_is_possible_and_two_more_are_not(dataset, fraction, expected):
    assert largest_train_size(dataset, fraction) == expected
    assert contaminate(dataset, fraction, seed=0, train_size=expected)["train"].num_rows == expected
    with pytest.raises(ValueError, match=f"train_size={expected} or less"):
        contaminate(dataset, fraction, seed=0, train_size=expected + 2)  # one more may be, by rounding


@pytest.mark.parametrize(
    "change",
    [
        {"good_indices": 5},
        {"pool_indices": ["a"]},
        {"test_indices": [10**6]},
        {"good_indices": [-1]},
        {"source_rows": [1]},
        {"source_rows": None},
        {"more": 1},
    ],
    ids=repr,
)
def test_a_damaged_record_is_named(change):
    record = ContaminationRecord(0.1, 0, None, (0, 1), (0,), (1, 2), (2, 3))
    assert ContaminationRecord.from_dict(record.to_dict()) == record
    with pytest.raises(ValueError, match="the contamination record of the training report is damaged"):
        ContaminationRecord.from_dict(record.to_dict() | change)
    values = record.to_dict()
    values.pop("fraction")
    with pytest.raises(ValueError, match=r"damaged: .*fraction"):
        ContaminationRecord.from_dict(values)
