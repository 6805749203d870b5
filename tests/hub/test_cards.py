"""Model cards: what they claim is what the JSON holds, and `huggingface_hub` reads it back."""

import importlib.util
import io
import json
import re
import shlex
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub._eval_results import parse_eval_result_entries
from PIL import Image

from iltm_anomaly.hub.cards import draw_picture, load_results, render_card, summarise
from iltm_anomaly.hub.checks import REPORT, check_shape
from iltm_anomaly.hub.data_sources import DATA_SOURCES, DEMO, as_path, data_source
from iltm_anomaly.recipes.recipe import load_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "docs" / "results" / "bottle.jsonl"
SECTIONS = [
    "Use",
    "Intended use",
    "Out of scope",
    "Limits",
    "Training data",
    "Protocol",
    "Results",
    "Procedure and machine",
    "Reproduce",
    "Citation",
]


def rendered_cards() -> dict[str, bytes]:
    spec = importlib.util.spec_from_file_location("model_cards", REPOSITORY / "scripts" / "model_cards.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.render_all()


def test_the_cards_in_the_repository_are_what_the_results_render():
    rendered = rendered_cards()
    folder = REPOSITORY / "model_cards"
    stored = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert stored.keys() == rendered.keys() and stored, "run `python scripts/model_cards.py`"
    for name, content in rendered.items():
        if name.endswith(".png"):  # fonts may differ a little from machine to machine
            old, new = (
                np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float) for data in (stored[name], content)
            )
            assert old.shape == new.shape and np.abs(old - new).mean() < 3, name
        else:
            assert stored[name].decode() == content.decode(), f"{name}: run `python scripts/model_cards.py`"


def test_every_number_of_the_metadata_is_that_of_the_results():
    documents = load_results([RESULTS])
    card = ModelCard(render_card("iltm-bottle", documents)["README.md"].decode())
    assert card.data.license == "cc-by-nc-sa-4.0" and card.data.library_name == "iltm-anomaly"
    found = {entry.metric_type: entry for entry in card.data.eval_results}
    assert found.keys() == {"pixel_auroc", "aupro", "image_auroc"}
    for key, entry in found.items():
        values = [document["results"][-1][key] for document in documents]
        assert entry.metric_value == pytest.approx(np.mean(values), abs=1e-4)
        assert entry.metric_args["standard_deviation"] == pytest.approx(np.std(values), abs=1e-4)
        assert entry.metric_args["seeds"] == [document["results"][-1]["seed"] for document in documents]
        assert entry.metric_args["contamination"] == 0.1


def test_the_text_has_its_sections_and_facts():
    documents = load_results([RESULTS])
    text = render_card("iltm-bottle", documents)["README.md"].decode()
    assert re.findall(r"^##+ (.*)$", text, re.MULTILINE) == SECTIONS
    for document in documents:
        for fact in (document["commit"], document["training_commit"], document["hardware"]["device"]):
            assert str(fact) in text
        assert all(f"{name} {version}" in text for name, version in document["versions"].items())
        assert f"--seed {document['results'][0]['seed']} " in text
    value, spread, _ = summarise(documents, 0, "aupro")
    assert f"{value:.1f} ± {spread:.1f}" in text
    assert "no commercial use" in text and "no weights" in text and "no medical device" in text
    assert "{{" not in text and "None" not in text and "/tmp" not in text


def test_the_text_tells_what_thresholds_make_of_the_test_images():
    documents = load_results([RESULTS])
    for number, document in enumerate(documents):
        counts = {"threshold": 1.0, "defective": 32, "detected": 30 - number, "good": 20, "false_alarms": number}
        document["at_threshold"] = counts
    text = render_card("iltm-bottle", documents)["README.md"].decode()
    assert "calls 87 of 96 defective test images abnormal, and 3 of 60 good ones." in text
    documents[1]["at_threshold"] = None
    assert "The threshold that training has set" not in render_card("iltm-bottle", documents)["README.md"].decode()


def test_results_on_a_hub_data_set_are_written_for_its_leaderboard(tmp_path):
    document = load_results([RESULTS])[0] | {"data": "somebody/parts"}
    (tmp_path / "results.json").write_text(json.dumps(document))
    files = render_card("mine", load_results([tmp_path / "results.json"]), repo_id="org/mine")
    entries = parse_eval_result_entries(yaml.safe_load(files[".eval_results/iltm.yaml"]))
    assert {entry.dataset_id for entry in entries} == {"somebody/parts"}
    values = {entry.task_id: entry.value for entry in entries}
    assert values["bottle_aupro"] == pytest.approx(document["results"][-1]["aupro"], abs=1e-4)
    assert 'from_pretrained("org/mine")' in files["README.md"].decode()


