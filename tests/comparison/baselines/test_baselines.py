"""What every baseline must do: learn, find strong defects, save and load to the bit, repeat by seed."""

import numpy as np
import pytest
import torch

from iltm_anomaly import ILTMImageProcessor
from iltm_anomaly.comparison.baselines import BASELINES, BaselinePipeline, train_baseline
from iltm_anomaly.comparison.baselines.training import images_digest
from iltm_anomaly.data.cache import build_cache
from iltm_anomaly.metrics import evaluate_maps
from iltm_anomaly.training.run_folder import RunFolderError

FRESH = """
import sys
from iltm_anomaly.comparison.baselines import BaselinePipeline
import torch
from safetensors.torch import load_file
images = load_file(sys.argv[1])["images"]
for folder in sys.argv[2:]:
    out = BaselinePipeline.from_pretrained(folder)(images)
    print(" ".join(float(score).hex() for score in out.scores), float(sum(m.sum(dtype="f8") for m in out.anomaly_maps)).hex())
"""


def evaluate(pipeline, test_images) -> tuple[dict, np.ndarray, np.ndarray]:
    good, defective = test_images
    out = pipeline([*good, *defective])
    masks = [np.zeros((64, 64), dtype=bool) for _ in good]
    masks += [(bad != image).any(-1) for image, bad in zip(good, defective, strict=True)]
    metrics = evaluate_maps(out.anomaly_maps, masks, image_scores=out.scores.numpy())
    return metrics, out.scores.numpy()[: len(good)], out.scores.numpy()[len(good) :]


def test_strong_defects_are_found(train, name, test_images):
    metrics, good, defective = evaluate(train(name), test_images)
    assert metrics["pixel_auroc"] > 0.85
    assert metrics["image_auroc"] > 0.9
    assert np.median(defective) > good.max()


def test_a_threshold_beyond_float32_is_one_that_nothing_reaches(train, recwarn):
    pipeline = train("mean_image")
    pipeline.settings.score_threshold = 1e300
    assert not pipeline(np.zeros((64, 64, 3), dtype=np.uint8)).masks[0].any()
    assert not [warning for warning in recwarn if "overflow" in str(warning.message)]


def test_output_has_the_documented_shapes(train, name):
    pipeline = train(name)
    images = [np.zeros((40, 56, 3), dtype=np.uint8), np.full((64, 64), 200, dtype=np.uint8)]
    out = pipeline(images)
    assert out.scores.shape == (2,) and out.scores.dtype == torch.float32
    for image, values, mask in zip(images, out.anomaly_maps, out.masks, strict=True):
        assert values.shape == mask.shape == image.shape[:2]
        assert values.dtype == np.float32 and mask.dtype == bool and np.isfinite(values).all()
        assert np.array_equal(mask, values >= pipeline.settings.score_threshold)


def test_an_image_scores_the_same_alone_and_in_any_batch(train, name, test_images):
    pipeline, images = train(name), [*test_images[0][:2], test_images[1][0]]
    together, alone = pipeline(images), [pipeline(image) for image in images]
    for index, one in enumerate(alone):
        np.testing.assert_allclose(one.anomaly_maps[0], together.anomaly_maps[index], rtol=1e-3, atol=1e-4)
        assert float(one.scores[0]) == pytest.approx(float(together.scores[index]), rel=1e-3)


def test_threshold_comes_from_training_images_and_spares_most_of_them(train, name, training_images):
    pipeline = train(name)
    out = pipeline(training_images)
    flagged = np.mean([bool(mask.any()) for mask in out.masks])
    assert pipeline.settings.score_threshold > 0 and flagged <= 0.25


def test_losses_go_down(train, name):
    pipeline = train(name)
    report = pipeline.training_report
    assert report["title"] == BASELINES[name].title and report["images"] == 32
    if pipeline.model.recipes["tiny"].stage is None:
        assert report["steps"] == 0 and report["loss"] is None and report["ended_by"] == "recipe"
        return
    start = train(name, steps=1).training_report
    assert start["steps"] == 1 and report["steps"] == report["planned_steps"] > 50
    assert report["loss"] < 0.9 * start["loss"]


