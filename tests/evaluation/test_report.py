"""The page of `iltm-anomaly report`: of what detect has written, and of a run."""

import csv
import io
import json
import shutil
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from browser import wait_for
from PIL import Image
from report_pages import HOSTILE, Page, some_image, write_results
from tiny_models import part_tree, tiny_pipeline

from iltm_anomaly.cli import main
from iltm_anomaly.evaluation.detect import detect
from iltm_anomaly.evaluation.report import FOLDER, write_report
from iltm_anomaly.evaluation.report.content import BYTES, picture
from iltm_anomaly.evaluation.report.detected import read_detected
from iltm_anomaly.evaluation.rows import COLUMNS
from iltm_anomaly.training.suspects import LIST
from iltm_anomaly.training.train import TrainArguments, train


@pytest.fixture
def folder(tmp_path) -> Path:
    """As of detect: five images, the second highest of which has moved, and a file that cannot be read."""
    found, rows = tmp_path / "found", []
    for number, score in enumerate([0.5, 3.0, 1.0, 2.0, 1.5]):
        path = some_image(tmp_path / "new" / f"{number}.png", number)
        some_image(found / "overlays" / f"{number}.png", 10 + number)
        rows.append({"path": str(path), "score": f"{score:g}", "threshold": "1.5", "abnormal": int(score >= 1.5)})
        rows[-1]["overlay"] = f"overlays/{number}.png"
    (tmp_path / "new" / "3.png").unlink()
    rows[3]["overlay"] = ""
    rows.insert(2, {"path": "broken.png", "error": "cannot read image broken.png: the file is empty (0 bytes)"})
    return write_results(found, rows)


def test_images_are_ranked_with_score_verdict_and_pictures(folder):
    path, report = write_report(folder)
    page, names = Page(path), [Path(row.path).name for row in report.rows]
    assert path == folder / "report.html" and names == ["1.png", "3.png", "4.png", "2.png", "0.png"]
    cards = page.cards()
    assert ["abnormal" in card["class"] for card in cards] == [True, True, True, False, False]
    for card, row in zip(cards, report.rows, strict=True):
        assert f"score {row.score:.4g}, {'abnormal' if row.abnormal else 'normal'}" in " ".join(card["text"].split())
        assert row.path in card["text"]
    assert page.data["rows"] == [{"path": r.path, "score": r.score, "abnormal": r.abnormal} for r in report.rows]
    assert page.data["threshold"] == 1.5 and page.all("input", id="slider")[0]["aria-valuetext"] == "1.5"
    assert page.data["scale"]["low"] < 0.5 and page.data["scale"]["high"] > 3
    pictures = page.all("img")
    assert len(pictures) == 2 * 4 and all(one["alt"] and one["loading"] == "lazy" for one in pictures)
    shown = Image.open(io.BytesIO(b64decode(pictures[0]["src"].partition(",")[2])))
    assert shown.format == "JPEG" and shown.size == (48, 40) == (int(pictures[0]["width"]), int(pictures[0]["height"]))
    assert "3.png: no such file" in cards[1]["text"] and "no picture of" in cards[1]["text"]
    assert "the file is empty" in page.all("section", id="unreadable")[0]["text"]
    assert not list(folder.glob("*.partial"))


def test_a_reader_of_screens_finds_headings_and_labels(folder):
    page = Page(write_report(folder)[0])
    assert [one["text"] for one in page.all("h1")] == ["What was detected"] and len(page.all("h2")) == 4
    labelled = {one["for"] for one in page.all("label") if "for" in one}
    for control in page.all("input"):
        assert "label" in control["inside"] or control["id"] in labelled
    assert page.all("p", role="status", **{"aria-live": "polite"})
    assert page.all("html", lang="en") and page.all("fieldset") and page.all("legend")
    ids = [one["id"] for one in page.elements if "id" in one]
    assert len(ids) == len(set(ids))
    assert {one["aria-labelledby"] for one in page.elements if "aria-labelledby" in one} <= set(ids)


def test_the_page_needs_nothing_but_itself(folder):
    page = Page(write_report(folder)[0])
    for element in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert element.get(name, "data:").startswith(("data:", "#"))
        assert not any(name.startswith("on") for name in element)
    assert not page.all("link") and not page.all("iframe")
    style = page.all("style")[0]["text"]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    assert (
        not any(word in script for word in ("fetch(", "innerHTML", "import(", "XMLHttpRequest"))
        and len(script.splitlines()) <= 240
    )


