"""CutPaste: what the task changes, and how patches become a map."""

import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetModel

from iltm_anomaly.comparison.baselines.cutpaste import (
    CutPasteConfig,
    CutPasteModel,
    color_jitter,
    cut_paste,
    overlapping_patches,
    scar,
    spread_patches,
    three_way,
)
from iltm_anomaly.comparison.baselines.resnet import narrow

SMALL = {**narrow(4), "head_sizes": (8,), "image_size": (64, 64)}


def image(side: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((3, side, side), dtype=np.float32)


@pytest.mark.parametrize("augmentation", [cut_paste, scar])
@pytest.mark.parametrize("seed", range(8))
def test_only_what_is_pasted_changes(augmentation, seed):
    config, original = CutPasteConfig(), image()
    before = original.copy()
    result, where = augmentation(original, config, np.random.default_rng(seed))
    assert np.array_equal(original, before), "the image itself stays"
    assert np.array_equal(result[:, ~where], original[:, ~where])
    assert where.any() and (result[:, where] != original[:, where]).mean() > 0.5
    assert result.dtype == np.float32 and 0 <= result.min() <= result.max() <= 1


def test_sizes_are_the_papers():
    config, original = CutPasteConfig(image_size=(256, 256)), image(256)
    areas, shapes = [], []
    for seed in range(60):
        where = cut_paste(original, config, np.random.default_rng(seed))[1]
        rows, columns = where.any(1).sum(), where.any(0).sum()
        assert where.sum() == rows * columns, "a rectangle"
        areas.append(where.mean())
        shapes.append(rows / columns)
    assert min(areas) > 0.018 and max(areas) < 0.16 and np.ptp(areas) > 0.08
    assert 0.27 < min(shapes) < 0.6 and 1.6 < max(shapes) < 3.6
    scars = [scar(original, config, np.random.default_rng(seed))[1].sum() for seed in range(60)]
    assert max(scars) <= 1.3 * 16 * 25 and max(scars) > 4 * min(scars)


def test_what_is_pasted_comes_from_the_image():
    config = CutPasteConfig(jitter=0.0)
    original = image()
    known = {tuple(pixel) for pixel in original.reshape(3, -1).T.round(4).tolist()}
    result, where = scar(original, config, np.random.default_rng(3))
    assert {tuple(pixel) for pixel in result[:, where].T.round(4).tolist()} <= known


def test_labels_say_what_was_done():
    model = CutPasteModel(CutPasteConfig(**SMALL))
    images = (torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    batch = model.training_batch(images, torch.tensor([3, 1]), seed=9)
    assert batch["pixel_values"].shape == (6, 3, 16, 16)
    assert batch["labels"].tolist() == [0, 1, 2, 0, 1, 2]
    normal, pasted, scarred = batch["pixel_values"][:3]
    assert not torch.equal(normal, pasted) and not torch.equal(normal, scarred)
    again = model.training_batch(images, torch.tensor([3, 1]), seed=9)
    assert torch.equal(batch["pixel_values"], again["pixel_values"])
    assert not torch.equal(
        batch["pixel_values"], model.training_batch(images, torch.tensor([3, 1]), 8)["pixel_values"]
    )
    plain = three_way(images[3].numpy() / np.float32(255), CutPasteConfig(**SMALL | {"jitter": 0.0}), 1)[0]
    windows = images[3].unfold(1, 16, 1).unfold(2, 16, 1)  # (3, 49, 49, 16, 16)
    same = (windows.permute(1, 2, 0, 3, 4).numpy() / np.float32(255) == plain).all(axis=(2, 3, 4))
    assert same.sum() == 1, "the normal patch is one of the image's"


def test_jitter():
    original = image(8)
    np.testing.assert_allclose(color_jitter(original, 0.0, np.random.default_rng(0)), original, atol=1e-6)
    grey = np.full((3, 4, 4), 0.5, dtype=np.float32)
    changed = color_jitter(grey, 0.1, np.random.default_rng(1))
    assert np.ptp(changed[:, 0, 0]) < 0.01, "grey has no hue to turn"
    assert 0.44 < changed.mean() < 0.56


@pytest.mark.parametrize("size", [(64, 64), (72, 88)])
def test_patches_cover_the_image_and_their_values_are_averaged(size):
    config = CutPasteConfig(image_size=size, steps_per_patch=4)
    pixels = torch.rand(2, 3, *size)
    patches, grid = overlapping_patches(pixels, config)
    assert len(patches) == 2 * grid[0] * grid[1]
    side, stride = config.patch_size, config.stride
    assert torch.equal(
        patches[grid[0] * grid[1] + grid[1] + 2], pixels[1, :, stride : stride + side, 2 * stride : 2 * stride + side]
    )
    constant = spread_patches(torch.full((2, *grid), 3.0), config)
    assert constant.shape == (2, *size)
    torch.testing.assert_close(constant, torch.full((2, *size), 3.0))
    single = torch.zeros(1, *grid)
    single[0, 1, 2] = 1
    peak = int(spread_patches(single, config)[0].argmax())
    centre = (stride + side // 2, 2 * stride + side // 2)
    assert abs(peak // size[1] - centre[0]) <= stride and abs(peak % size[1] - centre[1]) <= stride


def test_starts_from_weights_by_name(tmp_path, training_images, processor):
    torch.manual_seed(5)
    sizes = {"embedding_size": 4, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 2], "layer_type": "basic"}
    stored = ResNetModel(ResNetConfig(**sizes))
    stored.save_pretrained(tmp_path)
    config = CutPasteModel.configure(processor, 32, {"weights": str(tmp_path), "head_sizes": (8,)})
    assert config.depths == (1, 1, 1, 2) and config.hidden_sizes == (8, 8, 16, 16)
    model = CutPasteModel(config)
    model.load_pretrained_parts()
    assert all(torch.equal(tensor, model.resnet.state_dict()[key]) for key, tensor in stored.state_dict().items())
