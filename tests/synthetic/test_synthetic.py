from collections import Counter

import numpy as np
import pytest

from iltm_anomaly.data.mvtec import load_mvtec
from iltm_anomaly.synthetic.dataset import KINDS, VISIBLE_CHANGE, generate_dataset, render_image, write_mvtec_tree
from iltm_anomaly.synthetic.defects import DEFECT_TYPES, MACHINE_FAULTS


@pytest.fixture(scope="module")
def dataset():
    return generate_dataset(size=64, num_train=20, num_test_good=4, num_test_defective=10, contamination=0.25, seed=1)


def test_columns_and_counts(dataset):
    for split in dataset.values():
        assert split.column_names == ["image", "mask", "label", "defect"]
    assert dataset["train"].num_rows == 20 and sum(dataset["train"]["label"]) == 5
    assert dataset["train"]["label"][:] != sorted(dataset["train"]["label"][:]), "not in order of label"
    assert Counter(dataset["test"]["defect"]) == {"good": 4, **dict.fromkeys(DEFECT_TYPES, 2)}
    for row in dataset["test"]:
        assert row["image"].size == (64, 64) and row["image"].mode == "RGB"
        assert (row["mask"] is None) == (row["defect"] == "good")
        if row["mask"] is not None:
            assert row["mask"].mode == "L" and set(np.unique(row["mask"])) == {0, 255}


def test_deterministic_by_seed(dataset):
    again = generate_dataset(size=64, num_train=20, num_test_good=4, num_test_defective=10, contamination=0.25, seed=1)
    other = generate_dataset(size=64, num_train=20, num_test_good=4, num_test_defective=10, contamination=0.25, seed=2)
    for split in dataset:
        assert [image.tobytes() for image in dataset[split]["image"]] == [i.tobytes() for i in again[split]["image"]]
        assert not {i.tobytes() for i in dataset[split]["image"]} & {i.tobytes() for i in other[split]["image"]}


def test_all_images_differ(dataset):
    images = [image.tobytes() for split in dataset.values() for image in split["image"]]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("defect", DEFECT_TYPES)
def test_mask_is_where_the_image_changed(kind, defect):
    for seed in range(3):
        good, empty = render_image(kind, 96, "good", seed)
        image, mask = render_image(kind, 96, defect, seed)
        assert not empty.any() and mask.any()
        change = np.abs(image.astype(int) - good.astype(int)).max(axis=-1)
        grown = np.pad(mask, 1)
        grown = grown[1:-1, 1:-1] | grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:]
        assert (change[mask] > VISIBLE_CHANGE * 255 - 1).mean() > 0.5, "most of the mask changed visibly"
        assert (change[~grown] > VISIBLE_CHANGE * 255 + 1).mean() < 0.005, "hardly anything outside did"
        assert 0.0005 < mask.mean() < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_good_images_vary_a_little(kind):
    images = np.stack([render_image(kind, 64, "good", seed)[0] for seed in range(6)]).astype(float) / 255
    assert 0.01 < images.std(axis=0).mean() < 0.12
    assert 0.15 < images.mean() < 0.75


def test_faults_of_a_machine_come_back_in_training_and_test():
    dataset = generate_dataset(
        size=64, num_train=16, num_test_good=1, num_test_defective=8, contamination=0.5, seed=1, recurring=True
    )
    masks: dict[str, list[np.ndarray]] = {}
    for row in [*dataset["train"], *dataset["test"]]:
        if row["mask"] is not None:
            masks.setdefault(row["defect"], []).append(np.asarray(row["mask"]) > 0)
    assert {name: len(found) for name, found in masks.items()} == dict.fromkeys(MACHINE_FAULTS, 4)
    for found in masks.values():
        overlaps = [(found[0] & other).sum() / (found[0] | other).sum() for other in found[1:]]
        assert min(overlaps) > 0.4, "in the same place, but for the position of the part"
    with pytest.raises(ValueError, match="faults recur of kind 'part' alone"):
        generate_dataset("texture", recurring=True)


@pytest.mark.parametrize("size", [32, 65, 256])
def test_sizes(size):
    image, mask = render_image("part", size, "scratch", 0)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8 and mask.shape == (size, size)


def test_round_trip_through_a_tree(dataset, tmp_path):
    folder = write_mvtec_tree(dataset, tmp_path, "part")
    assert folder == tmp_path / "part"
    loaded = load_mvtec(tmp_path, "part")

    def content(split):
        rows = [(row["defect"], row["label"], row["image"].tobytes(), row["mask"]) for row in split]
        return Counter((*values, mask and mask.tobytes()) for *values, mask in rows)

    for split in dataset:
        assert content(loaded[split]) == content(dataset[split])
    assert len(list((folder / "train" / "good").iterdir())) == 15
    with pytest.raises(FileExistsError, match="not empty"):
        write_mvtec_tree(dataset, tmp_path, "part")


def test_no_contamination_and_no_defects():
    dataset = generate_dataset("texture", 32, num_train=3, num_test_good=1, num_test_defective=0, contamination=0)
    assert dataset["train"]["label"][:] == [0, 0, 0] and dataset["test"].num_rows == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cloth"}, "kind must be one of part, texture, got 'cloth'"),
        ({"size": 16}, "size must be at least 32"),
        ({"contamination": 1}, "contamination must be in"),
        ({"num_train": 0}, "num_train must be at least 1"),
        ({"num_test_good": -1}, "num_test_good=-1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        generate_dataset(**settings)
