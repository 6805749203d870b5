"""Scores a trained run, round by round, on the test images that its contamination protocol left out."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from torch import Tensor

from iltm_anomaly import masking
from iltm_anomaly.data.cache import CacheDamagedError, PixelCache
from iltm_anomaly.data.contamination import ContaminationRecord, apply_record
from iltm_anomaly.data.images import to_rgb
from iltm_anomaly.data.mvtec import load_mvtec
from iltm_anomaly.data.volume_files import read_mask, read_volume
from iltm_anomaly.data.volumes import load_volumes
from iltm_anomaly.evaluation.gallery import GalleryRow, draw_gallery, grey, project, window_of
from iltm_anomaly.hub.data_sources import as_path
from iltm_anomaly.metrics import evaluate_maps, lesion_detection
from iltm_anomaly.pipeline import ILTMAnomalyOutput, ILTMAnomalyPipeline
from iltm_anomaly.prior import PerformerPriorModel
from iltm_anomaly.provenance import provenance, training_commit
from iltm_anomaly.recipes.recipe import Recipe
from iltm_anomaly.settings import lowest_value
from iltm_anomaly.training.checkpoint import write_json

logger = logging.getLogger(__name__)

_UNDECODED = ImageFeature(decode=False)


def resolve_model_folder(path: str | Path) -> tuple[str | Path, Path | None]:
    """A run folder gives its pipeline folder and itself; a pipeline folder or Hub id gives itself and None."""
    folder = Path(path)
    if (folder / "run.json").is_file() or (folder / "rounds").is_dir():
        if not (folder / "model" / "model_index.json").is_file():
            raise ValueError(
                f"the run in {folder} is not finished: continue it with `iltm-anomaly train ... --resume`"
            )
        return folder / "model", folder
    return path, None


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


def pixel_mask(mask: Image.Image | None, size: tuple[int, int]) -> np.ndarray:
    """Ground truth (H, W) bool at (width, height) `size`; all False for a good image."""
    if mask is None:
        return np.zeros(size[::-1], dtype=bool)
    return np.asarray(mask.convert("L").resize(size, Image.Resampling.NEAREST)) > 127


def token_shares(
    codes: Tensor,
    pixel_masks: Tensor,
    teachers: list[PerformerPriorModel],
    rounds: list[dict[str, Any]],
    rule: masking.RejectionRule,
) -> list[tuple[float | None, float | None]]:
    """Shares of defect and of normal tokens that each teacher masks, by the rule of the round that follows it, in the training
    images as they are: their ground truth cannot be had for augmented copies. Codes (N, *grid), masks (N, *spatial) bool."""
    defect, normal = masking.defect_tokens(pixel_masks, tuple(codes.shape[1:]))
    shares: list[tuple[float | None, float | None]] = []
    for teacher, entry in zip(teachers, rounds, strict=True):
        likelihood = teacher.log_likelihood(codes.flatten(1)).view(codes.shape).cpu()
        keep = masking.keep_mask(rule.surprise(likelihood), entry["surprise_limit"])
        shares.append(masking.masked_shares(keep, defect, normal))
    return shares


def training_codes_and_masks(pipeline: ILTMAnomalyPipeline, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Codes (N, *grid) of the training images as they are, and their ground truth (N, *spatial) bool at the model's size."""
    processor = pipeline.image_processor
    if processor.is_volumetric:
        prepared = [processor.preprocess(path) for path in dataset["image"]]
        grids = [batch["original_sizes"][0] for batch in prepared]
        truth = [
            torch.from_numpy(processor.to_model_grid(read_mask(path, grid), grid) >= 0.5)
            for path, grid in zip(dataset["mask"], grids, strict=True)
        ]
        return pipeline.encode(torch.cat([batch["pixel_values"] for batch in prepared])), torch.stack(truth)
    height, width = processor.spatial_size
    padding = [(0, full - side) for full, side in zip(processor.padded_size, (height, width), strict=True)]
    pixels, masks = [], []
    for row in dataset:
        pixels.append(processor.preprocess(row["image"])["pixel_values"])
        masks.append(torch.from_numpy(np.pad(pixel_mask(row["mask"], (width, height)), padding)))
    return pipeline.encode(torch.cat(pixels)), torch.stack(masks)


