"""Volumes through the commands and the pipeline."""

import csv
import json
from functools import partial
from unittest.mock import MagicMock

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_prior, tiny_vqvae

from iltm_anomaly import ILTMAnomalyPipeline, ILTMImageProcessor, InferenceSettings
from iltm_anomaly.cli import main
from iltm_anomaly.data.augmentation import AugmentationConfig
from iltm_anomaly.demo import demo_volumes
from iltm_anomaly.evaluation.detect import detect
from iltm_anomaly.evaluation.inputs import list_inputs
from iltm_anomaly.prior import PerformerPriorConfig
from iltm_anomaly.recipes.recipe import load_recipe
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig

AFFINE = np.array([[-2.0, 0, 0, 20], [0, 0, 2.0, -20], [0, -3.0, 0, 30], [0, 0, 0, 1]])
RECIPE = """
name: smallest
volume: {spacing: 3, intensity_range: [0, 10], foreground: 0.05}
num_channels: 1
gradient_checkpointing: true
stage1: {epochs: 2, batch_size: 4}
stage2: {epochs: 2, batch_size: 4}
rounds: {rounds: 1, code_copies: 2, convergence_iou: 1.0, convergence_change: 0.0}
vqvae: {spatial_dims: 3, channels: [4, 8], num_res_blocks: 1, vocab_size: 16, embedding_dim: 4}
prior: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, head_dim: 8}
augmentation: {elastic_probability: 0.5}
inference: {num_samples: 2, num_dropout_passes: 2, num_contexts: 1}
"""


def write(path, seed, lesion=False):
    """A soft ball, with noise, in a scan of its own size and unusual orientation."""
    generator = np.random.default_rng(seed)
    sides = generator.integers([16, 13, 19], [20, 16, 22])
    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in sides], indexing="ij")
    values = 4 * np.exp(-3 * sum(axis**2 for axis in axes)) + generator.normal(0, 0.1, sides)
    mask = np.zeros(sides, np.uint8)
    if lesion:
        mask[2:8, 2:8, 3:9] = 1
        values[mask > 0] = 9
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values.astype(np.float32), AFFINE), path)
    return nib.Nifti1Image(mask, AFFINE)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("volumes")
    (root / "recipe.yaml").write_text(RECIPE)
    data = root / "data"
    for number in range(6):
        write(data / "train" / "good" / f"{number}.nii.gz", number)
    for number in range(2):
        write(data / "test" / "good" / f"{number}.nii.gz", 10 + number)
    for number in range(4):
        mask = write(data / "test" / "lesion" / f"{number}.nii.gz", 20 + number, lesion=True)
        (data / "ground_truth" / "lesion").mkdir(parents=True, exist_ok=True)
        nib.save(mask, data / "ground_truth" / "lesion" / f"{number}_mask.nii.gz")
    arguments = ["--data", str(data), "--preset", str(root / "recipe.yaml"), "--contamination", "0.25"]
    assert main(["train", "--volumes", *arguments, "--output", str(root / "run")]) == 0
    return root


def test_training_leaves_a_pipeline_for_volumes(root):
    report = json.loads((root / "run" / "model" / "training_report.json").read_text())
    assert report["num_training_images"] == 8 and [entry["round"] for entry in report["rounds"]] == [0, 1]
    settings = json.loads((root / "run" / "model" / "image_processor" / "preprocessor_config.json").read_text())
    assert settings["spacing"] == [3, 3, 3] and settings["size_divisor"] == 4
    assert all(settings["size"][axis] % 4 == 0 for axis in ("depth", "height", "width"))


def test_evaluate_reports_metrics_of_volumes(root, tmp_path, capsys):
    assert main(["evaluate", str(root / "run"), "--data", str(root / "data"), "--output", str(tmp_path)]) == 0
    assert "best Dice" in capsys.readouterr().out
    document = json.loads((tmp_path / "results.json").read_text())
    results = document["results"]
    assert 5 < document["reconstruction_psnr"] < 60
    assert [result["round"] for result in results] == [0, 1]
    for result in results:
        for key in ("pixel_auroc", "aupro", "aupr", "best_dice", "lesion_sensitivity_at_2_fp"):
            assert 0 <= result[key] <= 1
        assert (
            result["lesions"] == 2
        )  # half of the lesion-bearing volumes; the other half is the pool of contamination
    assert 0 <= results[1]["masked_share_defect_tokens"] <= 1
    assert Image.open(tmp_path / "gallery.png").size[1] > 300