def test_loading_in_a_fresh_process_is_bit_equal(train, run_fresh, training_images, tmp_path):
    from safetensors.torch import save_file

    images = training_images[:5]
    save_file({"images": images}, tmp_path / "images.safetensors")
    expected, folders = [], []
    for name in BASELINES:
        if name == "nsa":
            continue  # where OpenCV is missing: it is loaded without it in the test below
        pipeline = train(name)
        pipeline.save_pretrained(tmp_path / name)
        folders.append(tmp_path / name)
        out = pipeline(images)
        total = float(sum(m.sum(dtype="f8") for m in out.anomaly_maps)).hex()
        expected.append(" ".join(float(score).hex() for score in out.scores) + " " + total)
    assert run_fresh(FRESH, tmp_path / "images.safetensors", *folders).splitlines() == expected


def test_nsa_loads_and_scores_without_open_cv(train, run_fresh, training_images, tmp_path):
    from safetensors.torch import save_file

    pipeline = train("nsa")
    pipeline.save_pretrained(tmp_path / "nsa")
    save_file({"images": training_images[:5]}, tmp_path / "images.safetensors")
    out = pipeline(training_images[:5])
    blocked = "import sys; sys.modules['cv2'] = None" + FRESH
    printed = run_fresh(blocked, tmp_path / "images.safetensors", tmp_path / "nsa").split()
    assert printed[:5] == [float(score).hex() for score in out.scores]


def test_the_seed_decides_everything(train, name, training_images, processor, tmp_path, backbone_config):
    config = backbone_config(name)
    first = train(name, steps=5, config=config).model.state_dict()
    torch.manual_seed(77)
    keywords = {"preset": "tiny", "steps": 5, "show_progress": False, "config": config}
    again = train_baseline(name, training_images, processor, tmp_path / "again", seed=0, **keywords)
    assert all(torch.equal(tensor, again.model.state_dict()[key]) for key, tensor in first.items())
    other = train_baseline(name, training_images, processor, tmp_path / "other", seed=1, **keywords)
    same = all(torch.equal(tensor, other.model.state_dict()[key]) for key, tensor in first.items())
    assert same == (name == "mean_image"), "only the mean image has nothing random"


def test_a_cache_on_disk_trains_the_same_model(training_images, processor, tmp_path):
    cache = build_cache(tmp_path / "images.arrow", list(training_images.numpy()), lambda image: image)
    keywords = {"preset": "tiny", "steps": 3, "show_progress": False}
    one = train_baseline("autoencoder", training_images, processor, tmp_path / "one", **keywords).model.state_dict()
    two = train_baseline("autoencoder", cache, processor, tmp_path / "two", **keywords).model.state_dict()
    assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())
    assert images_digest(cache) == cache.digest


def test_grey_images(training_images, train, name, tmp_path, backbone_config):
    if name == "nsa":
        pytest.importorskip("cv2", reason="needs pip install 'iltm-anomaly[baselines]'")
    grey = ILTMImageProcessor(size=64, num_channels=1)
    config = backbone_config(name)
    images = training_images.float().mean(1, keepdim=True).round().to(torch.uint8)
    keywords = {"preset": "tiny", "steps": 2, "show_progress": False, "config": config}
    pipeline = train_baseline(name, images, grey, tmp_path, **keywords)
    out = BaselinePipeline.from_pretrained(tmp_path / "model")(images[:2])
    assert torch.equal(out.scores, pipeline(images[:2]).scores)


