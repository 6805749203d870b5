"""Slices of a volume as one picture, to be scrolled in a report."""

import logging
from pathlib import Path

import numpy as np
from PIL import Image

from iltm_anomaly.data.volume_files import read_mask, read_volume
from iltm_anomaly.data.volume_grid import Volume
from iltm_anomaly.drawing import grey, outlined, window_of
from iltm_anomaly.evaluation.report.content import SIDE, Slices, picture

logger = logging.getLogger(__name__)

MOST_VOLUMES = 40  # of a page with slices, the first ones: some 15 MB
MOST_SLICES = 64  # of a volume, evenly over its height
ACROSS = 8


def read_slices(path: Path, mask_path: Path) -> Slices | None:
    """As `slices_of`, of files; None if one of them cannot be read."""
    try:
        volume = read_volume(path)
        return slices_of(volume, read_mask(mask_path, volume.grid))
    except (ValueError, OSError) as error:
        logger.warning("no slices of a volume: %s", error)
        return None


def slices_of(volume: Volume, abnormal: np.ndarray) -> Slices:
    """Axial slices of a volume from the feet up, as radiologists look at them (the patient's right on the left, the front above),
    with what is abnormal, (D, H, W) bool on its grid, outlined in yellow. The slice that is shown first is the one with most of
    that, or the middle one."""
    values, mask = (volume.grid.to_ras(one) for one in (volume.values, abnormal))
    window, spacing = window_of(values), volume.grid.ras_spacing
    extent = (values.shape[0] * spacing[0], values.shape[1] * spacing[1])
    width, height = (max(1, round(SIDE * side / max(extent))) for side in extent)
    levels = np.unique(np.linspace(0, values.shape[2] - 1, MOST_SLICES).round().astype(int))
    sheet = Image.new("RGB", (ACROSS * width, -(-len(levels) // ACROSS) * height))
    area = []
    for number, (start, stop) in enumerate(zip(levels, [*levels[1:], values.shape[2]], strict=True)):
        shown = grey(_seen(values[:, :, start]), window).resize((width, height), Image.Resampling.BILINEAR)
        outline = _seen(mask[:, :, start:stop].max(2))  # of slices that are left out too
        area.append(int(outline.sum()))
        sheet.paste(outlined(shown, outline, (255, 220, 0)), (number % ACROSS * width, number // ACROSS * height))
    first = int(np.argmax(area)) if any(area) else len(levels) // 2
    return Slices(picture(sheet, "axial slices", max(sheet.size)), len(levels), ACROSS, width, height, first)


def _seen(plane: np.ndarray) -> np.ndarray:
    """(right, front) as a picture."""
    return np.rot90(plane)[:, ::-1]
