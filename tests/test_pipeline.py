import json
import math
import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from iltm_anomaly import ILTMAnomalyPipeline, ILTMImageProcessor, InferenceSettings
from iltm_anomaly.masking import score_threshold
from iltm_anomaly.prior import PerformerPriorConfig, PerformerPriorModel
from iltm_anomaly.scoring import observed_surprise
from iltm_anomaly.settings import EFFORTS
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig, VQVAEModel


def make_pipeline(**settings) -> ILTMAnomalyPipeline:
    torch.manual_seed(0)
    vqvae = VQVAEModel(VQVAEConfig(channels=(4, 4, 8), num_res_blocks=1, vocab_size=16, embedding_dim=4))
    vqvae.initialize_codebook(torch.rand(8, 3, 32, 32))
    prior = PerformerPriorModel(
        PerformerPriorConfig(
            vocab_size=16, grid_shape=(4, 4), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8
        )
    )
    torch.nn.init.normal_(prior.head.weight, std=1.0)  # so that some codes are unlikely
    processor = ILTMImageProcessor(size={"height": 32, "width": 32})
    defaults = {"num_samples": 3, "num_dropout_passes": 2, "token_threshold": 0.05, "score_threshold": 3.0}
    return ILTMAnomalyPipeline(
        vqvae, prior, processor, InferenceSettings(**defaults | settings), noise=torch.zeros(32, 32)
    )


@pytest.fixture(scope="module")
def pipeline() -> ILTMAnomalyPipeline:
    return make_pipeline()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    sizes = [(40, 56), (32, 32), (17, 90)]
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def test_output_has_the_documented_shapes(pipeline, images):
    out = pipeline(images)
    assert out.scores.shape == (3,) and out.scores.dtype == torch.float32
    for image, values, mask, healed in zip(images, out.anomaly_maps, out.masks, out.healed_images, strict=True):
        assert values.shape == mask.shape == image.size[::-1]
        assert values.dtype == np.float32 and mask.dtype == bool
        assert np.isfinite(values).all()
        assert healed.size == image.size
    assert out.token_log_likelihoods.shape == out.resampled_tokens.shape == (3, 4, 4)
    assert torch.isfinite(out.token_log_likelihoods).all()
    assert out.resampled_tokens.any() and not out.resampled_tokens.all()
    assert [bool(m.any()) for m in out.masks] == [float(s) >= 3.0 for s in out.scores]


def test_an_image_scores_the_same_alone_and_in_any_batch(pipeline, images):
    together = pipeline(images)
    pairs = pipeline(images, batch_size=2)
    assert torch.allclose(together.scores, pairs.scores, atol=1e-5)
    for index, image in enumerate(images):
        alone = pipeline(image)
        np.testing.assert_allclose(alone.anomaly_maps[0], together.anomaly_maps[index], atol=1e-4)


def test_generator_changes_the_samples_and_is_reproducible(pipeline, images):
    first, again, other = (
        pipeline(images[0], generator=1),
        pipeline(images[0], generator=1),
        pipeline(images[0], generator=2),
    )
    assert torch.equal(first.scores, again.scores)
    np.testing.assert_array_equal(first.anomaly_maps[0], again.anomaly_maps[0])
    assert not np.array_equal(first.anomaly_maps[0], other.anomaly_maps[0])
    seeded = pipeline(images[0], generator=torch.Generator().manual_seed(5))
    assert torch.equal(seeded.scores, pipeline(images[0], generator=torch.Generator().manual_seed(5)).scores)


def test_every_form_of_an_image_gives_the_same_score(pipeline, images, tmp_path):
    image = images[1]
    path = tmp_path / "part.png"
    image.save(path)
    array = np.asarray(image)
    forms = [image, str(path), path, array, torch.from_numpy(array.copy()).permute(2, 0, 1), [image]]
    scores = [float(pipeline(form).scores[0]) for form in forms]
    assert scores == pytest.approx([scores[0]] * len(scores), abs=1e-4)
    assert len(pipeline([images, [array[None]]]).scores) == len(images) + 1  # nested, and a batch in it
    with pytest.raises(TypeError, match="cannot use a dict as images"):
        pipeline({"image": image})


