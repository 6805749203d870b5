import logging
import os

import numpy as np
import pytest
from PIL import Image
from trees import make_category, save_image, save_mask

from iltm_anomaly.data.folder import load_folder, load_images
from iltm_anomaly.data.layout import is_category, list_categories
from iltm_anomaly.data.mvtec import load_mvtec
from iltm_anomaly.data.schema import UNLABELLED


def test_reads_the_layout(category):
    dataset = load_mvtec(category.parent, "bolt")
    assert list(dataset) == ["train", "test"]
    for split in dataset.values():
        assert split.column_names == ["image", "mask", "label", "defect"]
        assert split.features["label"].names == ["good", "defective"]
    assert dataset["train"]["label"][:] == [0] * 6
    assert dataset["test"]["defect"][:] == ["crack"] * 3 + ["good"] * 2 + ["stain"] * 2
    assert dataset["test"]["label"][:] == [1, 1, 1, 0, 0, 1, 1]
    row = dataset["test"][0]
    assert row["image"].size == (12, 10)
    assert row["mask"].mode == "L" and set(np.unique(row["mask"])) == {0, 255}
    assert dataset["test"][3]["mask"] is None and dataset["train"][0]["mask"] is None
    assert [np.asarray(image)[0, 0, 0] for image in dataset["train"]["image"]] == list(range(6)), "sorted by name"


def test_stores_paths_not_bytes(category):
    from datasets import Image as ImageFeature

    train = load_mvtec(category)["train"].cast_column("image", ImageFeature(decode=False))
    assert train[0]["image"] == {"bytes": None, "path": str(category / "train" / "good" / "000.png")}


def test_root_may_be_the_category_or_hold_only_one(category):
    assert load_mvtec(category)["train"].num_rows == 6
    assert load_mvtec(category, "bolt")["train"].num_rows == 6
    assert load_mvtec(category.parent)["train"].num_rows == 6
    with pytest.raises(ValueError, match="is itself a category"):
        load_mvtec(category, "nut")


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*nowhere"):
        load_mvtec(tmp_path / "nowhere", "bolt")
    with pytest.raises(NotADirectoryError, match="is a file"):
        load_mvtec(save_image(tmp_path / "a.png"))


def test_unknown_category_names_those_that_exist(category):
    make_category(category.parent / "Washer")
    (category.parent / "notes").mkdir()
    assert list_categories(category.parent) == ["Washer", "bolt"]
    with pytest.raises(ValueError, match=r"no category 'bolts' in .*; it has: Washer, bolt\. Did you mean 'bolt'\?"):
        load_mvtec(category.parent, "bolts")
    with pytest.raises(ValueError, match=r"Did you mean 'Washer'"):
        load_mvtec(category.parent, "washer ")
    with pytest.raises(ValueError, match=r"it has: Washer, bolt\.$"):
        load_mvtec(category.parent, "..")
    with pytest.raises(ValueError, match="holds 2 categories, choose one: Washer, bolt"):
        load_mvtec(category.parent)


def test_folder_without_layout(tmp_path):
    save_image(tmp_path / "a.png")
    assert not is_category(tmp_path)
    with pytest.raises(ValueError, match=r"not in the layout of MVTec AD.*can only be trained on"):
        load_mvtec(tmp_path)


def test_missing_masks_are_named(category):
    (category / "ground_truth" / "crack" / "001_mask.png").unlink()
    with pytest.raises(ValueError, match=r"1 defective test image\(s\) without a mask: .*crack.001\.png; a mask"):
        load_mvtec(category)
    dataset = load_mvtec(category, require_masks=False)
    assert [mask is None for mask in dataset["test"]["mask"]] == [False, True, False, True, True, False, False]


def test_many_missing_masks_are_counted(tmp_path):
    make_category(tmp_path, defects={"crack": 9})
    for path in (tmp_path / "ground_truth" / "crack").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"^9 defective.*004\.png and 4 more"):
        load_mvtec(tmp_path)


@pytest.mark.parametrize(("top", "mode"), [(1, "L"), (255, "RGB"), (255, "1"), (65535, "I;16"), (200, "L")])
def test_masks_become_0_and_255(category, top, mode):
    save_mask(category / "ground_truth" / "crack" / "000_mask.png", top=top, mode=mode)
    mask = load_mvtec(category)["test"][0]["mask"]
    assert mask.mode == "L"
    values = np.asarray(mask)
    assert (values[:, :6] == 255).all() and (values[:, 6:] == 0).all()


def test_mask_of_another_size(category):
    save_mask(category / "ground_truth" / "crack" / "000_mask.png", size=(10, 12))
    with pytest.raises(ValueError, match=r"000_mask\.png is 10 x 12 pixels but its image .* is 12 x 10"):
        load_mvtec(category)


