"""Data sets that come through `datasets`: from the Hub (replaced, tests are offline) and from local folders."""

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image

from iltm_anomaly.data.folder import load_images
from iltm_anomaly.data.hub import load_hub_dataset
from iltm_anomaly.data.mvtec import load_mvtec


def image(value: int = 9) -> Image.Image:
    return Image.new("RGB", (8, 6), (value,) * 3)


def mask(top: int = 255) -> Image.Image:
    values = np.zeros((6, 8), dtype=np.uint8)
    values[:3] = top
    return Image.fromarray(values)


def make_dataset(**columns) -> Dataset:
    features = {
        "image": datasets.Image(),
        "mask": datasets.Image(),
        "defect": Value("string"),
        "label": Value("int64"),
    }
    features |= {"category": Value("string"), "other": Value("int64")}
    return Dataset.from_dict(columns, features=Features({name: features[name] for name in columns}))


@pytest.fixture
def loaded() -> DatasetDict:
    return DatasetDict(
        train=make_dataset(image=[image(), image()], mask=[None, None], defect=["good", "good"], other=[1, 2]),
        test=make_dataset(
            image=[image()] * 3, mask=[None, mask(), mask(1)], defect=["good", "cut", "cut"], other=[1] * 3
        ),
    )


@pytest.fixture
def hub(monkeypatch, loaded):
    """Makes `datasets` find `loaded` under org/parts, with configurations cup and lid."""
    calls = []

    def load_dataset(name, config=None, **kwargs):
        calls.append((name, config, kwargs))
        return loaded

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name, **kwargs: ["cup", "lid"])
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_hub_id(hub):
    dataset = load_mvtec("org/parts", "cup", revision="v1")
    assert hub == [("org/parts", "cup", {"revision": "v1"})]
    assert dataset["test"].column_names == ["image", "mask", "label", "defect"]
    assert dataset["test"]["label"][:] == [0, 1, 1]
    assert dataset["test"][0]["mask"] is None
    for row in (1, 2):
        assert dataset["test"][row]["mask"].mode == "L"
        assert np.array_equal(np.asarray(dataset["test"][row]["mask"]), np.asarray(mask()))


def test_unknown_configuration(hub):
    with pytest.raises(ValueError, match=r"no category 'cap' in org/parts; it has: cup, lid\. Did you mean 'cup'\?"):
        load_mvtec("org/parts", "cap")


def test_category_column(hub, loaded):
    for split in loaded:
        count = loaded[split].num_rows
        loaded[split] = loaded[split].add_column("category", ["screw"] + ["nut"] * (count - 1))
    dataset = load_mvtec("org/parts", "nut")
    assert (dataset["train"].num_rows, dataset["test"].num_rows) == (1, 2)
    with pytest.raises(ValueError, match=r"it has: nut, screw\. Did you mean 'screw'"):
        load_mvtec("org/parts", "screws")


def test_defects_from_class_labels(hub, loaded):
    feature = ClassLabel(names=["bent", "normal"])
    loaded["train"] = make_dataset(image=[image()], label=[1]).cast_column("label", feature)
    loaded["test"] = make_dataset(image=[image()] * 3, label=[1, 0, -1], mask=[None, mask(), None])
    loaded["test"] = loaded["test"].cast_column("label", feature)
    dataset = load_mvtec("org/parts")
    assert dataset["test"]["defect"][:] == ["good", "bent", None]
    assert dataset["test"]["label"][:] == [0, 1, -1]
    assert dataset["train"]["mask"][:] == [None]


def test_defects_from_numbers_and_without_labels(hub, loaded):
    loaded["train"] = make_dataset(image=[image()])
    loaded["test"] = make_dataset(image=[image()] * 2, label=[0, 1], mask=[None, mask()])
    dataset = load_mvtec("org/parts")
    assert dataset["train"]["label"][:] == [-1]
    assert dataset["test"]["defect"][:] == ["good", "defective"]
    # a table with a gap has floats, and numbers may be text
    loaded["train"] = make_dataset(image=[image()] * 3).add_column("label", [0.0, None, 1.0])
    loaded["test"] = make_dataset(image=[image()] * 2, mask=[None, mask()]).add_column("label", ["0", "1"])
    dataset = load_mvtec("org/parts")
    assert dataset["train"]["label"][:] == [0, -1, 1] and dataset["test"]["label"][:] == [0, 1]
    loaded["train"] = make_dataset(image=[image()]).add_column("label", [0.5])
    with pytest.raises(ValueError, match=r"column label holds 0\.5; it must hold names, or 0 for good"):
        load_mvtec("org/parts")