def training_codes(pipeline: ILTMAnomalyPipeline, run_folder: Path) -> Tensor:
    """Codes (N, *grid) of all training images of a run.

    Raises:
        ValueError: if the run's cache of them is damaged or was deleted.
    """
    try:
        return pipeline.encode(PixelCache(run_folder / "images.arrow"))
    except CacheDamagedError as error:
        raise ValueError(
            f"{error}: earlier rounds cannot be measured without the training images; `evaluate {run_folder / 'model'}` "
            "measures the last one"
        ) from error


def score_dataset(
    pipeline: ILTMAnomalyPipeline, dataset: Dataset, show_progress: bool
) -> tuple[ILTMAnomalyOutput, dict[str, Any]]:
    """Scores every image of a data set with ground truth; returns the output and its metrics (`metrics.evaluate_maps`)."""
    output = pipeline(dataset["image"], show_progress=show_progress)
    volumes = pipeline.image_processor.is_volumetric
    masks = volume_masks(dataset) if volumes else [pixel_mask(row["mask"], row["image"].size) for row in dataset]
    labels = np.array([int(m.any()) for m in masks])
    metrics: dict[str, Any] = evaluate_maps(
        output.anomaly_maps, masks, image_scores=output.scores.numpy(), labels=labels
    )
    return output, metrics | (lesion_detection(output.anomaly_maps, masks) if volumes else {})


def volume_masks(dataset: Dataset) -> list[np.ndarray]:
    """Ground truth of every volume of a data set, each (D, H, W) bool on the volume's own grid."""
    return [read_mask(row["mask"], read_volume(row["image"]).grid) for row in dataset]


