"""The commands as a user types them, on a small generated set with the `tiny` preset."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hostile import edit
from PIL import Image

from iltm_anomaly.cli import COMMANDS, build_parser, main
from iltm_anomaly.evaluation.evaluate import protocol_split
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.synthetic.dataset import generate_dataset, write_mvtec_tree

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    dataset = generate_dataset(
        kind="part", size=64, num_train=24, num_test_good=6, num_test_defective=20, contamination=0.0, seed=0
    )
    root = tmp_path_factory.mktemp("data")
    write_mvtec_tree(dataset, root, "part")
    return root


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """The tiny preset, cut down further."""
    from iltm_anomaly.recipes.recipe import load_recipe

    values = load_recipe("tiny").to_dict()
    values["stage1"]["epochs"] = 8
    values["stage2"]["epochs"] = 8
    values["rounds"] |= {"rounds": 1, "outlier_scale": 1.5}
    path = tmp_path_factory.mktemp("recipe") / "test.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def run(data, recipe, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "part"
    arguments = ["train", "--data", str(data), "--category", "part", "--contamination", "0.1", "--cpu"]
    assert main([*arguments, "--preset", str(recipe), "--output", str(output)]) == 0
    return output


def train(data: Path, recipe: Path, output: Path, *more: str) -> int:
    arguments = ["train", "--data", str(data), "--category", "part", "--contamination", "0.1", "--cpu"]
    return main([*arguments, "--preset", str(recipe), "--output", str(output), *more])


def weights(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found = {}
    for file in sorted(run.rglob("*.safetensors")):
        found |= {f"{file.relative_to(run)}:{name}": tensor for name, tensor in load_file(file).items()}
    return found


def test_a_run_leaves_its_recipe_rounds_report_and_pipeline(run):
    report = json.loads((run / "model" / "training_report.json").read_text())
    assert [r["round"] for r in report["rounds"]] == [0, 1]
    assert report["rounds"][0]["masked_fraction"] == 0.0
    assert 0 < report["rounds"][1]["masked_fraction"] < 0.5
    assert report["data"]["contamination"]["fraction"] == 0.1
    assert report["num_training_images"] == 24 + 3
    assert report["versions"]["torch"] and report["training_seconds"] > 0
    log = [json.loads(line) for line in (run / "training_log.jsonl").read_text().splitlines()]
    assert {entry["stage"] for entry in log} == {"tokenizer", "prior round 0", "prior round 1"}
    assert all(np.isfinite(entry["loss"]) for entry in log)


def test_a_run_names_the_training_images_that_it_masked_most(run):
    from iltm_anomaly.data.cache import PixelCache
    from iltm_anomaly.training.checkpoint import load_checkpoint

    state, _ = load_checkpoint(run / "rounds" / "round_1" / "keep.bin")
    shares = dict(
        zip(PixelCache(run / "images.arrow").names, (~state["keep"]).float().mean((1, 2)).tolist(), strict=True)
    )
    with open(run / "training_images.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    assert {line["path"]: float(line["score"]) for line in listed} == pytest.approx(shares, abs=1e-4)
    scores = [float(line["score"]) for line in listed]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count('<li class="card') == len(shares) and "share of its tokens that the last round masked" in page


def test_one_seed_gives_the_same_numbers_twice_whatever_the_masks_say(run, data, recipe, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    for path in (tmp_path / "data" / "part" / "ground_truth").rglob("*.png"):
        Image.new("L", Image.open(path).size, 255).save(path)
    assert train(tmp_path / "data", recipe, tmp_path / "again") == 0
    first, second = weights(run), weights(tmp_path / "again")
    assert first.keys() == second.keys() and first
    assert all(torch.equal(first[key], second[key]) for key in first)
    limits = [json.loads((folder / "model" / "calibration.json").read_text()) for folder in (run, tmp_path / "again")]
    assert limits[0] == limits[1]
    assert train(data, recipe, tmp_path / "other", "--seed", "1") == 0
    other = weights(tmp_path / "other")
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_a_killed_run_resumes_to_the_same_weights(run, data, recipe, tmp_path, monkeypatch):
    """Stops in the middle of stage 1 and of round 1, each just after a checkpoint."""
    from iltm_anomaly.training import stage_checkpoint

    saved = stage_checkpoint.save_checkpoint
    for stage, step in (("tokenizer", 5), ("prior round 1", 4)):

        def stop(path, state, stage=stage, step=step):
            saved(path, state)
            if (state["stage"], state["step"]) == (stage, step):
                raise KeyboardInterrupt

        monkeypatch.setattr(stage_checkpoint, "save_checkpoint", stop)
        resume = ["--resume"] if stage != "tokenizer" else []
        assert train(data, recipe, tmp_path / "run", "--checkpoint-seconds=0", *resume) == 130
    monkeypatch.setattr(stage_checkpoint, "save_checkpoint", saved)
    assert train(data, recipe, tmp_path / "run", "--resume") == 0
    expected, found = weights(run), weights(tmp_path / "run")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "soon"])
def test_a_time_after_which_no_checkpoint_is_due_is_refused(seconds, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["train", "--data=x", "--output=y", f"--checkpoint-seconds={seconds}"])
    assert f"{seconds!r} is no number of seconds: give one from 0 on" in capsys.readouterr().err


def test_resuming_another_run_is_refused(run, data, recipe, capsys):
    assert train(data, recipe, run) == 2
    assert "already holds a run: pass --resume" in capsys.readouterr().err
    assert train(data, recipe, run, "--resume", "--seed", "3") == 2
    assert "seed" in capsys.readouterr().err
    assert train(data, recipe, run, "--resume", "--contamination", "0.2") == 2
    assert "contamination (0.1 there, 0.2 now) differ" in capsys.readouterr().err
    assert train(data, recipe, run, "--resume", "--protocol", "overlap") == 2
    assert "protocol (disjoint there, overlap now) differ" in capsys.readouterr().err


def evaluate(model, data, output, *options):
    arguments = ["evaluate", str(model), "--data", str(data), "--category", "part", "--output", str(output)]
    return main([*arguments, *options])


def test_evaluate_reports_every_round_and_draws_a_gallery(run, data, tmp_path, capsys):
    assert evaluate(run, data, tmp_path) == 0
    table = capsys.readouterr().out
    assert "pixel AUROC" in table and "of defect tokens" in table
    document = json.loads((tmp_path / "results.json").read_text())
    assert [r["round"] for r in document["results"]] == [0, 1]
    for result in document["results"]:
        assert result["category"] == "part" and result["contamination"] == 0.1 and result["seed"] == 0
        assert all(0 <= result[key] <= 1 for key in ("pixel_auroc", "aupro", "image_auroc", "masked_fraction"))
    last = document["results"][1]
    assert 0 <= last["masked_share_normal_tokens"] <= 1 and 0 <= last["masked_share_defect_tokens"] <= 1
    assert document["versions"]["torch"] and document["command"]
    assert np.asarray(Image.open(tmp_path / "gallery.png")).std() > 10
    assert f"of {document['at_threshold']['good']} good ones" in table
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"image AUROC <b>{100 * last['image_auroc']:.1f} %</b>" in page
    assert page.count('alt="what was expected: ') == 16
    assert f"AUPRO to 0.3 <b>{100 * last['aupro']:.1f} %</b>" in page and page.count('data-plot="') == 3


def test_evaluate_counts_what_detect_calls_abnormal(run, data, tmp_path):
    """At a threshold in the midst of the scores of both kinds."""
    shutil.copytree(run / "model", tmp_path / "model")
    report = json.loads((run / "model" / "training_report.json").read_text())
    test, _ = protocol_split(data, "part", report["data"]["contamination"])
    labels = np.array(test["label"])
    scores = ILTMAnomalyPipeline.from_pretrained(tmp_path / "model")(test["image"]).scores.numpy()
    threshold = float(np.median(scores))
    edit(tmp_path / "model" / "calibration.json", score_threshold=threshold)
    assert evaluate(tmp_path / "model", data, tmp_path) == 0
    found = json.loads((tmp_path / "results.json").read_text())["at_threshold"]
    called = scores >= threshold
    assert found == {
        "threshold": threshold,
        "defective": (labels == 1).sum(),
        "detected": called[labels == 1].sum(),
        "good": (labels == 0).sum(),
        "false_alarms": called[labels == 0].sum(),
    }
    assert 0 < found["detected"] + found["false_alarms"] < len(labels)


def test_a_pipeline_without_a_threshold_has_no_verdicts(run, data, tmp_path, capsys):
    shutil.copytree(run / "model", tmp_path / "model")
    edit(tmp_path / "model" / "calibration.json", score_threshold=None)
    assert evaluate(tmp_path / "model", data, tmp_path) == 0
    assert json.loads((tmp_path / "results.json").read_text())["at_threshold"] is None
    assert "threshold" not in capsys.readouterr().out


@pytest.mark.parametrize("threshold, below", [(1e9, True), (1e-9, False)])
def test_the_gallery_shows_maps_that_all_stay_below_the_threshold(run, data, tmp_path, monkeypatch, threshold, below):
    shutil.copytree(run / "model", tmp_path / "model")
    edit(tmp_path / "model" / "calibration.json", score_threshold=threshold)
    drawn = {}
    monkeypatch.setattr(
        "iltm_anomaly.evaluation.evaluate.draw_gallery", lambda rows, scale, *_: drawn.update(rows=rows, scale=scale)
    )
    assert evaluate(tmp_path / "model", data, tmp_path) == 0
    highest = [row.anomaly_map.max() for row in drawn["rows"]]
    assert min(highest) <= drawn["scale"] <= max(highest) if below else drawn["scale"] == threshold


def test_evaluate_of_the_last_round_alone_claims_nothing_of_its_masks(run, data, tmp_path):
    assert evaluate(run, data, tmp_path, "--last-round") == 0
    (result,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert result["round"] == 1 and result["masked_fraction"] > 0
    assert result["masked_share_defect_tokens"] is None and result["masked_share_normal_tokens"] is None


def test_the_last_round_is_measured_as_the_pipeline_was_calibrated(run, data, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    edit(copy / "model" / "calibration.json", surprise_limit=1.0)
    documents = []
    for name, arguments in {"all": (copy,), "last": (copy, "--last-round"), "model": (copy / "model",)}.items():
        model, *options = arguments
        assert evaluate(model, data, tmp_path / name, *options) == 0
        documents.append(json.loads((tmp_path / name / "results.json").read_text())["results"])
    assert documents[0][-1]["pixel_auroc"] == documents[1][-1]["pixel_auroc"] == documents[2][-1]["pixel_auroc"]
    assert evaluate(run, data, tmp_path / "whole") == 0
    first, last = json.loads((tmp_path / "whole" / "results.json").read_text())["results"]
    assert first["pixel_auroc"] == documents[0][0]["pixel_auroc"], "an earlier round has a limit of its own"
    assert last["pixel_auroc"] != documents[0][-1]["pixel_auroc"]


def test_what_is_missing_of_a_run_is_named(run, data, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    shutil.copy(run / "run.json", tmp_path / "run")
    assert evaluate(tmp_path / "run", data, tmp_path / "out") == 2
    assert "is not finished" in capsys.readouterr().err
    shutil.copytree(run, tmp_path / "whole")
    (tmp_path / "whole" / "images.arrow").unlink()
    assert evaluate(tmp_path / "whole", data, tmp_path / "out") == 2
    assert "earlier rounds cannot be measured without the training images" in capsys.readouterr().err


def test_evaluate_refuses_data_that_has_changed(run, data, tmp_path, capsys):

    changed = tmp_path / "data"
    shutil.copytree(data, changed)
    next((changed / "part" / "train" / "good").iterdir()).unlink()
    arguments = ["evaluate", str(run), "--data", str(changed), "--category", "part", "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "added, removed" in capsys.readouterr().err
    (changed / "part").rename(changed / "other")
    arguments[arguments.index("part")] = "other"
    assert main(arguments) == 2
    assert "the split of part that the model was trained on is none of other" in capsys.readouterr().err


def test_detect_skips_bad_files_and_names_them(run, data, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    good = sorted((data / "part" / "test" / "good").iterdir())[:2]
    for path in good:
        Image.open(path).save(folder / path.name)
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no image")
    assert main(["detect", str(run), str(folder), "--output", str(tmp_path / "out")]) == 1
    assert "2 scored" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    by_name = {Path(row["path"]).name: row for row in rows}
    assert len(rows) == 4
    for path in good:
        row = by_name[path.name]
        assert float(row["score"]) > 0 and row["abnormal"] in ("0", "1") and not row["error"]
        assert np.load(tmp_path / "out" / row["map"]).shape == (64, 64)
        assert (tmp_path / "out" / row["overlay"]).exists()
    for name in ("empty.png", "text.jpg"):
        assert name in by_name[name]["error"] and not by_name[name]["score"]
    for _ in range(2):  # what it has drawn beside its inputs is no input
        assert main(["detect", str(run), str(folder), "--output", str(folder / "found")]) == 1
        assert "2 scored, " in capsys.readouterr().out


def test_the_user_may_set_the_threshold(run, data, tmp_path, capsys):
    path = sorted((data / "part" / "test" / "good").iterdir())[0]

    def detected(threshold: str) -> tuple[int, dict]:
        output = tmp_path / threshold
        status = main(["detect", str(run), str(path), "--output", str(output), "--threshold", threshold])
        return status, next(csv.DictReader((output / "results.csv").read_text().splitlines())) if not status else {}

    status, row = detected("1e9")
    assert status == 0 and row["threshold"] == "1e+09" and row["abnormal"] == "0"
    below = float(row["score"]) / 2
    status, row = detected(f"{below}")
    assert status == 0 and row["abnormal"] == "1" and int(row["abnormal_pixels"]) > 0
    for words, said in (("--threshold=nan", "'nan' is no score"), ("--batch-size=0", "'0' is no number of images")):
        with pytest.raises(SystemExit):
            build_parser().parse_args(["detect", "model", "image", "--output", "found", words])
        assert f"argument {words.partition('=')[0]}: {said}" in capsys.readouterr().err


def test_detect_takes_the_threshold_of_its_effort_and_tiles(run, data, tmp_path):
    path = sorted((data / "part" / "test" / "good").iterdir())[0]
    stored = json.loads((run / "model" / "calibration.json").read_text())

    def detected(*options: str) -> dict:
        output = tmp_path / "".join(options)
        assert main(["detect", str(run), str(path), "--output", str(output), "--no-maps", *options]) == 0
        return next(csv.DictReader((output / "results.csv").read_text().splitlines()))

    rows = [detected(*options) for options in ([], ["--effort=fast"], ["--effort=score"], ["--tile=40"])]
    names = ["score_threshold", "threshold_at_fast", "threshold_at_score", "score_threshold"]
    assert [float(row["threshold"]) for row in rows] == pytest.approx([stored[name] for name in names], rel=1e-5)
    assert len({row["score"] for row in rows}) == 4


def test_detect_fails_on_a_single_bad_file(run, tmp_path, capsys):
    (tmp_path / "empty.png").touch()
    assert main(["detect", str(run), str(tmp_path / "empty.png"), "--output", str(tmp_path / "out")]) == 2
    assert "empty.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--device=abacus", "--device abacus cannot be used"),
        ("--tile=3", "tile must be a whole number of pixels, 8 at least, got 3"),
    ],
)
def test_impossible_options_of_detect_are_named(run, data, tmp_path, capsys, option, complaint):
    assert main(["detect", str(run), str(data / "part" / "test"), "--output", str(tmp_path / "out"), option]) == 2
    assert complaint in capsys.readouterr().err


def test_a_plain_folder_of_images_is_trained_on_as_it_is(data, recipe, tmp_path):
    folder = data / "part" / "train" / "good"
    assert main(["train", "--data", str(folder), "--preset", str(recipe), "--output", str(tmp_path), "--cpu"]) == 0
    assert json.loads((tmp_path / "model" / "training_report.json").read_text())["num_training_images"] == 24


def test_pictures_of_a_run_are_no_images_to_train_on(run, tmp_path):
    from iltm_anomaly.data.images import find_images

    shutil.copytree(run, tmp_path / "runs" / "a")
    assert find_images(run, recursive=True), "asked for, they are found"
    Image.new("RGB", (64, 64)).save(tmp_path / "part.png")
    assert find_images(tmp_path, recursive=True) == [tmp_path / "part.png"]


@pytest.mark.parametrize(("options", "folder"), [([], "demo"), (["--volumes"], "demo_volumes")])
def test_the_two_demos_have_folders_of_their_own(options, folder, monkeypatch):
    called = []
    monkeypatch.setattr("iltm_anomaly.demo.demo", lambda *a, **_: called.append(("demo", *a)))
    monkeypatch.setattr("iltm_anomaly.demo.demo_volumes", lambda *a, **_: called.append(("demo_volumes", *a)))
    assert main(["demo", *options]) == 0
    assert called == [(folder, Path(folder), 0)]


def test_training_survives_an_unreadable_image(data, recipe, tmp_path, caplog):

    folder = tmp_path / "images"
    shutil.copytree(data / "part" / "train" / "good", folder)
    (folder / "zero.png").touch()
    assert (
        main(["train", "--data", str(folder), "--preset", str(recipe), "--output", str(tmp_path / "o"), "--cpu"]) == 0
    )
    assert "zero.png" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere/at/all"], "nowhere"),
        (["--category", "parts"], "part"),
        (["--contamination", "0.9"], "largest"),
        (["--protocol", "overlap"], "--protocol overlap says which images --contamination adds"),
        (["--preset", "fast"], "presets are"),
        (["--set", "stage1.stps=5"], "--set stage1.stps=5: recipe.stage1 has no field 'stps' (do you mean 'steps'?)"),
        (["--set", "prior.dropout=1.5"], "--set prior.dropout=1.5: recipe.prior: dropout must be in [0, 1), got 1.5"),
        (["--rounds", "-1"], "recipe.rounds.rounds must be at least 0, got -1"),
    ],
)
def test_wrong_arguments_give_one_line_that_helps(data, tmp_path, capsys, arguments, message):
    given = {"--data": str(data), "--category": "part", "--output": str(tmp_path / "out"), "--preset": "tiny"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert main(["train", *[word for pair in given.items() for word in pair]]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "Traceback" not in error and "\n" not in error


def test_a_run_on_copies_of_test_images_is_evaluated_on_those(data, recipe, tmp_path):
    quick = ["--protocol", "overlap", "--set", "stage1.steps=2", "stage2.steps=2", "--rounds", "0"]
    assert train(data, recipe, tmp_path / "run", *quick) == 0
    record = json.loads((tmp_path / "run" / "model" / "training_report.json").read_text())["data"]["contamination"]
    assert record["protocol"] == "overlap" and set(record["pool_indices"]) < set(record["test_indices"])
    assert train(data, recipe, tmp_path / "run", *quick, "--resume") == 0, "the same copies are made again"
    assert evaluate(tmp_path / "run", data, tmp_path / "evaluation") == 0
    (result,) = json.loads((tmp_path / "evaluation" / "results.json").read_text())["results"]
    assert result["protocol"] == "overlap" and 0 <= result["masked_share_normal_tokens"] <= 1


def test_values_of_the_recipe_on_the_command_line(data, recipe, tmp_path):
    more = ["--set", "stage1.steps=2", "stage2.steps=2", "--set", "inference.num_samples=3", "--rounds", "0"]
    assert train(data, recipe, tmp_path / "run", *more) == 0
    report = json.loads((tmp_path / "run" / "model" / "training_report.json").read_text())
    assert report["stage1"]["steps"] == 2 and len(report["rounds"]) == 1
    assert json.loads((tmp_path / "run" / "model" / "inference_config.json").read_text())["num_samples"] == 3
    assert train(data, tmp_path / "run" / "recipe.yaml", tmp_path / "run", "--resume") == 0, (
        "what is saved is read again"
    )


def test_accelerate_launch_takes_the_same_options(data, recipe, tmp_path):
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", str(REPOSITORY / "scripts" / "train.py")]
    command += ["--data", str(data), "--category", "part", "--contamination", "0.1", "--cpu"]
    command += ["--preset", str(recipe), "--output", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "run" / "model" / "model_index.json").exists()


def test_the_pipeline_reloads_to_the_same_scores_in_a_fresh_process(run, data):
    image = sorted((data / "part" / "test" / "good").iterdir())[0]
    program = (
        "import sys; from iltm_anomaly import ILTMAnomalyPipeline as P;"
        "out = P.from_pretrained(sys.argv[1])(sys.argv[2]);"
        "print(out.scores[0].item().hex(), out.anomaly_maps[0].tobytes().hex()[:4000])"
    )
    command = [sys.executable, "-c", program, str(run / "model"), str(image)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    results = [subprocess.run(command, capture_output=True, text=True, env=environment) for _ in range(2)]
    assert results[0].returncode == 0, results[0].stderr
    assert results[0].stdout == results[1].stdout and results[0].stdout.strip()


def test_help_is_quick_and_names_every_command():
    program = "import sys, iltm_anomaly.cli as c; c.build_parser().format_help(); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
    first_words = {line.split()[0] for line in build_parser().format_help().splitlines() if line.strip()}
    assert {*COMMANDS} <= first_words


def test_the_command_alone_shows_its_help(capsys):
    assert main([]) == 2
    said = capsys.readouterr()
    assert said.out == build_parser().format_help() and said.err == ""


MISTAKES = {
    "train --data nowhere --output out": "no such folder: nowhere",
    "train --data two --output out": "two holds 2 categories, choose one: one, other",
    "train --data two --category ohter --output out": "Did you mean 'other'?",
    "train --data two/one --preset fast --output out": "no preset and no file 'fast'; presets are cpu, ",
    "evaluate two --data nowhere --output out": "two is not a pipeline folder: it has no model_index.json",
    "detect nothing two --output out": "no pipeline folder at nothing",
    "export two/nothing --output out.onnx": "no pipeline folder at two/nothing: two is a folder here",
    "detect org/model nothing.png --output out": "cannot read nothing.png: no such file",
    "detect org/model two --labelled two --output out": "two must hold a subfolder good and one or more of defective images",
    "detect org/model two --output file": "file is a file: --output takes a folder",
    "report nowhere": "no such folder: nowhere",
    "push nowhere org/model": "no folder nowhere",
    "benchmark --data nowhere --categories x --output out": "no such folder: nowhere",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_wrong_argument_is_told_before_torch_is_imported(command, run_fresh, tmp_path):
    program = """
    import sys, os
    from iltm_anomaly.cli import main
    os.chdir(sys.argv[1]), os.makedirs("two/one/train"), os.makedirs("two/other/train"), open("file", "w").close()
    sys.stderr = sys.stdout
    print(main(sys.argv[2].split()), *{"torch", "transformers", "datasets"} & set(sys.modules))
    """
    said, status = run_fresh(program, tmp_path, command).splitlines()
    assert MISTAKES[command] in said and status == "2"


def test_quiet_leaves_results_warnings_and_errors(run, data, recipe, tmp_path):
    command = [sys.executable, "-m", "iltm_anomaly.cli"]
    training = ["--data", str(data / "part"), "--preset", str(recipe), "--output", str(tmp_path / "run"), "--cpu"]
    shorter = ["--quiet", "--rounds=0", "--set", "stage1.steps=2", "stage2.steps=2"]
    image = str(next((data / "part" / "test" / "good").iterdir()))
    detecting = ["--quiet", "detect", str(run), image, "--output", str(tmp_path / "found")]
    for words, shown in ((["train", *training, *shorter], "pipeline saved in"), (detecting, "1 scored, ")):
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=300, check=True)
        assert all(line.startswith("WARNING ") for line in done.stderr.splitlines())
        assert done.stdout.startswith(shown) and done.stdout.count("\n") == 1


def test_a_wrong_value_in_a_recipe_is_one_line_too(data, tmp_path, capsys):
    from iltm_anomaly.recipes.recipe import load_recipe

    values = load_recipe("tiny").to_dict()
    values["prior"]["head_dim"] = 0
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(values))
    assert train(data, path, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "head_dim" in error and "Traceback" not in error


@pytest.mark.parametrize("error", [MemoryError(), OverflowError("int too large to convert to float")])
def test_what_this_machine_cannot_hold_is_one_line(tmp_path, monkeypatch, capsys, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("iltm_anomaly.training.train.train", fail)
    assert main(["train", "--data", str(tmp_path), "--output", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "too small for what was asked" in line or "too large for what was asked (int too large" in line
