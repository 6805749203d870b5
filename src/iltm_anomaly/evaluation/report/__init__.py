"""`iltm-anomaly report`: what `detect` or `train` has found as one page to look at, in one file that needs nothing else."""

import base64
import hashlib
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from iltm_anomaly.evaluation.report.content import SIDE, Report
from iltm_anomaly.evaluation.report.detected import read_detected
from iltm_anomaly.evaluation.report.evaluated import evaluated
from iltm_anomaly.evaluation.report.trained import read_run
from iltm_anomaly.evaluation.rows import TABLE
from iltm_anomaly.output import ILTMAnomalyOutput
from iltm_anomaly.training.checkpoint import CheckpointError, write_atomically

FOLDER = Path(__file__).parent  # of page.html, page.css and page.js
MOST_PICTURES = 2000  # images with pictures: more would make a page that browsers are slow to open


def write_report(folder: Path, output: Path | None = None, is_run: bool = False) -> tuple[Path, Report]:
    """Writes a report of what `detect` has written, or of a run of `train`.

    Args:
        folder: that `detect` or `train` was given as `--output`; where both were, the report is of `detect`.
        output: of the page; without it "report.html" in the folder.
        is_run: whether the folder is to be taken for a run, whatever else it holds.

    Returns:
        Path of the page, and what it tells.

    Raises:
        ValueError: if the folder is neither, or what it holds is empty or damaged.
        CheckpointError: if the page cannot be written.
    """
    if (folder / TABLE).is_file() and not is_run:
        report = read_detected(folder, MOST_PICTURES)
    elif (folder / "run.json").is_file():
        report = read_run(folder, MOST_PICTURES)
    else:
        what = "does not exist" if not folder.exists() else "is a file" if folder.is_file() else "is neither"
        raise ValueError(f"give a folder that detect has written ({TABLE}) or a run folder of train: {folder} {what}")
    output = folder / "report.html" if output is None else output
    write_atomically(output, render(report).encode())
    return output, report


def leave_report(run: Path) -> Path | None:
    """The page of a run that has just been trained; None, and a warning, if it cannot be made: the run is whole without it."""
    try:
        return write_report(run, run / "report.html", is_run=True)[0]
    except (ValueError, OSError, CheckpointError) as error:
        logging.getLogger(__name__).warning("no report of the run: %s", error)
        return None


def write_evaluation(
    folder: Path, test: Dataset, output: ILTMAnomalyOutput, masks: list[np.ndarray], report: dict[str, Any]
) -> Path:
    """Writes report.html of the test images of `evaluate` into a folder; arguments as of `evaluated`."""
    path = folder / "report.html"
    write_atomically(path, render(evaluated(test, output, masks, report, MOST_PICTURES)).encode())
    return path


def render(report: Report) -> str:
    """The page. All that comes from files is escaped; beyond that, browsers are told to run our own script alone, which the page
    names by its checksum, and to load nothing."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = ((FOLDER / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    scale = report.scale
    data: dict[str, Any] = {
        "threshold": report.threshold,
        "words": report.words,
        "scale": {"low": scale.low, "high": scale.high, "unit": scale.unit},
        "rows": [{"path": row.path, "score": row.score, "abnormal": row.abnormal} for row in report.rows],
        "unreadable": [path for path, _ in report.unreadable],
        "usual": None if report.usual is None else asdict(report.usual),
        "known": report.truth is not None,
    }
    if report.truth is not None:
        for shown, row in zip(data["rows"], report.rows, strict=True):
            shown["defective"] = row.is_defective
    return environment.get_template("page.html").render(
        report=report,
        data=data,
        side=SIDE,
        script=Markup(script),  # noqa: S704 - our own file
        style=Markup(style),  # noqa: S704 - our own file
        checksum=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