def test_names_of_files_are_text_wherever_they_stand(tmp_path):
    paths = [some_image(tmp_path / "new" / name) for name in HOSTILE]
    rows = [{"path": str(path), "score": "2", "threshold": "1", "abnormal": "1"} for path in paths]
    rows.append({"path": HOSTILE[0], "error": f"cannot read {HOSTILE[1]}"})
    page = Page(write_report(write_results(tmp_path / "<b>found", rows))[0])
    assert len(page.all("script")) == 2 and not page.all("b", text="found") and len(page.all("img")) == 2
    assert [row["path"] for row in page.data["rows"]] == list(map(str, paths)) and page.data["unreadable"] == HOSTILE[
        :1
    ]
    assert [card["text"].count(str(path)) for card, path in zip(page.cards(), paths, strict=True)] == [1, 1]
    assert [one["alt"] for one in page.all("img")] == [f"input: {path}" for path in paths]
    assert "49" not in page.cards()[1]["text"].replace(str(tmp_path), "")  # which may hold any number


def test_paths_are_found_from_the_folder_that_detect_was_called_in(folder, tmp_path, monkeypatch):
    some_image(tmp_path / "new" / "3.png")
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    for row in rows[:2]:
        row["path"] = str(Path(row["path"]).relative_to(tmp_path))
    write_results(folder, rows)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [len(row.pictures) for row in write_report(folder, tmp_path / "out" / "a.html")[1].rows] == [2, 1, 2, 2, 2]
    assert (tmp_path / "out" / "a.html").is_file()


@pytest.mark.parametrize("save_maps", [True, False])
def test_what_detect_writes(tmp_path, save_maps):
    for number in range(3):
        some_image(tmp_path / "new" / f"{number}.png", number)
    (tmp_path / "new" / "cut.png").write_bytes(b"\x89PNG")
    pipeline = tiny_pipeline(score_threshold=1.0)
    rows = detect(pipeline, [tmp_path / "new"], tmp_path / "found", save_maps=save_maps, show_progress=False)
    assert main(["report", str(tmp_path / "found")]) == 0
    page = Page(tmp_path / "found" / "report.html")
    pictures = [one for one in page.all("img") if not one["alt"].startswith("where it differs most")]
    healed = [one for one in pictures if one["alt"].startswith("what was expected")]
    assert len(page.cards()) == 3 and len(pictures) == (6 + len(healed) if save_maps else 3)
    assert len(healed) == sum(row["healed"] is not None for row in rows) == (3 if save_maps else 0)
    assert not page.all("section", id="truth") and not page.all("p", id="found") and page.data["known"] is False
    expected = {row["path"]: row["abnormal"] == 1 for row in rows if not row["error"]}
    assert {row["path"]: row["abnormal"] for row in page.data["rows"]} == expected
    assert "cut.png" in page.all("section", id="unreadable")[0]["text"]
    shown = next(row for row in rows if row["abnormal"])
    left, top, right, bottom = shown["boxes"][0]
    where = f"of {shown['areas'][0]} pixels, x {left} to {right}, y {top} to {bottom}"
    assert any(where in card["text"] and shown["path"] in card["text"] for card in page.cards())


def test_a_model_without_threshold_starts_at_the_highest_score(tmp_path):
    report = write_report(write_results(tmp_path, [{"path": "a", "score": "1"}, {"path": "b", "score": "4"}]))[1]
    assert report.threshold == 4 and [row.abnormal for row in report.rows] == [True, False]
    assert any("no threshold of its own" in sentence for sentence in report.about)


def test_files_none_of_which_can_be_read_are_listed(tmp_path):
    page = Page(write_report(write_results(tmp_path, [{"path": "a", "error": "is empty"}, {"path": "b"}]))[0])
    text = page.all("section", id="unreadable")[0]["text"]
    assert "is empty" in text and "interrupted" in text and not page.all("svg") and not page.cards()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is neither"),
        ("", "lists no image: run iltm-anomaly detect again"),
        (",".join(COLUMNS), "lists no image"),
        ("path,score\na.png,1\n", "no column abnormal, error, mask, overlay, threshold"),
        (f"{','.join(COLUMNS)}\na.png,nan\n", "image 1 (a.png): the score 'nan' is no finite number"),
        (f"{','.join(COLUMNS)}\na.png,much\n", "'much'"),
        (f"{','.join(COLUMNS)}\n{'a' * 200_000},1\n", "is no table"),
    ],
)
def test_what_is_no_result_is_refused_in_a_line(tmp_path, capsys, content, said):
    if content is not None:
        (tmp_path / "results.csv").write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and str(tmp_path) in error
    assert not (tmp_path / "report.html").exists()