@torch.no_grad()
def reconstruction_psnr(pipeline: ILTMAnomalyPipeline, dataset: Dataset) -> float:
    """Mean over volumes of the peak signal-to-noise ratio in dB of what the VQ-VAE makes of them, on the model's grid and scale
    (peak 1), without padding."""
    processor, values = pipeline.image_processor, []
    for path in dataset["image"]:
        batch = processor.preprocess(path)
        pixels, grid = batch["pixel_values"], batch["original_sizes"][0]
        reconstruction = pipeline.tokenizer.expect(pipeline.encode(pixels)).cpu()
        inside = torch.from_numpy(processor.to_model_grid(np.ones(grid.shape), grid) > 0)
        error = (reconstruction - pixels)[0, 0][inside].square().mean()
        values.append(float(-10 * torch.log10(error)))
    return float(np.mean(values))


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
    """Evaluates the last round, and for a run folder each round before it; writes `results.json` and `gallery.png`.

    Args:
        model: run folder, pipeline folder or Hub id.
        data, category: MVTec AD layout or Hub data set, as in training.
        output: folder for the files.
        all_rounds: False leaves out all rounds but the last.
        observe: is given each round and what it made of the test images.

    Returns:
        What `results.json` holds: "results", one entry per round, and where they come from.
    """
    model_folder, run_folder = resolve_model_folder(model)
    pipeline = ILTMAnomalyPipeline.from_pretrained(model_folder, device=device)
    report = pipeline.training_report
    volumes = pipeline.image_processor.is_volumetric
    known = report.get("data", {})
    trained, record = known.get("category"), known.get("contamination") or {}
    if record and category and trained and category != trained:
        raise ValueError(
            f"the split of {trained} that the model was trained on is none of {category}: evaluate it on {trained}"
        )
    test, train = protocol_split(data, category, record, volumes)
    if not any(label == 1 for label in test["label"]):
        raise ValueError(f"{data} has no defective test image: there is nothing to measure a detector on")

    rounds = report.get("rounds") or [{"round": 0}]
    priors = [pipeline.prior]
    if run_folder is not None and all_rounds:
        folders = [run_folder / "rounds" / f"round_{entry['round']}" for entry in rounds]
        priors = [PerformerPriorModel.from_pretrained(f).eval().to(pipeline.device) for f in folders]
    evaluated = rounds[-len(priors) :]
    # unknown unless every round's teacher, the prior of the round before, and its training images are at hand
    shares: list[tuple[float | None, float | None]] = [(None, None)] * len(priors)
    if evaluated[0]["round"] == 0:
        shares[0] = (0.0, 0.0)
        if len(priors) > 1 and train is not None and _has_ground_truth(train):
            rule = Recipe.from_dict(report["recipe"] | {"inference": {}}).rounds.rule
            shares[1:] = token_shares(*training_codes_and_masks(pipeline, train), priors[:-1], rounds[1:], rule)

    # which tokens a round heals depends on how likely its own prior finds the training images
    codes = training_codes(pipeline, run_folder) if run_folder is not None and len(priors) > 1 else None
    limit, results = pipeline.settings.surprise_limit, []
    for entry, prior, (defect_share, normal_share) in zip(evaluated, priors, shares, strict=True):
        pipeline.prior = prior
        if codes is not None and prior is not priors[-1]:
            pipeline.calibrate_surprise_limit(codes)
        else:
            pipeline.settings.surprise_limit = limit  # as the pipeline was calibrated
        started = time.monotonic()
        scored, metrics = score_dataset(pipeline, test, show_progress)
        seconds = time.monotonic() - started
        if observe is not None:
            observe(entry["round"], scored)
        results.append(
            {
                "method": "iltm",
                "category": category or trained,
                "contamination": record.get("fraction"),
                "train_size": record.get("train_size"),
                "seed": report.get("seed"),
                "round": entry["round"],
                **metrics,
                "masked_fraction": entry.get("masked_fraction"),
                "masked_share_defect_tokens": defect_share,
                "masked_share_normal_tokens": normal_share,
                "seconds_per_image": round(seconds / len(test), 4),
            }
        )
    rows, threshold = gallery_rows(test, scored), pipeline.settings.score_threshold
    highest = [float(row.anomaly_map.max()) for row in rows]
    if threshold is None or threshold > max(highest):  # nothing would be seen of maps that all stay below it
        threshold = float(np.median(highest))
    document = {
        "results": results,
        "test_images": len(test),
        "at_threshold": verdicts(scored, test["label"], pipeline.settings.score_threshold),
        # of volumes without lesions where there are any: a lesion need not be reconstructed
        "reconstruction_psnr": reconstruction_psnr(pipeline, _good_of(test)) if volumes else None,
        "model": str(model),
        "data": as_path(str(data)),
        "recipe": (report.get("recipe") or {}).get("name"),
        "training_seconds": report.get("training_seconds"),
        "training_commit": training_commit(report),
        **provenance(pipeline.device),
    }
    write_json(output / "results.json", document)
    draw_gallery(rows, threshold, output / "gallery.png", lowest_value(pipeline.settings))
    return document


def verdicts(output: ILTMAnomalyOutput, labels: list[int], threshold: float | None) -> dict[str, Any] | None:
    """How many images the calibrated threshold calls abnormal, as `detect` does: of defective ones (label 1) detected, of good
    ones (label 0) false alarms. None of a pipeline without a threshold."""
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


def _has_ground_truth(train: Dataset) -> bool:
    """Whether it is known of every training image where it is defective."""
    masks = (
        train["mask"] if train.features["mask"].dtype == "string" else train.cast_column("mask", _UNDECODED)["mask"]
    )
    unknown = sum(label != 0 and mask is None for label, mask in zip(train["label"], masks, strict=True))
    if unknown:
        logger.warning("shares of masked tokens are unknown: %d training images have no usable ground truth", unknown)
    return not unknown


