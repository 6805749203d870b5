"""`iltm-anomaly detect`: files in, scores and pictures out; a file that cannot be read or scored is reported and skipped."""

import csv
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils.memory import should_reduce_batch_size
from PIL import Image
from tqdm.auto import tqdm

from iltm_anomaly.data.dicom import find_dicom_folders
from iltm_anomaly.data.images import MOST_PIXELS, ImageReadError, find_images, path_in_table, read_image
from iltm_anomaly.data.volume_files import (
    find_mask_beside,
    find_volumes,
    read_mask,
    read_volume,
    volume_stem,
    write_volume,
)
from iltm_anomaly.data.volume_grid import Volume
from iltm_anomaly.evaluation.gallery import draw_projections, overlay
from iltm_anomaly.locks import LOCK_FILE, locked
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.saved_pipeline import check_batch_size
from iltm_anomaly.settings import InferenceSettings, lowest_value

logger = logging.getLogger(__name__)

COLUMNS = ["path", "score", "threshold", "abnormal", "abnormal_pixels", "overlay", "map", "mask", "error"]
OWN_FOLDERS = ("overlays", "maps", "masks")
TABLE = "results.csv"
LONGEST_STEM = 200  # bytes of the input's name in those of its files: most disks take 255, with number and suffix


def list_inputs(
    inputs: list[str | Path], volumes: bool = False, output: Path | None = None
) -> list[tuple[Path, ImageReadError | None]]:
    """Paths of all images, or of all volumes, that `inputs` name: files, and folders with all that lies below them. In a folder
    without NIfTI files every folder of DICOM files is a volume. What `detect` has written is left out, below `output` and in
    folders of earlier calls.

    Returns:
        Each path, and why nothing below it can be found where it is a folder that cannot be looked into.

    Raises:
        ValueError: if a folder holds no image.
    """
    files: list[tuple[Path, ImageReadError | None]] = []
    for item in map(Path, inputs):
        if not os.path.isdir(item):
            files.append((item, None))
            continue
        refused: list[OSError] = []
        found = (find_volumes if volumes else find_images)(item, recursive=True, refused=refused.append)
        wrote = cache(_wrote)
        found = [path for path in found if not any(wrote(folder, item, output) for folder in path.parents)]
        if not found and volumes:
            found = find_dicom_folders(item)
        if not found and not refused:
            raise ValueError(f"{item} holds no {'volume' if volumes else 'image'}")
        files += [(path, None) for path in found]
        for error in refused:
            reason = f"cannot look into the folder {error.filename}: {error.strerror}"
            files.append((Path(error.filename), ImageReadError(reason)))
    return files


def _wrote(folder: Path, root: Path, output: Path | None) -> bool:
    """Whether `detect` made a folder: it is one of `OWN_FOLDERS` of `output`, or beside a table of scores below `root`."""
    if folder.name not in OWN_FOLDERS:
        return False
    if output is not None and folder.parent.absolute() == output.absolute():
        return True
    table = folder.parent / TABLE
    if root not in folder.parents or not os.path.isfile(table):
        return False
    with suppress(OSError), open(table, encoding="utf-8", errors="replace") as file:
        return file.readline(100).startswith(",".join(COLUMNS[:3]))
    return False


@dataclass(frozen=True)
class _Scored:
    """A file, what was read from it, and what the pipeline makes of it; `anomaly_map` and `mask` as in `ILTMAnomalyOutput`."""

    path: Path
    image: Image.Image | Volume
    score: float
    anomaly_map: np.ndarray
    mask: np.ndarray


def _read_batches(
    files: list[tuple[Path, ImageReadError | None]], size: int, volumes: bool
) -> Iterator[list[tuple[Path, Image.Image | Volume | ImageReadError]]]:
    """Each file with what is read from it, or with the reason why it cannot be read, `size` at once; fewer where their pixels
    add up to the largest image that is read."""
    batch: list[tuple[Path, Image.Image | Volume | ImageReadError]] = []
    pixels = 0
    for path, problem in files:
        try:
            image = problem or (read_volume(path) if volumes else read_image(path))
        except ImageReadError as error:
            image = error
        batch.append((path, image))
        pixels += image.width * image.height if isinstance(image, Image.Image) else 0
        if len(batch) >= size or pixels >= MOST_PIXELS:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _score_images(pipeline: ILTMAnomalyPipeline, images: list[Any]) -> Iterator[tuple | ValueError]:
    """Score, map and mask of each image, or the reason why it has none."""
    try:
        output = pipeline(images, batch_size=len(images))
    except ValueError as error:
        problem = error
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise
        problem = ValueError("the memory is too small for it: give a smaller image")
    else:
        yield from zip(output.scores.tolist(), output.anomaly_maps, output.masks, strict=True)
        return
    if len(images) == 1:
        yield problem
    else:  # with half as much memory, or to find which it is
        half = len(images) // 2
        yield from _score_images(pipeline, images[:half])
        yield from _score_images(pipeline, images[half:])