def test_no_mask_keeps_an_image_from_training(category, caplog):
    for number in range(10, 13):
        save_image(category / "train" / "crack" / f"{number:03d}.png")
    save_mask(category / "ground_truth" / "crack" / "010_mask.png", size=(10, 12))
    (category / "ground_truth" / "crack" / "011_mask.png").write_bytes(b"")
    save_mask(category / "ground_truth" / "crack" / "012_mask.png")
    known = load_mvtec(category)["train"].filter(lambda defect: defect == "crack", input_columns="defect")
    assert [mask is None for mask in known["mask"]] == [True, True, False]
    assert caplog.text.count("training needs none") == 2


def test_an_empty_mask_is_reported_and_its_image_not_tested_on(category, caplog):
    before = len(load_mvtec(category)["test"])
    save_mask(category / "ground_truth" / "crack" / "000_mask.png", top=0)
    after = load_mvtec(category)["test"]
    assert "000_mask.png marks no pixel" in caplog.text
    assert len(after) == before - 1
    assert all((mask is None) == (label == 0) for mask, label in zip(after["mask"], after["label"], strict=True))


def test_unreadable_images_are_reported_and_left_out(category, caplog):
    (category / "train" / "good" / "001.png").write_bytes(b"")
    (category / "train" / "good" / "002.png").write_text("no image")
    whole = (category / "test" / "stain" / "000.png").read_bytes()
    (category / "test" / "stain" / "000.png").write_bytes(whole[:-30])
    (category / "train" / "good" / "notes.txt").write_text("not looked at")
    (category / "train" / "good" / "._000.png").write_bytes(b"left by an archive")
    with caplog.at_level(logging.WARNING):
        dataset = load_mvtec(category)
    assert dataset["train"].num_rows == 4 and dataset["test"].num_rows == 6
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert "001.png: the file is empty (0 bytes)" in messages[0]
    assert "002.png: not in an image format" in messages[1]
    assert os.path.join("stain", "000.png") in messages[2]


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_readable_image(category, split):
    for path in (category / split).rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"no readable image in .*{split} \(the first of \d: .*the file is empty"):
        load_mvtec(category)


def test_empty_train_folder(tmp_path):
    (tmp_path / "train" / "good").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no readable image in .*the folder holds none"):
        load_mvtec(tmp_path)


def test_category_without_test_images(tmp_path):
    save_image(tmp_path / "train" / "good" / "0.png")
    dataset = load_mvtec(tmp_path)
    assert dataset["test"].num_rows == 0 and dataset["test"].features == dataset["train"].features


def test_train_folder_with_known_and_unknown_images(category, caplog):
    save_image(category / "train" / "crack" / "000.png")  # the mask of this number belongs to the test image
    save_image(category / "train" / "crack" / "007.png")
    save_mask(category / "ground_truth" / "crack" / "007_mask.png")
    save_image(category / "train" / "loose.png")
    save_image(category / "test" / "loose.png")
    dataset = load_mvtec(category)
    assert dataset["train"]["defect"][:] == ["good"] * 6 + ["crack", "crack", None]
    assert dataset["train"]["label"][:] == [0] * 6 + [1, 1, UNLABELLED]
    assert [mask is None for mask in dataset["train"]["mask"]] == [True] * 7 + [False, True]
    assert dataset["test"].num_rows == 7 and "1 image(s) directly in" in caplog.text


def test_exif_rotation_is_applied_before_sizes_are_compared(category):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (10, 12)).save(category / "test" / "crack" / "000.png", exif=exif)
    assert load_mvtec(category)["test"][0]["image"].size == (12, 10)


def test_fingerprint_follows_the_content_of_the_files(category):
    first = load_mvtec(category)
    assert load_mvtec(category)["train"]._fingerprint == first["train"]._fingerprint
    save_image(category / "train" / "good" / "000.png", 77, mode="L")
    os.utime(category / "train" / "good" / "000.png", (1, 1))
    second = load_mvtec(category)
    assert second["train"]._fingerprint != first["train"]._fingerprint
    assert second["test"]._fingerprint == first["test"]._fingerprint


def test_plain_folder(tmp_path, caplog):
    save_image(tmp_path / "b.JPG", 2)
    save_image(tmp_path / "a" / "z.png", 1)
    save_image(tmp_path / "c.tiff", 3)
    save_image(tmp_path / ".hidden" / "a.png", 4)
    (tmp_path / "broken.png").write_bytes(b"")
    (tmp_path / "readme.txt").write_text("")
    dataset = load_folder(tmp_path)
    assert [np.asarray(image)[0, 0, 0] for image in dataset["image"]] == [1, 2, 3]
    assert dataset["label"][:] == [UNLABELLED] * 3 and dataset["defect"][:] == [None] * 3
    assert dataset["mask"][:] == [None] * 3
    assert "broken.png" in caplog.text
    assert load_folder(tmp_path, recursive=False).num_rows == 2


