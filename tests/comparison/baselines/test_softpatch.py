"""SoftPatch: outlier factors, what is discarded, and what the factors weigh."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from iltm_anomaly.comparison.baselines.patchcore import nearest_rows
from iltm_anomaly.comparison.baselines.softpatch import SoftPatchConfig, SoftPatchModel, outlier_factors


def factors_by_definition(points: list[list[float]], k: int) -> list[float]:
    """Local outlier factors as Breunig et al. define them, one point after the other."""
    values = torch.tensor(points, dtype=torch.float64)
    gap = [[float((a - b).norm()) for b in values] for a in values]
    near = [sorted((j for j in range(len(values)) if j != i), key=gap[i].__getitem__)[:k] for i in range(len(values))]
    radius = [gap[i][near[i][-1]] for i in range(len(values))]
    density = [k / sum(max(gap[i][j], radius[j]) for j in near[i]) for i in range(len(values))]
    return [sum(density[j] for j in near[i]) / k / density[i] for i in range(len(values))]


def test_factors_are_those_of_the_definition_at_every_position():
    features = torch.randn(30, 5, 4, generator=torch.Generator().manual_seed(0))
    features[7, 2] += 20
    found = outlier_factors(features, 6)
    assert found.shape == (30, 5) and int(found.argmax()) == 7 * 5 + 2
    for position in range(5):
        expected = torch.tensor(factors_by_definition(features[:, position].tolist(), 6)).float()
        torch.testing.assert_close(found[:, position], expected, rtol=1e-3, atol=1e-4)


def test_what_is_the_same_in_all_images_is_no_outlier():
    features = 7 + torch.zeros(20, 2, 8)
    features[:, 1] += torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(outlier_factors(features, 6)[:, 0], torch.ones(20))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_fewer_images_than_neighbours(count):
    found = outlier_factors(torch.randn(count, 3, 2, generator=torch.Generator().manual_seed(0)), 6)
    assert found.shape == (count, 3) and bool(found.isfinite().all()) and bool((found > 0).all())


@torch.no_grad()
def test_the_bank_and_its_weights_leave_out_the_most_suspicious(train, training_images):
    model = train("softpatch").model
    features = model.features(training_images.float() / 255).flatten(1, 2)
    factors = outlier_factors(features, 6).flatten()
    distances, rows = nearest_rows(model.bank, features.flatten(0, 1))
    assert len(model.bank) == int(0.1 * len(factors)) and float(distances.max()) < 1e-3
    torch.testing.assert_close(model.weights, factors[rows], rtol=1e-3, atol=1e-3)
    assert float(model.weights.max()) <= float(factors.quantile(0.85)) + 1e-3
    assert len(model.weights.unique()) > 100


@torch.no_grad()
def test_distances_are_weighed_by_the_factor_of_the_nearest_patch(train, training_images):
    model = train("softpatch").model
    pixels = training_images[:2].float() / 255
    distances, rows = nearest_rows(model.features(pixels).flatten(0, 2), model.bank)
    expected = (distances * model.weights[rows]).view(2, 8, 8)
    torch.testing.assert_close(model(pixels).prediction, expected)
    torch.testing.assert_close(model.anomaly_maps(pixels)[0], expected.amax((1, 2)))


@torch.no_grad()
def test_a_defect_in_training_stays_out_of_the_bank(train, training_images, test_images):
    """PatchCore's coreset keeps it, and then cannot see it."""
    defective = torch.from_numpy(test_images[1][0]).permute(2, 0, 1)[None]
    images, scores = torch.cat([training_images[:28], defective]), {}
    for name in ("patchcore_coreset", "softpatch"):
        model = train(name).model
        copy = type(model)(model.config)
        copy.backbone.load_state_dict(model.backbone.state_dict())
        copy.fit_statistics(images, seed=0)
        distances = copy(images[-4:].float() / 255).prediction.amax((1, 2))
        scores[name] = float(distances[-1] / distances[:-1].max())
    assert scores["softpatch"] > 2 > scores["patchcore_coreset"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"neighbours": 0}, "neighbours must be at least 1"),
        ({"discarded": 1.0}, r"discarded must be in \[0, 1\)"),
        ({"discarded": 0.5, "bank_share": 0.6}, "more than what discarded 0.5 leaves"),
    ],
)
def test_wrong_settings_are_named(values, message):
    with pytest.raises(StrictDataclassError, match=message):
        SoftPatchConfig(**values)


def test_the_sources_settings_are_those_of_every_preset(processor, backbone_config):
    for preset in ("paper", "cpu"):
        settings = SoftPatchModel.recipe_for(preset, config=backbone_config("softpatch")).config
        config = SoftPatchModel.configure(processor, 10, settings)
        assert (config.neighbours, config.discarded, config.selection) == (6, 0.15, "coreset")
        assert config.bank_rows == int(0.1 * 10 * 32 * 32), "32 x 32 patches at stride 8 of 256 pixels"
