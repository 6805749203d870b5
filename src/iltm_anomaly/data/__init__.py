"""Data sets and files: reading and splitting them, and nothing that a model needs to know.

- Images: `mvtec`, `folder` and `hub` load data sets, in the columns of `schema`; `streaming` reads one without storing it.
- Volumes: `volumes` loads data sets; `volume_files` and `dicom` read and write files; `volume_grid` says where voxels lie.
- Both: `images` reads image files and lists folders; `layout` knows the folders of MVTec AD.
- Training: `contamination` hides defects in a training set, by `moved_copies` if they are tested on too; `augmentation` changes
  pixels, `cache` keeps decoded images.

No part of it is imported here, so that reading an image does not wait for torch, nor a data set for scipy.
"""

import os
import re

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""An id of a data set on the Hub: "org/name"."""


def may_be_on_hub(name: str) -> bool:
    """Whether a name can be that of a data set on the Hub alone: it has the form, and no folder here is called like its owner."""
    return HUB_ID.fullmatch(name) is not None and not os.path.lexists(os.path.dirname(name))


GOOD = "good"
"""What the column defect holds for an image without a defect."""

GOOD_NAMES = frozenset({"good", "normal", "ok", "0"})
"""What others call such an image, in lower case."""
