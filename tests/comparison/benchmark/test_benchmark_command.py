"""The command as a user types it: real ILTM runs of a cut-down `tiny` preset, other methods faked."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_baselines import FakeBaselines, FakeModel, install
from filelock import FileLock
from PIL import Image

from iltm_anomaly.cli import main
from iltm_anomaly.comparison.benchmark.cells import load_cell, load_statistics
from iltm_anomaly.comparison.benchmark.plan import BenchmarkArguments, digest_of, make_plan
from iltm_anomaly.comparison.benchmark.statistics import draw_images, metrics_of_draws, unpack
from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.headings import METRICS
from iltm_anomaly.recipes.recipe import load_recipe
from iltm_anomaly.synthetic.dataset import generate_dataset, write_mvtec_tree
from iltm_anomaly.training.checkpoint import write_json

METHODS = ["iltm", "vqvae_transformer", "vqvae_transformer_residual", "autoencoder", "mean_image"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    dataset = generate_dataset(
        kind="part", size=64, num_train=16, num_test_good=4, num_test_defective=20, contamination=0
    )
    root = tmp_path_factory.mktemp("data")
    write_mvtec_tree(dataset, root / "sets", "part")
    return root


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The tiny preset, cut down further."""
    values = load_recipe("tiny").to_dict()
    values["stage1"]["epochs"], values["stage2"]["epochs"] = 4, 4
    values["rounds"] |= {"rounds": 1, "outlier_scale": 1.5}
    values["inference"] = {"num_samples": 2, "num_dropout_passes": 2, "num_contexts": 1}
    path = tmp_path_factory.mktemp("recipe") / "test.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def fake(monkeypatch) -> FakeBaselines:
    return install(monkeypatch)


def command(data: Path, recipe: Path, output: Path, *more: str) -> list[str]:
    words = ["benchmark", "--data", str(data), "--categories", "sets/part", "--contamination", "0", "0.2", "--cpu"]
    words += ["--train-size", "common", "--preset", str(recipe), "--output", str(output)]
    return [*words, *([] if "--methods" in more else ["--methods", *METHODS]), *more]


@pytest.fixture(scope="module")
def finished(data, recipe, tmp_path_factory) -> tuple[Path, FakeBaselines]:
    output = tmp_path_factory.mktemp("benchmark")
    with pytest.MonkeyPatch.context() as patch:
        fake = install(patch)
        assert main(command(data, recipe, output)) == 0
    return output, fake


def cell(output: Path, level: str, method: str) -> dict:
    return load_cell(output / "cells" / f"part_c{level}_s0_{method}.json")


def test_every_cell_is_there_and_says_how_it_came_about(finished):
    output, _ = finished
    assert len(list((output / "cells").glob("*.json"))) == 2 * len(METHODS)
    for level in ("0", "0.2"):
        for method in METHODS:
            document = cell(output, level, method)
            last = document["results"][-1]
            assert (last["category"], last["contamination"], last["seed"]) == ("part", float(level), 0)
            assert all(0 <= last[metric] <= 1 for metric in METRICS)
            assert {"per_image_auroc_mean", "per_image_aupro_std", "masked_fraction", "round"} <= last.keys()
            assert document["training_images"] == 16 and document["test_images"] == 14
            assert document["contaminated_training_images"] == round(16 * float(level))
            assert document["versions"]["torch"] and "command" in document and document["training_seconds"] > 0
            assert document["settings"]["train_size"] == 16


def test_one_run_serves_iltm_and_both_rows_of_round_zero(finished):
    output, _ = finished
    for level in ("0", "0.2"):
        iltm, kde = cell(output, level, "iltm")["results"], cell(output, level, "vqvae_transformer")["results"]
        assert [entry["round"] for entry in iltm] == [0, 1]
        assert kde[0]["round"] == 0
        assert cell(output, level, "vqvae_transformer_residual")["results"][0]["aupro"] != kde[0]["aupro"]
        of_run = ("iltm", "vqvae_transformer", "vqvae_transformer_residual")
        assert len({cell(output, level, method)["vqvae_sha256"] for method in of_run}) == 1
    assert len(list((output / "runs").glob("*/iltm/model"))) == 2


