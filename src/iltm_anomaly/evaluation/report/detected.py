"""What a report of a folder that `iltm-anomaly detect` has written tells."""

import csv
import json
import math
from pathlib import Path
from typing import Any

from PIL import Image

from iltm_anomaly.data.images import ImageReadError, read_image
from iltm_anomaly.drawing import outlined
from iltm_anomaly.evaluation.report.content import SIDE, Picture, Report, ReportRow, peak_of, picture
from iltm_anomaly.evaluation.report.slices import MOST_VOLUMES, read_slices
from iltm_anomaly.evaluation.report.truth import Known, PixelTruth, Truth, known_of, marked, measure, read_map
from iltm_anomaly.evaluation.report.usual import Usual, usual_of
from iltm_anomaly.evaluation.rows import MODEL, TABLE
from iltm_anomaly.thresholds import TrainingScores
from iltm_anomaly.training.checkpoint import load_json

NEEDED = {"path", "score", "threshold", "abnormal", "overlay", "mask", "error"}  # columns
MORE = {"boxes", "areas", "map", "healed"}  # columns that the report can do without

Row = dict[str, str]


def read_detected(folder: Path, most_pictures: int) -> Report:
    """The report of a folder that `detect` has written; only the first `most_pictures` images by falling score have pictures.

    Raises:
        ValueError: if its `TABLE` is empty or none that `detect` has written.
    """
    table = _read_table(folder / TABLE)
    scored = sorted((row for row in table if row["score"]), key=lambda row: -float(row["score"]))
    limit = next((float(row["threshold"]) for row in scored if row["threshold"]), None)
    threshold = limit if limit is not None else float(scored[0]["score"]) if scored else 0.0
    about = [f"Images that iltm-anomaly detect has scored, the most suspicious first. From {folder / TABLE}."]
    if scored and limit is None:
        about.append(
            "The model has no threshold of its own, so it starts at the highest score: move it to what you see."
        )
    if len(scored) > most_pictures:
        about.append(f"Only the first {most_pictures} images have pictures here.")
    rows, pixels = [], PixelTruth()
    for number, row in enumerate(scored):
        path, score = _input(folder, row["path"]), float(row["score"])
        known = known_of(path)
        pictures, problem = _pictures(folder, row, path, known) if number < most_pictures else ([], "")
        detail = "; ".join(filter(None, (_regions(row), problem)))
        abnormal = row["abnormal"] == "1" if row["abnormal"] else score >= threshold
        defect = None if known is None else known.defect
        slices = read_slices(path, folder / row["mask"]) if _is_volume(row) and number < MOST_VOLUMES else None
        rows.append(ReportRow(row["path"], score, abnormal, pictures, detail, defect, slices))
        if known is not None and row["map"]:
            pixels.add(folder / row["map"], known, path)
    reason = "there is neither a score nor a reason: was detect interrupted?"
    unreadable = [(row["path"], row["error"] or reason) for row in table if not row["score"]]
    model = _model(folder / MODEL)
    usual = _usual(model, [threshold, *(row.score for row in rows)]) if rows else None
    truth = _truth(rows, pixels, bool(model.get("trained_on_test_images")))
    return Report("What was detected", about, ("normal", "abnormal"), threshold, rows, unreadable, usual, truth)


def _model(path: Path) -> dict[str, Any]:
    """What `detect` has kept of the model; nothing of earlier versions, or where it is damaged."""
    try:
        found = load_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _usual(model: dict[str, Any], values: list[float]) -> Usual | None:
    try:
        scores = TrainingScores.of_report(model)
    except ValueError:
        return None
    return None if scores is None else usual_of(scores, values, "images" if model.get("tile") is None else "tiles")


