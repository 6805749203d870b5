"""`iltm-anomaly detect`: files in, scores and pictures out; a file that cannot be read is reported and skipped."""

import csv
import logging
from collections.abc import Iterator
from pathlib import Path

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
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.saved_pipeline import check_batch_size
from iltm_anomaly.settings import lowest_value

logger = logging.getLogger(__name__)

COLUMNS = ["path", "score", "threshold", "abnormal", "abnormal_pixels", "overlay", "map", "mask", "error"]
OWN_FOLDERS = ("overlays", "maps", "masks")


def list_inputs(inputs: list[str | Path], volumes: bool = False, output: Path | None = None) -> list[Path]:
    """Files as they are, folders by the images (volumes) below them; without NIfTI files every folder of DICOM files is one.
    What an earlier call wrote below `output` is no input.

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


Input = Image.Image | Volume | ImageReadError


def _read_batches(files: list[Path], size: int, volumes: bool) -> Iterator[list[tuple[Path, Input]]]:
    for start in range(0, len(files), size):
        batch: list[tuple[Path, Input]] = []
        for path in files[start : start + size]:
            try:
                batch.append((path, read_volume(path) if volumes else read_image(path)))
            except ImageReadError as error:
                batch.append((path, error))
        yield batch


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
    outline of the ground truth if that lies beside the file (`data.volumes.find_mask_beside`).

    Returns:
        The rows. A file that could not be read has an error and no score.

    Raises:
        ValueError: if an input is missing, if the only file given cannot be read, or if `batch_size` is below 1.
    """
    check_batch_size(batch_size)
    volumes = pipeline.image_processor.is_volumetric
    files = list_inputs(inputs, volumes, output)
    output.mkdir(parents=True, exist_ok=True)
    threshold, lowest = pipeline.settings.score_threshold, lowest_value(pipeline.settings)
    rows: list[dict] = []
    with (
        open(output / "results.csv", "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        tqdm(total=len(files), disable=not show_progress) as bar,
    ):
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for batch in _read_batches(files, 1 if volumes else batch_size, volumes):
            good = [(path, image) for path, image in batch if not isinstance(image, ImageReadError)]
            result = pipeline([image for _, image in good], batch_size=batch_size) if good else None
            position = 0
            for path, image in batch:
                row: dict = dict.fromkeys(COLUMNS, "") | {"path": str(path)}
                if isinstance(image, ImageReadError):
                    if len(files) == 1:
                        raise image
                    row["error"] = str(image)
                    logger.warning("skipped: %s", image)
                elif result is not None:
                    values, mask = result.anomaly_maps[position], result.masks[position]
                    row |= {
                        "score": f"{float(result.scores[position]):.6g}",
                        "threshold": "" if threshold is None else f"{threshold:.6g}",
                        "abnormal": "" if threshold is None else int(mask.any()),
                        "abnormal_pixels": "" if threshold is None else int(mask.sum()),
                    }
                    coloured_from = float(values.max()) if threshold is None else threshold
                    if save_maps and isinstance(image, Volume):
                        row |= _write_volumes(output, len(rows), path, image, values, mask, coloured_from, lowest)
                    elif save_maps and isinstance(image, Image.Image):
                        row |= _write_pictures(output, len(rows), path, image, values, coloured_from, lowest)
                    position += 1
                writer.writerow(row)
                rows.append(row)
            file.flush()
            bar.update(len(batch))
    return rows


def _write_pictures(
    output: Path, number: int, path: Path, image: Image.Image, values: np.ndarray, threshold: float, lowest: float
) -> dict[str, str]:
    # numbered, because files of different folders may share a name
    name = f"{number:05d}_{path.stem}"
    for folder in ("overlays", "maps"):
        (output / folder).mkdir(exist_ok=True)
    overlay(image, values, threshold, lowest=lowest).save(output / "overlays" / f"{name}.png")
    np.save(output / "maps" / f"{name}.npy", values)
    return {"overlay": f"overlays/{name}.png", "map": f"maps/{name}.npy"}


def _write_volumes(
    output: Path,
    number: int,
    path: Path,
    volume: Volume,
    values: np.ndarray,
    mask: np.ndarray,
    threshold: float,
    lowest: float,
) -> dict[str, str]:
    name = f"{number:05d}_{volume_stem(path)}"
    row = {
        "overlay": f"overlays/{name}.png",
        "map": f"maps/{name}.nii.gz",
        "mask": f"masks/{name}.nii.gz",
    }
    write_volume(values, output / row["map"], volume)
    write_volume(mask, output / row["mask"], volume)
    grid = volume.grid
    truth = _truth_beside(path, volume)
    picture = draw_projections(
        grid.to_ras(volume.values),
        grid.to_ras(values),
        threshold,
        grid.ras_spacing,
        None if truth is None else grid.to_ras(truth),
        lowest,
    )
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