def test_bad_plain_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no image in .*: no file ends in \.png"):
        load_folder(tmp_path)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"no readable image in .*a\.png"):
        load_folder(tmp_path)
    with pytest.raises(NotADirectoryError):
        load_folder(tmp_path / "a.png")


def test_a_folder_above_data_sets_is_not_trained_on_with_their_masks(tmp_path):
    make_category(tmp_path / "sets" / "mvtec" / "bolt")
    with pytest.raises(ValueError, match=r"bolt/ground_truth lies in .* Give .*sets/mvtec and the category bolt"):
        load_images(tmp_path / "sets")
    assert load_images(tmp_path / "sets" / "mvtec")["train"].num_rows == 6
    save_image(tmp_path / "days" / "monday" / "a.png")
    save_mask(tmp_path / "days" / "monday" / "ground_truth" / "a_mask.png")
    with pytest.raises(
        ValueError, match=r"monday/ground_truth lies in .*: it would be trained on\. Move it elsewhere"
    ):
        load_images(tmp_path / "days")


def test_load_images_tells_layouts_apart(category, tmp_path):
    assert set(load_images(category)) == {"train", "test"}
    assert set(load_images(category.parent, "bolt")) == {"train", "test"}
    plain = save_image(tmp_path / "plain" / "a.png").parent
    assert set(load_images(plain)) == {"train"}
    with pytest.raises(ValueError, match="not in the layout"):
        load_images(plain, "bolt")
    with pytest.raises(FileNotFoundError):
        load_images(tmp_path / "nowhere")


def test_real_categories(real_data):
    bottle = load_mvtec(real_data / "mvtec", "bottle")
    assert (bottle["train"].num_rows, bottle["test"].num_rows) == (209, 83)
    assert sum(bottle["test"]["label"]) == 63
    assert all(set(np.unique(mask)) == {0, 255} for mask in bottle["test"]["mask"] if mask is not None)
    with pytest.raises(ValueError, match=r"it has: .*bottle.*\. Did you mean 'bottle'"):
        load_mvtec(real_data / "mvtec", "botle")


def test_a_folder_of_masks_is_their_union(category):
    """As in MVTec LOCO AD: `ground_truth/<defect>/000/000.png`, values that tell kinds of defect."""
    (category / "ground_truth" / "crack" / "000_mask.png").unlink()
    parts = category / "ground_truth" / "crack" / "000"
    parts.mkdir()
    left, top = np.zeros((10, 12), np.uint8), np.zeros((10, 12), np.uint8)
    left[:, :3], top[:2] = 234, 255
    for number, part in enumerate((left, top)):
        Image.fromarray(part).save(parts / f"{number:03d}.png")
    mask = load_mvtec(category)["test"][0]["mask"]
    np.testing.assert_array_equal(np.asarray(mask) > 0, (left > 0) | (top > 0))
    Image.fromarray(top[:, :6]).save(parts / "002.png")
    with pytest.raises(ValueError, match="differ in size"):
        load_mvtec(category)


def test_a_test_set_without_a_training_set_is_not_trained_on(category):
    (category / "train").rename(category / "Train")
    with pytest.raises(ValueError, match="has a folder test or ground_truth and none named train"):
        load_images(category)


def test_links_to_folders_are_followed_once(tmp_path):
    real = save_image(tmp_path / "elsewhere" / "a.png", 1).parent
    root = save_image(tmp_path / "root" / "b.png", 2).parent
    (root / "link").symlink_to(real)
    (root / "again").symlink_to(real)
    (real / "back").symlink_to(root)
    assert sorted(np.asarray(image)[0, 0, 0] for image in load_folder(root)["image"]) == [1, 2]


def test_a_name_that_is_not_utf8_is_left_out(tmp_path, caplog):
    save_image(tmp_path / "a.png", 1)
    try:
        os.rename(save_image(tmp_path / "b.png"), os.fsencode(tmp_path) + b"/pi\xe8ce.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    assert load_folder(tmp_path).num_rows == 1
    assert "its name is not valid UTF-8; rename it" in caplog.text


def test_small_integers_of_a_mask_are_classes(category):
    values = np.zeros((10, 12), np.uint8)
    values[:5], values[5:7] = 1, 3
    Image.fromarray(values).save(category / "ground_truth" / "crack" / "000_mask.png")
    assert np.array_equal(np.asarray(load_mvtec(category)["test"][0]["mask"]) > 0, values > 0)