def _good_of(test: Dataset) -> Dataset:
    good = [number for number, label in enumerate(test["label"]) if label == 0]
    return test.select(good) if good else test


def gallery_rows(dataset: Dataset, output: ILTMAnomalyOutput, count: int = 10) -> list[GalleryRow]:
    """Two good images and defective ones evenly over the data set, `count` in all."""
    volumes = dataset.features["image"].dtype == "string"
    labels = np.array(dataset["label"])
    good, defective = np.flatnonzero(labels != 1), np.flatnonzero(labels == 1)
    spread = np.linspace(0, len(defective) - 1, min(count - 2, len(defective))).round().astype(int)
    chosen = [*good[:2], *defective[spread]]
    rows = []
    for index in map(int, chosen):
        row = dataset[index]
        if volumes:
            rows.append(_volume_row(row, output, index))
            continue
        rows.append(
            GalleryRow(
                label=[row["defect"] or "good", f"score {output.scores[index]:.2f}"],
                image=to_rgb(row["image"]),
                healed=output.healed_images[index],
                anomaly_map=output.anomaly_maps[index],
                truth=pixel_mask(row["mask"], row["image"].size),
            )
        )
    return rows


def _volume_row(row: dict[str, Any], output: ILTMAnomalyOutput, index: int) -> GalleryRow:
    """Projections from the front, in the window of the input, with square pixels and padded to squares."""
    volume = read_volume(row["image"])
    grid, window = volume.grid, window_of(volume.values)
    width, _, height = grid.ras_spacing

    def square(values: np.ndarray, outside: float = 0.0) -> np.ndarray:
        seen = project(grid.to_ras(values))
        lengths = [
            max(1, round(n * mm / min(width, height))) for n, mm in zip(seen.shape, (height, width), strict=True)
        ]
        rows, columns = (np.arange(new) * old // new for new, old in zip(lengths, seen.shape, strict=True))
        before = [(max(lengths) - length) // 2 for length in lengths]
        padding = [(b, max(lengths) - length - b) for b, length in zip(before, lengths, strict=True)]
        return np.pad(seen[np.ix_(rows, columns)], padding, constant_values=outside)

    return GalleryRow(
        label=[row["defect"] or "unknown", f"score {output.scores[index]:.2f}"],
        image=grey(square(volume.values, window[0]), window),
        healed=grey(square(output.healed_images[index], window[0]), window),
        anomaly_map=square(output.anomaly_maps[index], float(output.anomaly_maps[index].min())),
        truth=square(read_mask(row["mask"], grid)),
    )


def format_results(document: dict[str, Any]) -> str:
    """What `evaluate_run` returns, for people: the rounds as a table, metrics and shares in per cent, and what the last one's
    threshold makes of the images."""
    results = document["results"]

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    columns = {"pixel AUROC": "pixel_auroc", "AUPRO": "aupro"}
    if "lesions" in results[0]:  # volumes
        columns |= {"AUPR": "aupr", "best Dice": "best_dice", "lesions at 2 FP": "lesion_sensitivity_at_2_fp"}
    columns |= {
        "image AUROC": "image_auroc",
        "masked": "masked_fraction",
        "of defect tokens": "masked_share_defect_tokens",
        "of normal tokens": "masked_share_normal_tokens",
    }
    header, keys = ["round", *columns], columns.values()
    lines = [header] + [[str(r["round"]), *(percent(r[key]) for key in keys)] for r in results]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    rows = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    if found := document["at_threshold"]:
        rows.append(
            "at the threshold of {threshold:.3g}, which training has set: {detected} of {defective} defective images called "
            "abnormal, {false_alarms} of {good} good ones".format(**found)
        )
    return "\n".join(rows)
