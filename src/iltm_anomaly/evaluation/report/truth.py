"""What is known of images that lie in the layout of MVTec AD, and how well their scores and maps tell it."""

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from iltm_anomaly.data import GOOD, mvtec, volumes
from iltm_anomaly.data.layout import place_in_test
from iltm_anomaly.data.volume_files import find_mask_beside, is_volume_file, read_mask, read_volume
from iltm_anomaly.evaluation.report.plots import Plot, make_plot
from iltm_anomaly.metrics import ProCurve, StreamingAUPRO, aupr, image_auroc, image_curves
from iltm_anomaly.processing.images import restore_map

logger = logging.getLogger(__name__)

MOST_SIDE = 512  # pixels of a map along its longer side when it is compared with ground truth
MOST_VOXELS = 256  # the same of a volume
UNIT = ((0.0, 1.0), (0.0, 1.0))


@dataclass(frozen=True)
class Known:
    """
    Args:
        defect: its type, "good" for none, or "lesions" where nothing but ground truth tells it.
        mask: file or folder of ground truth; None of a good image, or where there is none.
    """

    defect: str
    mask: Path | None

    @property
    def is_defective(self) -> bool:
        return self.defect != GOOD


@dataclass(frozen=True)
class Truth:
    """
    Args:
        numbers: name and value of each metric.
        plots: curves; "roc" and "precision-recall" of images, "pro" of pixels, those that are defined.
        remarks: sentences about them.
    """

    numbers: list[tuple[str, float]]
    plots: list[Plot]
    remarks: list[str]


def known_of(path: Path) -> Known | None:
    """What is known of an image or volume by where it lies; None where nothing is."""
    is_volume = is_volume_file(path)
    if (place := place_in_test(path)) is not None:
        folder, defect = place
        find = volumes.find_mask if is_volume else mvtec.find_mask
        return Known(defect, None if defect == GOOD else find(folder, path, defect))
    mask = find_mask_beside(path) if is_volume and path.is_file() else None
    return None if mask is None else Known("lesions", mask)


def marked(known: Known, image: Path, size: tuple[int, int] | None = None) -> np.ndarray | None:
    """Ground truth of an image, (H, W) bool, of a volume (D, H, W); all False of a good image. None if it cannot be read.

    Args:
        size: (height, width) of a good image.
    """
    try:
        if is_volume_file(image):
            return read_mask(known.mask, read_volume(image).grid)
        if known.mask is None:
            return np.zeros(size, dtype=bool) if size is not None else None
        return mvtec.marked_pixels(known.mask)
    except (ValueError, OSError) as error:
        logger.warning("ground truth left out: %s", error)
        return None


def read_map(path: Path) -> np.ndarray | None:
    """A map that `detect` has written, (H, W) of an image, (D, H, W) of a volume, float32; None, and a warning, if it cannot be
    read or is none."""
    try:
        values = read_volume(path).values if is_volume_file(path) else np.load(path)
        if not isinstance(values, np.ndarray) or values.ndim != 2 + is_volume_file(path) or not values.size:
            raise ValueError(f"{path} holds no map")
        values = values.astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError(f"{path} holds NaN or infinity")
    except (ValueError, OSError, EOFError, TypeError) as error:
        logger.warning("map left out: %s", error)
        return None
    return values


class PixelTruth:
    """Compares maps with ground truth, one after the other, in bounded memory."""

    def __init__(self) -> None:
        self.found, self.has_defect = StreamingAUPRO(), False

    def add(self, path: Path, known: Known, image: Path) -> None:
        """Adds a map that `detect` has written, .npy or NIfTI. What cannot be read, and a defective image without ground truth,
        is left out."""
        if known.is_defective and known.mask is None:
            return
        values = read_map(path)
        mask = None if values is None else marked(known, image, values.shape)
        if values is None or mask is None or mask.ndim != values.ndim:
            return
        if values.ndim == 3:
            if mask.shape != values.shape:
                return
            thinned = (slice(None, None, -(-max(values.shape) // MOST_VOXELS)),) * 3
            values, mask = values[thinned], mask[thinned]
        else:
            reduced = max(1.0, max(mask.shape) / MOST_SIDE)
            height, width = (max(1, round(side / reduced)) for side in mask.shape)
            values = restore_map(torch.from_numpy(values), (height, width))
            mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
        self.compare(values, mask)

    def compare(self, values: np.ndarray, mask: np.ndarray) -> None:
        """Adds a map (H, W) or (D, H, W) and its ground truth, bool."""
        self.has_defect |= bool(mask.any())
        self.found.update([values], [mask], spatial_dims=values.ndim)

    def curve(self) -> ProCurve | None:
        """PRO against the false positive rate; None if no ground truth was compared with."""
        curve = self.found.compute(return_curve=True) if self.has_defect else None
        return curve if isinstance(curve, ProCurve) else None


def measure(scores: list[float], defective: list[bool], pro: ProCurve | None, remarks: list[str]) -> Truth | None:
    """Metrics and curves of images whose state is known; None if nothing can be told."""
    numbers: list[tuple[str, float]] = []
    plots: list[Plot] = []
    draw = partial(make_plot, ranges=UNIT)
    if 0 < sum(defective) < len(defective):
        curves = image_curves(scores, defective)
        auroc, precision = image_auroc(scores, defective), aupr(scores, defective)
        numbers += [("image AUROC", auroc), ("image average precision", float(precision))]
        across = (np.append(0.0, curves.false_alarms), np.append(0.0, curves.recall))
        said = f"ROC curve of {len(scores)} images; the area below it is {auroc:.4f}"
        axes = ("share of good images called abnormal", "share of defective ones found")
        plots.append(draw("roc", "ROC, images", axes, said, {"": across}))
        gained = np.diff(curves.recall, prepend=0.0) > 0
        steps = np.repeat(np.append(0.0, curves.recall[gained]), 2)[1:-1], np.repeat(curves.precision[gained], 2)
        said = f"Precision against recall of {len(scores)} images; average precision is {precision:.4f}"
        axes = ("share of defective ones found (recall)", "precision")
        plots.append(draw("precision-recall", "Precision and recall, images", axes, said, {"": steps}))
    if pro is not None:
        numbers.append((f"AUPRO to {pro.limit:g}", pro.aupro))
        thin = pro.thin()
        said = f"Per-region overlap against false positive rate; the area up to {pro.limit:g} is {pro.aupro:.4f}"
        axes = ("share of normal pixels called abnormal", "mean share of a defect found")
        ranges = ((0.0, pro.limit), (0.0, 1.0))
        plots.append(make_plot("pro", "PRO, pixels", axes, said, {"": (thin.fpr, thin.pro)}, ranges))
    return Truth(numbers, plots, remarks) if plots else None
