"""A generated data set of contaminated inspection images with ground truth: what `iltm-anomaly demo` trains on.

There are two kinds of images: "part" shows a machined plate with screws, bushing and label, always in nearly the same place;
"texture" shows a woven fabric. Good images differ in position, light, grain and camera noise; defects differ in type, size,
contrast and place.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from PIL import Image
from scipy import ndimage

from iltm_anomaly.data.schema import GOOD, build_dataset, mask_to_png
from iltm_anomaly.seeds import sample_seed
from iltm_anomaly.synthetic.defects import DEFECT_TYPES, MACHINE_FAULTS, draw_defect
from iltm_anomaly.synthetic.rendering import Scene, Structure, render_fabric, render_part

KINDS = ("part", "texture")
NOISE_STD = 0.012
"""Standard deviation of the camera noise, of an image in [0, 1]."""
VISIBLE_CHANGE = 0.06
"""A pixel belongs to a defect if a channel differs by more than this (15 grey levels) from the image without the defect."""
_RENDERERS = {"part": render_part, "texture": render_fabric}
# Numbers of the streams of seeds, so that no image of one stream depends on how many another one has.
_TRAIN_GOOD, _TRAIN_DEFECTIVE, _TEST_GOOD, _TEST_DEFECTIVE, _ORDER = range(5)


def generate_dataset(
    kind: str = "part",
    size: int = 128,
    num_train: int = 180,
    num_test_good: int = 30,
    num_test_defective: int = 40,
    contamination: float = 0.1,
    seed: int = 0,
    recurring: bool = False,
) -> DatasetDict:
    """Generates a data set whose training images are contaminated.

    Args:
        kind: "part" or "texture".
        size: pixels along each side, at least 32.
        num_train: training images in all.
        num_test_good: good test images.
        num_test_defective: defective test images, spread evenly over the types.
        contamination: share of defective images among the training images, in [0, 1), rounded to whole images.
        seed: of all images. Each image has a seed of its own, so that asking for more does not change the first ones.
        recurring: draws defects of a part from `MACHINE_FAULTS`, four faults that look alike each time they come back. By
            default they are `DEFECT_TYPES`, and no two defects are alike.

    Returns:
        DatasetDict with the columns of `load_mvtec`. Training images are in random order; their label, defect and mask
        are the truth for evaluation, which training must not read. A mask holds the pixels in which the image visibly
        differs from the same image rendered without the defect, small gaps closed.

    Raises:
        ValueError: unknown kind, or a number out of range.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, got {size}")
    if recurring and kind != "part":
        raise ValueError(f"faults recur of kind 'part' alone, got {kind!r}")
    if not 0 <= contamination < 1:
        raise ValueError(f"contamination must be in [0, 1), got {contamination}: training needs good images too")
    if num_train < 1 or min(num_test_good, num_test_defective) < 0:
        raise ValueError(
            f"num_train must be at least 1 and the others not negative, got num_train={num_train}, "
            f"num_test_good={num_test_good}, num_test_defective={num_test_defective}"
        )
    defects = tuple(MACHINE_FAULTS) if recurring else DEFECT_TYPES
    hidden = round(contamination * num_train)
    train = [
        *_rows(kind, size, num_train - hidden, seed, _TRAIN_GOOD),
        *_rows(kind, size, hidden, seed, _TRAIN_DEFECTIVE, defects),
    ]
    order = np.random.default_rng(sample_seed(seed, _ORDER)).permutation(num_train)
    test = [
        *_rows(kind, size, num_test_good, seed, _TEST_GOOD),
        *_rows(kind, size, num_test_defective, seed, _TEST_DEFECTIVE, defects),
    ]
    return DatasetDict(
        {"train": build_dataset([train[index] for index in order], "train"), "test": build_dataset(test, "test")}
    )


