"""What a report of the test images of `iltm-anomaly evaluate` tells: they are in memory still."""

from typing import Any

import numpy as np
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from iltm_anomaly.data.images import path_in_table, to_rgb
from iltm_anomaly.data.volume_files import read_volume
from iltm_anomaly.drawing import outlined
from iltm_anomaly.evaluation.report.content import SIDE, Picture, Report, ReportRow, peak_of, picture
from iltm_anomaly.evaluation.report.slices import MOST_VOLUMES, slices_of
from iltm_anomaly.evaluation.report.truth import PixelTruth, measure
from iltm_anomaly.evaluation.report.usual import usual_of
from iltm_anomaly.output import AnomalyResult, ILTMAnomalyOutput
from iltm_anomaly.thresholds import TrainingScores

ABOUT = "Test images that iltm-anomaly evaluate has scored with the last round, the most suspicious first."


def evaluated(
    test: Dataset, output: ILTMAnomalyOutput, masks: list[np.ndarray], report: dict[str, Any], most_pictures: int
) -> Report:
    """The report of test images; only the first `most_pictures` by falling score have pictures.

    Args:
        test: of `evaluation.evaluate.protocol_split`.
        output: what the pipeline says of them.
        masks: of `evaluation.ground_truth.ground_truth_masks`.
        report: the pipeline's training report.
    """
    scores = [float(f"{score:.6g}") for score in output.scores.tolist()]
    threshold = max(scores) if output.threshold is None else output.threshold
    is_volume = masks[0].ndim == 3
    sources = test["image"] if is_volume else test.cast_column("image", ImageFeature(decode=False))["image"]
    names = [path_in_table(one if is_volume else one["path"]) or f"image {row}" for row, one in enumerate(sources)]
    labels, pixels, rows = test["label"], PixelTruth(), []
    for rank, index in enumerate(np.argsort(-np.array(scores), kind="stable").tolist()):
        found, slices, shown = output[index], None, []
        if rank < most_pictures:
            shown = _pictures(found, test[index]["image"], masks[index], threshold)
        if is_volume and rank < MOST_VOLUMES:
            slices = slices_of(read_volume(sources[index]), found.mask)
        abnormal = bool(found.mask.any()) if output.threshold is not None else scores[index] >= threshold
        defect = None if labels[index] < 0 else (test[index]["defect"] or "defective") if labels[index] else "good"
        rows.append(ReportRow(names[index], scores[index], abnormal, shown, "", defect, slices))
        pixels.compare(found.anomaly_map, masks[index])
    known = [row for row in rows if row.is_defective is not None]
    truth = measure([row.score for row in known], [bool(row.is_defective) for row in known], pixels.curve(), [])
    kept = TrainingScores.of_report(report)
    of = "images" if (report.get("recipe") or {}).get("tile") is None else "tiles"
    usual = None if kept is None else usual_of(kept, [threshold, *scores], of)
    return Report("What the test images tell", [ABOUT], ("normal", "abnormal"), threshold, rows, [], usual, truth)


def _pictures(found: AnomalyResult, image: Any, mask: np.ndarray, threshold: float) -> list[Picture]:
    """Input, overlay, where the map is highest, and the healed image; of a volume the overlay alone, which shows all."""
    if mask.ndim == 3:
        return [picture(found.overlay(mask), "where it differs; the true lesion outlined", 3 * SIDE)]
    whole = to_rgb(image)
    small = whole.copy()
    small.thumbnail((2 * SIDE, 2 * SIDE))
    shown = [picture(outlined(small, mask), "input, true defect") if mask.any() else picture(small, "input")]
    shown.append(picture(found.overlay(), "where it differs"))
    if (peak := peak_of(found.anomaly_map, small, threshold)) is not None:
        shown.append(picture(peak, "where it differs most"))
    if isinstance(found.healed_image, Image.Image):
        shown.append(picture(found.healed_image.convert("RGB"), "what was expected"))
    return shown
