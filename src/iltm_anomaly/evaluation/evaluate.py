"""Scores a trained run, round by round, on the test images that its contamination protocol left out."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from iltm_anomaly import headings
from iltm_anomaly.data.contamination import DISJOINT, ContaminationRecord, apply_record
from iltm_anomaly.data.mvtec import load_mvtec
from iltm_anomaly.data.volumes import load_volumes
from iltm_anomaly.evaluation.gallery import draw_gallery, gallery_rows
from iltm_anomaly.evaluation.ground_truth import ground_truth_masks
from iltm_anomaly.evaluation.report import write_evaluation
from iltm_anomaly.evaluation.rounds import each_round, load_rounds, masked_token_shares
from iltm_anomaly.evaluation.trained_on import count_trained
from iltm_anomaly.hub.checks import REPORT, check_shape
from iltm_anomaly.hub.data_sources import as_path
from iltm_anomaly.hub.folders import resolve_model_folder
from iltm_anomaly.metrics import evaluate_maps, lesion_detection
from iltm_anomaly.pipeline import ILTMAnomalyOutput, ILTMAnomalyPipeline
from iltm_anomaly.provenance import provenance, training_commit
from iltm_anomaly.settings import lowest_value
from iltm_anomaly.training.checkpoint import write_json


def evaluate_run(
    model: str | Path,
    data: str | Path,
    category: str | None,
    output: Path,
    all_rounds: bool = True,
    device: str | torch.device | None = None,
    show_progress: bool = True,
    observe: Callable[[int, ILTMAnomalyOutput], None] | None = None,
) -> dict[str, Any]:
    """Evaluates the last round, and for a run folder each round before it; writes `results.json`, `gallery.png` and
    `report.html`, a page of the test images.

    Args:
        model: run folder, pipeline folder or Hub id.
        data, category: MVTec AD layout or Hub data set, as in training.
        output: folder for the files.
        all_rounds: False leaves out all rounds but the last.
        observe: is called with the number of each round and the pipeline's output for the test images.

    Returns:
        What `results.json` holds: "results", one entry per round, and where they come from.
    """
    model_folder, run_folder = resolve_model_folder(model)
    pipeline = ILTMAnomalyPipeline.from_pretrained(model_folder, device=device)
    check_shape(pipeline.training_report, REPORT, f"{model_folder}: training_report.json")
    report, volumes = pipeline.training_report, pipeline.image_processor.is_volumetric
    test, train = _split(pipeline, data, category)
    rounds = load_rounds(pipeline, run_folder if all_rounds else None)
    shares = masked_token_shares(pipeline, rounds, train, run_folder if all_rounds else None)
    masks = ground_truth_masks(test, volumes)
    results: list[dict[str, Any]] = []
    first: list[np.ndarray] | None = None
    for entry, share in zip(each_round(pipeline, rounds, run_folder), shares, strict=True):
        scored, metrics, seconds = score_dataset(pipeline, test, masks, show_progress)
        if observe is not None:
            observe(entry["round"], scored)
        if entry["round"] == 0 and len(rounds) > 1 and not volumes:
            first = _in_thresholds(scored.anomaly_maps, pipeline)
        about = {"round": entry["round"], **metrics, "masked_fraction": entry.get("masked_fraction"), **share}
        results.append(_conditions(report, category) | about | {"seconds_per_image": round(seconds / len(test), 4)})
    document = {
        "results": results,
        "test_images": len(test),
        "trained_on": count_trained(pipeline, run_folder, test["image"]),
        "at_threshold": verdicts(scored, test["label"], pipeline.settings.score_threshold),
        "reconstruction_psnr": reconstruction_psnr(pipeline, test) if volumes else None,
        "model": str(model),
        "data": as_path(str(data)),
        "recipe": (report.get("recipe") or {}).get("name"),
        "training_seconds": report.get("training_seconds"),
        "training_commit": training_commit(report),
        **provenance(pipeline.device),
    }
    write_json(output / "results.json", document)
    _draw(pipeline, test, scored, output / "gallery.png", first)
    write_evaluation(output, test, scored, masks, report)
    return document


def _split(pipeline: ILTMAnomalyPipeline, data: str | Path, category: str | None) -> tuple[Dataset, Dataset | None]:
    """`protocol_split` by the pipeline's training report.

    Raises:
        ValueError: if the data set is not the one of the training, or has no defective test image.
    """
    known = pipeline.training_report.get("data") or {}
    trained, record = known.get("category"), known.get("contamination")
    if record and category and trained and category != trained:
        raise ValueError(
            f"the split of {trained} that the model was trained on is none of {category}: evaluate it on {trained}"
        )
    test, train = protocol_split(data, category, record, pipeline.image_processor.is_volumetric)
    if 1 not in test["label"]:
        raise ValueError(f"{data} has no defective test image: there is nothing to measure a detector on")
    return test, train


def protocol_split(
    data: str | Path, category: str | None, record: dict[str, Any] | None, volumes: bool = False
) -> tuple[Dataset, Dataset | None]:
    """Test images, and the training images if ground truth of their defects is known.

    Args:
        data, category: as for `load_mvtec`.
        record: the contamination record of the training report, or None for a model trained on the data set as it is.
        volumes: the data set is one for `load_volumes`.

    Raises:
        ValueError: if the data set is not the one that the record was made from.
    """
    dataset = load_volumes(data, category) if volumes else load_mvtec(data, category)
    if "test" not in dataset:
        raise ValueError(f"{data} has no folder test: give the folder that holds train, test and ground_truth")
    if not record:
        return dataset["test"], dataset["train"] if 1 in dataset["train"]["label"] else None
    split = apply_record(dataset, ContaminationRecord.from_dict(record))
    return split["test"], split["train"]


def score_dataset(
    pipeline: Any, dataset: Dataset, masks: list[np.ndarray], show_progress: bool = False
) -> tuple[Any, dict[str, Any], float]:
    """Scores every image of a data set and compares the maps with ground truth.

    Args:
        pipeline: an `ILTMAnomalyPipeline` or a `BaselinePipeline`.
        dataset: has a column "image".
        masks: of `ground_truth_masks`.

    Returns:
        The pipeline's output, its metrics by name (`evaluate_maps`, and of volumes `lesion_detection`), and the seconds that the
        pipeline took.
    """
    started = time.monotonic()
    output = pipeline(dataset["image"], show_progress=show_progress)
    seconds = time.monotonic() - started
    labels = np.array([int(mask.any()) for mask in masks])
    metrics: dict[str, Any] = evaluate_maps(output.anomaly_maps, masks, output.scores.numpy(), labels)
    if masks[0].ndim == 3:
        metrics |= lesion_detection(output.anomaly_maps, masks)
    return output, metrics, seconds


def _conditions(report: dict[str, Any], category: str | None) -> dict[str, Any]:
    """What all rounds of a run have in common, for each item of "results"."""
    known = report.get("data") or {}
    record = known.get("contamination") or {}
    return {
        "method": "iltm",
        "category": category or known.get("category"),
        "contamination": record.get("fraction"),
        "protocol": record.get("protocol", DISJOINT) if record else None,
        "train_size": record.get("train_size"),
        "seed": report.get("seed"),
    }


def verdicts(output: ILTMAnomalyOutput, labels: list[int], threshold: float | None) -> dict[str, Any] | None:
    """How many images the calibrated threshold calls abnormal, as `detect` does: "detected" of the defective ones (label 1),
    "false_alarms" of the good ones (label 0). None for a pipeline without a threshold."""
    if threshold is None:
        return None
    called = np.array([bool(mask.any()) for mask in output.masks])
    defective, good = (np.array(labels) == label for label in (1, 0))
    return {
        "threshold": threshold,
        "defective": int(defective.sum()),
        "detected": int((called & defective).sum()),
        "good": int(good.sum()),
        "false_alarms": int((called & good).sum()),
    }


@torch.no_grad()
def reconstruction_psnr(pipeline: ILTMAnomalyPipeline, dataset: Dataset) -> float:
    """Peak signal-to-noise ratio in dB of what the tokenizer shows for the volumes' own codes, mean over volumes: those without
    lesions if there are any, as a lesion need not be reconstructed. It is measured on the model's grid without padding, where
    the peak is 1."""
    processor, tokenizer, values = pipeline.image_processor, pipeline.tokenizer, []
    good = [path for path, label in zip(dataset["image"], dataset["label"], strict=True) if label == 0]
    for path in good or dataset["image"]:
        batch = processor.preprocess(path)
        pixels, grid = batch["pixel_values"], batch["original_sizes"][0]
        reconstruction = tokenizer.show(tokenizer.expect(pipeline.encode(pixels))[0]).cpu()
        inside = torch.from_numpy(processor.to_model_grid(np.ones(grid.shape), grid) > 0)
        error = (reconstruction - pixels[0])[0][inside].square().mean()
        values.append(float(-10 * torch.log10(error)))
    return float(np.mean(values))


def _draw(
    pipeline: ILTMAnomalyPipeline,
    test: Dataset,
    scored: ILTMAnomalyOutput,
    path: Path,
    first: list[np.ndarray] | None,
) -> None:
    """Writes the gallery with maps coloured by the calibrated threshold. If all stay below it, the median of their highest values
    takes its place, so that something is seen. `first` has the maps of the first round, `_in_thresholds`."""
    threshold, lowest = pipeline.settings.score_threshold, lowest_value(pipeline.settings)
    compared = None if first is None or threshold is None else [one * (threshold - lowest) + lowest for one in first]
    rows = gallery_rows(test, scored, first_maps=compared)
    highest = [float(row.anomaly_map.max()) for row in rows]
    if threshold is None or threshold > max(highest):
        threshold = float(np.median(highest))
    draw_gallery(rows, threshold, path, lowest)


def _in_thresholds(maps: list[np.ndarray], pipeline: ILTMAnomalyPipeline) -> list[np.ndarray]:
    """Maps in units of the pipeline's own threshold, so that those of two rounds can have the same colours."""
    threshold, lowest = pipeline.settings.score_threshold, lowest_value(pipeline.settings)
    unit = max((threshold or 0.0) - lowest, 1e-12)
    return [(one - lowest) / unit for one in maps]


def format_results(document: dict[str, Any]) -> str:
    """What `evaluate_run` returns as text: a table of the rounds, metrics and shares in per cent, and what the threshold makes of
    the test images."""
    results = document["results"]

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    columns = headings.IMAGES
    if "lesions" in results[0]:
        columns = headings.VOLUMES | {"image_auroc": headings.IMAGES["image_auroc"]}
    header = ["round", *(headings.SHORT.get(key, heading) for key, heading in columns.items())]
    lines = [header] + [[str(r["round"]), *(percent(r[key]) for key in columns)] for r in results]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    rows = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    if found := document["at_threshold"]:
        rows.append(
            "at the threshold of {threshold:.3g}, which training has set: {detected} of {defective} defective images called "
            "abnormal, {false_alarms} of {good} good ones".format(**found)
        )
    return "\n".join(rows)
