"""The threshold of `detect`: given, by a share of false alarms, or by a folder of images whose state is known."""

import logging
from dataclasses import replace
from pathlib import Path

from iltm_anomaly.data.layout import labelled_folders
from iltm_anomaly.evaluation.detect import score_blocks
from iltm_anomaly.evaluation.inputs import Input, list_inputs
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.thresholds import (
    KEY,
    LabelledThreshold,
    TrainingScores,
    findings_told,
    labelled_threshold,
    share_told,
)

logger = logging.getLogger(__name__)

MOST_REACH = (
    0.5  # share of the training images that look good, from where on a threshold of labelled images is doubted
)


def choose_threshold(
    pipeline: ILTMAnomalyPipeline,
    threshold: float | None = None,
    false_alarms: float | None = None,
    labelled: Path | None = None,
    effort: str = "full",
) -> str:
    """Sets a pipeline's effort, and its threshold by the one argument that is given, if any, and says what is to be expected of
    it. The pipeline forgets scores of training images that are of another effort.

    Args:
        threshold: a score.
        false_alarms: share of good images that may reach it.
        labelled: folder as of `threshold_of_folder`.
        effort: one of `settings.EFFORTS`.

    Raises:
        ValueError: if the argument cannot be used, or the model keeps no training scores where they are needed.
    """
    pipeline.settings = pipeline.settings.at(effort)
    # scores of training images are kept at full effort; where nothing is drawn they are those of all
    is_known = effort == "full" or not pipeline.draws_codes
    if not is_known:
        pipeline.training_report.pop(KEY, None)
    known = TrainingScores.of_report(pipeline.training_report)
    told = ""
    if false_alarms is not None:
        if known is None:
            raise ValueError(
                f"this model keeps no scores of its training images at effort {effort}, or too few, to tell false alarms by: "
                "give --threshold or --labelled"
                + (", or train it again with this version" if is_known else ", or --effort full")
            )
        threshold = known.threshold(false_alarms)
    elif labelled is not None:
        found = threshold_of_folder(pipeline, labelled)
        threshold = found.threshold
        told = (
            f"; by {found.good} good and {found.defective} defective images, expected precision {found.precision:.0%} and recall "
            f"{found.recall:.0%} on images like these"
        )
    if threshold is not None:
        pipeline.settings = replace(pipeline.settings, score_threshold=threshold)
    elif pipeline.settings.score_threshold is None:
        return "the model has no threshold, so nothing is called abnormal, and colours are scaled by each map's own maximum"
    used = pipeline.settings.score_threshold
    said = f"threshold {used:.4g}{' of the model' if threshold is None else ''}"
    if threshold is None:
        said += findings_told(pipeline.training_report)
    if known is not None:
        said += _expected(known, used, "images" if pipeline.settings.tile is None else "tiles")
        if labelled is not None and (known.good >= used).mean() > MOST_REACH:
            logger.warning(
                "most training images that look good reach the threshold that %s gives: were its images trained on? These score "
                "far lower than others. Label images that were not",
                labelled,
            )
    return said + told


def _expected(known: TrainingScores, threshold: float, of_what: str) -> str:
    """What training scores lead one to expect of a threshold, to be said behind it."""
    expected, reached = share_told(known.false_alarms(threshold)), 100 * known.reached(threshold)
    return (
        f": by their spread {expected} % of good {of_what} are expected to reach it; {int((known.good >= threshold).sum())} of "
        f"{len(known.good)} training images that look good do, of all {reached:.3g} %, defective ones among them"
    )


def threshold_of_folder(pipeline: ILTMAnomalyPipeline, folder: Path, batch_size: int = 8) -> LabelledThreshold:
    """Scores the images below a folder, and takes the threshold that tells them apart best.

    Args:
        folder: as of `data.layout.labelled_folders`.

    Raises:
        ValueError: if there is no such subfolder, too few images, or one that cannot be read or scored.
    """
    files: list[Input] = []
    defective: list[bool] = []
    for path, is_good in labelled_folders(folder):
        below = list_inputs([path], pipeline.image_processor.is_volumetric)
        files += below
        defective += [not is_good] * len(below)
    scores = []
    blocks = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    for _, result, _ in score_blocks(pipeline, blocks):
        if isinstance(result, ValueError):
            raise result
        scores.append(result.score)
    return labelled_threshold(scores, defective)
