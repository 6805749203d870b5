"""Pictures of one image or volume: its map laid over it, and projections."""

import numpy as np
from PIL import Image

MARGIN = 6  # pixels
MOST_DRAWN = 2048  # pixels along the longer side of what is drawn: colours take some hundred bytes a pixel


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

    if (step := reduction(image.size)) > 1:
        image = image.convert("RGB").reduce(step)
        anomaly_map = largest(anomaly_map, step)
        outline = None if outline is None else largest(outline, step)
    strength = np.clip(((anomaly_map - lowest) / max(threshold - lowest, 1e-12) - 0.5) / 1.5, 0, 1)
    colour = matplotlib.colormaps["turbo"](0.5 + 0.5 * strength)[..., :3]
    alpha = (0.75 * np.minimum(1, 2 * strength))[..., None]
    pixels = (1 - alpha) * np.asarray(image.convert("RGB"), dtype=np.float32) / 255 + alpha * colour
    if outline is not None:
        pixels[edge(outline)] = (1, 0, 1)
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


def reduction(size: tuple[int, int]) -> int:
    """The whole number that a picture of so many pixels is reduced by, so that no side has more than `MOST_DRAWN`."""
    return -(-max(size) // MOST_DRAWN)


def outlined(image: Image.Image, mask: np.ndarray, colour: tuple[int, int, int] = (255, 0, 255)) -> Image.Image:
    """An image in RGB with the edge of a mask (H, W) bool of another size, perhaps, whose smallest region is seen."""
    pixels = np.array(image.convert("RGB"))
    if mask.shape != pixels.shape[:2]:  # a share of a pixel is enough
        shares = Image.fromarray(mask.astype(np.float32)).resize(image.size, Image.Resampling.BOX)
        mask = np.asarray(shares) > 0
    pixels[edge(mask)] = colour
    return Image.fromarray(pixels)


def edge(mask: np.ndarray) -> np.ndarray:
    """Those pixels of a mask (H, W) bool that have a neighbour outside it, or lie at the border."""
    inner = mask.copy()
    inner[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return mask & ~inner


def largest(values: np.ndarray, step: int) -> np.ndarray:
    """Maxima of squares of `step` x `step` values, smaller at the right and lower edge, as `Image.reduce` has them."""
    for axis, side in enumerate(values.shape):
        values = np.maximum.reduceat(values, np.arange(0, side, step), axis)
    return values
