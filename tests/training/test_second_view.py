"""A run on features with a second view: a pipeline on pixels within one on features, whose map is added."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import part_tree, tiny_pipeline
from torch.nn import functional as F

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.evaluation.evaluate import evaluate_run
from iltm_anomaly.export.graph import export_onnx
from iltm_anomaly.export.scorer import OnnxScorer
from iltm_anomaly.hub.upload import plan_upload
from iltm_anomaly.recipes.recipe import load_recipe
from iltm_anomaly.training.suspects import WEIGHTS_FILE
from iltm_anomaly.training.train import TrainArguments, train


def arguments(data: Path, output: Path, resume: bool = False) -> TrainArguments:
    pixels = load_recipe("tiny", ["stage1.epochs=2", "stage2.epochs=1", "rounds.rounds=0"]).to_dict()
    overrides = ["image_size=128", "rounds.rounds=1", f"pixels={json.dumps(pixels)}"]
    return TrainArguments(str(data), output, preset="tiny-features", overrides=overrides, resume=resume)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return part_tree(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run") / "run"
    train(arguments(data, output))
    return output


@pytest.fixture
def pipeline(run) -> ILTMAnomalyPipeline:
    return ILTMAnomalyPipeline.from_pretrained(run)


@pytest.fixture(scope="module")
def image(data) -> Path:
    return sorted(data.glob("test/*/*.png"))[-1]


def test_pixels_are_trained_on_images_in_which_nothing_was_rejected(run):
    rejected = load_file(run / "rounds" / "round_1" / WEIGHTS_FILE)["weights"].flatten(1).amin(1) <= 0.5
    whole, own = PixelCache(run / "images.arrow"), PixelCache(run / "pixels" / "images.arrow")
    assert 0 < int(rejected.sum()) == len(whole) - len(own)
    first = int((~rejected).nonzero()[0])
    assert own.names[0] == whole.names[first] and own.shape[2:] == (64, 64)
    blocks = whole[first].float().unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4))
    assert (own[0].float() - blocks).abs().max() <= 0.5


def test_the_map_is_the_sum_of_both_and_the_score_that_of_the_features(pipeline, image):
    both, settings = pipeline(image), pipeline.settings
    alone = pipeline(image, pixel_weight=0)
    assert torch.equal(both.scores, alone.scores) and not np.allclose(both.anomaly_maps[0], alone.anomaly_maps[0])
    pixels = pipeline.image_processor.preprocess([image])["pixel_values"]
    small = 255 * F.avg_pool2d(pixels, 2)[0].permute(1, 2, 0)
    theirs = pipeline.pixels(small.round().byte().numpy(), effort="score").anomaly_maps[0]
    expected = settings.pixel_weight / settings.pixel_scale * torch.from_numpy(theirs - settings.usual_pixels)
    expected = F.interpolate(expected[None, None], scale_factor=2, mode="bilinear")[0, 0]
    # of the model's own size, before maps are brought to that of the image
    found, own = (pipeline.score_batch(pixels, replace(settings, pixel_weight=w), 0)[0][0] for w in (0.5, 0.0))
    assert (found - own - expected).abs().max() < 0.05 * expected.abs().max()  # but for the rounding of pixels


def test_both_views_are_on_one_scale(pipeline, run):
    images = PixelCache(run / "images.arrow")[:].float() / 255
    alone = torch.stack(pipeline.score_batch(images, replace(pipeline.settings, pixel_weight=0.0), 0)[0])
    both = torch.stack(pipeline.score_batch(images, replace(pipeline.settings, pixel_weight=1.0), 0)[0])
    (median, high), (usual, rare) = (np.quantile(maps.numpy(), [0.5, 0.99]) for maps in (alone, both - alone))
    assert usual == pytest.approx(0, abs=1e-4) and rare == pytest.approx(high - median, rel=1e-3)


def test_it_is_saved_loaded_moved_and_cast_as_one(pipeline, image, tmp_path):
    expected = pipeline(image).anomaly_maps[0]
    pipeline.save_pretrained(tmp_path)
    again = ILTMAnomalyPipeline.from_pretrained(tmp_path)
    assert np.array_equal(again(image).anomaly_maps[0], expected)
    assert len(again.models) == 4 and all(model.dtype == torch.float16 for model in again.to(torch.float16).models)
    assert np.allclose(again(image).anomaly_maps[0], expected, atol=0.05 * expected.max())
    again.pixels, again.settings = None, replace(again.settings, pixel_scale=None)
    again.save_pretrained(tmp_path)
    assert not (tmp_path / "pixels").exists()  # what another pipeline has left there


def test_a_folder_without_its_second_view_or_with_a_strange_one_is_refused(run, tmp_path):
    shutil.copytree(run / "model", tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost" / "pixels")
    with pytest.raises(ValueError, match="lost is not complete: it has no pixels/"):
        ILTMAnomalyPipeline.from_pretrained(tmp_path / "lost")
    shutil.copytree(run / "model", tmp_path / "pickle")
    (tmp_path / "pickle" / "pixels" / "prior" / "model.bin").touch()
    for read in (ILTMAnomalyPipeline.from_pretrained, lambda folder: plan_upload(folder, "org/name")):
        with pytest.raises(ValueError, match="may run code"):
            read(tmp_path / "pickle")
    shutil.copytree(run / "rounds" / "round_1", tmp_path / "nested")
    (tmp_path / "nested" / WEIGHTS_FILE).unlink()
    shutil.copytree(tmp_path / "nested", tmp_path / "nested" / "pixels")
    with pytest.raises(ValueError, match="a second view is a pipeline on pixels within one on features"):
        ILTMAnomalyPipeline.from_pretrained(tmp_path / "nested")


def test_views_that_do_not_fit_are_refused(pipeline):
    parts = {**pipeline.components, "settings": pipeline.settings, "noise": pipeline.noise}
    with pytest.raises(ValueError, match=r"images of 3 x \(48, 48\): these do not divide the 3 x \(128, 128\)"):
        ILTMAnomalyPipeline(**parts, pixels=tiny_pipeline(side=48))


def test_what_goes_up_names_no_folder_of_ours(run, data):
    plan = plan_upload(run / "model", "org/name")
    assert {f"pixels/{name}/model.safetensors" for name in ("tokenizer", "prior")} <= plan.files.keys()
    reports = [plan.files[name] for name in ("training_report.json", "pixels/training_report.json")]
    assert all(isinstance(report, bytes) and str(data).encode() not in report for report in reports)


def test_a_run_that_was_stopped_in_the_second_view_goes_on(run, data, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "pixels" / "model")
    shutil.rmtree(tmp_path / "run" / "pixels" / "rounds")
    fitted = []
    monkeypatch.setattr("iltm_anomaly.training.fit_tokenizer.fit", lambda *_: fitted.append(1))
    model = train(arguments(data, tmp_path / "run", resume=True))
    assert not fitted  # the tokenizer was finished
    for part in ("prior/model.safetensors", "pixels/prior/model.safetensors", "calibration.json"):
        assert (model / part).read_bytes() == (run / "model" / part).read_bytes()


def test_the_last_round_is_evaluated_with_both_views(run, data, pipeline, tmp_path):
    maps = {}
    evaluate_run(run, data, None, tmp_path, show_progress=False, observe=lambda n, out: maps.update({n: out}))
    image = maps[1].images[0]
    both, alone = (pipeline(image, pixel_weight=weight).anomaly_maps[0] for weight in (0.5, 0.0))
    first = ILTMAnomalyPipeline.from_pretrained(run / "rounds" / "round_0")(image).anomaly_maps[0]
    for found, expected in ((maps[1], both), (maps[0], first)):  # but for the rounding of other batches
        assert np.abs(found.anomaly_maps[0] - expected).mean() < 0.01 * np.abs(both - alone).mean()


def test_an_exported_file_has_both_views(pipeline, image, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs the extra [onnx]")
    scorer = OnnxScorer(export_onnx(pipeline, tmp_path / "both.onnx"), threads=1)
    found, expected = scorer(image), pipeline(image, effort="score")
    assert found.score == pytest.approx(float(expected.scores[0]), rel=1e-4)
    assert np.abs(found.anomaly_map - expected.anomaly_maps[0]).max() < 1e-4 * pipeline.settings.score_threshold


def test_recipes_that_cannot_be_are_refused():
    for change, message in (
        ("pixels.image_size=96", r"recipe.pixels.image_size must divide 256, got 96"),
        ("pixels.num_channels=1", r"recipe.pixels.num_channels must be 3, got 1"),
        ("pixels.stage1.stps=5", r"recipe.pixels: recipe.stage1 has no field 'stps'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_recipe("features+pixels", [change])


def test_the_second_view_is_trained_as_by_its_own_preset():
    """But for the rounds, which those of the features take the place of."""
    assert load_recipe("features+pixels").pixels == load_recipe("cpu", ["rounds.rounds=0"])
