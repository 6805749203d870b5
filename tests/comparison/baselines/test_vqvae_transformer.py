"""VQ-VAE + Transformer: round 0 of a run, with either map."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.comparison.baselines import BaselinePipeline
from iltm_anomaly.comparison.baselines.round_zero import from_run
from iltm_anomaly.comparison.baselines.vqvae_transformer import gated_residual
from iltm_anomaly.prior import PerformerPriorModel
from iltm_anomaly.recipes.recipe import load_recipe
from iltm_anomaly.training.run import TrainingRun


@pytest.fixture(scope="module", autouse=True)
def few_calibration_images():
    """Fewer than there are training images, as of any real set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("iltm_anomaly.calibration.CALIBRATION_IMAGES", 6)
        yield


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, training_images):
    """A run of two rounds that has hardly learned anything."""
    recipe = load_recipe("tiny")
    recipe.stage1.epochs = recipe.stage2.epochs = 2
    recipe.rounds.rounds = 1
    recipe.inference = {"num_samples": 3, "num_dropout_passes": 2, "num_contexts": 2}
    folder = tmp_path_factory.mktemp("iltm") / "run"
    images = [image.permute(1, 2, 0).numpy() for image in training_images]
    AcceleratorState._reset_state(reset_partial_state=True)
    TrainingRun(recipe, folder, 0, Accelerator(cpu=True), show_progress=False).train(
        images, lambda: {"source": "generated"}
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    return folder


@pytest.mark.parametrize("map", ["kde", "residual"])
def test_saves_and_loads_to_the_bit(run_folder, map, training_images, tmp_path):
    pipeline = from_run(run_folder, map)
    pipeline.save_pretrained(tmp_path)
    loaded = BaselinePipeline.from_pretrained(tmp_path)
    before, after = pipeline(training_images[:4]), loaded(training_images[:4])
    assert torch.equal(before.scores, after.scores)
    assert all(np.array_equal(a, b) for a, b in zip(before.anomaly_maps, after.anomaly_maps, strict=True))
    assert loaded.settings == pipeline.settings and loaded.settings.score_threshold > 0
    assert loaded.training_report["title"] == "VQ-VAE + Transformer"
    assert [entry["round"] for entry in loaded.training_report["rounds"]] == [0]


def test_kde_is_iltms_map_with_the_prior_of_round_0(run_folder, training_images):
    iltm = ILTMAnomalyPipeline.from_pretrained(run_folder / "model")
    last, limit = iltm(training_images[:4]), iltm.settings.surprise_limit
    iltm.calibrate_surprise_limit(iltm.encode(training_images))
    assert iltm.settings.surprise_limit == limit, "training took it from all images, not from those it calibrates on"
    iltm.prior = PerformerPriorModel.from_pretrained(run_folder / "rounds" / "round_0").eval()
    assert len(training_images) > 6
    iltm.calibrate_surprise_limit(iltm.encode(training_images.float() / 255))  # as `evaluate` does for a round
    expected, found = iltm(training_images[:4]), from_run(run_folder)(training_images[:4])
    for one, two in zip(expected.anomaly_maps, found.anomaly_maps, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(last.scores, found.scores), "round 1 is another model"


def test_the_residual_counts_near_resampled_tokens_only():
    image, healed = torch.rand(3, 64, 64), torch.zeros(3, 64, 64)
    resampled = torch.zeros(8, 8, dtype=torch.bool)
    assert not gated_residual(image, healed, resampled).any()
    resampled[2, 5] = True
    values = gated_residual(image, healed, resampled)
    assert values[20, 44] > 0 and not values[:, :8].any() and not values[56:].any()
    resampled[:] = True
    # amid resampled tokens the gate is fully open
    torch.testing.assert_close(gated_residual(image, healed, resampled), image.mean(0))


def test_a_run_that_is_not_finished_is_refused(run_folder, tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        from_run(tmp_path)
    with pytest.raises(ValueError, match="map must be one of"):
        from_run(run_folder, map="other")
