"""`iltm-anomaly detect`: images in, scores and pictures out; what cannot be read or scored is reported and skipped.

Images are scored in blocks of consecutive ones, which are the same however often a run is interrupted and over however many
processes it is shared out: so every row has the same bits.
"""

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils.memory import should_reduce_batch_size
from PIL import Image

from iltm_anomaly.data.dicom_segmentation import write_segmentation
from iltm_anomaly.data.images import MOST_PIXELS, ImageReadError
from iltm_anomaly.data.volume_files import find_mask_beside, read_mask, volume_stem, write_volume
from iltm_anomaly.data.volume_grid import Volume
from iltm_anomaly.drawing import reduction
from iltm_anomaly.evaluation import rows as journal
from iltm_anomaly.evaluation.inputs import Input, list_inputs
from iltm_anomaly.evaluation.regions import regions_of
from iltm_anomaly.evaluation.rows import Row, segmentation_of, writing
from iltm_anomaly.evaluation.trained_on import trained_on, warn_of_trained
from iltm_anomaly.locks import LOCK_FILE, locked
from iltm_anomaly.output import AnomalyResult
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.processing.images import restore_map
from iltm_anomaly.progress import progress
from iltm_anomaly.proportions import is_far, ratio_of
from iltm_anomaly.saved_pipeline import check_batch_size
from iltm_anomaly.thresholds import KEY
from iltm_anomaly.training.checkpoint import CheckpointError, write_json
from iltm_anomaly.training.processes import on_main, own_accelerator

logger = logging.getLogger(__name__)

TILES_AT_ONCE = 8  # of one image
LONGEST_STEM = 200  # bytes of the input's name in those of its files: most disks take 255, with what follows it
PATIENCE = timedelta(hours=6)  # of a process for the slowest of the others

Read = tuple[Input, Image.Image | Volume | ImageReadError]
Value = TypeVar("Value")


def detect(
    pipeline: ILTMAnomalyPipeline,
    inputs: Iterable[str | Path],
    output: Path,
    batch_size: int = 8,
    save_maps: bool = True,
    show_progress: bool = True,
    run_folder: Path | None = None,
) -> list[Row]:
    """Scores images and writes `results.csv` and `results.parquet`, one row an image (docs/detect.md tells the columns), and for
    each image an overlay (PNG, reduced where the image is large), its map (.npy, float32, at most as large as the model's
    images, unless these are tiles), its mask (PNG) and, if it is abnormal, what was expected in its place (PNG). Of a volume: map
    and mask as NIfTI on the input's own grid, and its projections as overlay, with the outline of ground truth that lies beside
    the file (`data.volume_files.find_mask_beside`); of a DICOM series the mask as a DICOM segmentation too.

    A call that was interrupted, in whatever way, goes on when it is repeated: rows of the same model and settings are kept,
    unless their image has changed. Processes that a launcher has started share the images out, and all get all rows.

    Args:
        pipeline: with the threshold that decides.
        inputs: as of `evaluation.inputs.list_inputs`.
        output: folder for everything; what an earlier call has drawn there for other images is removed.
        batch_size: images that go through the models together.
        save_maps: False writes the tables alone.
        show_progress: how far it is, on stderr.
        run_folder: of the run that made the pipeline, if it is here: images that it was trained on are told.

    Returns:
        The rows, in the order of the inputs. What could not be read, listed or scored has an error and no score.

    Raises:
        ValueError: if there is no image, if the only one cannot be read or scored, or if `batch_size` is below 1.
        OSError, CheckpointError: if something cannot be written; the message names it.
        InUseError: if another process writes to `output`.
        MainProcessError: in the other processes, if the main one failed.
    """
    check_batch_size(batch_size)
    settings = _settings(pipeline, save_maps)
    with own_accelerator(), ExitStack() as stack:
        processes = PartialState(cpu=pipeline.device.type == "cpu", timeout=PATIENCE)
        files, done = on_main(processes, lambda: _begin(pipeline, inputs, output, settings, stack))
        if not processes.is_main_process:
            journal.join_journal(output, processes.process_index, settings)
        size = 1 if pipeline.image_processor.is_volumetric else batch_size
        blocks = [files[start : start + size] for start in range(0, len(files), size)]
        todo = [block for block in blocks if any(one.name not in done for one in block)]
        own = todo[processes.process_index :: processes.num_processes]
        left = sum(one.name not in done for block in own for one in block)
        try:
            with progress(total=left, desc="scoring", unit="image", hidden=not show_progress) as bar:
                for row in _score_rows(pipeline, own, done, output, save_maps, run_folder, len(files) == 1):
                    journal.add_row(output, processes.process_index, row)
                    bar.update()
        except BaseException:
            with suppress(CheckpointError):  # what has happened says more
                if processes.is_main_process:
                    _write_tables(output, files)
            raise
        processes.wait_for_everyone()
        return on_main(processes, lambda: _finish(output, files))