def test_bad_hub_data(hub, loaded):
    loaded["test"] = loaded["test"].remove_columns("mask")
    with pytest.raises(ValueError, match=r"2 defective image\(s\) of the test split of org/parts have no .* in row 1"):
        load_mvtec("org/parts")
    assert load_mvtec("org/parts", require_masks=False)["test"]["mask"][:] == [None] * 3
    loaded["train"] = loaded["train"].rename_column("image", "picture")
    with pytest.raises(ValueError, match="train split of org/parts has no column image; it has: picture"):
        load_mvtec("org/parts")
    del loaded["train"]
    with pytest.raises(ValueError, match="has no split train; it has: test"):
        load_mvtec("org/parts")


def test_masks_are_checked_as_those_of_folders(hub, loaded, caplog):
    wide = Image.fromarray(np.full((6, 9), 255, dtype=np.uint8))
    loaded["test"] = make_dataset(image=[image()], mask=[wide], defect=["cut"])
    with pytest.raises(ValueError, match=r"mask in row 0 of the test split .* is 9 x 6 pixels, its image 8 x 6"):
        load_mvtec("org/parts")
    loaded["test"] = make_dataset(image=[image()], mask=[mask(0)], defect=["cut"])
    with pytest.raises(ValueError, match=r"1 defective image\(s\) of the test split"):
        load_mvtec("org/parts")
    assert "marks no pixel" in caplog.text


def test_unreadable_rows_are_left_out(hub, loaded, caplog):
    rows = [{"path": None, "bytes": b"no image"}, image(3), None]
    loaded["train"] = make_dataset(image=rows, mask=[None] * 3, defect=["good"] * 3)
    loaded["test"] = make_dataset(image=[None, image()], mask=[None, mask()], defect=["cut", "scratch"])
    dataset = load_mvtec("org/parts")
    assert [np.asarray(one).max() for one in dataset["train"]["image"]] == [3]
    assert dataset["test"]["defect"][:] == ["scratch"]
    assert "left out: cannot read image in row 0 of the data set" in caplog.text
    assert "left out: row 2 of the data set (counted from 0) holds no image" in caplog.text


def test_unreachable_hub_names_both_readings(monkeypatch):
    def unreachable(name, **kwargs):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "get_dataset_config_names", unreachable)
    with pytest.raises(FileNotFoundError, match=r"data/mvtec is neither a folder here .* nor a data set .*offline"):
        load_mvtec("data/mvtec", "bottle")


def test_saved_to_disk_and_parquet(loaded, tmp_path):
    loaded.save_to_disk(tmp_path / "disk")
    assert load_mvtec(tmp_path / "disk")["test"]["label"][:] == [0, 1, 1]
    with pytest.raises(ValueError, match="no category 'cup'"):
        load_hub_dataset(str(tmp_path / "disk"), "cup", True)
    DatasetDict(test=loaded["test"]).save_to_disk(tmp_path / "test_only")
    with pytest.raises(ValueError, match="has no split train"):
        load_hub_dataset(str(tmp_path / "test_only"), "cup", True)
    (tmp_path / "parquet").mkdir()
    for name, split in loaded.items():
        split.to_parquet(tmp_path / "parquet" / f"{name}.parquet")
    dataset = load_images(tmp_path / "parquet", cache_dir=str(tmp_path / "cache"))
    assert dataset["test"]["defect"][:] == ["good", "cut", "cut"]
    assert np.asarray(dataset["test"][0]["image"]).shape == (6, 8, 3)


def test_one_split_saved_to_disk(loaded, tmp_path):
    loaded["train"].save_to_disk(tmp_path / "disk")
    dataset = load_images(tmp_path / "disk")
    assert dataset["train"]["label"][:] == [0, 0] and len(dataset["test"]) == 0


def test_notes_beside_images_are_no_metadata(tmp_path):
    image().save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("id,note\n1,scratched\n")
    assert set(load_images(tmp_path)) == {"train"}


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"`datasets` cannot read .*parquet"):
        load_images(tmp_path, cache_dir=str(tmp_path / "cache"))


def test_an_image_whose_mask_cannot_be_read_is_left_out(hub, loaded, caplog):
    rows = [{"path": None, "bytes": b"no image"}, mask(), None]
    loaded["test"] = make_dataset(image=[image(1), image(2), image(3)], mask=rows, defect=["cut", "cut", "good"])
    test = load_mvtec("org/parts")["test"]
    assert [np.asarray(one).max() for one in test["image"]] == [2, 3] and test["label"][:] == [1, 0]
    assert "left out: row 0 of the test split of org/parts: cannot read mask" in caplog.text
