"""Metrics for anomaly detection and localisation; exact, in numpy, independent of the models.

The Hugging Face `evaluate` module is the folder `aupro/` beside this file: `evaluate.load("<path>/aupro")`. That folder is
deliberately no package: importing a sub-package named `aupro` would replace the function of that name here.
"""

from .evaluation import PerImage, evaluate_maps, per_image_aupro, per_image_auroc
from .plotting import plot_pro_curve
from .ranking import aupr, best_dice, best_f1, dice, image_auroc, pixel_auroc
from .region_overlap import ProCurve, aupro

__all__ = [
    "PerImage",
    "ProCurve",
    "aupr",
    "aupro",
    "best_dice",
    "best_f1",
    "dice",
    "evaluate_maps",
    "image_auroc",
    "per_image_aupro",
    "per_image_auroc",
    "pixel_auroc",
    "plot_pro_curve",
]
