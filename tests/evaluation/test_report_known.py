"""What the page of `iltm-anomaly report` tells of images whose state is known, of training scores, and of volumes."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from browser import Browser, wait_for
from PIL import Image
from report_pages import Page, some_image, write_results

from iltm_anomaly.cli import main
from iltm_anomaly.evaluation.report import write_report
from iltm_anomaly.metrics import aupr, aupro, image_auroc
from iltm_anomaly.thresholds import TrainingScores

SCORES = {"good": [1.0, 2.0, 3.0, 6.0], "<b>crack": [2.5, 4.0, 7.0, 9.0]}
TRAINING = TrainingScores(np.linspace(0.5, 3.6, 40), None, np.array([5.0, 8.0]))


@pytest.fixture
def known(tmp_path) -> tuple[Path, list[np.ndarray], list[np.ndarray]]:
    """As of detect on the test folder of a category: the folder, maps and masks."""
    found, rows, maps, masks = tmp_path / "found", [], [], []
    (found / "maps").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for defect, scores in SCORES.items():
        for number, score in enumerate(scores):
            path = some_image(tmp_path / "part" / "test" / defect / f"{number}.png", number)
            mask = np.zeros((40, 48), bool)
            if defect != "good":
                mask[5 : 15 + number, 10:20] = True
                (tmp_path / "part" / "ground_truth" / defect).mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(tmp_path / "part" / "ground_truth" / defect / f"{number}_mask.png")
            values = (generator.random((40, 48)) + 0.7 * mask).astype(np.float32)
            np.save(found / "maps" / f"{len(rows)}.npy", values)
            maps, masks = [*maps, values], [*masks, mask]
            rows.append({"path": str(path), "score": f"{score:g}", "threshold": "3.5", "abnormal": int(score >= 3.5)})
            rows[-1] |= {"map": f"maps/{len(maps) - 1}.npy"}
    (found / "model.json").write_text(
        json.dumps(TRAINING.to_report() | {"tile": None, "trained_on_test_images": True})
    )
    return write_results(found, rows), maps, masks


def test_known_images_are_measured(known):
    folder, maps, masks = known
    path, report = write_report(folder)
    page = Page(path)
    scores, labels = [*SCORES["good"], *SCORES["<b>crack"]], [0] * 4 + [1] * 4
    wanted = {"image AUROC": image_auroc(scores, labels), "image average precision": aupr(scores, labels)}
    assert dict(report.truth.numbers) == pytest.approx(wanted | {"AUPRO to 0.3": aupro(maps, masks)}, abs=1e-3)
    assert [one["data-plot"] for one in page.all("svg") if "data-plot" in one] == ["roc", "precision-recall", "pro"]
    text = page.all("section", **{"aria-labelledby": "truth"})[0]["text"]
    assert "image AUROC 81.2 %" in text and "trained with a share of test images" in text
    assert [row["defective"] for row in page.data["rows"]] == [True, True, False, True, False, True, False, False]
    assert "known to be defective: <b>crack" in page.cards()[0]["text"] and not page.all("b", text="crack")
    corners = [points.split()[0] for plot in report.truth.plots for _, points in plot.lines]
    assert corners == ["46.0,196.0", "46.0,10.0", "46.0,196.0"]


def test_what_nobody_knows_is_left_out(known):
    folder = known[0]
    paths = [folder / "else.png", *sorted(folder.parent.glob("part/test/*/0.png"))]
    rows = [{"path": str(path), "score": "20", "threshold": "3.5", "abnormal": "1"} for path in paths]
    report = write_report(write_results(folder, rows))[1]
    assert [row.is_defective for row in report.rows] == [None, True, False]
    assert report.truth.remarks[0].startswith("Of 1 images nobody knows") and len(report.truth.plots) == 2
    report = write_report(write_results(folder, rows[:2]))[1]
    assert report.truth is None


def test_what_is_said_of_a_threshold_follows_it(known, browser: Browser):
    path, report = write_report(known[0])
    browser.ask("POST", "/url", url=path.as_uri())

    def told(name: str) -> str:
        return browser.run(f"return document.querySelector('{name}').textContent")

    assert told("#expected") == report.usual.told(3.5)
    assert told("#found") == (
        "Of 4 defective images 3 are found (recall 75 %); of 4 good ones 1 are false alarms (25 %); precision 75 %."
    )
    browser.run("document.querySelector('input[value=missed]').click()")
    assert "Shown: 1 of 8 files" in told("#status") and told("#count-false") == "1"
    button = "[...document.querySelectorAll('#offers button')].find((button) => button.textContent === '100')"
    browser.run(f"{button}.click()")
    limit = float(browser.run("return document.querySelector('#number').value"))
    assert limit == pytest.approx(TRAINING.threshold(0.01), abs=1e-4)
    assert told("#expected") == report.usual.told(limit) and "To be expected: 1 % of good images" in told("#expected")
    assert float(browser.run("return document.querySelector('#slider').value")) == pytest.approx(
        report.scale.place(limit)
    )
    dots = "[...document.querySelectorAll('svg[data-plot] circle')].map((dot) => dot.getAttribute('cy'))"
    assert browser.run(f"return {dots}") == ["103", "10"] and "precision 100 %" in told("#found")
    assert browser.complaints() == []


def test_slices_of_a_volume_are_scrolled(tmp_path, browser: Browser):
    values, mask = np.zeros((6, 8, 10), np.float32), np.zeros((6, 8, 10), np.uint8)
    values[4, 6, 7] = 5  # to the right, in front, near the head
    mask[3:6, 5:8, 7] = 1
    found = tmp_path / "found"
    for name, array in (("new/scan", values), ("found/masks/scan", mask)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii.gz")
    row = {"path": str(tmp_path / "new" / "scan.nii.gz"), "score": "2", "threshold": "1", "abnormal": "1"}
    some_image(found / "overlays" / "scan.png", size=(600, 300))
    write_results(found, [row | {"overlay": "overlays/scan.png", "mask": "masks/scan.nii.gz"}])
    assert main(["report", str(found)]) == 0
    browser.ask("POST", "/url", url=(found / "report.html").as_uri())
    browser.run("document.querySelector('#gallery .pictures').click()")
    level = "return document.querySelector('#level-of').textContent"
    assert browser.run(level) == "8 of 10"  # the slice with the mask
    spot = (
        "const sheet = document.querySelector('#slice img'), canvas = document.createElement('canvas');"
        "canvas.width = sheet.naturalWidth; canvas.height = sheet.naturalHeight;"
        "const pen = canvas.getContext('2d'); pen.drawImage(sheet, 0, 0);"
        "return [...pen.getImageData({}, {}, 1, 1).data]"
    )
    wait_for(lambda: browser.run("return document.querySelector('#slice img').complete"), "the slices", 10)
    side, height = 120, 160  # of a slice: 6 x 8 voxels
    assert (
        min(browser.run(spot.format(7 * side + 30, 30))[:3]) > 200
    )  # the patient's right is on the left, the front above
    assert max(browser.run(spot.format(7 * side + 90, 100))[:3]) < 60
    red, green, blue, _ = browser.run(spot.format(7 * side + 59, 30))
    assert red > 180 and green > 150 and blue < 160  # the outline
    for key, said in (("\ue013", "9 of 10"), ("\ue013", "10 of 10"), ("\ue013", "10 of 10"), ("\ue015", "9 of 10")):
        browser.press(key)
        assert browser.run(level) == said
    corner = browser.run("const s = document.querySelector('#slice img').style; return [s.left, s.top]")
    assert corner == ["0%", "-100%"] and height == 160
    assert browser.run("return document.querySelector('#level').getAttribute('aria-valuetext')") == "9 of 10"
    assert browser.complaints() == []
