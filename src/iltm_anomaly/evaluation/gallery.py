"""Pictures for people: maps laid over images, projections of volumes, and galleries with one row per image."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image, ImageDraw, ImageFont

from iltm_anomaly.data.images import to_rgb
from iltm_anomaly.data.volume_files import read_mask, read_volume
from iltm_anomaly.evaluation.ground_truth import pixel_mask
from iltm_anomaly.pipeline import ILTMAnomalyOutput

CELL = 160  # pixels
MARGIN = 6
HEADER = 22
LABELS = 150
SCALE = 36
MOST_DRAWN = 2048  # pixels along the longer side of what is drawn: colours take some hundred bytes a pixel


@dataclass
class GalleryRow:
    """
    Args:
        label: lines of text beside the row.
        image, healed: PIL images.
        anomaly_map: (H, W) float32 of the image's size.
        truth: (H, W) bool, the ground truth.
        first_map: (H, W) float32, the map of the first round, scaled to the threshold of the last; None where there is no other
            round.
    """

    label: list[str]
    image: Image.Image
    healed: Image.Image
    anomaly_map: np.ndarray
    truth: np.ndarray
    first_map: np.ndarray | None = None


def window_of(values: np.ndarray) -> tuple[float, float]:
    """(low, high) values of a volume that are shown as black and white: 0, or its lowest if that is below, and its 99.9
    percentile (of PET, some 6 SUV)."""
    low = min(0.0, float(values.min()))
    return low, max(float(np.quantile(values, 0.999)), low + 1e-6)


def project(values: np.ndarray, axis: int = 1) -> np.ndarray:
    """Maxima of a volume in RAS order along an axis, as a picture with the head up. Axis 1 looks from the front: the
    patient's right is on the left, as radiologists look at it; axis 0 from the patient's right, with the front at the right."""
    seen = np.rot90(values.max(axis))
    return seen[:, ::-1] if axis == 1 else seen


def grey(values: np.ndarray, window: tuple[float, float]) -> Image.Image:
    """(H, W) values as a picture, black at the window's lower end and white at its upper one."""
    low, high = window
    values = values.astype(np.float64)  # differences of the largest numbers of float32
    return Image.fromarray((255 * np.clip((values - low) / (high - low), 0, 1)).round().astype(np.uint8))


def draw_projections(
    values: np.ndarray,
    anomaly_map: np.ndarray,
    threshold: float,
    spacing: tuple[float, float, float],
    truth: np.ndarray | None = None,
    lowest: float = 0.0,
) -> Image.Image:
    """Projections of a volume and its map from the front and from the side, plain and overlaid, with voxels made square; each is
    `MOST_DRAWN` pixels along its longer side at the most.

    Args:
        values, anomaly_map, truth: (D, H, W) in RAS order; `truth` bool, drawn as an outline.
        threshold, lowest: of the map, see `overlay`.
        spacing: mm along the three axes.
    """
    window = window_of(values)
    cells = []
    for axis in (1, 0):
        plain = grey(project(values, axis), window)
        outline = None if truth is None else project(truth, axis)
        pictures = [plain.convert("RGB"), overlay(plain, project(anomaly_map, axis), threshold, outline, lowest)]
        across = spacing[0] if axis == 1 else spacing[1]
        extent = (plain.width * across, plain.height * spacing[2])  # mm
        step = min(spacing) / max(1.0, 320 * min(spacing) / extent[1])  # small volumes are enlarged
        step = max(step, max(extent) / MOST_DRAWN)
        size = (max(1, round(extent[0] / step)), max(1, round(extent[1] / step)))
        cells += [picture.resize(size, Image.Resampling.NEAREST) for picture in pictures]
    sheet = Image.new(
        "RGB",
        (sum(cell.width + MARGIN for cell in cells) + MARGIN, max(cell.height for cell in cells) + 2 * MARGIN),
        "white",
    )
    left = MARGIN
    for cell in cells:
        sheet.paste(cell, (left, MARGIN))
        left += cell.width + MARGIN
    return sheet


