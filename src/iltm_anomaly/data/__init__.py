"""Images in: data sets, contamination, augmentation and the generated inspection set.

`datasets` is imported only when a data set is made, since that takes as long as all else together.
"""

from .augmentation import AugmentationConfig, augment, sample_seed
from .contamination import ContaminationRecord, apply_record, contaminate, contamination_record
from .folder import load_folder, load_images
from .images import ImageReadError, read_image
from .mvtec import list_categories, load_mvtec
from .schema import GOOD, LABEL_NAMES, UNLABELLED
from .synthetic import generate_dataset, write_mvtec_tree

__all__ = [
    "GOOD",
    "LABEL_NAMES",
    "UNLABELLED",
    "AugmentationConfig",
    "ContaminationRecord",
    "ImageReadError",
    "apply_record",
    "augment",
    "contaminate",
    "contamination_record",
    "generate_dataset",
    "list_categories",
    "load_folder",
    "load_images",
    "load_mvtec",
    "read_image",
    "sample_seed",
    "write_mvtec_tree",
]