def test_threshold_zero_heals_nothing_and_leaves_the_likelihood_alone(pipeline, images):
    out = pipeline(images, token_threshold=0.0)
    assert not out.resampled_tokens.any()
    assert torch.equal(out.token_log_likelihoods, pipeline(images).token_log_likelihoods)


def test_an_empty_batch_is_an_error(pipeline, images):
    with pytest.raises(ValueError, match="batch_size must be at least 1 and a whole number, got 0"):
        pipeline(images, batch_size=0)


ODD = {"batch_size": ("8", 2.0, True, None), "generator": ("1", 1.5, [1], 2**64, True)}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in ODD.items() for value in values])
def test_arguments_of_another_type_are_named(pipeline, images, name, value):
    with pytest.raises(ValueError, match=r"batch_size must be .* a whole number|a seed must be a whole number"):
        pipeline(images[0], **{name: value})
    assert len(pipeline(images[0], generator=np.int64(3), batch_size=np.int64(2)).scores) == 1


def test_every_setting_is_a_keyword_of_the_call(pipeline, images):
    given = {
        "smoothing": 2.0,
        "likelihood_share": 0.8,
        "bandwidth_floor": 0.05,
        "score_threshold": 1.5,
        "num_samples": 2,
    }
    out, lower = pipeline(images[0], **given), pipeline(images[0], score_threshold=1.5)
    expected = make_pipeline(**given)(images[0])
    np.testing.assert_array_equal(out.anomaly_maps[0], expected.anomaly_maps[0])
    assert out.threshold == lower.threshold == 1.5 and lower.scores == pipeline(images[0]).scores != out.scores
    np.testing.assert_array_equal(lower.masks[0], lower.anomaly_maps[0] >= 1.5)
    with pytest.raises(
        ValueError, match=r"^smooth: unknown, leave it out; its settings are token_threshold, .*smoothing"
    ):
        pipeline(images[0], smooth=2.0)
    with pytest.raises(ValueError, match="setting 'smoothing' must be a number from 0 to 100, got 'much'"):
        pipeline(images[0], smoothing="much")


def test_no_image_is_an_error(pipeline):
    with pytest.raises(ValueError, match="no images"):
        pipeline([])


def test_save_and_reload_is_bit_equal(pipeline, images, tmp_path):
    before = pipeline(images)
    pipeline.save_pretrained(tmp_path / "model")
    names = {p.name for p in (tmp_path / "model").iterdir()}
    assert names >= {
        "model_index.json",
        "tokenizer",
        "prior",
        "image_processor",
        "inference_config.json",
        "calibration.json",
        "training_report.json",
    }
    chosen, measured = (
        json.loads((tmp_path / "model" / f"{name}.json").read_text()) for name in ("inference_config", "calibration")
    )
    assert measured.keys() == {"surprise_limit", "score_threshold", "threshold_at_fast", "threshold_at_score"}
    assert chosen | measured == vars(pipeline.settings) and not chosen.keys() & measured.keys()
    after = ILTMAnomalyPipeline.from_pretrained(tmp_path / "model")(images)
    assert torch.equal(before.scores, after.scores)
    for one, two in zip(before.anomaly_maps, after.anomaly_maps, strict=True):
        np.testing.assert_array_equal(one, two)
    assert torch.equal(before.token_log_likelihoods, after.token_log_likelihoods)