def test_without_results_nothing_is_claimed():
    report = {"data": {"source": "/home/somebody/secret project/bolts"}, "recipe": {"name": "cpu", "image_size": 128}}
    files = render_card("mine", [], report, "org/mine")
    text = files["README.md"].decode()
    assert files.keys() == {"README.md"} and "Not measured" in text and "128 pixels" in text
    assert ModelCard(text).data.eval_results is None
    assert "some of which may be defective" in text
    assert "iltm-anomaly train " in text and "iltm-anomaly evaluate " not in text, "a plain folder has no test images"
    assert "bolts" in text and "somebody" not in text  # nothing of the path but its last part


def test_results_that_do_not_belong_together_are_refused(tmp_path):
    document = load_results([RESULTS])[0]
    document["results"][0]["contamination"] = 0.2
    (tmp_path / "other.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="different contaminations"):
        load_results([RESULTS, tmp_path / "other.json"])
    document = load_results([RESULTS])[0]
    document["results"][0]["protocol"] = "overlap"
    (tmp_path / "other.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="different protocols"):
        load_results([RESULTS, tmp_path / "other.json"])
    with pytest.raises(ValueError, match="no results of"):
        load_results([REPOSITORY / "docs" / "results" / "bench_metrics.json"])


def test_a_metric_that_was_not_measured_is_left_out_of_the_picture():
    document = load_results([RESULTS])[0]
    for result in document["results"]:
        result["image_auroc"] = None
    without, whole = draw_picture([document]), draw_picture(load_results([RESULTS])[:1])
    assert without is not None and without != whole
    for result in document["results"]:
        result |= {"pixel_auroc": None, "aupro": None}
    assert draw_picture([document]) is None
    assert "picture.png" not in render_card("parts", [document])


def test_every_known_data_set_states_its_terms():
    assert data_source("../shared/data/mvtec") is data_source("mvtec/bottle") is DATA_SOURCES["mvtec"]
    assert data_source("demo_0/data/part") is data_source("demo_0/data/part", "demo") is DEMO
    assert data_source("demo_0/data/part", "cpu").terms == "not stated"  # somebody's own folder of that name
    for source in DATA_SOURCES.values():
        assert source.terms and source.text and (source.citation or source is DEMO)
    for path in (REPOSITORY / "model_cards").glob("*/README.md"):
        assert "not stated" not in path.read_text(encoding="utf-8"), f"{path}: its data set is not in DATA_SOURCES"


def test_the_name_of_a_folder_claims_nothing(tmp_path, monkeypatch):
    for path in ("/home/demo/mvtec/acme/bolts", "/data", "./bolts", "demo/bolts/"):
        source = data_source(path)
        assert source.terms == "not stated" and source.hub_id is None and source.name == Path(path).name
    assert data_source("somebody/bolts").hub_id == "somebody/bolts"
    assert as_path("somebody/bolts") == "somebody/bolts"
    # a pattern is no Hub id, and "." tells nothing
    assert (
        data_source("scans/*_suv.nii.gz").hub_id is None and data_source("scans/*_suv.nii.gz").name == "*_suv.nii.gz"
    )
    assert as_path(".") == as_path("./") == str(Path.cwd())
    (tmp_path / "somebody" / "bolts").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert as_path("somebody/bolts") == "./somebody/bolts" and as_path("./somebody") == "./somebody"
    assert data_source("./somebody/bolts").hub_id is None
    assert data_source("somebody/bolts").hub_id is None  # a folder of that name comes before the Hub


def test_the_card_of_the_demo_says_how_it_was_made():
    documents = load_results([REPOSITORY / "docs" / "results" / "demo.jsonl"])
    text = render_card("iltm-demo", documents)["README.md"].decode()
    card = ModelCard(text)
    assert card.data.license == "apache-2.0" and "30 % of the generated training images are defective" in text
    assert card.data.eval_results[0].metric_args["contamination"] == 0.3
    assert (
        "256 pixels a side" in text
        and "(8 pixels of that size a side)" in text
        and "iltm-anomaly demo --seed 0" in text
        and f"git checkout {documents[0]['commit']}" in text
    )


def test_commands_repeat_what_was_done():
    recipe = json.loads(json.dumps(load_recipe("mri-crop").to_dict()))
    record = {"fraction": 0.2, "train_size": 40}
    report = {"recipe": recipe, "data": {"source": "/home/x/scans", "contamination": record}, "seed": 3}
    text = render_card("pet", [], report, "org/pet")["README.md"].decode()
    assert "train --data ROOT --volumes --contamination 0.2 --train-size 40 --preset mri-crop --seed" in text
    assert "20 % of the training volumes are defective" in text and "scan.nii.gz" in text and "ImageNet" not in text
    assert "of which nothing is trained on" in text
    record["protocol"] = "overlap"
    text = render_card("pet", [], report, "org/pet")["README.md"].decode()
    assert "--contamination 0.2 --protocol overlap --train-size 40" in text
    assert "the defective training volumes are copies of some of it" in text and "nothing is trained on" not in text
    report["recipe"] = recipe | {"image_size": None, "stage1": recipe["stage1"] | {"epochs": 1}}
    assert "--preset recipe.yaml" in render_card("pet", [], report, "org/pet")["README.md"].decode()


def test_names_are_text_in_the_card_and_words_in_its_commands():
    name = "x*y*](http://a.b)<img src=a>\n```\nrm -rf ~; $(id) `id`"
    document = load_results([RESULTS])[0] | {"data": f"/data/{name}"}
    for result in document["results"]:
        result["category"] = name
    text = render_card("mine", [document])["README.md"].decode()
    body = text.split("---\n", 2)[2]
    prose, commands = body.split("```bash\n")
    assert r"x\*y\*\](http://a.b)\<img src=a\> \`\`\` rm -rf \~; \$(id) \`id\`" in prose
    assert "<img" not in prose.replace(r"\<", "") and re.search(r"(?<!\\)`id", prose) is None
    lines = commands.split("\n```\n")[0].splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    assert {line[line.index("--category") + 1] for line in words if "--category" in line} == {name.replace("\n", " ")}
    assert [line[0] for line in words if line] == ["git", "iltm-anomaly", "iltm-anomaly"]


def test_an_unknown_folder_is_no_markdown_either():
    text = render_card("mine", [], {"data": {"source": "/data/<b>*bolts*"}})["README.md"].decode()
    assert r"\<b\>\*bolts\*. Its maker should" in text and "<b>" not in text.split("---\n", 2)[2]


def spoiled(document, odd):
    """Copies of a document, in each of which another item is `odd`, or is not there if that is ...; items of items too."""
    for key in range(len(document)) if isinstance(document, list) else document:
        copy = deepcopy(document)
        if odd is ...:
            del copy[key]
        else:
            copy[key] = odd
        yield copy
        if isinstance(document[key], dict | list):
            for inner in spoiled(document[key], odd):
                yield document | {key: inner} if isinstance(document, dict) else [inner]


@pytest.mark.parametrize("odd", [..., 5, "x", [5], {"a": 5}], ids=repr)
def test_odd_documents_are_refused_or_do_not_matter(tmp_path, odd):
    document = load_results([RESULTS])[0]
    document |= {"results": document["results"][-1:], "versions": {"torch": "2"}}
    for copy in spoiled(document, odd):
        (tmp_path / "results.json").write_text(json.dumps(copy))
        with suppress(ValueError):
            render_card("part", load_results([tmp_path / "results.json"]), picture=b"PNG")
    contamination = {"fraction": 0.2, "protocol": "overlap", "train_size": 40}
    recipe = {"name": "mine", "rounds": {"outlier_scale": 1.5}, "vqvae": {"channels": [8]}, "image_size": 64}
    report = {"recipe": recipe, "data": {"source": "x/y", "contamination": contamination}, "seed": 3}
    report |= {"rounds": [{"round": 0, "commit": "c"}], "versions": {"torch": "2"}, "hardware": document["hardware"]}
    for copy in spoiled(report, odd):
        with suppress(ValueError):
            check_shape(copy, REPORT, "training_report.json")
            render_card("part", [], copy, "org/part")


def test_an_odd_document_is_named(tmp_path):
    for content, message in {
        "{": r"results.json is not valid JSON",
        "5": r"results.json is damaged: '5' cannot stand there",
        '{"results": [5]}': r"results.json: results: item 0 is damaged",
        '{"results": [{"method": "iltm", "round": 0, "aupro": "high"}]}': r"item 0: aupro is damaged: 'high'",
    }.items():
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            load_results([tmp_path / "results.json"])


def test_the_metadata_says_what_makes_results_no_others():
    card = ModelCard.load(REPOSITORY / "model_cards" / "bottle" / "README.md")
    assert {entry.dataset_name for entry in card.data.eval_results} == {"MVTec AD, bottle (128 px, own split)"}
