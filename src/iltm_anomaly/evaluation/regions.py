"""Connected regions of a mask, as boxes and areas."""

import numpy as np
from scipy import ndimage

MOST_REGIONS = 100  # of one mask: the largest; more are noise that nobody reads


def regions_of(mask: np.ndarray) -> tuple[list[list[int]], list[int]]:
    """Boxes and areas of the connected regions (diagonals count) of a bool mask, the largest `MOST_REGIONS` by falling area.

    Args:
        mask: (H, W) or (D, H, W) bool.

    Returns:
        Boxes: of an image [left, top, right, bottom] in pixels, right and bottom just outside, as `Image.crop` takes them; of a
        volume the first index along each axis of the file, then the ones just outside. Areas: pixels or voxels of each region.
    """
    labels, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    areas = np.bincount(labels.ravel())[1:]
    order = np.argsort(-areas, kind="stable")[:MOST_REGIONS]
    places = ndimage.find_objects(labels)
    axes = (1, 0) if mask.ndim == 2 else (0, 1, 2)
    boxes = [[*(places[i][a].start for a in axes), *(places[i][a].stop for a in axes)] for i in order]
    return boxes, areas[order].tolist()
