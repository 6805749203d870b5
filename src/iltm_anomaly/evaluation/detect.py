"""`iltm-anomaly detect`: files in, scores and pictures out; a file that cannot be read or scored is reported and skipped."""

import csv
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from iltm_anomaly.data.dicom import find_dicom_folders
from iltm_anomaly.data.images import ImageReadError, find_images, read_image
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
from iltm_anomaly.pipeline import ILTMAnomalyPipeline, NonFiniteScoreError
from iltm_anomaly.saved_pipeline import check_batch_size
from iltm_anomaly.settings import InferenceSettings, lowest_value

logger = logging.getLogger(__name__)

COLUMNS = ["path", "score", "threshold", "abnormal", "abnormal_pixels", "overlay", "map", "mask", "error"]
OWN_FOLDERS = ("overlays", "maps", "masks")


def list_inputs(inputs: list[str | Path], volumes: bool = False, output: Path | None = None) -> list[Path]:
    """Paths of all images, or of all volumes, that `inputs` name: files, and folders with all that lies below them. In a folder
    without NIfTI files every folder of DICOM files is a volume. What an earlier call has written below `output` is left out.

    Raises:
        ValueError: if an input does not exist, or a folder holds no image.
    """
    files: list[Path] = []
    own = [] if output is None else [output.absolute() / name for name in OWN_FOLDERS]
    for item in map(Path, inputs):
        if item.is_dir():
            found = (find_volumes if volumes else find_images)(item, recursive=True)
            found = [path for path in found if not any(folder in path.absolute().parents for folder in own)]
            if not found and volumes:
                found = find_dicom_folders(item)
            if not found:
                raise ValueError(f"{item} holds no {'volume' if volumes else 'image'}")
            files += found
        elif item.exists():
            files.append(item)
        else:
            raise ValueError(f"{item} does not exist")
    return files


@dataclass(frozen=True)
class _Scored:
    """A file, what was read from it, and what the pipeline makes of it; `anomaly_map` and `mask` as in `ILTMAnomalyOutput`."""

    path: Path
    image: Image.Image | Volume
    score: float
    anomaly_map: np.ndarray
    mask: np.ndarray


def _score_images(pipeline: ILTMAnomalyPipeline, images: list[Any]) -> Iterator[tuple | NonFiniteScoreError]:
    """Score, map and mask of each image, or the reason why it has none."""
    try:
        output = pipeline(images, batch_size=len(images))
    except NonFiniteScoreError as error:
        if len(images) == 1:
            yield error
        else:  # one after the other, to find which it is
            for image in images:
                yield from _score_images(pipeline, [image])
    else:
        yield from zip(output.scores.tolist(), output.anomaly_maps, output.masks, strict=True)


def _score_files(
    pipeline: ILTMAnomalyPipeline, files: list[Path], batch_size: int
) -> Iterator[tuple[Path, _Scored | ValueError]]:
    """Each file with its result, or with the reason why it cannot be read or scored. No more than a batch is held in memory."""
    volumes = pipeline.image_processor.is_volumetric
    size = 1 if volumes else batch_size
    for start in range(0, len(files), size):
        batch: list[tuple[Path, Image.Image | Volume | ImageReadError]] = []
        for path in files[start : start + size]:
            try:
                batch.append((path, read_volume(path) if volumes else read_image(path)))
            except ImageReadError as error:
                batch.append((path, error))
        images = [image for _, image in batch if not isinstance(image, ImageReadError)]
        results = _score_images(pipeline, images) if images else iter(())
        for path, image in batch:
            if isinstance(image, ImageReadError):
                yield path, image
            elif isinstance(found := next(results), NonFiniteScoreError):
                yield path, NonFiniteScoreError(f"{path}: {found}")
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
    """Scores files and writes `results.csv`, one row a file as soon as it is scored, and one overlay (PNG) and map (.npy,
    float32) per image. Of a volume: map and mask as NIfTI on the input's own grid, and its projections as overlay, with the
    outline of the ground truth if that lies beside the file (`data.volume_files.find_mask_beside`).

    Returns:
        The rows. A file that could not be read, or whose score is not finite, has an error and no score.

    Raises:
        ValueError: if an input is missing, if the only file given cannot be read or scored, or if `batch_size` is below 1.
        InUseError: if another process writes to `output`.
    """
    check_batch_size(batch_size)
    files = list_inputs(inputs, pipeline.image_processor.is_volumetric, output)
    rows: list[dict] = []
    with (
        locked(output / LOCK_FILE),
        open(output / "results.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        tqdm(total=len(files), disable=not show_progress) as bar,
    ):
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for path, found in _score_files(pipeline, files, batch_size):
            row: dict = dict.fromkeys(COLUMNS, "") | {"path": str(path)}
            if isinstance(found, _Scored):
                row |= _verdict(found, pipeline.settings.score_threshold)
                row |= _write_maps(output, len(rows), found, pipeline.settings) if save_maps else {}
            elif len(files) == 1:
                raise found
            else:
                row["error"] = str(found)
                logger.warning("skipped: %s", found)
            writer.writerow(row)
            file.flush()
            rows.append(row)
            bar.update()
    return rows


def _verdict(found: _Scored, threshold: float | None) -> dict[str, Any]:
    score = {"score": f"{found.score:.6g}"}
    if threshold is None:
        return score
    abnormal = {"abnormal": int(found.mask.any()), "abnormal_pixels": int(found.mask.sum())}
    return score | {"threshold": f"{threshold:.6g}"} | abnormal


def _write_maps(output: Path, number: int, found: _Scored, settings: InferenceSettings) -> dict[str, str]:
    """Writes map, overlay and, of a volume, mask; returns their paths below `output`. Files of different folders may share a
    name, so a number is put before it."""
    image, values, lowest = found.image, found.anomaly_map, lowest_value(settings)
    threshold = float(values.max()) if settings.score_threshold is None else settings.score_threshold
    if isinstance(image, Volume):
        name = f"{number:05d}_{volume_stem(found.path)}"
        row = {"overlay": f"overlays/{name}.png", "map": f"maps/{name}.nii.gz", "mask": f"masks/{name}.nii.gz"}
        write_volume(values, output / row["map"], image)
        write_volume(found.mask, output / row["mask"], image)
        grid, truth = image.grid, _truth_beside(found.path, image)
        truth_in_ras = None if truth is None else grid.to_ras(truth)
        plain, coloured = grid.to_ras(image.values), grid.to_ras(values)
        picture = draw_projections(plain, coloured, threshold, grid.ras_spacing, truth_in_ras, lowest)
    else:
        name = f"{number:05d}_{found.path.stem}"
        row = {"overlay": f"overlays/{name}.png", "map": f"maps/{name}.npy"}
        (output / "maps").mkdir(exist_ok=True)
        np.save(output / row["map"], values)
        picture = overlay(image, values, threshold, lowest=lowest)
    (output / "overlays").mkdir(exist_ok=True)
    picture.save(output / row["overlay"])
    return row


def _truth_beside(path: Path, volume: Volume) -> np.ndarray | None:
    """Ground truth (D, H, W) bool that lies beside a volume's file, such as `P1_lesion.nii.gz`; only to be drawn."""
    mask = find_mask_beside(path) if path.is_file() else None
    try:
        return None if mask is None else read_mask(mask, volume.grid)
    except ValueError as error:
        logger.warning("ground truth not drawn: %s", error)
        return None