def test_baselines_get_the_images_of_the_run_and_the_time_of_one_round(finished):
    output, fake = finished
    for call in fake.calls:
        assert call["images"] == 16 and call["seed"] == 0 and call["preset"] == "tiny" and call["resume"]
        if call["name"] == "mean_image":
            assert call["budget_seconds"] is None
            continue
        group = call["output"].parent
        stages = [json.loads(path.read_text()) for path in group.glob("iltm/rounds/round_*/stage.json")]
        assert call["budget_seconds"] == max(stage["seconds"] for stage in stages) > 0
    for level in ("0", "0.2"):
        assert len({cell(output, level, method)["images_sha256"] for method in METHODS}) == 1
        budget = cell(output, level, "autoencoder")["budget"]
        assert budget["used"] == 1.5 and budget["steps"] == 7 and budget["from"].startswith("round ")


def test_the_draws_in_a_cell_are_those_of_its_statistics(finished):
    output, _ = finished
    for method in ("iltm", "autoencoder"):
        document = cell(output, "0.2", method)
        statistics = load_statistics(output / "cells" / f"part_c0.2_s0_{method}.npz")
        split = json.loads(
            (next(output.glob("runs/part_c0.2_s0_*")) / "iltm" / "model" / "training_report.json").read_text()
        )
        rows = split["data"]["contamination"]["test_indices"]
        draws = metrics_of_draws(statistics, draw_images(statistics.labels, rows, "part"))
        every_image_once = metrics_of_draws(statistics, np.ones((1, 14), int))
        for metric in METRICS:
            np.testing.assert_allclose(draws[metric], unpack(document["draws"][metric]), atol=1e-5)
            assert every_image_once[metric][0] == pytest.approx(document["results"][-1][metric], abs=1e-3)