def _begin(
    pipeline: ILTMAnomalyPipeline,
    inputs: Iterable[str | Path],
    output: Path,
    settings: dict[str, Any],
    stack: ExitStack,
) -> tuple[list[Input], set[str]]:
    """All images, and the names of those that have rows; `stack` keeps other runs out of `output`."""
    files = list_inputs(inputs, pipeline.image_processor.is_volumetric, output)
    stack.enter_context(locked(output / LOCK_FILE))
    there = journal.begin_journal(output, settings, {one.name: one.stamp for one in files})
    if there:
        logger.info("%d of %d rows are there: going on with the others", len(there), len(files))
    _write_tables(output, files)
    write_json(output / journal.MODEL, _known_of(pipeline))
    return files, set(there)


def _known_of(pipeline: ILTMAnomalyPipeline) -> dict[str, Any]:
    """What a report tells of the model beside the rows: the scores of its training images, and if test images are among these."""
    report = pipeline.training_report
    drawn = (report.get("data") or {}).get("contamination") or {}
    return {
        KEY: report.get(KEY),
        "tile": pipeline.settings.tile,
        "trained_on_test_images": bool(drawn.get("fraction")),
    }


def _settings(pipeline: ILTMAnomalyPipeline, save_maps: bool) -> dict[str, Any]:
    """All that rows depend on but the images. Whatever changes a row must be here."""
    digest = hashlib.sha256()
    for model in pipeline.models:
        for name, tensor in model.state_dict().items():
            digest.update(
                name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
    digest.update(b"" if pipeline.noise is None else pipeline.noise.cpu().numpy().tobytes())
    digest.update(repr(sorted(pipeline.image_processor.to_dict().items())).encode())
    return {"model": digest.hexdigest()[:12], **asdict(pipeline.settings), "maps": save_maps}


def _write_tables(output: Path, files: list[Input]) -> list[Row]:
    """Writes the tables of all rows that there are, and returns these."""
    found = journal.read_rows(output)
    rows = [found[one.name] for one in files if one.name in found]
    journal.write_tables(output, rows)
    return rows


def _finish(output: Path, files: list[Input]) -> list[Row]:
    """As `_write_tables`, and says if some of the images were trained on."""
    rows = _write_tables(output, files)
    warn_of_trained(sum(row["trained_on"] or 0 for row in rows), len(rows))
    return rows


def _ahead(values: Iterable[Value]) -> Iterator[Value]:
    """The values, each made by a thread of its own while the one before is in use."""
    iterator = iter(values)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, iterator, None)
        while (value := coming.result()) is not None:
            coming = thread.submit(next, iterator, None)
            yield value