def overlay(
    image: Image.Image,
    anomaly_map: np.ndarray,
    threshold: float,
    outline: np.ndarray | None = None,
    lowest: float = 0.0,
) -> Image.Image:
    """Lays a map over its image: clear below half the threshold, then from green to red, which is reached at twice the threshold.
    Where the longer side has more than `MOST_DRAWN` pixels, all is reduced by a whole number: squares of the image to their
    means, of the map to their maxima, so that no defect is too small to be seen.

    Args:
        anomaly_map: (H, W), of the image's size.
        threshold: where a pixel begins to be called abnormal.
        outline: (H, W) bool, whose edge is drawn in magenta: neither greys nor the colours of a map come near it.
        lowest: value of a map where nothing is abnormal (`settings.lowest_value`); half and twice are measured from it.
    """
    import matplotlib

    if (step := -(-max(image.size) // MOST_DRAWN)) > 1:
        image = image.convert("RGB").reduce(step)
        anomaly_map = _largest(anomaly_map, step)
        outline = None if outline is None else _largest(outline, step)
    strength = np.clip(((anomaly_map - lowest) / max(threshold - lowest, 1e-12) - 0.5) / 1.5, 0, 1)
    colour = matplotlib.colormaps["turbo"](0.5 + 0.5 * strength)[..., :3]
    alpha = (0.75 * np.minimum(1, 2 * strength))[..., None]
    pixels = (1 - alpha) * np.asarray(image.convert("RGB"), dtype=np.float32) / 255 + alpha * colour
    if outline is not None:
        inner = outline.copy()
        inner[1:-1, 1:-1] &= outline[:-2, 1:-1] & outline[2:, 1:-1] & outline[1:-1, :-2] & outline[1:-1, 2:]
        pixels[outline & ~inner] = (1, 0, 1)
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


def _largest(values: np.ndarray, step: int) -> np.ndarray:
    """Maxima of squares of `step` x `step` values, smaller at the right and lower edge, as `Image.reduce` has them."""
    for axis, side in enumerate(values.shape):
        values = np.maximum.reduceat(values, np.arange(0, side, step), axis)
    return values


def draw_gallery(rows: list[GalleryRow], threshold: float, path: Path, lowest: float = 0.0) -> None:
    """Writes the rows as one PNG, with columns for input, ground truth, healed image, and map of the first round, if there is
    another one, and of the last; below them is the scale of colours. `threshold` and `lowest` are as of `overlay`."""
    font, compared = ImageFont.load_default(13), all(row.first_map is not None for row in rows)
    columns = [
        "input",
        "ground truth",
        "healed",
        *(["first round", "last round"] if compared else ["abnormality map"]),
    ]
    width = LABELS + len(columns) * (CELL + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, HEADER + len(rows) * (CELL + MARGIN) + MARGIN + SCALE), "white")
    pen = ImageDraw.Draw(sheet)
    lefts = [LABELS + MARGIN + index * (CELL + MARGIN) for index in range(len(columns))]
    for left, column in zip(lefts, columns, strict=True):
        pen.text((left, 4), column, fill="black", font=font)
    for index, row in enumerate(rows):
        top = HEADER + MARGIN + index * (CELL + MARGIN)
        pen.multiline_text((MARGIN, top + 4), "\n".join(row.label), fill="black", font=font)
        truth = Image.fromarray(row.truth.astype(np.uint8) * 255)
        maps = [row.first_map] if compared and row.first_map is not None else []
        coloured = [overlay(row.image, one, threshold, lowest=lowest) for one in (*maps, row.anomaly_map)]
        for left, cell in zip(lefts, (row.image, truth, row.healed, *coloured), strict=True):
            sheet.paste(cell.convert("RGB").resize((CELL, CELL), Image.Resampling.BICUBIC), (left, top))
    _draw_scale(sheet, lefts[0], sheet.height - SCALE, lefts[-1] + CELL - lefts[0], font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _draw_scale(sheet: Image.Image, left: int, top: int, width: int, font: Any) -> None:
    """Draws the colours of `overlay` from 0 to 2 thresholds, with words, in a strip of height `SCALE`."""
    ramp = np.tile(np.linspace(0, 2, width), (10, 1))
    sheet.paste(overlay(Image.new("RGB", (width, 10), "gray"), ramp, 1.0), (left, top))
    pen = ImageDraw.Draw(sheet)
    for share, text in ((0.0, "normal"), (0.5, "threshold: abnormal from here on"), (1.0, "twice the threshold")):
        place = left + share * width
        pen.line((place, top, place, top + 13), fill="black")
        anchor = {0.0: "la", 0.5: "ma", 1.0: "ra"}[share]
        pen.text((place, top + 14), text, fill="black", font=font, anchor=anchor)


def gallery_rows(
    dataset: Dataset, output: ILTMAnomalyOutput, count: int = 10, first_maps: list[np.ndarray] | None = None
) -> list[GalleryRow]:
    """Rows for up to two good images, and for defective ones spread evenly over the data set, up to `count` in all; `first_maps`
    are the maps of the first round."""
    labels = np.array(dataset["label"])
    good, defective = np.flatnonzero(labels != 1), np.flatnonzero(labels == 1)
    spread = np.linspace(0, len(defective) - 1, min(count - 2, len(defective))).round().astype(int)
    chosen = [*good[:2], *defective[spread]]
    make_row = volume_row if dataset.features["image"].dtype == "string" else image_row
    rows = [make_row(dataset[int(index)], output, int(index)) for index in chosen]
    for index, row in zip(chosen, rows, strict=True):
        row.label.append("abnormal" if output.masks[int(index)].any() else "normal")
        if first_maps is not None and make_row is image_row:
            row.first_map = first_maps[int(index)]
    return rows


def image_row(row: dict[str, Any], output: ILTMAnomalyOutput, index: int) -> GalleryRow:
    """The picture of one row of a data set of images; `index` is its place in `output`."""
    return GalleryRow(
        label=[row["defect"] or "good", f"score {output.scores[index]:.2f}"],
        image=to_rgb(row["image"]),
        healed=output.healed_images[index],
        anomaly_map=output.anomaly_maps[index],
        truth=pixel_mask(row["mask"], row["image"].size),
    )


def volume_row(row: dict[str, Any], output: ILTMAnomalyOutput, index: int) -> GalleryRow:
    """The same of a volume: projections from the front, in the window of the input, with square pixels and padded to squares."""
    volume = read_volume(row["image"])
    grid, window = volume.grid, window_of(volume.values)
    width, _, height = grid.ras_spacing

    def square(values: np.ndarray, outside: float = 0.0) -> np.ndarray:
        seen = project(grid.to_ras(values))
        extents = [n * mm for n, mm in zip(seen.shape, (height, width), strict=True)]
        step = max(min(width, height), max(extents) / MOST_DRAWN)
        lengths = [max(1, round(extent / step)) for extent in extents]
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