def test_the_report_is_written_and_made_anew_from_json_alone(finished, tmp_path, capsys):
    output, _ = finished
    table = (output / "table.md").read_text()
    assert "| part (seed 0) | AUROC |" in table and "20 % of the training images defective" in table
    assert "Missing cells" not in table
    assert np.asarray(Image.open(output / "plot.png")).std() > 10
    (tmp_path / "cells").mkdir()
    for path in (output / "cells").glob("*.json"):
        (tmp_path / "cells" / path.name).write_bytes(path.read_bytes())
    assert main(["benchmark", "--report-only", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "table.md").read_text() == table
    assert (tmp_path / "table.tex").read_text() == (output / "table.tex").read_text()
    assert "table.md" in capsys.readouterr().out


def test_cells_of_another_version_are_left_out_of_a_report(finished, tmp_path):
    (tmp_path / "cells").mkdir()
    for path in (finished[0] / "cells").glob("part_c0_*.json"):
        document = load_cell(path)
        if "autoencoder" in path.name:
            del document["draws"]["kind"]
        if "mean_image" in path.name:
            document["settings"]["method"] = "median_image"
        write_json(tmp_path / "cells" / path.name, document | {"checksum": digest_of(document)})
    assert main(["benchmark", "--report-only", "--output", str(tmp_path)]) == 0
    table = (tmp_path / "table.md").read_text()
    assert "part_c0_s0_autoencoder.json is of another version" in table and "| AE |" not in table
    assert "part_c0_s0_mean_image.json is of another version" in table


def test_again_nothing_is_measured_but_what_is_damaged(finished, data, recipe, fake, caplog):
    output, _ = finished
    before = {path: path.read_bytes() for path in (output / "cells").glob("*.json")}
    assert main(command(data, recipe, output)) == 0
    assert not fake.calls and before == {path: path.read_bytes() for path in before}

    cut, changed, statistics = (output / "cells" / f"part_c0_s0_{m}" for m in ("autoencoder", "mean_image", "iltm"))
    cut.with_suffix(".json").write_bytes(before[cut.with_suffix(".json")][:500])
    changed.with_suffix(".json").write_text(
        before[changed.with_suffix(".json")].decode().replace('"aupro": 0.', '"aupro": 1.')
    )
    statistics.with_suffix(".npz").write_bytes(b"nothing")
    caplog.clear()
    assert main(command(data, recipe, output)) == 0
    assert {call["name"] for call in fake.calls} == {"autoencoder", "mean_image"}
    assert caplog.text.count("is damaged") == 3
    for path, content in before.items():
        found, expected = json.loads(path.read_text()), json.loads(content)
        assert found["results"][-1]["aupro"] == expected["results"][-1]["aupro"]
        assert found["draws"] == expected["draws"]


def test_other_settings_measure_a_baseline_again_but_no_run(finished, data, recipe, fake, caplog, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(finished[0], output)
    assert main(command(data, recipe, output, "--baseline-seconds", "9")) == 0
    # not the mean image, which trains nothing
    assert {call["budget_seconds"] for call in fake.calls} == {9.0} and len(fake.calls) == 2
    assert "cells of different" not in (output / "table.md").read_text()
    assert "baseline_seconds (None there, 9.0 now)" in caplog.text
    assert cell(output, "0.2", "autoencoder")["budget"]["from"] == "--baseline-seconds"
    for name in ("iltm", "vqvae_transformer"):
        path = Path("cells") / f"part_c0_s0_{name}.json"
        assert (output / path).read_bytes() == (finished[0] / path).read_bytes()


def test_copies_of_test_images_are_another_protocol_with_a_report_of_its_own(finished, data, recipe, fake, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(finished[0], output)
    assert main(command(data, recipe, output, "--methods", "iltm", "mean_image", "--protocol", "overlap")) == 0
    assert len(fake.calls) == 1, "without contamination the cells of the other protocol serve"
    cells = [load_cell(output / "cells" / f"part_c0.2_s0_overlap_{method}.json") for method in ("iltm", "mean_image")]
    assert cells[0]["images_sha256"] == cells[1]["images_sha256"] != cell(output, "0.2", "iltm")["images_sha256"]
    for found in cells:
        assert found["settings"]["protocol"] == found["results"][-1]["protocol"] == "overlap"
        assert found["draws"]["test_sha256"] == cell(output, "0.2", "iltm")["draws"]["test_sha256"]
        assert found["contaminated_training_images"] == 3
    (report,) = output.glob("runs/part_c0.2_s0_overlap_*/iltm/model/training_report.json")
    record = json.loads(report.read_text())["data"]["contamination"]
    assert record["protocol"] == "overlap" and set(record["pool_indices"]) < set(record["test_indices"])
    table = (output / "table_overlap.md").read_text()
    assert "Protocol overlap: the defective training images are copies of test images" in table
    assert "## 20 % of the training images defective, copies of test images" in table
    assert "copies" in (output / "table_overlap.tex").read_text() and (output / "plot_overlap.png").exists()
    assert (output / "table.md").read_text() == (finished[0] / "table.md").read_text()
    assert "Protocol disjoint: no training image is tested on" in (output / "table.md").read_text()


def test_cells_of_before_there_were_protocols_are_finished(finished, data, recipe, fake, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(finished[0], output)
    for path in (output / "cells").glob("*.json"):
        document = load_cell(path)
        del document["settings"]["protocol"]
        write_json(path, document | {"checksum": digest_of(document)})
    assert main(command(data, recipe, output)) == 0 and not fake.calls
    assert (output / "table.md").read_text() == (finished[0] / "table.md").read_text()


def test_another_image_size_is_that_of_all_methods(data, recipe, fake, tmp_path, capsys):
    words = command(data, recipe, tmp_path, "--methods", "mean_image", "--image-size", "72")
    words.remove("0")
    assert main(words) == 0
    found = cell(tmp_path, "0.2", "mean_image")
    assert found["settings"]["recipe"]["image_size"] == 72
    cache = PixelCache(next(tmp_path.glob("runs/*/images.arrow")))
    assert tuple(cache.shape) == (20, 3, 72, 72)
    assert "72 x 72 pixels" in (tmp_path / "table.md").read_text()
    methods = ["mean_image", "features"]
    arguments = BenchmarkArguments(str(data), tmp_path, ["sets/part"], methods, [0.2], preset="tiny", image_size=72)
    assert [make_plan(arguments).recipe_of(method).image_size for method in methods] == [72, 72]
    assert main([*words[:-1], "100"]) == 2
    assert "image_size must be a positive multiple of 8" in capsys.readouterr().err


def test_the_coreset_is_a_row_of_its_own_with_any_preset(data, tmp_path):
    arguments = BenchmarkArguments(
        str(data), tmp_path, ["sets/part"], ["patchcore", "patchcore_coreset", "softpatch"], [0.2], preset="cpu"
    )
    plan = make_plan(arguments)
    (group,) = plan.groups
    settings = {method: plan.settings(group, method)["baseline"]["config"] for method in group.methods}
    assert settings["patchcore"]["selection"] == "random"
    assert settings["patchcore_coreset"] == settings["patchcore"] | {"selection": "coreset"}
    assert (settings["softpatch"]["selection"], settings["softpatch"]["discarded"]) == ("coreset", 0.15)


def test_what_an_earlier_version_of_a_method_has_made_is_made_anew(
    finished, data, recipe, fake, caplog, monkeypatch, tmp_path
):
    output = tmp_path / "copy"
    shutil.copytree(finished[0], output)
    monkeypatch.setattr(FakeModel, "version", 2)
    assert main(command(data, recipe, output)) == 0
    assert {call["name"] for call in fake.calls} == {"autoencoder", "mean_image"} and len(fake.calls) == 4
    assert "baseline.version (None there, 2 now)" in caplog.text
    # nor is the earlier model taken for today's
    assert all(len(list(folder.glob("autoencoder_*"))) == 2 for folder in (output / "runs").glob("part*/"))


def test_other_images_under_the_same_names_are_another_set(data, recipe, fake, tmp_path, capsys):
    output, other = tmp_path / "output", tmp_path / "data"
    shutil.copytree(data, other)
    more = ["--methods", "mean_image", "--baseline-seconds", "5"]
    assert main(command(data, recipe, output, *more)) == 0 and len(fake.calls) == 2
    fake.calls.clear()
    assert main(command(other, recipe, output, *more)) == 0 and not fake.calls  # the same files elsewhere
    (other / "sets/part/train/.DS_Store").write_bytes(b"of a file browser")
    assert main(command(other, recipe, output, *more)) == 0 and not fake.calls
    path = next(other.glob("sets/part/test/good/*.png"))
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert main(command(other, recipe, output, "--methods", "autoencoder", *more[1:])) == 0
    assert len(fake.calls) == 4
    assert main(command(data, recipe, output, *more)) == 2  # beside cells of the other images
    assert "were not tested on the same images" in capsys.readouterr().err


def test_changed_settings_of_inference_score_again_and_train_nothing(
    finished, data, recipe, fake, tmp_path, caplog, monkeypatch
):
    output = tmp_path / "copy"
    shutil.copytree(finished[0], output)
    recorded = {}
    for path in (output / "runs").glob("*/iltm"):
        path = path / "model" / "inference_config.json"
        values = json.loads(path.read_text())
        recorded[path] = values["likelihood_share"]
        path.write_text(json.dumps(values | {"likelihood_share": 0.9}))  # as of a version with another default
    for path in (output / "cells").glob("*.json"):
        document = load_cell(path)
        if document["settings"]["inference"]:
            document["settings"]["inference"]["likelihood_share"] = 0.9
            write_json(path, document | {"checksum": digest_of(document)})
    before = {p: p.read_bytes() for p in (output / "runs").glob("*/iltm/rounds/*/*.safetensors")}
    monkeypatch.setattr("iltm_anomaly.provenance.commit", lambda: "a later one")
    assert main(command(data, recipe, output)) == 0
    assert "inference.likelihood_share (0.9 there, 0.35 now)" in caplog.text
    assert caplog.text.count("is calibrated again") == 2 and not fake.calls
    assert all(json.loads(path.read_text())["likelihood_share"] == value for path, value in recorded.items())
    assert before == {p: p.read_bytes() for p in before} and len(before) == 4
    for name in ("iltm", "vqvae_transformer", "vqvae_transformer_residual"):
        assert (
            cell(output, "0.2", name)["results"][-1]["aupro"] == cell(finished[0], "0.2", name)["results"][-1]["aupro"]
        )
        assert cell(output, "0.2", name)["commit"] == "a later one"
        assert (
            cell(output, "0.2", name)["training_commit"]
            == cell(finished[0], "0.2", name)["training_commit"]
            != "a later one"
        )


def test_an_edited_recipe_of_the_same_name_is_another_run(data, tmp_path):
    """With a real method: fakes keep nothing."""
    values = load_recipe("tiny").to_dict()
    path, output = tmp_path / "tiny.yaml", tmp_path / "output"
    words = command(data, path, output, "--methods", "autoencoder", "--baseline-seconds", "2")
    words.remove("0")
    found = []
    for smoothing in (0.5, 0.25):
        path.write_text(yaml.safe_dump(values | {"inference": {"smoothing": smoothing}}))
        assert main([*words, "--baseline-config", f"autoencoder.smoothing={smoothing / 10}"]) == 0
        document = cell(output, "0.2", "autoencoder")
        assert document["settings"]["baseline"]["config"]["smoothing"] == smoothing / 10
        found.append(document["results"][-1]["aupro"])
    assert found[0] != found[1] and len(list((output / "runs").glob("*/autoencoder_*/model"))) == 2


def test_a_preset_that_is_edited_meanwhile_does_no_harm(data, recipe, fake, tmp_path, monkeypatch):
    from iltm_anomaly.comparison.benchmark import runner

    path, train = tmp_path / "mine.yaml", runner.train
    shutil.copy(recipe, path)

    def edit_and_train(arguments):
        path.write_text("name: another")
        return train(arguments)

    monkeypatch.setattr(runner, "train", edit_and_train)
    words = command(data, path, tmp_path, "--methods", "iltm")
    words.remove("0")
    assert main(words) == 0
    (report,) = (tmp_path / "runs").glob("*/iltm/model/training_report.json")
    trained = json.loads(report.read_text())["recipe"]
    trained.pop("inference")
    assert cell(tmp_path, "0.2", "iltm")["settings"]["recipe"] == trained


def test_a_group_that_another_process_works_on_is_left_to_it(data, recipe, fake, tmp_path, caplog):
    (tmp_path / "runs").mkdir()
    more = ["--methods", "mean_image", "--baseline-seconds", "5"]
    with FileLock(tmp_path / "runs" / "part_c0.2_s0.lock"):
        assert main(command(data, recipe, tmp_path, *more)) == 0
        words = command(data, recipe, tmp_path / "other", *more)
        words.remove("0")
        (tmp_path / "other" / "runs").mkdir(parents=True)
        with FileLock(tmp_path / "other" / "runs" / "part_c0.2_s0.lock"):
            assert main(words) == 0  # nothing to do, and nothing to report on yet
    assert "part_c0.2_s0: another process works on it" in caplog.text
    assert [path.name for path in (tmp_path / "cells").glob("*.json")] == ["part_c0_s0_mean_image.json"]
    assert main(command(data, recipe, tmp_path, *more)) == 0
    assert len(list((tmp_path / "cells").glob("*.json"))) == 2


def test_real_methods_take_the_whole_way(recipe, tmp_path, monkeypatch):
    """The other tests fake them. The images are larger than the model's, which has 64 pixels a side."""
    dataset = generate_dataset(
        kind="part", size=80, num_train=16, num_test_good=4, num_test_defective=20, contamination=0
    )
    data = tmp_path / "data"
    write_mvtec_tree(dataset, data / "sets", "part")
    monkeypatch.setattr("iltm_anomaly.calibration.CALIBRATION_IMAGES", 6)  # fewer than there are, as of any real set
    methods = ["iltm", "vqvae_transformer", "vqvae_transformer_residual", "autoencoder"]
    more = ["--methods", *methods, "--baseline-seconds", "3"]
    more += ["--baseline-config", "autoencoder.dropout=0.4"]
    words = command(data, recipe, tmp_path, *more)
    words.remove("0")
    assert main(words) == 0
    report = cell(tmp_path, "0.2", "autoencoder")
    assert report["settings"]["baseline"]["config"]["dropout"] == 0.4
    assert 0 < report["budget"]["steps"] <= report["budget"]["planned_steps"]
    assert report["budget"]["ended_by"] in ("budget", "recipe") and report["training_seconds"] > 0
    images = [cell(tmp_path, "0.2", m)["images_sha256"] for m in ("autoencoder", "vqvae_transformer")]
    assert images[0] == images[1]
    kde, residual = (cell(tmp_path, "0.2", f"vqvae_transformer{end}")["results"][-1] for end in ("", "_residual"))
    assert kde["aupro"] != residual["aupro"] and kde["round"] == residual["round"] == 0
    round_0 = cell(tmp_path, "0.2", "iltm")["results"][0]
    assert kde == round_0 | {"method": "vqvae_transformer"}, "scored once, for both"
    assert (
        cell(tmp_path, "0.2", "iltm")["draws"]["aupro"] != cell(tmp_path, "0.2", "vqvae_transformer")["draws"]["aupro"]
    )
    path = tmp_path / "cells" / "part_c0.2_s0_vqvae_transformer.json"
    scores = load_statistics(path.with_suffix(".npz")).scores
    path.unlink()
    assert main(words) == 0
    alone = cell(tmp_path, "0.2", "vqvae_transformer")["results"][-1]
    assert alone.keys() < kde.keys(), "scored without ILTM, whose rounds know shares of masked tokens too"
    assert [alone[metric] for metric in METRICS] == pytest.approx([kde[metric] for metric in METRICS], abs=1e-6)
    np.testing.assert_allclose(load_statistics(path.with_suffix(".npz")).scores, scores, rtol=1e-5)
    assert "Missing cells" not in (tmp_path / "table.md").read_text()


def test_the_official_categories_are_possible_at_every_level_by_default(tmp_path):
    """Folders with MVTec AD's own numbers of images, of which only 209, 21 and 63 of bottle and the like matter here."""
    numbers = {  # good training, good test, defective test images
        "carpet": (280, 28, 89), "grid": (264, 21, 57), "leather": (245, 32, 92), "tile": (230, 33, 84), "wood": (247, 19, 60),
        "bottle": (209, 20, 63), "cable": (224, 58, 92), "hazelnut": (391, 40, 70), "metal_nut": (220, 22, 93),
        "pill": (267, 26, 141), "screw": (320, 41, 119), "zipper": (240, 32, 119),
    }  # fmt: skip
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 255).save(buffer, "png")
    for name, counts in numbers.items():
        for folder, count in zip(("train/good", "test/good", "test/bad"), counts, strict=True):
            (tmp_path / name / folder).mkdir(parents=True)
            for number in range(count):
                (tmp_path / name / folder / f"{number:03}.png").write_bytes(buffer.getvalue())
                if folder == "test/bad":
                    (tmp_path / name / "ground_truth/bad").mkdir(parents=True, exist_ok=True)
                    (tmp_path / name / "ground_truth/bad" / f"{number:03}_mask.png").write_bytes(buffer.getvalue())
    arguments = BenchmarkArguments(
        str(tmp_path), tmp_path, ["official"], contamination=[0, 0.1, 0.2, 0.3], preset="paper"
    )
    plan = make_plan(arguments)
    assert {group.category.name for group in plan.groups} == set(numbers) and len(plan.groups) == 48
    assert [group.error for group in plan.groups if group.error] == []
    sizes = {group.category.name: group.dataset["train"].num_rows for group in plan.groups}
    assert sizes["bottle"] == 103 and sizes["hazelnut"] == 116 and sizes["pill"] == 233  # 31 / 0.3, 35 / 0.3, 70 / 0.3
    arguments.train_size = "all"
    impossible = {group.category.name for group in make_plan(arguments).groups if group.error}
    assert len(impossible) > 6
    # NSA has settings of its own for each
    recipes = {g.category.name: plan.baseline(g, "nsa") for g in plan.groups}
    assert recipes["hazelnut"]["stage"]["epochs"] == 560 and recipes["pill"]["stage"]["epochs"] == 320
    assert recipes["screw"]["config"]["half_width"] == (0.03, 0.12) and recipes["carpet"]["config"]["flip"]


def test_a_failing_cell_stops_no_other_and_is_tried_again(data, recipe, fake, tmp_path, capsys):
    fake.failing = {"vae"}
    more = ["--baseline-seconds", "5", "--methods", "vae", "nsa", "mean_image"]
    assert main(command(data, recipe, tmp_path, *more)) == 2
    error = capsys.readouterr().err
    assert "2 cells failed" in error and "part_c0.2_s0_vae: RuntimeError: vae cannot be trained here" in error
    assert list((tmp_path / "runs").glob("part_c0_s0_*/")) and not list(
        (tmp_path / "runs").glob("*/iltm")
    )  # nobody needed it
    assert len(list((tmp_path / "cells").glob("*.json"))) == 4
    assert (tmp_path / "table.md").exists()
    fake.failing, fake.calls = set(), []
    assert main(command(data, recipe, tmp_path, *more)) == 0
    assert [call["name"] for call in fake.calls] == ["vae", "vae"]
    assert len(list((tmp_path / "cells").glob("*.json"))) == 6


def test_what_rests_on_a_failed_run_fails_with_its_reason_and_the_run_is_tried_once(
    data, recipe, fake, tmp_path, capsys, monkeypatch
):
    from iltm_anomaly.comparison.benchmark import runner

    tried = []

    def fail(arguments):
        tried.append(arguments.contamination)
        raise RuntimeError("out of luck")

    monkeypatch.setattr(runner, "train", fail)
    more = ["--methods", "iltm", "vqvae_transformer", "autoencoder", "mean_image"]
    assert main(command(data, recipe, tmp_path, *more)) == 2
    assert tried == [0.0, 0.2]
    error = capsys.readouterr().err
    assert "6 cells failed" in error and error.count("out of luck") >= 6
    # which needs no time of a run
    assert [path.stem for path in sorted((tmp_path / "cells").glob("*.json"))] == [
        "part_c0.2_s0_mean_image",
        "part_c0_s0_mean_image",
    ]


def test_a_failure_is_told_although_the_report_fails_too(finished, data, recipe, fake, tmp_path, capsys):
    output = tmp_path / "copy"
    shutil.copytree(finished[0], output)
    fake.failing = {"vae"}
    words = command(data, recipe, output, "--methods", "vae", "mean_image", "--baseline-seconds", "5")
    words[words.index("common")] = "15"
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "were not trained on the same images: they have 1" in error
    assert "2 cells failed" in error and "vae cannot be trained here" in error


def test_a_baseline_that_has_begun_goes_on_with_its_own_time(finished, data, recipe, fake, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(finished[0], output)
    (output / "cells" / "part_c0.2_s0_autoencoder.json").unlink()
    (folder,) = output.glob("runs/part_c0.2_*/autoencoder_*")
    write_json(folder / "run.json", {"budget_seconds": 123.4})  # fakes write none
    assert main(command(data, recipe, output)) == 0
    assert [call["budget_seconds"] for call in fake.calls] == [123.4]


def test_a_category_may_be_the_folder_itself_and_need_not_allow_every_level(data, fake, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(data / "sets" / "part")
    arguments = BenchmarkArguments(".", tmp_path, ["."], ["mean_image"], [0.0, 0.2, 0.9], preset="tiny")
    with caplog.at_level("INFO"):
        plan = make_plan(arguments)
    assert {group.category.name for group in plan.groups} == {"part"} and not any(group.error for group in plan.groups)
    assert "part: 11 training images at every level, all that contamination 0.9 allows" in caplog.text
    shutil.copytree(data / "sets" / "part", tmp_path / "few")
    for path in sorted((tmp_path / "few" / "test").glob("*/*.png")):
        if path.parent.name != "good":
            path.unlink()
    arguments = BenchmarkArguments(str(tmp_path), tmp_path, ["few"], ["mean_image"], [0.0, 0.2], preset="tiny")
    assert all(
        "no defective test image" in group.error or "the pool" in group.error for group in make_plan(arguments).groups
    )


def test_fields_of_other_methods_are_checked_before_anything_is_trained(data, tmp_path):
    def plan(**config):
        return make_plan(
            BenchmarkArguments(
                str(data), tmp_path, ["sets/part"], ["all"], [0.0], preset="tiny", baseline_config=config
            )
        )

    assert plan(autoencoder={"smoothing": 0}, cutpaste={"scar_width": [2, 16]}).groups
    for method, name, value in (
        ("autoencoder", "smoothing", "wide"),
        ("cutpaste", "area", [0.5, 0.1]),
        ("vae", "smoothing", 2),
    ):
        with pytest.raises(ValueError, match=name):
            plan(**{method: {name: value}})
    for method, name in (("cutpaste", "smoothing"), ("patchcore", "bank_rows")):  # would have no effect
        with pytest.raises(ValueError, match=f"{method} has no setting '{name}'"):
            plan(**{method: {name: 1}})


def test_an_impossible_level_fails_alone(data, recipe, fake, tmp_path, capsys):
    words = command(data, recipe, tmp_path, "--methods", "mean_image", "--baseline-seconds", "5")
    words[words.index("common")] = "16"
    words.insert(words.index("0.2") + 1, "0.9")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "1 cells failed" in error and "part_c0.9_s0_mean_image" in error and "largest possible fraction" in error
    assert len(list((tmp_path / "cells").glob("*.json"))) == 2


def test_the_dry_run_prints_the_plan_tries_a_step_and_trains_nothing(data, recipe, fake, tmp_path, capsys):
    output = tmp_path / "none"
    fake.failing = {"patchcore"}
    methods = ["--methods", "all", "patchcore"]
    assert main(command(data, recipe, output, "--dry-run", *methods)) == 2
    printed = capsys.readouterr()
    assert "18 cells: 9 methods x 2 sets of images; 0 finished" in printed.out
    assert (
        "part at 0.2: 16 training images, 3 of them defective; 14 test images, 10 of them defective; seeds 0"
        in printed.out
    )
    assert "VQ-VAE: " in printed.out and "GPU hours (assumed: 10 TFLOP/s sustained" in printed.out
    assert "check: ILTM builds and takes steps" in printed.out and "check: NSA (tiny) takes a step" in printed.out
    assert "PatchCore: RuntimeError: patchcore cannot be trained here" in printed.err
    assert {call["steps"] for call in fake.calls} == {1} and len(fake.calls) == 6
    assert not output.exists()


def test_the_cost_of_the_papers_settings_counts_every_method(data, fake, tmp_path, monkeypatch, capsys):
    """Its models take too long to step here: the costs of a step are given."""
    from iltm_anomaly.comparison.benchmark import dry_run

    cost = dry_run.StepCost(parameters=1_000, flops=1e12, seconds=2.0)
    monkeypatch.setattr(dry_run, "check_iltm", lambda recipe: {"VQ-VAE": cost, "prior": cost})
    words = ["benchmark", "--data", str(data), "--categories", "sets/part", "--methods", "paper", "--preset", "paper"]
    assert (
        main([*words, "--train-size", "16", "--contamination", "0", "0.2", "--output", str(tmp_path), "--dry-run"])
        == 0
    )
    printed = capsys.readouterr().out
    assert "14 cells: 7 methods x 2 sets of images" in printed
    # 16 images: 20,000 epochs of one step with batch 16, and 4 rounds of 80 epochs of 16 steps with batch 1
    assert "20,000 to 20,000 steps a run" in printed and "5,120 to 5,120 steps a run" in printed
    # twice 20,000 steps of 16 TFLOP, and 5,120 of 1 TFLOP, at 10 TFLOP/s
    assert f"about {2 * (20_000 * 1.6 + 5_120 * 0.1) / 3600:,.0f} GPU hours" in printed
    assert "CutPaste: up to 40 steps" in printed and "CutPaste (paper) takes a step" in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--categories": "part"}, "has no category part"),
        ({"--methods": "padim"}, "unknown method 'padim'"),
        ({"--data": "nowhere"}, "no such folder"),
        ({"--preset": "phantom"}, "is for volumes"),
        ({"--baseline-seconds": "-1"}, "above 0"),
        ({"--contamination": "1"}, "contamination must be in [0, 1)"),
        ({"--train-size": "most"}, "train_size must be a number above 0, 'common' or 'all'"),
        ({"--baseline-config": "iltm.size=3"}, "'iltm' has no configuration to change"),
        ({"--baseline-config": "nsa.sloppe=3"}, "nsa has no setting 'sloppe'"),
    ],
)
def test_wrong_arguments_give_one_line_that_helps(data, recipe, fake, tmp_path, capsys, change, message):
    given = {
        "--data": str(data),
        "--categories": "sets/part",
        "--output": str(tmp_path),
        "--preset": str(recipe),
    } | change
    assert main(["benchmark", *[word for pair in given.items() for word in pair]]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_report_needs_cells_and_a_measurement_needs_data(tmp_path, capsys):
    assert main(["benchmark", "--report-only", "--output", str(tmp_path)]) == 2
    assert "no finished cell" in capsys.readouterr().err
    assert main(["benchmark", "--output", str(tmp_path)]) == 2
    assert "--data and --categories are needed" in capsys.readouterr().err