def test_a_folder_that_is_not_there_or_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for name, said in (("nothing", "no such folder"), ("file", "is a file")):
        assert main(["report", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err


def test_a_thousand_images_stay_small(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)  # nothing is harder to compress
    paths = [some_image(tmp_path / f"{number}.png", number) for number in range(4)]
    Image.fromarray(noise).save(tmp_path / "noise.png")
    hard = picture(Image.open(tmp_path / "noise.png"), "noise")
    assert hard.width == 160 and len(hard.source) < 1.4 * BYTES
    rows = [
        {"path": str(paths[n % 4]), "score": str(n), "threshold": "900", "abnormal": int(n > 900)} for n in range(1000)
    ]
    path, report = write_report(write_results(tmp_path / "found", rows))
    without_pictures = path.stat().st_size - sum(len(one.source) for row in report.rows for one in row.pictures)
    assert without_pictures + 2000 * 1.4 * BYTES < 20e6
    assert [row.score for row in report.rows] == list(range(999, -1, -1))
    fewer = read_detected(tmp_path / "found", most_pictures=10)
    assert [len(row.pictures) for row in fewer.rows] == [1] * 10 + [0] * 990 and "first 10" in fewer.about[-1]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    data = part_tree(tmp_path_factory.mktemp("data"))
    output = tmp_path_factory.mktemp("run") / "run"
    train(TrainArguments(str(data), output, preset="tiny-features", overrides=["image_size=128"]))
    return output


def test_a_run_shows_its_training_images_and_what_they_gave_up(run, tmp_path):
    path, report = write_report(run, tmp_path / "run.html")
    page, listed = Page(path), list(csv.DictReader((run / LIST).read_text().splitlines()))
    assert page.all("h1")[0]["text"] == "Which of my training images are defective?"
    assert [row.path for row in report.rows] == [line["path"] for line in listed] and len(page.cards()) == 24
    assert [row.abnormal for row in report.rows] == [line["looks_defective"] == "1" for line in listed]
    gave_up = [float(line["rejected_share"]) > 0 for line in listed]
    assert [len(row.pictures) == 2 for row in report.rows] == gave_up and any(gave_up)
    plain, dimmed = (
        np.asarray(Image.open(io.BytesIO(b64decode(one.source.partition(",")[2]))), dtype=float)
        for one in report.rows[0].pictures
    )
    darker = (dimmed < 0.7 * plain).mean()
    assert darker == pytest.approx(1 - float(listed[0]["rejected_share"]), abs=0.15)
    table = [one["text"] for one in page.all("td")]
    rounds = json.loads((run / "model" / "training_report.json").read_text())["rounds"]
    assert table[::2] == [f"{100 * entry['masked_fraction']:.2f} %" for entry in rounds]
    settings = json.loads((run / "model" / "calibration.json").read_text())
    assert page.data["threshold"] == settings["score_threshold"]


def test_a_run_that_misses_something_is_refused_with_a_reason(run, tmp_path, capsys):
    for missing, said in (
        ("images.arrow", "images.arrow"),
        ("rounds/round_2/token_weights.safetensors", "token_weights.safetensors"),
        ("model/model_index.json", "is not finished"),
    ):
        copy = tmp_path / Path(missing).name
        shutil.copytree(run, copy)
        (copy / missing).unlink()
        assert main(["report", str(copy)]) == 2
        assert said in capsys.readouterr().err
    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / LIST).write_text("path,score,looks_defective,rejected_share\nother.png,1,1,0.5\n")
    assert main(["report", str(tmp_path / "copy")]) == 2
    assert "not of the images of the run" in capsys.readouterr().err


def test_page_in_a_real_browser(folder, browser):
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    rows[0]["path"] = str(some_image(folder.parent / "new" / HOSTILE[0]))
    browser.ask("POST", "/url", url=write_report(write_results(folder, rows))[0].as_uri())

    def shown() -> str:
        names = "[...document.querySelectorAll('#gallery > li, #unreadable li')].filter((e) => e.checkVisibility())"
        return browser.run(f"return {names}.map((e) => e.querySelector('.path').textContent.slice(-5)).join(' ')")

    def said() -> str:
        return browser.run("return document.querySelector('#status').textContent")

    def give(name: str, value: str) -> None:
        script = "const e = document.querySelector('{}'); e.value = '{}'; e.dispatchEvent(new Event('input'));"
        browser.run(script.format(name, value))

    def press(key: str) -> str:
        browser.press(key)
        return place()

    def place() -> str:
        return browser.run(
            "if (document.querySelector('#large').open) return document.querySelector('#large-title').textContent.slice(-5);"
            "const card = document.activeElement.closest('li');"
            "return card && card.querySelector('.path').textContent.slice(-5)"
        )

    right, left, enter, escape = "\ue014", "\ue012", "\ue007", "\ue00c"
    assert said() == "abnormal: 3 of 5 images, at threshold 1.5. Shown: 6 of 6 files."
    assert shown() == "1.png 3.png 4.png 2.png >.png n.png"
    bars = (
        "[...document.querySelectorAll('#histogram rect.{}')].filter((bar) => bar.getAttribute('height') > 0).length"
    )
    assert browser.run(f"return [{bars.format('all')}, {bars.format('abnormal')}]") == [5, 3]
    give("#number", "2.5")
    assert said().startswith("abnormal: 1 of 5 images, at threshold 2.5.")
    assert browser.run(f"return {bars.format('abnormal')}") == 1
    assert browser.run("return ['#keep', '#number'].map((name) => document.querySelector(name).value)") == ["2.5"] * 2
    browser.run("document.querySelector('input[value=abnormal]').click()")
    assert shown() == "1.png"
    give("#slider", str(write_report(folder)[1].scale.place(0.9)))
    assert said().startswith("abnormal: 4 of 5 images, at threshold 0.9.")
    assert shown() == "1.png 3.png 4.png 2.png"
    browser.run("document.querySelector('input[value=errors]').click()")
    assert shown() == "n.png"
    browser.run("document.querySelector('input[value=all]').click()")
    give("#search", "NEW/4")
    assert shown() == "4.png" and "Shown: 1 of 6" in said()
    give("#search", "")
    browser.run("document.querySelector('#reset').click(); document.activeElement.blur()")
    assert said().startswith("abnormal: 3 of 5")
    assert [press(key) for key in (right, right, left, right)] == ["4.png", "2.png", "4.png", "2.png"]
    assert [press(key) for key in (enter, right)] == ["2.png", ">.png"]
    assert browser.run("return document.querySelectorAll('#large-pictures img').length") == 2
    press(escape)
    wait_for(lambda: place() == ">.png", "the focus on the image that was enlarged last", 10)
    assert not browser.run("return document.querySelector('#large').open")
    assert [press(key) for key in (right, left)] == [">.png", "2.png"]  # there is none after the last
    assert browser.complaints() == []


def test_how_training_went_is_drawn_from_its_log(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    log = tmp_path / "run" / "training_log.jsonl"
    lines = [
        {"stage": "tokenizer", "steps": step, "loss": 1 / step} for step in (1, 2, 4, 2)
    ]  # a resumed run says some twice
    lines += [{"stage": f"prior round {number}", "steps": step, "loss": step} for number in (0, 1) for step in (5, 9)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = write_report(tmp_path / "run")[1]
    drawn = {plot.title: {name: points.split() for name, points in plot.lines} for plot in report.training.plots}
    assert {title: list(lines) for title, lines in drawn.items()} == {
        "Loss of the tokenizer": ["tokenizer"],
        "Loss of the prior": ["prior round 0", "prior round 1"],
    }
    assert drawn["Loss of the tokenizer"]["tokenizer"] == ["46.0,10.0", "137.3,134.0", "320.0,196.0"]
    page = Page(tmp_path / "run" / "report.html")
    assert any("tokenizer ends at 0.25" in one["aria-label"] for one in page.all("svg", role="img"))
    assert len(report.training.given_up) == 12 and list(report.training.given_up[0][1]) == [1, 2]
    assert any("of good images called abnormal" in sentence for sentence in report.training.calibration)