def _read_batches(blocks: Iterable[list[Input]], volumes: bool) -> Iterator[list[Read]]:
    """Each input with what is read from it, or with the reason why it cannot be read, a block at once; fewer where their pixels
    add up to the largest image that is read."""
    for block in blocks:
        batch: list[Read] = []
        pixels = 0
        for one in block:
            image: Image.Image | Volume | ImageReadError
            try:
                image = one.read(volumes)
            except ImageReadError as error:
                image = error
            batch.append((one, image))
            pixels += image.width * image.height if isinstance(image, Image.Image) else 0
            if pixels >= MOST_PIXELS:
                yield batch
                batch, pixels = [], 0
        if batch:
            yield batch


def _score_images(pipeline: ILTMAnomalyPipeline, images: list[Any]) -> Iterator[AnomalyResult | ValueError]:
    """What is found in each image, or the reason why nothing is."""
    try:
        output = pipeline(images, batch_size=len(images) if pipeline.settings.tile is None else TILES_AT_ONCE)
    except ValueError as error:
        problem = error
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise
        problem = ValueError("the memory is too small for it: give a smaller image")
    else:
        yield from output
        return
    if len(images) == 1:
        yield problem
    else:  # with half as much memory, or to find which it is
        half = len(images) // 2
        yield from _score_images(pipeline, images[:half])
        yield from _score_images(pipeline, images[half:])


def score_blocks(
    pipeline: ILTMAnomalyPipeline, blocks: Iterable[list[Input]]
) -> Iterator[tuple[Input, AnomalyResult | ValueError, float]]:
    """Each input with what is found in it, or why nothing is, and its share of the seconds that its batch took to score. No more
    is held in memory than a batch that is scored and one that is read."""
    for batch in _ahead(_read_batches(blocks, pipeline.image_processor.is_volumetric)):
        images = [image for _, image in batch if not isinstance(image, ImageReadError)]
        started = time.monotonic()
        results = list(_score_images(pipeline, images)) if images else []
        seconds = (time.monotonic() - started) / max(1, len(images))
        for one, image in batch:
            if isinstance(image, ImageReadError):
                yield one, image, 0.0
                continue
            found = results.pop(0)
            if isinstance(found, ValueError):
                found.args = (f"{one.path}: {found}",)
            yield one, found, seconds


def _score_rows(
    pipeline: ILTMAnomalyPipeline,
    blocks: list[list[Input]],
    done: set[str],
    output: Path,
    save_maps: bool,
    run_folder: Path | None,
    only_one: bool,
) -> Iterator[Row]:
    """Rows of the blocks but for those that are done, which are scored again for the sake of their block; `only_one` raises what
    is wrong with an image."""
    seen = trained_on(pipeline, run_folder)
    usual = ratio_of(pipeline.training_report) if pipeline.settings.tile is None else None
    for one, found, seconds in score_blocks(pipeline, blocks):
        if one.name in done:
            continue
        if only_one and isinstance(found, ValueError):
            raise found
        if usual is not None and not isinstance(found, ValueError) and _is_stretched(found, usual):
            logger.warning(
                "%s is %d x %d pixels, and the training images were %.2f times as wide as high: it is stretched to their "
                "proportions, and may look abnormal for that alone. Crop it as they were, or train with --tile; others are not "
                "named",
                one.path,
                *found.image.size,
                usual,
            )
            usual = None
        row = _row(pipeline, output, one, found, seconds, save_maps)
        if seen is not None and not isinstance(found, ValueError):
            row["trained_on"] = int(seen.has(found.image, "" if one.row else one.path.name))
        yield row


def _is_stretched(found: AnomalyResult, usual: float) -> bool:
    """Whether an image, no volume, has other proportions than the training images, `usual`."""
    return isinstance(found.image, Image.Image) and is_far(found.image.width / found.image.height, usual)


