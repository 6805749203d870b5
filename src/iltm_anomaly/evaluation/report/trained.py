"""What a report of a run tells: which of the training images look defective, which tokens they gave up in each round, how the
losses fell, and what the threshold rests on."""

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.evaluation.report.content import Picture, Report, ReportRow, Training, picture
from iltm_anomaly.evaluation.report.plots import Plot, Points, histogram, make_plot
from iltm_anomaly.evaluation.report.usual import usual_of
from iltm_anomaly.hub.folders import CALIBRATION_FILE, resolve_model_folder
from iltm_anomaly.thresholds import TrainingScores
from iltm_anomaly.training.checkpoint import load_json
from iltm_anomaly.training.suspects import (
    LIST,
    MASKS_FILE,
    masked_shares,
    names_of,
    outlier_share,
    picture_of,
    rejected_shares,
    weights_of,
)
from iltm_anomaly.training.tracking import LOG_NAME

FOLLOWED = 12  # images whose tokens are shown round by round
ROUND_SIDE = 96  # pixels of these pictures
SCORED = (
    "Each training image was judged by what was fitted without it. In the second picture of an image the bright tokens are "
    "those that it gave up: they looked like nothing in the other images, and the last round was fitted without them."
)
MASKED = (
    "The score of a training image is the share of its tokens that the last round masked, as the model found them unlikely. In "
    "the second picture of an image these are bright. Read the list from the top: rare good details follow the defects."
)


class Judged(NamedTuple):
    """A training image: its number, what it is called, its score, and whether it looks defective."""

    number: int
    path: str
    score: float
    looks_defective: bool


def read_run(folder: Path, most_pictures: int) -> Report:
    """The report of a run folder; only the first `most_pictures` images by falling score have pictures.

    Raises:
        ValueError: if the run is not finished, or misses files.
    """
    model = Path(resolve_model_folder(folder)[0])
    try:
        report = load_json(model / "training_report.json")
        limit = load_json(model / CALIBRATION_FILE).get("score_threshold")
        pixels = PixelCache(folder / "images.arrow")
        folders = {int(entry["round"]): folder / "rounds" / f"round_{entry['round']}" for entry in report["rounds"]}
        weights = {number: weights_of(path) for number, path in folders.items()}
        if missing := [
            entry["round"]
            for entry in report["rounds"]
            if entry["masked_fraction"] and weights[entry["round"]] is None
        ]:
            raise OSError(
                f"what round {missing[0]} has masked is missing or damaged: {folders[missing[0]] / MASKS_FILE}"
            )
        last = report["rounds"][-1]["round"]
        is_scored = (folder / LIST).is_file() and (folders[last] / "model_index.json").is_file()
        if is_scored:
            judged, threshold = _listed(folder / LIST, pixels, weights[last]), float(limit)
        else:
            judged, threshold = _by_share(pixels, weights[last])
        rows = _rows(judged, pixels, weights[last], most_pictures, is_scored)
        scores = TrainingScores.of_report(report)
        usual = usual_of(scores, [threshold], is_drawn=False) if scores is not None and is_scored else None
        training = Training(
            rounds=[_round(entry) for entry in report["rounds"]],
            given_up=_given_up(judged[:FOLLOWED], pixels, weights),
            calibration=_calibration(scores, limit),
            plots=[*_losses(folder / LOG_NAME), *([] if is_scored else _scores(scores, limit))],
        )
    except (
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        RuntimeError,  # of shapes, and CacheDamagedError
        OSError,
        SafetensorError,
    ) as error:
        raise ValueError(
            f"the run in {folder} cannot be shown, as a file of it is damaged or missing: {error}"
        ) from error
    about = [SCORED if is_scored else MASKED]
    if len(rows) > most_pictures:
        about.append(f"Only the first {most_pictures} images have pictures here.")
    title = "Which of my training images are defective?"
    words = ("looks good", "looks defective")
    return Report(title, about, words, threshold, rows, usual=usual, training=training)


def _listed(path: Path, pixels: PixelCache, weights: Tensor | None) -> list[Judged]:
    """Lines of `LIST`, which is sorted.

    Raises:
        ValueError: if list, images and weights (N, *grid) are not of the same images.
    """
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        listed = list(csv.DictReader(file))
    images: dict[str, list[int]] = {}
    for number, name in enumerate(names_of(pixels)):
        images.setdefault(name, []).append(number)
    rejected = [] if weights is None else rejected_shares(weights)
    found = []
    for line in listed:
        name, share = line["path"], float(line["rejected_share"])
        same = images.get(name, [])
        if not same or not len(rejected) == len(pixels) == len(listed):
            raise ValueError(f"{LIST} is not of the images of the run that it lies in ({name}): train anew")
        number = min(same, key=lambda one: abs(rejected[one] - share))  # those of a Hub data set may share a name
        same.remove(number)
        found.append(Judged(number, name, float(line["score"]), line["looks_defective"] == "1"))
    return found


