"""Rows of `detect`: one an image. A run writes each into a journal as soon as it has it, and goes on from there; the tables are
made of the journal.

A journal is a hidden file of JSON lines in the output folder. Its first line says what the rows are by: rows by another model,
another threshold or other settings are never mixed with new ones. Each process has a journal of its own.
"""

import csv
import io
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from iltm_anomaly.data.layout import DETECTED
from iltm_anomaly.training.checkpoint import write_atomically

logger = logging.getLogger(__name__)

Row = dict[str, Any]

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("abnormal", pa.int8()),
        ("abnormal_pixels", pa.int64()),
        ("boxes", pa.list_(pa.list_(pa.int32()))),
        ("areas", pa.list_(pa.int64())),
        ("unlikely_share", pa.float64()),
        ("seconds", pa.float64()),
        ("trained_on", pa.int8()),
        ("overlay", pa.string()),
        ("map", pa.string()),
        ("mask", pa.string()),
        ("healed", pa.string()),
        ("error", pa.string()),
    ]
)
COLUMNS: list[str] = SCHEMA.names
TABLE, PARQUET = f"{DETECTED}.csv", f"{DETECTED}.parquet"
MODEL = "model.json"  # what a report tells of the model
JOURNAL, JOURNALS = ".rows.{}.jsonl", ".rows.*.jsonl"  # of a process, and of all
OWN_FOLDERS = ("overlays", "maps", "masks", "healed")
OWN_FILE = re.compile(r".*_[0-9a-f]{10}\.(png|npy|nii\.gz|dcm)", re.DOTALL)  # names that `file_name` gives
STAMP = "stamp"  # in the journal alone: what changes when the image does


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file in an error of the disk, which says no more than that no space is left."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


def begin_journal(folder: Path, settings: dict[str, Any], stamps: dict[str, str]) -> dict[str, Row]:
    """Starts or continues the journal of process 0, and takes the rows of all others into it.

    Args:
        settings: all that rows depend on but the images, as plain values. If the folder has rows by others, they go, and the log
            says why.
        stamps: of the images that are to have rows, by name; rows of other ones go, those of images that have changed, and those
            with an error, since it may have passed.

    Returns:
        The rows that are there, by name.
    """
    own = folder / JOURNAL.format(0)
    kept: dict[str, Row] = {}
    files = sorted(folder.glob(JOURNALS))
    settings = json.loads(json.dumps(settings))
    for file in files:
        before, rows = _read(file)
        if before == settings:
            kept |= {row["path"]: row for row in rows if stamps.get(row["path"]) == row[STAMP] and not row["error"]}
        elif before is not None and rows:
            changed = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
            said = ", ".join(f"{key} was {_told(before.get(key))}, is {_told(settings.get(key))}" for key in changed)
            logger.warning("%s has rows by another model or settings (%s): starting anew", folder, said)
    lines = [settings, *kept.values()]
    write_atomically(own, "".join(json.dumps(line) + "\n" for line in lines).encode())
    for file in files:
        if file != own:
            file.unlink()
    return kept


def _told(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def join_journal(folder: Path, process: int, settings: dict[str, Any]) -> None:
    """Starts the journal of a process other than 0."""
    write_atomically(folder / JOURNAL.format(process), (json.dumps(settings) + "\n").encode())


def add_row(folder: Path, process: int, row: Row) -> None:
    """Adds a row to the end of a process's journal. It is opened each time, so that one that was removed meanwhile is missed."""
    path = folder / JOURNAL.format(process)
    with writing(path), open(path, "r+", encoding="utf-8") as file:
        file.seek(0, os.SEEK_END)
        file.write(json.dumps(row) + "\n")


def read_rows(folder: Path) -> dict[str, Row]:
    """The rows of all journals, by name."""
    return {row["path"]: row for file in sorted(folder.glob(JOURNALS)) for row in _read(file)[1]}


def _read(file: Path) -> tuple[dict[str, Any] | None, list[Row]]:
    """Settings and rows of a journal up to the first line that is none: a process that is killed may leave a part of one."""
    settings: dict[str, Any] | None = None
    rows: list[Row] = []
    with open(file, encoding="utf-8", errors="replace") as lines, suppress(ValueError, KeyError, TypeError):
        for line in lines:
            found: Any = json.loads(line) if line.endswith("\n") else None
            if settings is None:
                settings = dict(found)
            else:
                rows.append({name: found[name] for name in (*COLUMNS, STAMP)})
    return settings, rows


def write_tables(folder: Path, rows: list[Row]) -> None:
    """Writes the rows as CSV and Parquet, and removes what `detect` has drawn for others. In CSV lists are JSON, and nothing is
    an empty cell."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({name: _cell(row[name]) for name in COLUMNS} for row in rows)
    write_atomically(folder / TABLE, text.getvalue().encode(errors="backslashreplace"))
    plain = [{name: _utf8(row[name]) for name in COLUMNS} for row in rows]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(plain, SCHEMA), buffer)
    write_atomically(folder / PARQUET, buffer.getbuffer())
    kept = {row[name] for row in rows for name in ("overlay", "map", "mask", "healed") if row[name]}
    _clear(folder, kept | {segmentation_of(name) for name in kept})


def segmentation_of(mask: str) -> str:
    """The DICOM segmentation that may lie beside the mask of a volume."""
    return mask.removesuffix(".nii.gz") + ".dcm"


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if isinstance(value, list) else value


def _utf8(value: Any) -> Any:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _clear(folder: Path, kept: Iterable[str]) -> None:
    for below in OWN_FOLDERS:
        for path in (folder / below).glob("*"):
            if OWN_FILE.fullmatch(path.name) and f"{below}/{path.name}" not in kept:
                path.unlink()


def is_own_table(table: Path) -> bool:
    """Whether a file is a table that `detect` has written."""
    with suppress(OSError), open(table, encoding="utf-8", errors="replace") as file:
        return file.readline(100).startswith(",".join(COLUMNS[:3]))
    return False