class TestRuns:
    KEYWORDS = {"preset": "tiny", "show_progress": False}  # noqa: RUF012

    def test_a_finished_run_is_loaded_and_another_refused(self, training_images, processor, tmp_path):
        first = train_baseline("autoencoder", training_images, processor, tmp_path, steps=2, **self.KEYWORDS)
        written = (tmp_path / "model" / "model" / "model.safetensors").stat().st_mtime_ns
        again = train_baseline("autoencoder", training_images, processor, tmp_path, steps=2, **self.KEYWORDS)
        assert (tmp_path / "model" / "model" / "model.safetensors").stat().st_mtime_ns == written
        assert again.training_report == first.training_report
        with pytest.raises(RunFolderError, match=r"seed \(0 there, 1 now\)"):
            train_baseline("autoencoder", training_images, processor, tmp_path, steps=2, seed=1, **self.KEYWORDS)
        with pytest.raises(RunFolderError, match="images_sha256"):
            train_baseline("autoencoder", training_images[:31], processor, tmp_path, steps=2, **self.KEYWORDS)
        with pytest.raises(RunFolderError, match="already holds a run"):
            train_baseline("autoencoder", training_images, processor, tmp_path, steps=2, resume=False, **self.KEYWORDS)

    def test_an_interrupted_run_continues_to_the_same_bits(self, training_images, processor, tmp_path, monkeypatch):
        from iltm_anomaly.comparison.baselines import training

        whole = train_baseline("vae", training_images, processor, tmp_path / "whole", steps=8, **self.KEYWORDS)
        settings = training.LoopSettings
        monkeypatch.setattr(training, "LoopSettings", lambda **k: settings(**k, checkpoint_seconds=0.0))
        batch, stop = training.BASELINES["vae"].model_class.training_batch, [5]

        def interrupted(self, images, indices, seed):
            stop[0] -= 1
            if stop[0] == 0:
                raise KeyboardInterrupt
            return batch(self, images, indices, seed)

        monkeypatch.setattr(training.BASELINES["vae"].model_class, "training_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_baseline("vae", training_images, processor, tmp_path / "cut", steps=8, **self.KEYWORDS)
        assert (tmp_path / "cut" / "checkpoint.bin").exists() and not (tmp_path / "cut" / "model").exists()
        resumed = train_baseline("vae", training_images, processor, tmp_path / "cut", steps=8, **self.KEYWORDS)
        assert all(
            torch.equal(tensor, resumed.model.state_dict()[key]) for key, tensor in whole.model.state_dict().items()
        )
        assert not (tmp_path / "cut" / "checkpoint.bin").exists()

    def test_a_time_budget_ends_training(self, training_images, processor, tmp_path):
        keywords = self.KEYWORDS | {"steps": 100_000, "budget_seconds": 1.0}
        report = train_baseline("vae", training_images, processor, tmp_path, **keywords).training_report
        assert report["ended_by"] == "budget" and 1 <= report["steps"] < 100_000
        assert 1.0 <= report["descent_seconds"] < 20

    @pytest.mark.parametrize(
        "keywords, message",
        [
            (
                {"name": "magic"},
                "no baseline 'magic'; there are autoencoder, vae, cutpaste, nsa, mean_image, patchcore, patchcore_coreset, "
                "softpatch",
            ),
            ({"preset": "huge"}, "has no preset 'huge'"),
            ({"config": {"latents": 3}}, "has no setting 'latents'"),
            ({"config": {"latent_size": 0}}, "latent_size must be at least 1"),
        ],
    )
    def test_mistakes_are_named(self, training_images, processor, tmp_path, keywords, message):
        arguments = {"name": "autoencoder", "preset": "tiny", "steps": 1} | keywords
        with pytest.raises(ValueError, match=message):
            train_baseline(
                images=training_images, processor=processor, output=tmp_path, show_progress=False, **arguments
            )

    def test_volumes_are_refused(self, training_images, tmp_path):
        volumes = ILTMImageProcessor(size={"depth": 8, "height": 8, "width": 8})
        with pytest.raises(ValueError, match="baselines are for images"):
            train_baseline("mean_image", training_images, volumes, tmp_path)


@pytest.mark.parametrize("preset", ["paper", "cpu", "tiny"])
def test_every_preset_builds(name, preset, processor, backbone_config):
    model_class = BASELINES[name].model_class
    if name == "nsa":
        pytest.importorskip("cv2", reason="needs pip install 'iltm-anomaly[baselines]'")
    recipe = BASELINES[name].recipe_for(preset, config=backbone_config(name))
    with torch.device("meta"):
        model = model_class(model_class.configure(processor, 209, recipe.config))
    assert model.config.model_type == f"iltm_{name.removesuffix('_coreset')}" and model.num_parameters() > 0


def test_importing_the_list_is_quick(run_fresh):
    run_fresh("import iltm_anomaly.comparison.baselines, sys; assert 'torch' not in sys.modules")