def _by_share(pixels: PixelCache, weights: Tensor | None) -> tuple[list[Judged], float]:
    """Training images by falling share of the tokens that the last round was fitted without, by its `weights` (N, *grid), and
    from which share on an image looks defective."""
    names, shares = names_of(pixels), torch.zeros(len(pixels)) if weights is None else masked_shares(weights)
    if len(shares) != len(pixels):
        raise ValueError(f"what the rounds gave up is not of the images of the run ({len(shares)} of {len(pixels)})")
    threshold = outlier_share(shares)
    order = shares.argsort(descending=True, stable=True).tolist()
    return [Judged(one, names[one], float(shares[one]), float(shares[one]) >= threshold) for one in order], threshold


def _rows(
    judged: list[Judged], pixels: PixelCache, weights: Tensor | None, most_pictures: int, is_scored: bool
) -> list[ReportRow]:
    """Rows with pictures; `weights` (N, *grid) are of the tokens of all images in the last round. Unless `is_scored`, scores are
    shares of tokens themselves."""
    rejected = [0.0] * len(pixels) if weights is None else rejected_shares(weights)
    rows = []
    for rank, one in enumerate(judged):
        share, shown = rejected[one.number], []
        if rank < most_pictures:
            shown = [picture(picture_of(pixels[one.number]), "training image")]
            if share and weights is not None:
                shown.append(picture(picture_of(pixels[one.number], weights[one.number]), "what it gave up"))
        detail = f"gave up {100 * share:.1f} % of its tokens" if share else "gave up nothing"
        rows.append(ReportRow(one.path, one.score, one.looks_defective, shown, detail if is_scored else ""))
    return rows


def _round(entry: dict[str, Any]) -> tuple[int, float, str]:
    """Number, share of tokens rejected and a remark, of what the training report says of a round."""
    return int(entry["round"]), float(entry["masked_fraction"]), str(entry.get("stopped", ""))


def _given_up(
    judged: list[Judged], pixels: PixelCache, weights: dict[int, Tensor | None]
) -> list[tuple[str, dict[int, Picture]]]:
    """What each round was fitted without, in some images; round 0 was fitted with all."""
    found = []
    for one in judged:
        shown = {
            number: picture(picture_of(pixels[one.number], kept[one.number]), f"round {number}", ROUND_SIDE)
            for number, kept in weights.items()
            if kept is not None and number
        }
        found.append((one.path, shown))
    return found if any(shown for _, shown in found) else []


def _calibration(scores: TrainingScores | None, threshold: float | None) -> list[str]:
    if threshold is None:
        return ["The model has no threshold: give detect one of your own."]
    said = [f"From a score of {threshold:.4g} on detect calls an image abnormal."]
    if scores is not None:
        said.append(usual_of(scores, [threshold]).told(threshold))
    return said


def _scores(scores: TrainingScores | None, threshold: float | None) -> list[Plot]:
    """The scores of training images, where the page shows something else."""
    if scores is None or threshold is None:
        return []
    groups = {"look good": scores.good, "others": scores.others}
    values = np.concatenate([scores.good, scores.others, [threshold]])
    lines = {name: histogram(group, values.min(), values.max()) for name, group in groups.items() if len(group)}
    said = f"Histogram of the scores of {len(values) - 1} training images, with the threshold at {threshold:.4g}"
    return [make_plot("scores", "Scores of training images", ("score", "images"), said, lines, mark=threshold)]


def _losses(path: Path) -> list[Plot]:
    """Loss against steps: of the tokenizer, and of the prior of every round. A run on features has none."""
    found: dict[str, dict[int, float]] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                entry = json.loads(line)
                if "loss" in entry and "steps" in entry:  # of a resumed run the later one
                    found.setdefault(str(entry["stage"]), {})[int(entry["steps"])] = float(entry["loss"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    lines: dict[str, Points] = {}
    for stage, values in found.items():
        if len(values) > 1:
            lines[stage] = (np.array(list(values)), np.array(list(values.values())))
    groups: dict[str, list[str]] = {"Loss of the tokenizer": [], "Loss of the prior": []}
    for stage in lines:
        groups["Loss of the prior" if stage.startswith("prior") else "Loss of the tokenizer"].append(stage)
    plots = []
    for title, stages in groups.items():
        if stages:
            ends = "; ".join(f"{one} ends at {lines[one][1][-1]:.4g}" for one in stages)
            drawn = {one: lines[one] for one in stages}
            plots.append(make_plot(title.split()[-1], title, ("step", "loss"), f"{title} by step: {ends}", drawn))
    return plots
