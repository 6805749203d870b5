"""What a report of a folder that `iltm-anomaly detect` has written tells."""

import csv
import json
import math
from pathlib import Path

from iltm_anomaly.data.images import ImageReadError, read_image
from iltm_anomaly.evaluation.report.content import SIDE, Picture, Report, ReportRow, picture
from iltm_anomaly.evaluation.rows import TABLE

NEEDED = {"path", "score", "threshold", "abnormal", "overlay", "mask", "error"}  # columns
REGIONS = {"boxes", "areas"}  # columns that earlier versions have not written

Row = dict[str, str]


def read_detected(folder: Path, most_pictures: int) -> Report:
    """The report of a folder that `detect` has written; only the first `most_pictures` images by falling score have pictures.

    Raises:
        ValueError: if its `TABLE` is empty or none that `detect` has written.
    """
    table = _read_table(folder / TABLE)
    scored = sorted((row for row in table if row["score"]), key=lambda row: -float(row["score"]))
    known = next((float(row["threshold"]) for row in scored if row["threshold"]), None)
    threshold = known if known is not None else float(scored[0]["score"]) if scored else 0.0
    about = [f"Images that iltm-anomaly detect has scored, the most suspicious first. From {folder / TABLE}."]
    if scored and known is None:
        about.append(
            "The model has no threshold of its own, so it starts at the highest score: move it to what you see."
        )
    if len(scored) > most_pictures:
        about.append(f"Only the first {most_pictures} images have pictures here.")
    rows = []
    for number, row in enumerate(scored):
        pictures, problem = _pictures(folder, row) if number < most_pictures else ([], "")
        detail = "; ".join(filter(None, (_regions(row), problem)))
        score = float(row["score"])
        abnormal = row["abnormal"] == "1" if row["abnormal"] else score >= threshold
        rows.append(ReportRow(row["path"], score, abnormal, pictures, detail))
    reason = "there is neither a score nor a reason: was detect interrupted?"
    unreadable = [(row["path"], row["error"] or reason) for row in table if not row["score"]]
    return Report("What was detected", about, ("normal", "abnormal"), threshold, rows, unreadable)


def _read_table(path: Path) -> list[Row]:
    """Rows of `TABLE`, whose scores and thresholds are finite numbers or empty; the last may have been cut off.

    Raises:
        ValueError: see `read_detected`.
    """
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            reader = csv.DictReader(file)
            columns = set(reader.fieldnames or ())
            rows = [{name: row.get(name) or "" for name in NEEDED | REGIONS} for row in reader]
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


def _pictures(folder: Path, row: Row) -> tuple[list[Picture], str]:
    """Input and overlay, those that can be read, and what is to be said of one that cannot. Of a volume the overlay alone, which
    shows the volume too."""
    found, detail, is_volume = [], "", row["mask"].endswith(".nii.gz")
    if not is_volume:
        try:
            found.append(picture(read_image(_input(folder, row["path"])), "input"))
        except (ImageReadError, OSError) as error:
            detail = str(error)
    if row["overlay"]:
        try:
            shown = read_image(folder / row["overlay"])
            found.append(picture(shown, "where it is abnormal", 3 * SIDE if is_volume else SIDE))
        except (ImageReadError, OSError) as error:
            detail = detail or str(error)
    return found, detail


def _input(folder: Path, path: str) -> Path:
    """Where an input lies: its path is as `detect` was given it, often from the folder that its output is in."""
    places = [Path(path), folder.parent / path, folder / path]
    return next((place for place in places if place.is_file()), places[0])