def _row(
    pipeline: ILTMAnomalyPipeline,
    output: Path,
    one: Input,
    found: AnomalyResult | ValueError,
    seconds: float,
    save_maps: bool,
) -> Row:
    """The row of an image, once its files are written."""
    row: Row = dict.fromkeys(journal.COLUMNS) | {"path": one.name, journal.STAMP: one.stamp}
    if isinstance(found, ValueError):
        return row | {"error": str(found)}
    row |= {
        "score": _rounded(found.score),
        "unlikely_share": _rounded(found.unlikely_share),
        "seconds": round(seconds, 4),
    }
    if found.threshold is not None:
        row |= {"threshold": _rounded(found.threshold), "abnormal": int(found.mask.any())}
        row["abnormal_pixels"] = int(found.mask.sum())
        row["boxes"], row["areas"] = regions_of(found.mask) if row["abnormal"] else ([], [])
    size = pipeline.image_processor.spatial_size if pipeline.settings.tile is None else found.anomaly_map.shape
    return row | (_write_maps(output, one, found, size) if save_maps else {})


def _rounded(value: float) -> float:
    """Six digits, which are the same in all tables."""
    return float(f"{value:.6g}")


def _file_name(one: Input, is_volume: bool) -> str:
    """What the files of an input are called but for the suffix, the same in every run. Inputs of different folders may share a
    name, so a part of a checksum of the path is put behind it; a name that would become too long for a disk is cut."""
    stem = "_".join(one.path.parts[-2:]) if one.row else volume_stem(one.path) if is_volume else one.path.stem
    checksum = hashlib.sha256(one.name.encode()).hexdigest()[:10]
    return f"{stem.encode()[:LONGEST_STEM].decode(errors='ignore')}_{checksum}"


def _write_maps(output: Path, one: Input, found: AnomalyResult, size: tuple[int, ...]) -> dict[str, str]:
    """Writes overlay, map, mask and healed image; returns their paths below `output`. A map is stored at most as large
    as `size` (height, width), that of the model's images: beyond, it is interpolated anyway."""
    image, name = found.image, _file_name(one, isinstance(found.image, Volume))
    suffixes = (".nii.gz", ".nii.gz") if isinstance(image, Volume) else (".npy", ".png")
    row = {"overlay": f"overlays/{name}.png", "map": f"maps/{name}{suffixes[0]}", "mask": f"masks/{name}{suffixes[1]}"}
    paths = {key: output / path for key, path in row.items()}
    for path in paths.values():
        path.parent.mkdir(exist_ok=True)
    if isinstance(image, Volume):
        for key, array in (("map", found.anomaly_map), ("mask", found.mask)):
            with writing(paths[key]):
                write_volume(array, paths[key], image)
        with writing(segmentation := output / segmentation_of(row["mask"])):
            segmentation.unlink(missing_ok=True)  # of an earlier call
            write_segmentation(found.mask, image, segmentation)
        picture = found.overlay(_truth_beside(one.path, image))
    else:
        stored = tuple(map(min, found.anomaly_map.shape, size))
        with writing(paths["map"]):
            np.save(paths["map"], restore_map(torch.from_numpy(found.anomaly_map), stored))
        with writing(paths["mask"]):
            Image.fromarray(found.mask).save(paths["mask"])
        if found.is_abnormal and found.unlikely_share:  # else nothing was healed
            row["healed"] = f"healed/{name}.png"
            with writing(healed := output / row["healed"]):
                healed.parent.mkdir(exist_ok=True)
                found.healed_image.reduce(reduction(found.healed_image.size)).save(healed)
        picture = found.overlay()
    with writing(paths["overlay"]):
        picture.save(paths["overlay"])
    return row


def _truth_beside(path: Path, volume: Volume) -> np.ndarray | None:
    """Ground truth (D, H, W) bool that lies beside a volume's file, such as `P1_lesion.nii.gz`; only to be drawn."""
    mask = find_mask_beside(path) if path.is_file() else None
    try:
        return None if mask is None else read_mask(mask, volume.grid)
    except ValueError as error:
        logger.warning("ground truth not drawn: %s", error)
        return None
