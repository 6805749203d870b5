"""Metrics for anomaly detection and localisation; exact, in numpy, independent of the models.

`aupro` follows the official definition of MVTec AD; `StreamingAUPRO` gives it in bounded memory with an error bound.
The Hugging Face `evaluate` module is the folder `aupro/` beside this file: `evaluate.load("<path>/aupro")`. That
folder is deliberately no package: importing a sub-package named `aupro` would replace the function of that name here.
"""

from .evaluation import PerImage, evaluate_maps, per_image_aupro, per_image_auroc
from .lesions import LesionCurve, lesion_curve, lesion_detection
from .plotting import plot_pro_curve
from .ranking import ImageCurves, aupr, best_dice, best_f1, dice, image_auroc, image_curves, pixel_auroc
from .region_overlap import ProCurve, aupro
from .streaming import StreamingAUPRO

__all__ = [
    "ImageCurves",
    "LesionCurve",
    "PerImage",
    "ProCurve",
    "StreamingAUPRO",
    "aupr",
    "aupro",
    "best_dice",
    "best_f1",
    "dice",
    "evaluate_maps",
    "image_auroc",
    "image_curves",
    "lesion_curve",
    "lesion_detection",
    "per_image_aupro",
    "per_image_auroc",
    "pixel_auroc",
    "plot_pro_curve",
]