def render_image(kind: str, size: int, defect: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Renders one image.

    Args:
        kind: "part" or "texture".
        size: pixels along each side.
        defect: "good", one of `DEFECT_TYPES`, or for a part one of `MACHINE_FAULTS`.
        seed: of everything in the image.

    Returns:
        (size, size, 3) uint8 image, and (size, size) bool mask of the defect.
    """
    scene = Scene.draw(np.random.default_rng(sample_seed(seed, 0)), size, NOISE_STD)
    surface, _ = _RENDERERS[kind](scene, Structure())
    good = scene.expose(surface)
    if defect == GOOD:
        return _to_bytes(good), np.zeros((size, size), dtype=bool)
    for attempt in range(100):
        structure, damage = draw_defect(kind, defect, np.random.default_rng(sample_seed(seed, 1, attempt)))
        surface, solid = _RENDERERS[kind](scene, structure)
        if damage is not None:
            damage(scene, surface, solid)
        image = scene.expose(surface)
        mask = _close_gaps(np.abs(image - good).max(axis=-1) > VISIBLE_CHANGE)
        # A defect that falls into a hole, or hardly shows, is none: another one is drawn.
        if mask.mean() >= 0.0025:
            return _to_bytes(image), mask
    raise RuntimeError(f"no visible {defect} in 100 attempts for {kind}, size {size}, seed {seed}")


def write_mvtec_tree(dataset: DatasetDict, folder: str | os.PathLike, category: str) -> Path:
    """Writes a data set in the layout of MVTec AD, so that `load_mvtec(folder, category)` gives it back.

    Defective training images go to `train/<defect>`, unlabelled ones to `train` itself. Since training and test share a folder
    of masks for each defect type, the numbers of training images go on where those of the test images end. Images are PNG files.

    Args:
        dataset: DatasetDict with the columns of `load_mvtec`.
        folder: where to put the category; made if need be.
        category: name of the category's folder, which must not exist yet or be empty.

    Returns:
        Path of the category's folder.

    Raises:
        FileExistsError: the category's folder holds something already.
    """
    root = Path(folder).expanduser() / category
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is not empty; choose another folder or category, or delete it")
    numbers: dict[str | None, int] = {}
    for split in ("test", "train"):
        for part in (split, f"{split}/{GOOD}"):
            (root / part).mkdir(parents=True, exist_ok=True)
        for row in dataset.get(split, ()):
            defect = row["defect"]
            key = f"{split}/{GOOD}" if defect == GOOD else defect
            name = f"{numbers.setdefault(key, 0):03d}"
            numbers[key] += 1
            target = root / split / (defect or "") / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            row["image"].save(target)
            if row["mask"] is not None:
                mask_path = root / "ground_truth" / defect / f"{name}_mask.png"
                mask_path.parent.mkdir(parents=True, exist_ok=True)
                row["mask"].save(mask_path)
    return root


def _rows(
    kind: str, size: int, count: int, seed: int, stream: int, defects: tuple[str, ...] = (GOOD,)
) -> Iterator[dict[str, Any]]:
    for number in range(count):
        defect = defects[number % len(defects)]
        image, mask = render_image(kind, size, defect, sample_seed(seed, stream, number))
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        yield {
            "image": {"bytes": buffer.getvalue(), "path": None},
            "mask": None if defect == GOOD else mask_to_png(mask),
            "defect": defect,
        }


def _close_gaps(changed: np.ndarray) -> np.ndarray:
    """Changed pixels (H, W) bool -> mask as an inspector would draw it: few whole regions, not dozens of stripes.

    Displaced texture changes in stripes, and a dent does not change along its middle line. So gaps of up to 4/128 of the image
    are closed, and specks are dropped.
    """
    radius = max(1, round(len(changed) / 64))
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    padded = np.pad(changed, 2 * radius)  # closing eats away what touches the border
    inside = slice(2 * radius, -2 * radius)
    closed = ndimage.binary_closing(padded, x**2 + y**2 <= radius**2)[inside, inside]
    regions, count = ndimage.label(closed, np.ones((3, 3)))
    areas = ndimage.sum_labels(closed, regions, np.arange(count + 1))
    return areas[regions] >= max(4, closed.size / 2000)


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.round(image * 255).astype(np.uint8)
