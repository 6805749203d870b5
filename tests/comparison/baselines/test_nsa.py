"""NSA: patches blended without seams, and the labels of what they change."""

import numpy as np
import pytest
import torch

from iltm_anomaly.comparison.baselines.modeling import MissingExtraError
from iltm_anomaly.comparison.baselines.nsa import (
    CURVES,
    NSAConfig,
    NSAModel,
    blend_patch,
    disc_median,
    intensity_labels,
    natural_synthetic_anomaly,
    of_category,
    open_cv,
    resized_sides,
)
from iltm_anomaly.comparison.baselines.resnet import narrow


@pytest.fixture
def cv2():
    return pytest.importorskip("cv2", reason="needs pip install 'iltm-anomaly[baselines]'")


def pair(channels: int = 3, side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (2, 12, 12, channels)).astype(np.uint8)
    return tuple(image.repeat(side // 12, 0).repeat(side // 12, 1) for image in coarse)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_nothing_changes_outside_the_patch(cv2, channels, seed):
    image, source = pair(channels)
    before = image.copy()
    result, box = blend_patch(image, source, NSAConfig(), np.random.default_rng(seed))
    where = np.zeros(image.shape[:2], dtype=bool)
    where[box] = True
    assert np.array_equal(image, before) and result.shape == image.shape and result.dtype == np.uint8
    assert np.array_equal(result[~where], image[~where])
    assert (result[where] != image[where]).mean() > 0.3


def test_the_patch_has_no_seam(cv2):
    source = pair()[1]
    image = np.full_like(source, 90)
    for seed in range(5):
        result, box = blend_patch(image, source, NSAConfig(), np.random.default_rng(seed))
        patch = np.abs(result[box].astype(int) - 90)
        border = np.concatenate([patch[0], patch[-1], patch[:, 0], patch[:, -1]])
        assert border.mean() < 5 < patch.max()


def test_labels_are_zero_outside_and_grow_with_the_change():
    config = NSAConfig(image_size=(128, 128))
    pytest.importorskip("cv2", reason="needs pip install 'iltm-anomaly[baselines]'")
    before = np.full((128, 128, 3), 100, dtype=np.uint8)
    after, where = before.copy(), np.zeros((128, 128), dtype=bool)
    for column, change in enumerate((0, 10, 20, 80)):
        after[20:60, 30 * column : 30 * column + 24] += np.uint8(change)
        where[20:60, 30 * column : 30 * column + 24] = True
    labels = intensity_labels(before, after, where, config)
    found = [float(labels[40, 30 * column + 12]) for column in range(4)]
    expected = [0.0, *(1 / (1 + np.exp(-(change - 20) / 6)) for change in (10, 20, 80))]
    assert found == pytest.approx(expected, abs=1e-5)
    assert not labels[~where].any() and labels.dtype == np.float32


def test_a_patch_that_changes_nothing_visible_has_no_label(cv2):
    flat = np.full((96, 96, 3), 120, dtype=np.uint8)
    result, labels = natural_synthetic_anomaly(flat, flat, NSAConfig(), seed=3)
    assert np.abs(result.astype(int) - 120).max() <= 1 and not labels.any()


def test_a_batch_is_a_function_of_its_seed(cv2, training_images):
    model = NSAModel(NSAConfig(image_size=(64, 64), **narrow(4)))
    indices = torch.tensor([4, 7, 9])
    one, two = (model.training_batch(training_images, indices, seed=1) for _ in range(2))
    assert one["pixel_values"].shape == (3, 3, 64, 64) and one["labels"].shape == (3, 64, 64)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["labels"], model.training_batch(training_images, indices, seed=2)["labels"])
    assert float(one["labels"].min()) >= 0 and 0 < float(one["labels"].max()) <= 1


@pytest.mark.parametrize("size", [(64, 64), (72, 104)])
def test_the_map_has_the_images_size(size):
    model = NSAModel(NSAConfig(image_size=size, **narrow(4))).eval()
    scores, maps = model.anomaly_maps(torch.rand(2, 3, *size))
    assert maps.shape == (2, *size) and torch.equal(scores, maps.mean((1, 2)))
    assert float(maps.min()) >= 0 and float(maps.max()) <= 1


def test_the_source_has_settings_of_its_own_for_every_category_of_mvtec_ad():
    assert len(CURVES) == 15 and of_category("magnetic_tile") == {}
    recipe = NSAModel.recipe_for("paper", "screw")
    assert recipe.stage.epochs == 560
    config = NSAConfig(image_size=(256, 256), **recipe.config)
    assert (config.slope, config.midpoint, config.max_patches, config.rotation) == (1.0, 3.0, 4, 5.0)
    assert config.half_height == config.half_width == (0.03, 0.12)
    assert NSAModel.recipe_for("paper", "wood").config["resize"] == (0.5, 2.0)
    assert NSAModel.recipe_for("paper", "wood", {"resize": (1.0, 1.0)}).config["resize"] == (1.0, 1.0)  # the user's
    # by the other presets every category is treated alike
    assert NSAModel.recipe_for("cpu", "screw") == NSAModel.recipe_for("cpu")
    for category in CURVES:
        NSAConfig(**NSAModel.recipe_for("paper", category).config)


def test_height_and_width_of_a_patch_have_limits_of_their_own(cv2):
    image, source = pair()
    config = NSAConfig(half_height=(0.1, 0.12), half_width=(0.2, 0.4))
    boxes = [blend_patch(image, source, config, np.random.default_rng(seed))[1] for seed in range(40)]
    rows, columns = zip(*((box[0].stop - box[0].start, box[1].stop - box[1].start) for box in boxes), strict=True)
    # of the whole side, once it is resized
    assert {*rows} <= {10, 11, 12} and round(0.2 * 96) <= min(columns) < max(columns) <= round(0.4 * 96)


@pytest.mark.parametrize(
    "sides, scale, expected",
    [
        ((20, 30), 1.2, (24, 36)),
        ((20, 30), 0.1, (10, 15)),  # not below the smallest height
        ((20, 60), 1.0, (13, 40)),  # the width is cut off, and the height with it
        ((60, 20), 1.0, (48, 16)),  # the height, and by rounding a little more
        ((20, 200), 1.0, (10, 40)),  # both limits: the shape is lost
    ],
)
def test_a_resized_patch_keeps_its_shape_as_far_as_limits_allow(sides, scale, expected):
    assert resized_sides(sides, scale, np.array([10, 8]), np.array([50, 40])) == expected


@pytest.mark.parametrize("side", [8, 16, 33])
def test_images_of_any_size_have_patches(cv2, side):
    image, source = np.random.default_rng(0).integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    for seed in range(30):
        result, labels = natural_synthetic_anomaly(image, source, NSAConfig(max_patches=4), seed)
        assert result.shape == image.shape and np.isfinite(labels).all()


@pytest.mark.parametrize("radius", [1.0, 2.5, 5.0])
def test_the_median_over_a_disc_is_that_of_every_pixels_neighbours(radius):
    generator = np.random.default_rng(1)
    values = np.zeros((24, 30), dtype=np.float32)
    values[3:15, 0:20] = generator.random((12, 20)) * (generator.random((12, 20)) < 0.8)
    reach = int(radius)
    padded = np.pad(values, reach, mode="edge")
    disc = [
        (y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1) if y * y + x * x <= radius * radius
    ]
    expected = np.median([padded[reach + y : reach + y + 24, reach + x : reach + x + 30] for y, x in disc], axis=0)
    assert np.array_equal(disc_median(values, radius), expected)
    assert not disc_median(np.zeros((9, 9), dtype=np.float32), radius).any()


def test_images_are_flipped_and_turned_where_the_settings_say_so(cv2, training_images):
    def made(**settings) -> torch.Tensor:
        model = NSAModel(NSAConfig(image_size=(64, 64), tolerance=255.0, **settings, **narrow(4)))
        return model.training_batch(training_images, torch.arange(12), seed=1)["pixel_values"]

    plain, flipped, turned = made(), made(flip=True), made(rotation=20.0)
    distances = (flipped - plain).abs().mean((1, 2, 3))
    assert 2 <= int((distances > 0.02).sum()) <= 10  # about half of them
    assert ((turned - plain).abs().mean((1, 2, 3)) > 0.005).sum() >= 10


def test_a_missing_open_cv_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'iltm-anomaly\[baselines\]'"):
        open_cv()