def _score_files(
    pipeline: ILTMAnomalyPipeline, files: list[tuple[Path, ImageReadError | None]], batch_size: int
) -> Iterator[tuple[Path, _Scored | ValueError]]:
    """Each file with its result, or with the reason why it cannot be read or scored. No more than a batch is held in memory."""
    volumes = pipeline.image_processor.is_volumetric
    for batch in _read_batches(files, 1 if volumes else batch_size, volumes):
        images = [image for _, image in batch if not isinstance(image, ImageReadError)]
        results = _score_images(pipeline, images) if images else iter(())
        for path, image in batch:
            if isinstance(image, ImageReadError):
                yield path, image
            elif isinstance(found := next(results), ValueError):
                found.args = (f"{path}: {found}",)
                yield path, found
            else:
                yield path, _Scored(path, image, *found)


def detect(
    pipeline: ILTMAnomalyPipeline,
    inputs: list[str | Path],
    output: Path,
    batch_size: int = 8,
    save_maps: bool = True,
    show_progress: bool = True,
) -> list[dict]:
    """Scores files and writes `results.csv`, one row a file as soon as it is scored, and one overlay (PNG, reduced where the
    image is large) and map (.npy, float32) per image. Of a volume: map and mask as NIfTI on the input's own grid, and its
    projections as overlay, with the outline of the ground truth if that lies beside the file
    (`data.volume_files.find_mask_beside`).

    Paths are as of `data.images.path_in_table`.

    Returns:
        The rows. A file that could not be read or scored has an error and no score, and so has a folder that cannot be listed.

    Raises:
        ValueError: if a folder holds no image, if the only file given cannot be read or scored, or if `batch_size` is below 1.
        OSError: if something cannot be written; the message names it.
        InUseError: if another process writes to `output`.
    """
    check_batch_size(batch_size)
    files = list_inputs(inputs, pipeline.image_processor.is_volumetric, output)
    table = output / TABLE
    rows: list[dict] = []
    with locked(output / LOCK_FILE), tqdm(total=len(files), disable=not show_progress) as bar:
        _write_row(table, dict(zip(COLUMNS, COLUMNS, strict=True)), "w")
        for path, found in _score_files(pipeline, files, batch_size):
            row: dict = dict.fromkeys(COLUMNS, "") | {"path": path_in_table(path)}
            if isinstance(found, _Scored):
                row |= _verdict(found, pipeline.settings.score_threshold)
                row |= _write_maps(output, len(rows), found, pipeline.settings) if save_maps else {}
            elif len(files) == 1:
                raise found
            else:
                row["error"] = str(found)
                logger.warning("skipped: %s", found)
            _write_row(table, row)
            rows.append(row)
            bar.update()
    return rows


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Names the file in an error of the disk, which says no more than that no space is left."""
    try:
        yield path
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


def _write_row(table: Path, row: dict, mode: str = "r+") -> None:
    """Adds a row to the end of a table. It is opened each time, so that a table that was removed meanwhile is missed."""
    with _writing(table), open(table, mode, newline="", encoding="utf-8", errors="backslashreplace") as file:
        file.seek(0, os.SEEK_END)
        csv.DictWriter(file, COLUMNS).writerow(row)


def _verdict(found: _Scored, threshold: float | None) -> dict[str, Any]:
    score = {"score": f"{found.score:.6g}"}
    if threshold is None:
        return score
    abnormal = {"abnormal": int(found.mask.any()), "abnormal_pixels": int(found.mask.sum())}
    return score | {"threshold": f"{threshold:.6g}"} | abnormal


def _write_maps(output: Path, number: int, found: _Scored, settings: InferenceSettings) -> dict[str, str]:
    """Writes map, overlay and, of a volume, mask; returns their paths below `output`. Files of different folders may share a
    name, so a number is put before it; a name that would become too long for a disk is cut."""
    image, values, lowest = found.image, found.anomaly_map, lowest_value(settings)
    threshold = float(values.max()) if settings.score_threshold is None else settings.score_threshold
    stem = volume_stem(found.path) if isinstance(image, Volume) else found.path.stem
    name = f"{number:05d}_{stem.encode()[:LONGEST_STEM].decode(errors='ignore')}"
    row = {"overlay": f"overlays/{name}.png"}
    if isinstance(image, Volume):
        row |= {"map": f"maps/{name}.nii.gz", "mask": f"masks/{name}.nii.gz"}
        for key, array in (("map", values), ("mask", found.mask)):
            with _writing(output / row[key]) as path:
                write_volume(array, path, image)
        grid, truth = image.grid, _truth_beside(found.path, image)
        truth_in_ras = None if truth is None else grid.to_ras(truth)
        plain, coloured = grid.to_ras(image.values), grid.to_ras(values)
        picture = draw_projections(plain, coloured, threshold, grid.ras_spacing, truth_in_ras, lowest)
    else:
        row["map"] = f"maps/{name}.npy"
        with _writing(output / row["map"]) as path:
            path.parent.mkdir(exist_ok=True)
            np.save(path, values)
        picture = overlay(image, values, threshold, lowest=lowest)
    with _writing(output / row["overlay"]) as path:
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
    return row


def _truth_beside(path: Path, volume: Volume) -> np.ndarray | None:
    """Ground truth (D, H, W) bool that lies beside a volume's file, such as `P1_lesion.nii.gz`; only to be drawn."""
    mask = find_mask_beside(path) if path.is_file() else None
    try:
        return None if mask is None else read_mask(mask, volume.grid)
    except ValueError as error:
        logger.warning("ground truth not drawn: %s", error)
        return None