@pytest.mark.skipif(os.name == "nt", reason="files have no modes")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_saved_files_follow_the_umask(pipeline, tmp_path, umask):
    before = os.umask(umask)
    try:
        pipeline.save_pretrained(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert {"calibration.safetensors", "model.safetensors", "config.json"} <= modes.keys()
    assert set(modes.values()) == {0o666 & ~umask}


def test_a_calibrated_pipeline_reloads_to_the_same_scores(images, tmp_path):
    pipeline = make_pipeline(token_threshold=None)
    pipeline.calibrate(torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    pipeline.save_pretrained(tmp_path)
    loaded = ILTMAnomalyPipeline.from_pretrained(tmp_path)
    assert loaded.settings == pipeline.settings and torch.equal(loaded.noise, pipeline.noise)
    assert torch.equal(loaded(images).scores, pipeline(images).scores)


def test_noise_widens_the_kernel_where_reconstructions_are_poor(images):
    pipeline = make_pipeline(likelihood_share=0.0, smoothing=0.0)
    plain = pipeline(images[1]).anomaly_maps[0]
    pipeline.noise = torch.zeros(32, 32)
    pipeline.noise[:, 20:] = 1.0
    wide = pipeline(images[1]).anomaly_maps[0]
    np.testing.assert_allclose(wide[:, :4], plain[:, :4], rtol=1e-4)
    assert wide[:, 28:].max() < 0.01 * plain[:, 28:].max()


def test_a_pixel_surprises_by_no_less_than_it_does_given_its_own_reconstruction(images):
    plain = {"likelihood_share": 0.0, "smoothing": 0.0}
    healed, own, both = (
        make_pipeline(**plain | more) for more in ({}, {"token_threshold": 0.0}, {"own_reconstruction": True})
    )
    for pipeline in (healed, own, both):
        pipeline.vqvae.config.dropout = 0.0  # else the draws of the decoder differ
    maps = [pipeline(images[1]).anomaly_maps[0] for pipeline in (healed, own, both)]
    assert (maps[0] < maps[1]).any() and (maps[0] > maps[1]).any()
    np.testing.assert_allclose(maps[2], np.maximum(maps[0], maps[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accepted", [False, True])
def test_an_image_is_drawn_with_the_codes_that_were_accepted(images, monkeypatch, accepted):
    def accept(prior, codes, healed, resampled, log_likelihood):
        own = prior.log_likelihood(codes.view(1, -1)).view(codes.shape)
        torch.testing.assert_close(log_likelihood, own)
        assert resampled.any() and torch.equal(healed[:, ~resampled], codes[~resampled].expand(len(healed), -1))
        return healed if accepted else codes.expand_as(healed)

    monkeypatch.setattr("iltm_anomaly.healing.accept_likelier", accept)
    expected = make_pipeline(**{} if accepted else {"token_threshold": 0.0})
    pipeline = make_pipeline(accept_likelier=True)
    for each in (expected, pipeline):
        each.vqvae.config.dropout = 0.0  # else the draws of the decoder differ
    result, expected = pipeline(images[1]), expected(images[1])
    np.testing.assert_allclose(result.anomaly_maps[0], expected.anomaly_maps[0], rtol=1e-4)
    assert bool(result.resampled_tokens.any()) == accepted


def test_a_healed_token_changes_nothing_far_from_it(images, monkeypatch):
    """Kernels have one width in an image of which nothing is healed and in one of which something is."""
    settings = {"likelihood_share": 0.0, "smoothing": 0.0, "bandwidth_floor": 1e-3}
    pipeline = make_pipeline(**settings, num_samples=20, num_dropout_passes=20)
    pipeline.vqvae.config.dropout = 0.3
    maps = []
    for healed in (0, 1):
        keep = torch.ones(1, 4, 4, dtype=torch.bool)
        keep[0, 3, 3] = not healed
        monkeypatch.setattr("iltm_anomaly.pixel_map.keep_mask", lambda *_, keep=keep: keep)
        maps.append(pipeline(images[1]).anomaly_maps[0])
    far = slice(8), slice(8)
    assert maps[1][far].mean() == pytest.approx(maps[0][far].mean(), rel=0.05)


@pytest.mark.parametrize("token_threshold, accepted, calls", [(0.0, True, 1), (1.0, True, 2), (1.0, False, 1)])
def test_every_density_is_of_as_many_reconstructions(images, monkeypatch, token_threshold, accepted, calls):
    """Of the healed samples and of the image's own codes."""
    counts = []

    def spy(vqvae, codes, observed, settings, *args):
        counts.append(len(codes) * settings.num_dropout_passes)
        return observed_surprise(vqvae, codes, observed, settings, *args)

    monkeypatch.setattr("iltm_anomaly.scoring.observed_surprise", spy)
    monkeypatch.setattr(
        "iltm_anomaly.healing.accept_likelier",
        lambda prior, codes, healed, *_: healed if accepted else codes.expand_as(healed),
    )
    make_pipeline(own_reconstruction=True, accept_likelier=True, token_threshold=token_threshold)(images[1])
    assert counts == [3 * 2] * calls


@pytest.mark.parametrize("name", ["own_reconstruction", "decoder_spread"])
def test_only_relative_densities_are_compared(name):
    with pytest.raises(ValueError, match=f"'{name}' needs 'relative_density'"):
        InferenceSettings(**{name: True}, relative_density=False)


def test_a_spread_takes_two_passes():
    with pytest.raises(ValueError, match="'decoder_spread' needs 2 dropout passes"):
        InferenceSettings(decoder_spread=True, num_dropout_passes=1)


def test_what_the_decoder_is_unsure_of_surprises_less():
    """The same draws with and without: less by the logarithm of how much lower the peak is."""
    pipeline = make_pipeline(likelihood_share=0.0, smoothing=0.0, token_threshold=0.0, num_dropout_passes=20)
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pixels = pipeline.vqvae.decode(pipeline.vqvae.encode(pixels)).detach().clamp(0, 1)
    plain, less = (
        pipeline.score_batch(pixels, replace(pipeline.settings, decoder_spread=on), 0)[0][0] for on in (False, True)
    )
    taken = plain - less
    assert taken.min() >= 0 and taken.max() > 0.1
    widest = 20 / 19 / (1.06 * (3 * 20) ** -0.2) ** 2  # s^2 / h^2 without a floor
    assert taken.max() < 0.5 * math.log1p(widest)


def test_an_absolute_density_is_no_factor():
    with pytest.raises(ValueError, match="'likelihood_share' above 0 needs 'relative_density'"):
        InferenceSettings(relative_density=False)


def test_a_threshold_without_the_noise_it_was_set_with_is_not_saved(tmp_path):
    pipeline = make_pipeline()
    pipeline.noise = None
    with pytest.raises(ValueError, match=r"a score_threshold but no noise.*`calibrate` it"):
        pipeline.save_pretrained(tmp_path)
    pipeline.settings.reconstruction_noise = False
    pipeline.save_pretrained(tmp_path)
    assert ILTMAnomalyPipeline.from_pretrained(tmp_path).noise is None


def test_numbers_of_numpy_can_be_saved(images, tmp_path):
    pipeline = make_pipeline(score_threshold=np.float32(0.5), num_samples=np.int64(3))
    pipeline.save_pretrained(tmp_path)
    assert ILTMAnomalyPipeline.from_pretrained(tmp_path).settings == pipeline.settings


def test_no_label_flips_in_float16_and_bfloat16_is_refused(tmp_path):
    """The threshold lies in the midst of the scores. In bfloat16 they differ by as much as the images do."""
    generator = np.random.default_rng(0)
    images = list(generator.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8))
    scores = make_pipeline()(images).scores
    middle = scores.sort().values[7:9].mean()
    make_pipeline(score_threshold=float(middle)).save_pretrained(tmp_path)
    half = ILTMAnomalyPipeline.from_pretrained(tmp_path, dtype=torch.float16)
    out = half(images)
    assert out.scores.dtype == torch.float32
    assert [bool(mask.any()) for mask in out.masks] == (scores >= middle).tolist()
    with pytest.raises(ValueError, match=r"does not compute in torch.bfloat16.*Take torch.float16 or torch.float32"):
        ILTMAnomalyPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"does not compute in torch\.bfloat16"):
        half.to(dtype=torch.bfloat16)


def test_types_parts_and_folders_are_named_as_those_of_any_pipeline(tmp_path):
    make_pipeline().save_pretrained(tmp_path / "inner" / "model")
    load = partial(ILTMAnomalyPipeline.from_pretrained, tmp_path, subfolder="inner/model")
    half = load(dtype="float16")
    assert {model.dtype for model in half.models} == {torch.float16}
    assert {model.dtype for model in half.to(torch.float32).models} == {torch.float32}
    assert {model.dtype for model in half.to("cpu", "float16").models} == {torch.float16}
    assert {model.dtype for model in half.to("float32").models} == {torch.float32}
    assert {model.dtype for model in half.to("torch.float16").models} == {torch.float16}
    for words, said in (
        (("bfloat16",), "does not compute in torch.bfloat16"),
        (("float16", "float32"), "two types, float16 and float32: give one, or a device before it"),
        ((torch.float16, torch.float32), "two types"),
    ):
        with pytest.raises(ValueError, match=said):
            half.to(*words)
    assert {model.dtype for model in load(dtype="auto").models} == {torch.float32}
    assert load(prior=half.prior).prior is half.prior
    for device_map in ("cpu", "auto", {"": "cpu"}, torch.device("cpu")):
        assert load(device_map=device_map).device == torch.device("cpu")
    assert load(device_map="meta").device == load(device_map={"": "meta"}).device == torch.device("meta")
    for given, said in (
        ({"dtype": "bfloat16"}, "does not compute in torch.bfloat16"),
        ({"dtype": "half-hearted"}, "does not compute in half-hearted"),
        ({"device_map": {"tokenizer": "cpu", "prior": "meta"}}, "a pipeline is small and lies on one device"),
        ({"device_map": "cpu", "device": "cpu"}, "lies on one device. Give one of these"),
        ({"variant": "fp16"}, 'stored in float32 alone; dtype="float16" casts them'),
        (
            {"prior": half.tokenizer},
            r"prior=VQVAEModel is no part of .*; its parts are .*prior \(PerformerPriorModel\)",
        ),
        ({"pryor": half.prior}, "pryor=PerformerPriorModel is no part of"),
        ({"subfolder": "../elsewhere"}, "'../elsewhere' leads out of"),
    ):
        with pytest.raises(ValueError, match=said):
            load(**given)


def test_float16_takes_sums_of_the_codebook_that_it_cannot_hold(images, tmp_path):
    pipeline = make_pipeline()
    pipeline.vqvae.quantizer.code_sum.fill_(7e4)
    pipeline.save_pretrained(tmp_path)
    assert ILTMAnomalyPipeline.from_pretrained(tmp_path, dtype=torch.float16).vqvae.dtype == torch.float16


def test_a_threshold_of_few_images_is_warned_of(caplog):
    make_pipeline().calibrate(torch.rand(2, 3, 32, 32))
    assert "the threshold comes from 2 image(s) alone" in caplog.text


def test_calibration_uses_images_alone_and_sets_both_limits():
    pipeline = make_pipeline(token_threshold=None, score_threshold=None)
    pixels = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    threshold = pipeline.calibrate(pixels)
    assert pipeline.settings.score_threshold == threshold > 0
    assert pipeline.settings.surprise_limit is not None
    assert pipeline.noise is not None and pipeline.noise.shape == (32, 32) and bool((pipeline.noise > 0).all())
    scores = pipeline(list(pixels)).scores
    assert threshold > float(scores.median())


def test_parts_that_were_not_trained_together_are_refused(pipeline):
    other = PerformerPriorModel(PerformerPriorConfig(vocab_size=8, grid_shape=(4, 4), num_hidden_layers=1, head_dim=8))
    with pytest.raises(ValueError, match="16 codes, the prior 8"):
        ILTMAnomalyPipeline(pipeline.vqvae, other, pipeline.image_processor)


class TestFoldersThatAreNoPipeline:
    @pytest.fixture
    def folder(self, pipeline, tmp_path):
        pipeline.save_pretrained(tmp_path)
        return tmp_path

    def edit(self, folder, name, **changes):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def test_missing_folder(self, tmp_path):
        with pytest.raises(ValueError, match="no pipeline folder at"):
            ILTMAnomalyPipeline.from_pretrained(tmp_path / "nothing")

    def test_foreign_class(self, folder):
        self.edit(folder, "model_index", tokenizer=["os", "system"])
        with pytest.raises(ValueError, match=r"'os', 'system'.*not a pipeline of this package"):
            ILTMAnomalyPipeline.from_pretrained(folder)

    def test_missing_index(self, folder):
        (folder / "model_index.json").unlink()
        with pytest.raises(ValueError, match=r"has no model_index.json"):
            ILTMAnomalyPipeline.from_pretrained(folder)

    def test_broken_json(self, folder):
        (folder / "calibration.json").write_text("{")
        with pytest.raises(ValueError, match=r"calibration.json is not valid JSON"):
            ILTMAnomalyPipeline.from_pretrained(folder)

    @pytest.mark.parametrize("value", ["high", float("nan"), [1]])
    def test_calibration_that_is_no_number(self, folder, value):
        self.edit(folder, "calibration", score_threshold=value)
        with pytest.raises(ValueError, match=r"calibration.json: setting 'score_threshold' must be a number"):
            ILTMAnomalyPipeline.from_pretrained(folder)


class TestEfforts:
    @pytest.fixture(scope="class")
    def calibrated(self):
        pipeline = make_pipeline(
            token_threshold=None, score_threshold=None, decoder_spread=True, num_samples=7, outlier_scale=0.3
        )
        pipeline.calibrate(torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        return pipeline

    def test_each_has_the_threshold_of_its_own_scores(self, calibrated, images, tmp_path):
        """They differ, because fewer draws have wider kernels, and they are there after loading."""
        calibrated.save_pretrained(tmp_path)
        loaded = ILTMAnomalyPipeline.from_pretrained(tmp_path)
        training = list(torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        thresholds = {loaded.settings.at(effort).score_threshold for effort in EFFORTS}
        assert len(thresholds) == 3
        for effort in EFFORTS:
            out = loaded(training, effort=effort)
            expected = score_threshold(out.scores)
            assert loaded.settings.at(effort).score_threshold == pytest.approx(expected, rel=1e-4)
            assert torch.equal(loaded(images, effort=effort).scores, calibrated(images, effort=effort).scores)

    def test_full_is_what_settings_say(self, calibrated, images):
        assert torch.equal(calibrated(images).scores, calibrated(images, effort="full").scores)
        assert calibrated.settings.at("full") is calibrated.settings

    def test_score_heals_and_draws_nothing(self, calibrated, images, monkeypatch):
        """One pass of tokenizer and prior: whatever the seed, the result is the same."""
        monkeypatch.setattr("iltm_anomaly.healing._Resampling", None)
        passes = []
        log_likelihood = type(calibrated.prior).log_likelihood
        monkeypatch.setattr(
            type(calibrated.prior), "log_likelihood", lambda *args: passes.append(1) or log_likelihood(*args)
        )
        monkeypatch.setattr(VQVAEModel, "draw_expected", None)
        first, second = (calibrated(images, effort="score", generator=seed) for seed in (1, 2))
        assert torch.equal(first.scores, second.scores) and not first.resampled_tokens.any()
        assert len(passes) == 2
        assert all(image.size == healed.size for image, healed in zip(images, first.healed_images, strict=True))

    def test_fast_draws_few(self, calibrated, images, monkeypatch):
        counts = []

        def spy(vqvae, codes, observed, settings, *args):
            counts.append((len(codes), settings.num_dropout_passes, settings.num_contexts))
            return observed_surprise(vqvae, codes, observed, settings, *args)

        monkeypatch.setattr("iltm_anomaly.scoring.observed_surprise", spy)
        out = calibrated(images[0], effort="fast")
        assert set(counts) == {(5, 2, 2)} and out.resampled_tokens.any()

    def test_an_image_in_which_nothing_is_unlikely_is_never_healed(self, calibrated, images, monkeypatch):
        monkeypatch.setattr("iltm_anomaly.healing._Resampling", None)
        for effort in EFFORTS:
            settings = replace(calibrated.settings.at(effort), surprise_limit=1e3)
            pixels = calibrated.image_processor.preprocess(images)["pixel_values"]
            assert not calibrated.score_batch(pixels, settings, 0)[3].any()

    def test_a_folder_without_thresholds_of_efforts_is_refused_for_all_but_full(self, images):
        pipeline = make_pipeline()  # with a threshold of full effort alone
        assert len(pipeline(images[0], effort="full").scores) == 1
        for effort in ("fast", "score"):
            with pytest.raises(ValueError, match=f"no threshold for effort '{effort}'.*leave effort out.*--resume"):
                pipeline(images[0], effort=effort)
        with pytest.raises(ValueError, match="effort must be one of full, fast, score, got 'quick'"):
            pipeline(images[0], effort="quick")
