"""Large images in tiles: put together without a seam, scored as the images of the training were."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from tiny_models import tiny_pipeline

from iltm_anomaly import ILTMAnomalyPipeline, tiles
from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.tiling import OVERLAP, Tiling, starts, weights_along
from iltm_anomaly.training.train import TrainArguments, train

TILE = 128


def woven(height: int, width: int, seed: int) -> np.ndarray:
    """A texture without a place of its own, (height, width, 3) uint8."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] + random.uniform(0, 20, (2, 1, 1))
    weave = 40 * np.sin(2 * np.pi * x / 9.7) * np.sin(2 * np.pi * y / 13.3)
    clouds = ndimage.gaussian_filter(random.normal(size=(height, width)), 2)
    grey = 128 + weave + 14 * clouds / clouds.std() + 6 * random.normal(size=(height, width))
    return np.clip(np.stack([grey, 0.9 * grey, 0.8 * grey], -1), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("textures")
    for number in range(12):
        Image.fromarray(woven(200, 256, number)).save(folder / f"{number:02d}.png")
    output = tmp_path_factory.mktemp("run") / "run"
    overrides = [f"image_size={TILE}", f"tile={TILE}", "rounds.rounds=0"]
    train(TrainArguments(str(folder), output, preset="tiny-features", overrides=overrides))
    return output


@pytest.fixture(scope="module")
def pipeline(run):
    return ILTMAnomalyPipeline.from_pretrained(run)


@pytest.fixture(scope="module")
def defective():
    pixels = woven(360, 430, 99)
    pixels[170:190, 220:260] = 40
    return pixels


@pytest.mark.parametrize("length", [100, 128, 129, 300, 4096])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
def test_tiles_cover_a_side_evenly_and_their_weights_are_one_everywhere(length, overlap):
    firsts = starts(length, TILE, overlap)
    side = min(TILE, length)
    assert firsts[0] == 0 and firsts[-1] + side == length
    assert all(after - before <= TILE * (1 - overlap) for before, after in itertools.pairwise(firsts))
    total = np.zeros(length)
    for first, weights in zip(firsts, weights_along(length, TILE, firsts), strict=True):
        total[first : first + side] += weights
    np.testing.assert_allclose(total, 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["pixels", "features"])
def test_an_image_of_one_tile_has_the_direct_result(pipeline, kind):
    if kind == "pixels":
        pipeline = tiny_pipeline(score_threshold=1.0, token_threshold=0.05)
    side = pipeline.image_processor.size["height"]
    for size in ((side, side), (side - 5, side // 2)):  # a smaller one is a single tile, too
        image = woven(*size, 5)
        direct, tiled = pipeline(image, tile=0), pipeline(image, tile=side)
        np.testing.assert_array_equal(direct.anomaly_maps[0], tiled.anomaly_maps[0])
        assert torch.equal(direct.scores, tiled.scores)
        assert np.array_equal(direct.masks[0], tiled.masks[0])
        assert np.array_equal(np.asarray(direct.healed_images[0]), np.asarray(tiled.healed_images[0]))
        assert torch.equal(direct.resampled_tokens[0], tiled.resampled_tokens[0][0])


def test_tiles_of_other_offsets_agree(pipeline, defective):
    """Away from the border, within a tenth of the threshold at normal pixels, and of the map at its highest."""
    first, second = pipeline(defective), pipeline(defective[28:, 36:])
    inner = np.s_[TILE // 2 : -TILE // 2, TILE // 2 : -TILE // 2]
    one, two = first.anomaly_maps[0][28:, 36:][inner], second.anomaly_maps[0][inner]
    limit = pipeline.settings.score_threshold
    assert np.abs(one - two)[one < limit].mean() < 0.1 * limit
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.99
    assert float(first.scores[0]) == pytest.approx(float(second.scores[0]), rel=0.1)
    assert first.masks[0][180, 240] and len(first.resampled_tokens[0]) == 5 * 6


@pytest.mark.parametrize("overlap, most", [(OVERLAP, 1.2), (0.0, None)])
def test_no_step_where_tiles_begin_and_end(pipeline, monkeypatch, overlap, most):
    """Neighbouring columns differ by no more there than elsewhere. Without overlap they do, which shows that it is measured."""
    height, width = 260, 510
    monkeypatch.setattr(tiles, "tiling_of", lambda image, tile: Tiling(height, width, tile, overlap))
    values = pipeline(Image.fromarray(woven(height, width, 7))).anomaly_maps[0]
    steps = np.abs(np.diff(values, axis=1)).mean(0)
    columns = Tiling(height, width, TILE, overlap).columns
    lines = {c - 1 for c in columns if c} | {c + TILE - 1 for c in columns if c + TILE < width}
    ratio = steps[sorted(lines)].mean() / steps.mean()
    assert ratio < most if most else ratio > 2


def test_the_score_is_that_of_the_worst_tile_however_large_the_image(pipeline, defective):
    """A defect in the midst of a large good image is not thinned out."""
    large = woven(500, 640, 99)
    large[: defective.shape[0], : defective.shape[1]] = defective
    small, whole = pipeline(defective), pipeline(large)
    assert float(whole.scores[0]) == pytest.approx(float(small.scores[0]), rel=0.1)
    assert float(small.scores[0]) >= pipeline.settings.score_threshold and whole.masks[0].any()
    good = pipeline(woven(360, 430, 50))
    assert not good.masks[0].any() and float(good.scores[0]) < float(small.scores[0]) / 3


def test_training_images_are_cut_into_tiles_with_names(run, pipeline):
    names = PixelCache(run / "images.arrow").names
    assert len(names) == 12 * 4 and names[3].endswith("00.png@128,72")
    assert pipeline.settings.tile == TILE
    assert "00.png@128,72" in (run / "training_images.csv").read_text()


def test_volumes_and_odd_sides_are_refused(pipeline, defective):
    for tile in (7, 64.0, "128", True):
        with pytest.raises(ValueError, match="tile must be a whole number of pixels, 8 at least"):
            pipeline(defective, tile=tile)
    with pytest.raises(ValueError, match="no images"):
        pipeline([], tile=64)


@pytest.mark.parametrize("number", [0, 1])
def test_a_tile_without_a_finite_score_is_not_passed_over(number):
    scores = [np.nan if index == number else 1.0 for index in range(2)]
    none = torch.zeros(1)
    parts = [tiles.ScoredImage(np.ones((8, 8)), score, np.zeros((8, 8, 3)), none, none) for score in scores]
    assert np.isnan(tiles.put_together(Tiling(8, 12, 8), parts).score)
