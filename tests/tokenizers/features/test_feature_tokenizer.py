"""Tokens of frozen features: shapes, codes, pictures, saving, and which backbones are taken."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, ConvNextBackbone, ConvNextConfig, Dinov2Backbone, Dinov2Config

from iltm_anomaly import FeatureTokenizerConfig, FeatureTokenizerModel
from iltm_anomaly.hub.checks import check_model
from iltm_anomaly.tokenizers.features.fitting import fit_codebook, fit_detail, fit_metric, nearest, residual_lengths

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tokenizer() -> FeatureTokenizerModel:
    model = FeatureTokenizerModel.from_backbone(vocab_size=8)
    features = model.features(IMAGES).flatten(0, 2)
    size = features.shape[1]
    codebook = fit_codebook(features, 8, torch.Generator().manual_seed(0))
    patches = torch.arange(8).view(8, 1, 1, 1).expand(8, 3, 8, 8).to(torch.uint8) * 30
    model.set_codes(torch.eye(size), codebook, model.get_buffer("detail"), patches)
    return model


def test_shapes_follow_the_grid(tokenizer):
    codes, observed = tokenizer.tokenize(IMAGES)
    assert codes.shape == (2, 8, 12) and codes.dtype == torch.int64
    assert observed.shape == (2, 176, 8, 12) and tokenizer.observed_shape((64, 96)) == (8, 12)
    assert tokenizer.expect(codes).shape == observed.shape
    (rows, draws), *more = tokenizer.draw_expected(codes, 3, torch.Generator())
    assert not more and draws.shape == (6, 176, 8, 12) and draws[:, :, rows].shape == draws.shape


def test_a_code_is_the_nearest_of_the_codebook(tokenizer):
    codes, observed = tokenizer.tokenize(IMAGES)
    vectors = observed.permute(0, 2, 3, 1).flatten(0, 2)
    distances = torch.cdist(vectors.double(), tokenizer.codebook.double())
    assert torch.equal(codes.flatten(), distances.argmin(1))
    assert torch.equal(tokenizer.encode(IMAGES), codes)


def test_codes_are_shown_by_their_patches(tokenizer):
    codes = torch.arange(6).view(1, 2, 3)
    picture = tokenizer.show(tokenizer.expect(codes)[0])
    assert picture.shape == (3, 16, 24)
    expected = codes[0].repeat_interleave(8, 0).repeat_interleave(8, 1) * 30 / 255
    assert torch.allclose(picture, expected.expand(3, -1, -1))


def test_a_saved_tokenizer_is_the_same_and_passes_the_checks_of_strangers(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    check_model(tmp_path, FeatureTokenizerModel)
    again = AutoModel.from_pretrained(tmp_path)
    assert isinstance(again, FeatureTokenizerModel)
    for ours, theirs in zip(tokenizer.tokenize(IMAGES), again.tokenize(IMAGES), strict=True):
        assert torch.equal(ours, theirs)


def test_batches_change_nothing(tokenizer):
    alone = torch.cat([tokenizer.observe(image[None]) for image in IMAGES])
    assert torch.allclose(alone, tokenizer.observe(IMAGES), atol=1e-4)


def test_statistics_of_the_backbone_stay(tokenizer):
    tokenizer.train()
    assert not any(module.training for module in tokenizer.modules())


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (1, 3, 60, 64), (1, 3, 0, 64)])
def test_images_that_do_not_fit_are_refused(tokenizer, shape):
    with pytest.raises(ValueError, match="multiples of 8"):
        tokenizer.features(torch.zeros(shape))


def test_grey_images_are_given_to_all_channels(tokenizer):
    grey = FeatureTokenizerModel(FeatureTokenizerConfig(vocab_size=8, in_channels=1))
    grey.backbone.load_state_dict(tokenizer.backbone.state_dict())
    one = IMAGES[:, :1]
    assert torch.allclose(grey.features(one), tokenizer.features(one.expand(-1, 3, -1, -1)))


def backbone_folder(kind: str, folder) -> tuple[str, list[int]]:
    torch.manual_seed(0)
    if kind == "convnext":
        config = ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], out_features=["stage1", "stage2"])
        ConvNextBackbone(config).save_pretrained(folder)
        return str(folder), [1, 2]
    config = Dinov2Config(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14)
    config.set_output_features_output_indices(out_features=["stage1"], out_indices=None)
    Dinov2Backbone(config).save_pretrained(folder)
    return str(folder), [2, 3]


@pytest.mark.parametrize("kind", ["convnext", "dinov2"])
def test_backbones_of_transformers_are_taken_from_a_folder(kind, tmp_path):
    name, levels = backbone_folder(kind, tmp_path / "backbone")
    model = FeatureTokenizerModel.from_backbone(name, levels=levels, vocab_size=4)
    observed = model.observe(IMAGES)
    assert observed.shape[2:] == (8, 12) and bool(observed.isfinite().all())
    model.save_pretrained(tmp_path / "tokenizer")
    check_model(tmp_path / "tokenizer", FeatureTokenizerModel)
    again = FeatureTokenizerModel.from_pretrained(tmp_path / "tokenizer")
    assert torch.allclose(again.observe(IMAGES), observed)


def test_a_backbone_of_more_layers_than_weights_is_not_built(tmp_path):
    config = ConvNextConfig(num_channels=3, hidden_sizes=[4, 6, 8, 8], depths=[1, 1, 1, 1])
    ConvNextBackbone(config).save_pretrained(tmp_path / "backbone")
    FeatureTokenizerModel.from_backbone(str(tmp_path / "backbone"), vocab_size=8).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    values = json.loads(path.read_text())
    values["backbone_config"]["depths"] = [1, 1, 10**9, 1]  # to be made, 20 GB
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="claims depths 1000000003, but its weights have"):
        check_model(tmp_path / "model", FeatureTokenizerModel)


def test_levels_of_a_backbone_of_one_stride_must_be_named(tmp_path):
    name, _ = backbone_folder("dinov2", tmp_path)
    with pytest.raises(ValueError, match="name blocks"):
        FeatureTokenizerModel.from_backbone(name)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("spatial_dims", 3, "backbones take images"),
        ("in_channels", 2, "1 or 3"),
        ("vocab_size", 0, "at least 1"),
        ("backbone", "some/other", "expected one of"),
        ("backbone_config", {"model_type": "gpt2"}, "expected one of"),
    ],
)
def test_configurations_that_mean_nothing_are_refused(field, value, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        FeatureTokenizerConfig(**{field: value})


# Fitting


def test_in_the_metric_variation_about_a_place_is_the_same_in_all_directions():
    generator = torch.Generator().manual_seed(0)
    turned, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    mixing = torch.linspace(1, 3, 6).diag() @ turned
    places = 5 * torch.randn(1, 3, 4, 6, generator=generator)  # what each place holds is no variation
    features = places + torch.randn(400, 3, 4, 6, generator=generator) @ mixing
    metric = fit_metric(features, torch.ones(400, 3, 4))
    offsets = ((features - features.mean(0)) @ metric).flatten(0, 2)
    assert torch.allclose(offsets.T @ offsets / len(offsets), torch.eye(6), atol=0.3)


def test_detail_of_a_residual_is_that_of_the_first_features_in_their_own_metric():
    features, weights = torch.randn(50, 2, 2, 5, generator=torch.Generator().manual_seed(0)), torch.ones(50, 2, 2)
    metric = fit_metric(features, weights)
    detail = fit_detail(features, weights, metric, 3)
    whole, own = residual_lengths((features[0] - features[1]) @ metric, detail)
    alone = (features[0] - features[1])[..., :3] @ fit_metric(features[..., :3], weights)
    assert torch.allclose(own, alone.norm(dim=-1), rtol=1e-4) and bool((whole > own).all())


def test_tokens_without_weight_count_nowhere():
    features = torch.randn(20, 2, 2, 5, generator=torch.Generator().manual_seed(0))
    weights = torch.ones(20, 2, 2)
    weights[::4, 0] = 0
    spoiled = features.clone()
    spoiled[weights == 0] = 100.0
    assert torch.allclose(fit_metric(features, weights), fit_metric(spoiled, weights), atol=1e-4)


def test_codewords_are_where_tokens_are():
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    generator = torch.Generator().manual_seed(0)
    tokens = centres.repeat(50, 1) + 0.1 * torch.randn(150, 2, generator=generator)
    codebook = fit_codebook(tokens, 12, generator)
    assert codebook.shape == (12, 2)
    assert (tokens - codebook[nearest(tokens, codebook)]).norm(dim=1).max() < 0.5
    assert (torch.cdist(codebook, centres).amin(1) < 0.5).all()


def test_fewer_tokens_than_codewords():
    tokens = torch.tensor([[0.0], [1.0]])
    codebook = fit_codebook(tokens, 5, torch.Generator().manual_seed(0))
    assert codebook.shape == (5, 1) and set(codebook.flatten().tolist()) == {0.0, 1.0}