def test_detect_writes_maps_on_the_grid_of_the_input(root, tmp_path, capsys):
    good, bad = root / "data" / "test" / "lesion" / "0.nii.gz", tmp_path / "bad.nii.gz"
    bad.write_bytes(good.read_bytes()[:200])
    assert main(["detect", str(root / "run"), str(good), str(bad), "--output", str(tmp_path / "out")]) == 1
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert rows[1]["error"].startswith("cannot read volume") and not rows[1]["score"]
    row, scan = rows[0], nib.load(good)
    values, mask = nib.load(tmp_path / "out" / row["map"]), nib.load(tmp_path / "out" / row["mask"])
    for image in (values, mask):
        assert image.shape == scan.shape
        np.testing.assert_array_equal(image.affine, scan.affine)
    assert values.get_fdata().max() == pytest.approx(float(row["score"]), rel=1e-4)
    assert mask.get_fdata().sum() == int(row["abnormal_pixels"])
    assert Image.open(tmp_path / "out" / row["overlay"]).size[0] > 100
    without = Image.open(tmp_path / "out" / row["overlay"])
    for path in (good, root / "data" / "ground_truth" / "lesion" / "0_mask.nii.gz"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert main(["detect", str(root / "run"), str(tmp_path / "0.nii.gz"), "--output", str(tmp_path / "out2")]) == 0
    outlined = next((tmp_path / "out2" / "overlays").glob("0_*.png"))
    assert Image.open(outlined).tobytes() != without.tobytes()
    with pytest.raises(ValueError, match="holds no volume"):
        list_inputs([root / "run"], volumes=True)


def test_the_demo_of_volumes_leaves_what_it_says(tmp_path, capsys, monkeypatch):
    small = partial(demo_volumes, tmp_path, preset="tiny-volumes", num_train=10, spacing=20)
    document = small()
    assert [entry["round"] for entry in document["results"]] == [0, 1]
    for entry in document["results"]:
        assert {"aupr", "best_dice", "aupro", "pixel_auroc", "lesion_sensitivity_at_2_fp"} <= entry.keys()
    assert document["results"][1]["masked_share_defect_tokens"] is not None
    assert len(json.loads((tmp_path / "data" / "lesions.json").read_text())) > 0
    printed = capsys.readouterr().out
    assert "best Dice" in printed and 'pipe = ILTMAnomalyPipeline.from_pretrained("' in printed
    scan = nib.load(tmp_path / "data" / "test" / "lesion" / "000.nii.gz")
    found = nib.load(next((tmp_path / "detected" / "maps").glob("*.nii.gz")))
    assert found.shape == scan.shape and np.array_equal(found.affine, scan.affine)
    assert np.asarray(Image.open(tmp_path / "gallery.png")).std() > 10

    trained = [(tmp_path / "run" / "run.json").stat().st_mtime_ns]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("iltm_anomaly.demo.evaluate_run", MagicMock(side_effect=KeyboardInterrupt))
        small()
    trained.append((tmp_path / "run" / "run.json").stat().st_mtime_ns)
    assert trained[0] < trained[1] and not (tmp_path / "results.json").exists(), "a finished demo is replaced"
    assert small()["results"][0]["aupr"] == document["results"][0]["aupr"]
    assert (tmp_path / "run" / "run.json").stat().st_mtime_ns == trained[1], "an interrupted one is continued"


def test_a_plain_folder_of_volumes_is_trained_on_as_it_is(root, tmp_path):
    pattern = str(root / "data" / "train" / "good" / "*.nii.gz")
    recipe = str(root / "recipe.yaml")
    assert main(["train", "--volumes", "--data", pattern, "--preset", recipe, "--output", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "model" / "model_index.json").is_file()


def test_images_and_volumes_are_not_mixed_up(root, tmp_path, capsys):
    arguments = ["--data", str(root / "data"), "--output", str(tmp_path / "x")]
    assert main(["train", *arguments, "--preset", str(root / "recipe.yaml")]) == 2
    assert "pass --volumes" in capsys.readouterr().err
    assert main(["train", "--volumes", *arguments, "--preset", "tiny"]) == 2
    assert "is for images" in capsys.readouterr().err


def make_pipeline(**settings):
    vqvae = tiny_vqvae(spatial_dims=3, in_channels=1, channels=(4, 8))
    prior = tiny_prior(vocab_size=16, grid_shape=(4, 3, 5))
    size = {"depth": 14, "height": 12, "width": 19}
    processor = ILTMImageProcessor(size=size, size_divisor=4, spacing=3, intensity_range=(0, 10))
    defaults = {"num_samples": 2, "num_dropout_passes": 2, "token_threshold": 0.05, "score_threshold": 3.0}
    defaults["reconstruction_noise"] = False  # nothing is calibrated
    return ILTMAnomalyPipeline(vqvae, prior, processor, InferenceSettings(**defaults | settings))


def test_pipeline_takes_and_gives_volumes(tmp_path):
    pipeline = make_pipeline()
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"{number}.nii.gz")
        write(paths[-1], number)
    out = pipeline(paths)
    for path, values, mask, healed in zip(paths, out.anomaly_maps, out.masks, out.healed_images, strict=True):
        assert values.shape == mask.shape == healed.shape == nib.load(path).shape
        assert np.isfinite(values).all() and values.dtype == np.float32 and mask.dtype == bool
        assert healed.min() >= 0 and healed.max() <= 10 + 1e-3
    assert out.token_log_likelihoods.shape == out.resampled_tokens.shape == (2, 4, 3, 5)
    alone = pipeline(nib.load(paths[1]))
    np.testing.assert_allclose(alone.anomaly_maps[0], out.anomaly_maps[1], atol=1e-4)
    array = np.random.default_rng(0).random((2, 9, 10, 11)).astype(np.float32)
    assert [m.shape for m in pipeline(array).anomaly_maps] == [(9, 10, 11)] * 2
    pipeline.save_pretrained(tmp_path / "saved")
    again = ILTMAnomalyPipeline.from_pretrained(tmp_path / "saved")(paths)
    assert torch.equal(again.scores, out.scores)


def test_a_volume_that_cannot_be_used_is_an_error_of_its_own(tmp_path):
    pipeline = make_pipeline()
    pipeline.image_processor.intensity_range = None  # so that values must lie in [0, 1]
    flat = np.full((8, 9, 10), 0.5, np.float32)
    nib.save(
        nib.Nifti1Image(flat, np.diag([0.002, 1, 1, 1])), tmp_path / "a.nii"
    )  # drawn with square voxels: 5000 high
    nib.save(nib.Nifti1Image(9 * flat, AFFINE), tmp_path / "b.nii")
    nib.save(nib.Nifti1Image(flat, AFFINE), tmp_path / "c.nii")
    rows = detect(pipeline, [tmp_path], tmp_path / "out", show_progress=False)
    assert [bool(row["error"]) for row in rows] == [False, True, False] and "b.nii must lie in [0, 1]" in rows[1][
        "error"
    ]
    assert max(Image.open(tmp_path / "out" / rows[0]["overlay"]).size) <= 4 * 2048 + 30


def test_parts_must_agree_on_dimensions():
    pipeline = make_pipeline()
    with pytest.raises(ValueError, match="give its size a depth"):
        ILTMAnomalyPipeline(pipeline.vqvae, pipeline.prior, ILTMImageProcessor(size=32))


def test_checkpointing_changes_nothing_but_memory():
    gradients = []
    for enabled in (False, True):
        for model, inputs in (
            (
                tiny_vqvae(spatial_dims=3, in_channels=1, dropout=0.0),
                {"pixel_values": torch.ones(1, 1, 16, 8, 8) * 0.3},
            ),
            (tiny_prior(dropout=0.2), {"input_ids": torch.arange(42)[None] % 11}),
        ):
            if enabled:
                model.activation_checkpointing_enable({"use_reentrant": False})
            torch.manual_seed(0)
            model.train()(**inputs).loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for plain, checkpointed in zip(gradients[:2], gradients[2:], strict=True):
        assert plain.keys() == checkpointed.keys() and plain
        for name in plain:
            torch.testing.assert_close(plain[name], checkpointed[name])


@pytest.mark.parametrize("name", ["pet", "mri-crop", "tiny-volumes"])
def test_presets_for_volumes_build(name):
    recipe = load_recipe(name)
    assert recipe.is_volumetric and VQVAEConfig(**recipe.vqvae).spatial_dims == 3
    PerformerPriorConfig(grid_shape=(4, 4, 4), **recipe.prior)
    assert AugmentationConfig(**recipe.augmentation).elastic_probability > 0
    InferenceSettings(**recipe.inference)


def test_the_pet_preset_is_the_appendix():
    recipe = load_recipe("pet")
    assert (recipe.vqvae["vocab_size"], recipe.vqvae["embedding_dim"]) == (256, 128)
    assert (recipe.stage1.epochs, recipe.stage1.batch_size, recipe.stage1.learning_rate) == (1000, 3, 1e-4)
    prior = recipe.prior
    assert (prior["num_hidden_layers"], prior["num_attention_heads"], prior["hidden_size"]) == (14, 8, 256)
    assert (recipe.stage2.epochs, recipe.stage2.batch_size, recipe.stage2.learning_rate) == (80, 1, 1e-3)