def _truth(rows: list[ReportRow], pixels: PixelTruth, trained_on_test_images: bool) -> Truth | None:
    known = [row for row in rows if row.is_defective is not None]
    remarks = (
        [] if len(known) == len(rows) else [f"Of {len(rows) - len(known)} images nobody knows: they are left out."]
    )
    if trained_on_test_images:
        remarks.append(
            "The model was trained with a share of test images, and those among these flatter it: iltm-anomaly evaluate leaves "
            "them out."
        )
    return measure([row.score for row in known], [bool(row.is_defective) for row in known], pixels.curve(), remarks)


def _read_table(path: Path) -> list[Row]:
    """Rows of `TABLE`, whose scores and thresholds are finite numbers or empty; the last may have been cut off.

    Raises:
        ValueError: see `read_detected`.
    """
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            reader = csv.DictReader(file)
            columns = set(reader.fieldnames or ())
            rows = [{name: row.get(name) or "" for name in NEEDED | MORE} for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path} is no table of comma-separated values: {error}") from error
    missing = sorted(NEEDED - columns)
    if columns and missing:
        raise ValueError(f"{path} was not written by detect: it has no column {', '.join(missing)}")
    if not rows:
        raise ValueError(f"{path} lists no image: run iltm-anomaly detect again, with the same --output")
    for number, row in enumerate(rows, 1):
        for name in ("score", "threshold"):
            if row[name] and not _is_finite(row[name]):
                raise ValueError(
                    f"{path}, image {number} ({row['path']}): the {name} {row[name]!r} is no finite number"
                )
    return rows


def _regions(row: Row) -> str:
    """How many regions an image has that are abnormal, and where the largest is, in words."""
    try:
        boxes, areas = json.loads(row["boxes"] or "[]"), json.loads(row["areas"] or "[]")
        if not boxes or len(boxes[0]) != 4:  # of volumes projections show it
            return ""
        left, top, right, bottom = map(int, boxes[0])
        what = "one region" if len(boxes) == 1 else f"{len(boxes)} regions, the largest"
        return f"{what} of {int(areas[0])} pixels, x {left} to {right}, y {top} to {bottom}"
    except (ValueError, TypeError, IndexError):
        return ""  # cut off


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_volume(row: Row) -> bool:
    return row["mask"].endswith(".nii.gz")


def _pictures(folder: Path, row: Row, path: Path, known: Known | None) -> tuple[list[Picture], str]:
    """Input, overlay, where that is red all over also where the map is highest, and what the model expected in place of what is
    abnormal; those that can be read, and what is to be said of one that cannot. Of a volume the overlay alone, which shows the
    volume too. A known defect is outlined in the input."""
    found, detail, is_volume, image = [], "", _is_volume(row), None
    if not is_volume:
        try:
            image = read_image(path)
            image.thumbnail((2 * SIDE, 2 * SIDE))
            mask = marked(known, path) if known is not None and known.mask is not None else None
            shown = image if mask is None else outlined(image, mask)
            found.append(picture(shown, "input" if mask is None else "input, true defect"))
        except (ImageReadError, OSError) as error:
            detail = str(error)
    try:
        if row["overlay"]:
            shown = read_image(folder / row["overlay"])
            found.append(picture(shown, "where it differs", 3 * SIDE if is_volume else SIDE))
            if image is not None and row["map"] and (peak := _peak(folder, row, image)) is not None:
                found.append(picture(peak, "where it differs most"))
        if row["healed"]:
            found.append(picture(read_image(folder / row["healed"]), "what was expected"))
    except (ImageReadError, OSError) as error:
        detail = detail or str(error)
    return found, detail


def _peak(folder: Path, row: Row, image: Image.Image) -> Image.Image | None:
    """As `peak_of`, of the map of a row; None where that cannot be read."""
    values = read_map(folder / row["map"]) if row["threshold"] else None
    return None if values is None else peak_of(values, image, float(row["threshold"]))


def _input(folder: Path, path: str) -> Path:
    """Where an input lies: its path is as `detect` was given it, often from the folder that its output is in."""
    places = [Path(path), folder.parent / path, folder / path]
    return next((place for place in places if place.is_file()), places[0])
