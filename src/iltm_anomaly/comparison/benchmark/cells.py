"""Cells on disk: `cells/<category>_c<level>_s<seed>_<method>.json`, with the protocol before the method unless it is "disjoint",
and an .npz file of the same name.

A JSON file is laid out like `results.json` of `iltm-anomaly evaluate`: "results" has one entry per round, the last of which is
the method's own; then follow where they come from, "draws" (of the bootstrap, see `statistics`) and a checksum of all of it. The
tables are made of these files alone. The .npz file holds the `statistics.ImageStatistics` that the draws were made from, for more
draws or other metrics.
"""

import io
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from iltm_anomaly.comparison.baselines.methods import METHODS
from iltm_anomaly.comparison.benchmark.plan import digest_of
from iltm_anomaly.comparison.benchmark.statistics import ImageStatistics
from iltm_anomaly.data.contamination import DISJOINT
from iltm_anomaly.recipes.recipe import recipe_from_dict
from iltm_anomaly.recipes.retired import without_retired_of_stage
from iltm_anomaly.settings import InferenceSettings
from iltm_anomaly.training.checkpoint import file_digest, write_atomically, write_json
from iltm_anomaly.training.run_folder import changes_between

logger = logging.getLogger(__name__)


class CellDamagedError(RuntimeError):
    """A file of a cell was cut off or changed."""


def save_cell(folder: Path, name: str, document: dict[str, Any], statistics: ImageStatistics) -> None:
    """Writes the statistics and then the document, each atomically: a cell with a document is whole."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **statistics.arrays())
    write_atomically(folder / f"{name}.npz", buffer.getbuffer())
    document = document | {"statistics_sha256": file_digest(folder / f"{name}.npz")}
    write_json(folder / f"{name}.json", document | {"checksum": digest_of(document)})


def load_cell(path: Path) -> dict[str, Any]:
    """The document of a cell, from its JSON file.

    Raises:
        CellDamagedError: if this file or the .npz file beside it is not what was written. The latter may be absent.
    """
    document = _parsed(path.read_bytes(), path)
    statistics = path.with_suffix(".npz")
    if statistics.exists() and file_digest(statistics) != document["statistics_sha256"]:
        raise CellDamagedError(f"{statistics} is damaged: its content does not fit the checksum in {path.name}")
    return document


def _parsed(text: bytes, place: Any) -> dict[str, Any]:
    """The document in `text`, which was read from `place`; raises CellDamagedError if it does not fit its checksum."""
    try:
        document = json.loads(text)
        whole = document.pop("checksum") == digest_of(document)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CellDamagedError(f"{place} is damaged ({error})") from error
    if not whole:
        raise CellDamagedError(f"{place} is damaged: its content does not fit its checksum")
    return document


def is_finished(folder: Path, name: str, settings: dict[str, Any]) -> bool:
    """Whether a cell with these settings is there and whole. If one is there and does not count, the log says why."""
    path = folder / f"{name}.json"
    if not path.exists():
        return False
    try:
        document = load_cell(path)
    except CellDamagedError as error:
        logger.warning("%s: measured again", error)
        return False
    if not _is_of_this_format(document):
        logger.warning("%s is of another version: measured again", path)
        return False
    changes = changes_between(_completed(document["settings"]), settings)
    if changes:
        logger.warning("%s has other settings, %s: measured again", path, ", ".join(changes))
    return not changes


def load_cells(source: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Every whole cell of a folder of JSON files, in the order of their names, or of a JSON Lines file; and what was wrong with
    the others."""
    cells: list[tuple[Any, Callable[[Any], dict[str, Any]]]]  # where a cell stands, and what reads it there
    if source.is_file():
        lines = enumerate(source.read_bytes().splitlines(), 1)
        cells = [(f"{source}, line {number}", partial(_parsed, line)) for number, line in lines]
    else:
        cells = [(path, load_cell) for path in sorted(source.glob("*.json"))]
    documents, problems = [], []
    for place, read in cells:
        try:
            document = read(place)
        except CellDamagedError as error:
            problems.append(f"{error}; left out")
            continue
        if _is_of_this_format(document):
            documents.append(document | {"settings": _completed(document["settings"])})
        else:
            problems.append(f"{place} is of another version; left out, the same command measures it again")
    return documents, problems


def _is_of_this_format(document: dict[str, Any]) -> bool:
    draws, settings = document.get("draws", {}), document.get("settings", {})
    return "kind" in draws and "baseline" in settings and settings.get("method") in METHODS


def load_statistics(path: Path) -> ImageStatistics:
    """The statistics in the .npz file of a cell."""
    with np.load(path) as arrays:
        return ImageStatistics(**arrays)


def _completed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a cell as today's code would write them: with the defaults of fields that did not exist when it was
    measured."""
    settings = {"protocol": DISJOINT} | settings
    # what today's code cannot read stays as it is, and differs
    with suppress(ValueError, KeyError):
        settings["recipe"] = recipe_from_dict(settings["recipe"]).training_fields()
    if settings["baseline"] is not None:
        with suppress(ValueError, KeyError):
            stage = without_retired_of_stage(settings["baseline"]["stage"])
            settings["baseline"] = settings["baseline"] | {"stage": stage}
    if settings["inference"] is not None and METHODS[settings["method"]].has_kde:
        with suppress(ValueError):
            settings["inference"] = vars(InferenceSettings.from_dict(settings["inference"]))
    return json.loads(json.dumps(settings))  # as they are read from a file
