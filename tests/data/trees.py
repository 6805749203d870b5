"""Small trees in the layout of MVTec AD."""

from pathlib import Path

import numpy as np
from PIL import Image


def save_image(path: Path, value: int = 128, size: tuple[int, int] = (12, 10), mode: str = "RGB") -> Path:
    """Writes an image of one grey value; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, (value,) * 3 if mode == "RGB" else value).save(path)
    return path


def save_mask(path: Path, size: tuple[int, int] = (12, 10), top: int = 255, mode: str = "L") -> Path:
    """Writes a mask whose left half is defect, with value `top`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((size[1], size[0]), dtype=np.uint16 if mode == "I;16" else np.uint8)
    values[:, : size[0] // 2] = top
    image = Image.fromarray(values)
    (image.convert(mode) if mode not in ("L", "I;16") else image).save(path)
    return path


def make_category(root: Path, good: int = 6, test_good: int = 2, defects: dict[str, int] | None = None) -> Path:
    """A category with `good` training images and `defects` defective test images by type."""
    for number in range(good):
        save_image(root / "train" / "good" / f"{number:03d}.png", number)
    for number in range(test_good):
        save_image(root / "test" / "good" / f"{number:03d}.png", 100 + number)
    for defect, count in (defects or {"crack": 3, "stain": 2}).items():
        for number in range(count):
            save_image(root / "test" / defect / f"{number:03d}.png", 200 + number)
            save_mask(root / "ground_truth" / defect / f"{number:03d}_mask.png")
    return root
