"""What a report of a run on features tells: which of the training images look defective, and which tokens they gave up."""

import csv
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from iltm_anomaly.data.cache import CacheDamagedError, PixelCache
from iltm_anomaly.evaluation.report.content import Report, ReportRow, picture
from iltm_anomaly.hub.folders import resolve_model_folder
from iltm_anomaly.training.checkpoint import load_json
from iltm_anomaly.training.features import WEIGHTS_FILE
from iltm_anomaly.training.suspects import LIST, names_of, picture_of, rejected_shares


def read_run(folder: Path, most_pictures: int) -> Report:
    """The report of a run folder; only the first `most_pictures` images by falling score have pictures.

    Raises:
        ValueError: if the run is not finished, is not on features, or misses files.
    """
    model = Path(resolve_model_folder(folder)[0])
    if not (folder / LIST).is_file():
        raise ValueError(
            f"{folder} holds no {LIST}: only runs on features judge their training images. Score them with iltm-anomaly detect, "
            "and make a report of what it writes"
        )
    with open(folder / LIST, newline="", encoding="utf-8", errors="replace") as file:
        listed = list(csv.DictReader(file))
    try:
        threshold = float(load_json(model / "calibration.json")["score_threshold"])
        rounds = load_json(model / "training_report.json")["rounds"]
        weights = load_file(folder / "rounds" / f"round_{rounds[-1]['round']}" / WEIGHTS_FILE)["weights"]
        pixels = PixelCache(folder / "images.arrow")
        rows = _rows(listed, pixels, weights, most_pictures)
    except (KeyError, TypeError, IndexError, OSError, SafetensorError, CacheDamagedError) as error:
        raise ValueError(
            f"the run in {folder} cannot be shown, as a file of it is damaged or missing: {error}"
        ) from error
    about = [
        "Each training image was judged by what was fitted without it. In the second picture of an image the bright tokens are "
        "those that it gave up: they looked like nothing in the other images, and the last round was fitted without them."
    ]
    if len(rows) > most_pictures:
        about.append(f"Only the first {most_pictures} images have pictures here.")
    title = "Which of my training images are defective?"
    words = ("looks good", "looks defective")
    return Report(title, about, words, threshold, rows, rounds=[_round(entry) for entry in rounds])


def _rows(listed: list[dict[str, str]], pixels: PixelCache, weights: Tensor, most_pictures: int) -> list[ReportRow]:
    """Rows of `LIST`, which is sorted, each with its picture; `weights` (N, h, w) are of the tokens of all images.

    Raises:
        ValueError: if list, images and weights are not of the same images.
    """
    rejected = rejected_shares(weights)
    images: dict[str, list[int]] = {}
    for number, name in enumerate(names_of(pixels)):
        images.setdefault(name, []).append(number)
    rows = []
    for rank, line in enumerate(listed):
        path, share = line["path"], float(line["rejected_share"])
        same = images.get(path, [])
        if not same or not len(weights) == len(pixels) == len(listed):
            raise ValueError(f"{LIST} is not of the images of the run that it lies in ({path}): train anew")
        image = min(same, key=lambda number: abs(rejected[number] - share))  # those of a Hub data set may share a name
        same.remove(image)
        shown = []
        if rank < most_pictures:
            shown = [picture(picture_of(pixels[image]), "training image")]
            if share:
                shown.append(picture(picture_of(pixels[image], weights[image]), "what it gave up"))
        detail = f"gave up {100 * share:.1f} % of its tokens" if share else "gave up nothing"
        rows.append(ReportRow(path, float(line["score"]), line["looks_defective"] == "1", shown, detail))
    return rows


def _round(entry: dict[str, Any]) -> tuple[int, float, str]:
    """Number, share of tokens rejected and a remark, of what the training report says of a round."""
    return int(entry["round"]), float(entry["masked_fraction"]), str(entry.get("stopped", ""))
