"""A run on frozen features, from images to a pipeline that finds what was hidden in them."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_models import PARTS, part_tree, tiny_prior
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.data.cache import build_cache
from iltm_anomaly.evaluation.evaluate import evaluate_run
from iltm_anomaly.training import calibrated_rounds
from iltm_anomaly.training.run_folder import RunFolderError
from iltm_anomaly.training.suspects import LIST, PICTURE, WEIGHTS_FILE, names_of
from iltm_anomaly.training.train import TrainArguments, train

OVERRIDES = ["image_size=128"]  # at 64 pixels every feature sees half of the image


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return part_tree(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run") / "run"
    train(TrainArguments(str(data), output, preset="tiny-features", overrides=OVERRIDES))
    return output


@pytest.fixture(scope="module")
def pipeline(run) -> ILTMAnomalyPipeline:
    return ILTMAnomalyPipeline.from_pretrained(run)


@pytest.fixture(scope="module")
def images(data) -> list[Path]:
    return sorted(data.glob("test/*/*.png"))


def test_every_round_is_a_pipeline_with_its_weights(run):
    for number in range(3):
        folder = run / "rounds" / f"round_{number}"
        assert ILTMAnomalyPipeline.from_pretrained(folder).has_features
        weights = load_file(folder / WEIGHTS_FILE)["weights"]
        assert (folder / WEIGHTS_FILE).stat().st_mode == (folder / "config.json").stat().st_mode
        assert weights.shape == (PARTS, 16, 16) and bool(((weights >= 0) & (weights <= 1)).all())
        assert bool(weights.all()) == (number == 0)
    assert not (run / "features.bin").exists()  # it may be large


def test_images_that_are_far_from_square_are_told_and_their_proportions_kept(pipeline, tmp_path, caplog):
    assert pipeline.training_report["data"]["aspect_ratio"] == 1.0
    for number in range(8):
        Image.effect_noise((72, 48), 40).save(tmp_path / f"{number}.png")
    with caplog.at_level("INFO"):
        output = train(TrainArguments(str(tmp_path), tmp_path / "run", preset="tiny-features", rounds=0))
    assert "1.50 times as wide as high, and are stretched to 64 x 64 pixels" in caplog.text
    assert ILTMAnomalyPipeline.from_pretrained(output).training_report["data"]["aspect_ratio"] == 1.5


def test_the_report_tells_what_was_done(run, pipeline):
    report = pipeline.training_report
    assert [entry["round"] for entry in report["rounds"]] == [0, 1, 2]
    assert report["rounds"][0]["masked_fraction"] == 0 < report["rounds"][1]["masked_fraction"] < 0.25
    assert report["recipe"]["name"] == "tiny-features" and report["num_training_images"] == PARTS
    assert report["training_seconds"] == pytest.approx(sum(entry["seconds"] for entry in report["rounds"]), abs=0.1)


def test_settings_are_calibrated(pipeline):
    found = vars(pipeline.settings)
    without = {name for name, value in found.items() if value is None}
    assert without == {"tile", "usual_pixels", "pixel_scale"}, found  # it has no second view
    assert found["score_threshold"] > 0 and pipeline.noise.shape == (3, 16, 16)


def test_output_has_the_size_of_the_input(pipeline, images):
    picture = Image.open(images[0]).resize((50, 70))
    out = pipeline(picture)
    assert out.anomaly_maps[0].shape == out.masks[0].shape == (70, 50)
    assert out.healed_images[0].size == (50, 70)
    assert out.token_log_likelihoods.shape == out.resampled_tokens.shape == (1, 16, 16)
    assert bool(out.token_log_likelihoods.isfinite().all())


def test_alone_or_among_others_and_loaded_again_the_result_is_the_same(pipeline, run, images):
    together, again = pipeline(images), ILTMAnomalyPipeline.from_pretrained(run / "model")(images, batch_size=3)
    alone = pipeline(images[5])
    assert torch.allclose(together.scores, again.scores, atol=1e-3)
    np.testing.assert_allclose(together.anomaly_maps[5], alone.anomaly_maps[0], atol=1e-3)


def test_an_image_is_marked_if_and_only_if_its_score_reaches_the_threshold(pipeline, images):
    out = pipeline(images)
    marked = torch.tensor([bool(mask.any()) for mask in out.masks])
    assert torch.equal(marked, out.scores >= pipeline.settings.score_threshold)


def test_no_label_flips_in_float16(pipeline, run, images):
    """At a threshold in the midst of the scores."""
    half = ILTMAnomalyPipeline.from_pretrained(run, dtype=torch.float16)
    scores, same = pipeline(images).scores, half(images).scores
    middle = scores.sort().values[5:7].mean()
    assert torch.equal(same >= middle, scores >= middle)
    with pytest.raises(ValueError, match=r"does not compute in torch\.bfloat16"):
        half.to(dtype=torch.bfloat16)


def test_what_is_healed_is_pasted_and_the_rest_is_the_image(pipeline, images):
    picture = np.array(Image.open(images[0]).convert("RGB"))
    picture[16:40, 16:40] = (255, 0, 255)  # a token is 4 pixels a side
    out = pipeline(picture)
    healed, where = np.asarray(out.healed_images[0]), out.resampled_tokens[0].numpy()
    assert where[6, 6] and not where.all()
    changed = np.kron(where, np.ones((4, 4), dtype=bool))
    assert np.median(np.abs(healed[~changed].astype(int) - picture[~changed])) <= 2  # resized, there and back
    assert np.abs(healed[20:36, 20:36].astype(int) - (255, 0, 255)).mean() > 50


def test_a_strange_patch_is_found_where_it_is(pipeline, images):
    good = next(path for path in images if path.parent.name == "good")
    picture = np.array(Image.open(good).convert("RGB"))
    before = pipeline(picture)
    picture[20:36, 30:46] = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    after = pipeline(picture)
    assert after.scores[0] > before.scores[0] + 1 and after.masks[0][28, 38]
    row, column = np.unravel_index(after.anomaly_maps[0].argmax(), (64, 64))
    assert 14 <= row < 42 and 24 <= column < 52


def test_a_finished_run_is_known_and_another_recipe_is_refused(run, data):
    before = (run / "model" / "training_report.json").stat().st_mtime_ns
    train(TrainArguments(str(data), run, preset="tiny-features", overrides=OVERRIDES, resume=True))
    assert (run / "model" / "training_report.json").stat().st_mtime_ns == before
    with pytest.raises(RunFolderError, match=r"features\.vocab_size"):
        train(
            TrainArguments(
                str(data), run, preset="tiny-features", overrides=[*OVERRIDES, "features.vocab_size=32"], resume=True
            )
        )


def test_the_same_seed_gives_the_same_pipeline(run, data, images, pipeline, tmp_path):
    train(TrainArguments(str(data), tmp_path / "run", preset="tiny-features", overrides=OVERRIDES))
    again = ILTMAnomalyPipeline.from_pretrained(tmp_path / "run")
    assert torch.allclose(again(images).scores, pipeline(images).scores, atol=1e-4)


def test_rounds_are_measured_with_what_each_rejected(run, data, tmp_path):
    document = evaluate_run(run, str(data), None, tmp_path, show_progress=False)
    assert [result["round"] for result in document["results"]] == [0, 1, 2]
    assert document["results"][0]["masked_share_defect_tokens"] in (0.0, None)
    assert (tmp_path / "gallery.png").stat().st_size > 1000
    last = evaluate_run(run, str(data), None, tmp_path / "last", all_rounds=False, show_progress=False)
    assert last["results"][0]["image_auroc"] == pytest.approx(document["results"][-1]["image_auroc"], abs=1e-6)


def test_too_few_images_are_refused_with_a_reason(data, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(data.glob("train/good/*.png"))[:3]:
        (few / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"3 training image\(s\) are too few"):
        train(TrainArguments(str(few), tmp_path / "run", preset="tiny-features"))


def test_images_that_are_all_the_same_do_not_break_it(data, images, tmp_path):
    same = tmp_path / "same"
    same.mkdir()
    for number in range(6):
        (same / f"{number}.png").write_bytes(images[0].read_bytes())
    train(TrainArguments(str(same), tmp_path / "run", preset="tiny-features"))
    pipe = ILTMAnomalyPipeline.from_pretrained(tmp_path / "run")
    out = pipe(images)
    assert bool(out.scores.isfinite().all()) and out.scores[0] == out.scores.min()


def test_grey_images(data, tmp_path):
    train(TrainArguments(str(data), tmp_path / "run", preset="tiny-features", overrides=["num_channels=1"]))
    out = ILTMAnomalyPipeline.from_pretrained(tmp_path / "run")(sorted(data.glob("test/*/*.png"))[0])
    assert out.anomaly_maps[0].shape == (64, 64)


def test_nothing_can_be_drawn_in_it(pipeline, images):
    with pytest.raises(ValueError, match="num_samples: nothing is drawn"):
        pipeline(images[0], num_samples=3)
    with pytest.raises(ValueError, match="calibrated in training"):
        pipeline.calibrate(torch.zeros(1, 3, 64, 64))


def test_parts_that_do_not_belong_together_are_refused(pipeline):
    with pytest.raises(ValueError, match="do not belong together"):
        ILTMAnomalyPipeline(pipeline.tokenizer, tiny_prior(), pipeline.image_processor)


def test_training_images_that_look_defective_are_listed_first(run, data, pipeline):
    rows = list(csv.DictReader((run / LIST).read_text().splitlines()))
    assert sorted(Path(row["path"]) for row in rows) == sorted(data.glob("train/**/*.png"))
    assert all(Path(row["path"]).parent.name not in ("good", "train") for row in rows[:4])
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    threshold = pipeline.settings.score_threshold
    assert [row["looks_defective"] == "1" for row in rows] == [score >= threshold for score in scores]
    weights = load_file(run / "rounds" / "round_2" / WEIGHTS_FILE)["weights"]
    rejected = [float(row["rejected_share"]) for row in rows]
    assert sum(rejected) / PARTS == pytest.approx((weights <= 0.5).float().mean().item(), abs=1e-3)
    assert Image.open(run / PICTURE).size[0] > 900


def test_the_list_is_of_the_tokens_that_the_last_round_was_fitted_without(data, tmp_path, monkeypatch):
    monkeypatch.setattr(calibrated_rounds, "SETTLED", -1.0)  # round 1 is never fitted
    overrides = [*OVERRIDES, "rounds.stop_early=true"]
    train(TrainArguments(str(data), tmp_path / "run", preset="tiny-features", overrides=overrides))
    rows = list(csv.DictReader((tmp_path / "run" / LIST).read_text().splitlines()))
    assert not (tmp_path / "run" / "rounds" / "round_1").exists()
    assert {row["rejected_share"] for row in rows} == {"0.0000"}


def test_no_name_in_the_list_is_a_formula(tmp_path):
    paths = ["=cmd()", "-x.png", "", "a.png"]
    cache = build_cache(tmp_path / "images.arrow", paths, lambda _: np.zeros((1, 2, 2)))
    assert names_of(cache) == ["./=cmd()", "./-x.png", "image 2", "a.png"]


class NoFloat64(TorchDispatchMode):
    """As Metal (MPS), which has no such tensors."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if any(isinstance(value, torch.Tensor) and value.dtype == torch.float64 for value in tree_leaves(made)):
            raise TypeError(f"{function} makes float64")
        return made


def test_scoring_needs_no_float64(pipeline, images):
    expected = pipeline(images[0])
    pixels = pipeline.image_processor.preprocess(images[0])["pixel_values"]
    with NoFloat64(), torch.no_grad():
        maps, *_ = pipeline.score_batch(pixels, pipeline.settings, 0)
    assert torch.isfinite(maps[0]).all() and expected.scores[0] > 0


def test_efforts_differ_in_the_healed_image_alone(pipeline, images):
    full, fast, score = (pipeline(images, effort=effort) for effort in ("full", "fast", "score"))
    assert full.resampled_tokens.any() and not score.resampled_tokens.any()
    for other in (fast, score):
        assert torch.equal(full.scores, other.scores)
        assert all(np.array_equal(one, two) for one, two in zip(full.masks, other.masks, strict=True))
    shown = np.asarray(score.healed_images[0])
    assert np.array_equal(
        shown, np.asarray(Image.open(images[0]).convert("RGB").resize((128, 128), 2).resize((64, 64), 3))
    )
