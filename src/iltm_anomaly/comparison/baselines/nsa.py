"""NSA, natural synthetic anomalies (Schlüter, Tan, Hou, Kainz, ECCV 2022): patches of another training image are blended into an
image without seams (Poisson image editing), and a ResNet-18 encoder-decoder learns to say where, and how strongly, the image was
changed.

The source keeps patches on the object by the brightness of the background, which it has for each category. This is left out:
where a patch changes nothing visibly there is no label anyway. The source's other settings of each category are in `of_category`.
"""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ResNetModel

from iltm_anomaly.comparison.baselines.modeling import (
    AnomalyModelOutput,
    BaselineRecipe,
    MissingExtraError,
    unit_range,
)
from iltm_anomaly.comparison.baselines.resnet import ResNetBaselineConfig, ResNetBaselineModel, narrow
from iltm_anomaly.data.augmentation import AugmentationConfig, augment
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.recipes.pixel_recipe import StageRecipe
from iltm_anomaly.seeds import sample_seed
from iltm_anomaly.tokenizers.features.backbones import imagenet_normalized

REFERENCE_SIDE = 256  # side, in pixels, of the images that sizes of filters and areas refer to
SMALLEST_AREA = 50  # pixels within the border of a patch; the source blends no smaller ones
SMALLEST_CLONE = 5  # pixels along a side, below which OpenCV does not blend reliably
# The source crops 224 of the middle 230 of 256 pixels, which is a shift by up to 3.
SHIFT = AugmentationConfig(
    affine_probability=1.0,
    rotation=0.0,
    translation=3.0,
    scale=0.0,
    padding_mode="border",
    contrast_probability=0.0,
    intensity_probability=0.0,
    noise_probability=0.0,
)


@strict
class NSAConfig(ResNetBaselineConfig):
    """Configuration of `NSAModel`. Defaults are the source's; where that has a value for each category, they are the defaults of
    its functions.

    Args:
        max_patches: most patches blended into an image. There is one, and each further one with probability 1/2.
        half_height, half_width: smallest and largest half side of a patch, as a share of the image's side. It is drawn from
            0.03 + Gamma(2, 0.05) and clipped. The whole side of the resized patch is clipped to the same two, as in the source.
        rotation: largest angle, in degrees, by which training images are turned.
        flip: turn a training image upside down with probability 1/2.
        resize: smallest and largest factor by which a patch is resized; it is drawn from N(1, 0.5) and clipped.
        tolerance: changes of intensity up to this, of 255, count as none.
        slope, midpoint: of the logistic curve from the change of intensity to the label.
    """

    model_type = "iltm_nsa"

    max_patches: int = 3
    half_height: tuple[float, ...] | list[float] = (0.03, 0.4)
    half_width: tuple[float, ...] | list[float] = (0.03, 0.4)
    rotation: float = 0.0
    flip: bool = False
    resize: tuple[float, ...] | list[float] = (0.7, 1.3)
    tolerance: float = 1.0
    slope: float = 1 / 6
    midpoint: float = 20.0

    def validate_patches(self):
        """Raises ValueError where a size is out of range."""
        self.check_ranges("half_height", "half_width", "resize")
        if self.max_patches < 1 or max(self.half_height[1], self.half_width[1]) > 0.45:
            raise ValueError(
                "need max_patches >= 1 and half sides up to 0.45, got "
                f"{self.max_patches}, half_height {self.half_height} and half_width {self.half_width}"
            )
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation must be 0 to 180 degrees, got {self.rotation}")


TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
UNALIGNED = ("bottle", "hazelnut", "metal_nut", "screw")
LONGER = ("hazelnut", "metal_nut", "screw")  # trained for 560 epochs rather than 320
CURVES = {  # slope and midpoint
    **dict.fromkeys(("bottle", "cable", "hazelnut"), (1 / 12, 24.0)),
    **dict.fromkeys(("carpet", "grid", "leather", "tile", "metal_nut", "pill"), (1 / 3, 7.0)),
    **dict.fromkeys(("toothbrush", "transistor", "wood", "zipper"), (1 / 6, 15.0)),
    "capsule": (1 / 2, 4.0),
    "screw": (1.0, 3.0),
}
SIDES: dict[str, dict[str, tuple[float, float]]] = {  # sides of patches that are not the defaults
    "cable": {"half_height": (0.05, 0.4), "half_width": (0.05, 0.4)},
    "capsule": {"half_height": (0.03, 0.15)},
    "hazelnut": {"half_height": (0.03, 0.35), "half_width": (0.03, 0.35)},
    "pill": {"half_height": (0.03, 0.2)},
    "screw": {"half_height": (0.03, 0.12), "half_width": (0.03, 0.12)},
    "toothbrush": {"half_width": (0.03, 0.2)},
    "zipper": {"half_width": (0.03, 0.2)},
}


def of_category(category: str) -> dict[str, Any]:
    """The fields of `NSAConfig` for a category of MVTec AD by the source (hmsch/natural-synthetic-anomalies, train_mvtec.py);
    empty for any other category."""
    if category not in CURVES:
        return {}
    slope, midpoint = CURVES[category]
    settings: dict[str, Any] = {"slope": slope, "midpoint": midpoint, **SIDES.get(category, {})}
    if category in (*TEXTURES, "screw", "zipper"):
        settings["max_patches"] = 4
    if category in TEXTURES:
        settings |= {"resize": (0.5, 2.0), "flip": True}
    if category in UNALIGNED:
        settings["rotation"] = 5.0
    return settings


class UpBlock(nn.Module):
    """Twice the resolution, then a residual block of two 3-convolutions."""

    def __init__(self, entering: int, width: int):
        super().__init__()
        self.shortcut = nn.Sequential(nn.Conv2d(entering, width, 1, bias=False), nn.BatchNorm2d(width))
        self.layers = nn.Sequential(
            nn.Conv2d(entering, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return torch.relu(self.layers(x) + self.shortcut(x))


class NSAModel(ResNetBaselineModel):
    """Map: probability that a pixel was changed. Score: the map's mean."""

    config_class = NSAConfig
    resnet_name = "encoder"
    version = 2  # patches and labels are those of the source's code; in version 1 patches were up to twice as long
    recipes: ClassVar[dict[str, BaselineRecipe]] = {
        "paper": BaselineRecipe(
            StageRecipe(epochs=320, batch_size=64, learning_rate=1e-3, warmup=0.0, max_grad_norm=0), {"smoothing": 0.0}
        ),
        "cpu": BaselineRecipe(
            StageRecipe(steps=4000, batch_size=16, learning_rate=1e-3), {**narrow(32), "smoothing": 0.0}, "bf16"
        ),
        "tiny": BaselineRecipe(
            StageRecipe(steps=400, batch_size=8, learning_rate=3e-3), {**narrow(8), "smoothing": 0.0}
        ),
    }

    def __init__(self, config: NSAConfig):
        super().__init__(config)
        self.encoder = ResNetModel(config.resnet)
        widths = tuple(reversed(config.hidden_sizes))
        self.middle = nn.Sequential(nn.Conv2d(widths[0], widths[0], 1), nn.ReLU())
        self.decoder = nn.Sequential(*[UpBlock(a, b) for a, b in pairwise(widths)])
        self.to_map = nn.ConvTranspose2d(widths[-1], 1, 4, stride=2, padding=1)
        self.post_init()

    @classmethod
    def recipe_for(
        cls, preset: str, category: str | None = None, config: dict[str, Any] | None = None
    ) -> BaselineRecipe:
        own = of_category(category) if category is not None and preset == "paper" else {}
        recipe = super().recipe_for(preset, config=own | (config or {}))
        if not own or category not in LONGER or recipe.stage is None:
            return recipe
        return replace(recipe, stage=replace(recipe.stage, epochs=560))

    @classmethod
    def configure(cls, processor: ILTMImageProcessor, num_images: int, settings: dict[str, Any]) -> NSAConfig:
        open_cv()  # before the first step rather than in a thread at it
        return super().configure(processor, num_images, settings)

    def training_batch(self, images: Any, indices: Tensor, seed: int) -> dict[str, Tensor]:
        """Every image of the step with patches of another image blended in, and the labels of its pixels."""
        seeds = [sample_seed(seed, number) for number in range(len(indices))]
        others = [np.random.default_rng(sample_seed(s, 1)).integers(len(images)) for s in seeds]
        both = torch.stack([images[int(i)] for i in [*indices, *others]])
        if self.config.flip:
            chances = [np.random.default_rng(sample_seed(seed, number, 3)).random() for number in range(len(both))]
            both = torch.stack([i.flip(-2) if c < 0.5 else i for i, c in zip(both, chances, strict=True)])
        shifts = [sample_seed(seed, number, 2) for number in range(len(both))]
        moves = replace(SHIFT, rotation=math.radians(self.config.rotation))
        shifted = (augment(unit_range(both), moves, shifts) * 255).round().to(torch.uint8)
        arrays = shifted.permute(0, 2, 3, 1).numpy()
        changed, labels = [], []
        for image, other, s in zip(arrays[: len(indices)], arrays[len(indices) :], seeds, strict=True):
            result, label = natural_synthetic_anomaly(image, other, self.config, s)
            changed.append(torch.from_numpy(result).permute(2, 0, 1))
            labels.append(torch.from_numpy(label))
        return {"pixel_values": unit_range(torch.stack(changed)), "labels": torch.stack(labels)}

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> AnomalyModelOutput:
        """Takes images (B, C, H, W) and labels (B, H, W) in [0, 1]. Loss: binary cross entropy. Prediction: logits (B, H, W)."""
        self.check_pixels(pixel_values)
        features = self.decoder(self.middle(self.encoder(imagenet_normalized(pixel_values)).last_hidden_state))
        features = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
        height, width = self.config.image_size
        logits = self.to_map(features)[:, 0, :height, :width].float()  # the encoder rounds sizes up
        loss = None if labels is None else F.binary_cross_entropy_with_logits(logits, labels.float())
        return AnomalyModelOutput(loss=loss, prediction=logits)

    @torch.no_grad()
    def anomaly_maps(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.smoothed(self(pixel_values).prediction.sigmoid())
        return maps.mean((1, 2)), maps


def open_cv() -> Any:
    """The module `cv2`.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError(
            "NSA blends patches by OpenCV, which is not installed: pip install 'iltm-anomaly[baselines]'"
        ) from error
    cv2.setNumThreads(1)  # patches are small, and steps are prepared in several threads already
    return cv2


# The task, on arrays (H, W, C) uint8


def natural_synthetic_anomaly(
    image: np.ndarray, source: np.ndarray, config: NSAConfig, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Blends patches of `source` into `image`.

    Returns:
        The new image, and its labels (H, W) float32 in [0, 1], 0 outside the patches.
    """
    generator = np.random.default_rng(seed)
    result, where = image, np.zeros(image.shape[:2], dtype=bool)
    for number in range(config.max_patches):
        if number == 0 or generator.random() < 0.5:
            result, box = blend_patch(result, source, config, generator)
            where[box] = True
    return result, intensity_labels(image, result, where, config)


def blend_patch(
    image: np.ndarray, source: np.ndarray, config: NSAConfig, generator: np.random.Generator
) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Blends one patch of `source`, resized, into `image`.

    Returns:
        The new image, and the rows and columns of the patch in it. If the patch is too small, or OpenCV cannot blend it, the
        image is as it was, and there are no such rows and columns.
    """
    cv2 = open_cv()
    sides, nothing = np.array(image.shape[:2]), (image, (slice(0, 0), slice(0, 0)))
    shares = np.transpose([config.half_height, config.half_width])
    smallest, largest = np.maximum(1, np.round(shares * sides)).astype(int)
    halves = np.clip((0.03 + generator.gamma(2, 0.05, 2)) * sides, smallest, largest).astype(int)
    middle = generator.integers(smallest, sides - smallest)
    (top, left), (bottom, right) = np.maximum(middle - halves, 0), np.minimum(middle + halves, sides)
    patch = source[top:bottom, left:right]
    scale = float(np.clip(generator.normal(1, 0.5), *config.resize))
    rows, columns = (max(SMALLEST_CLONE, n) for n in resized_sides(patch.shape[:2], scale, smallest, largest))
    if (rows - 2) * (columns - 2) < SMALLEST_AREA * (max(sides) / REFERENCE_SIDE) ** 2:
        return nothing
    patch = cv2.resize(patch, (columns, rows)).reshape(rows, columns, -1)
    to_y, to_x = (int(generator.integers(1, n)) for n in sides - (rows, columns))
    box = (slice(to_y, to_y + rows), slice(to_x, to_x + columns))
    mask = np.zeros((rows, columns), dtype=np.uint8)
    mask[1:-1, 1:-1] = 255  # the seam runs along the border of the mask, which must lie within the patch
    center = (to_x + columns // 2, to_y + rows // 2)
    three = [np.ascontiguousarray(np.broadcast_to(a, (*a.shape[:2], 3))) for a in (patch, image)]
    try:
        blended = cv2.seamlessClone(three[0], three[1], mask, center, cv2.NORMAL_CLONE)
    except cv2.error:
        return nothing
    result = image.copy()
    result[box] = blended[box][..., : image.shape[2]]
    return result, box


def resized_sides(sides: tuple[int, ...], scale: float, smallest: np.ndarray, largest: np.ndarray) -> tuple[int, int]:
    """Height and width of a patch of `sides` after it is resized by `scale`. Its shape is kept as far as the limits allow."""
    height, width = sides
    new_height = np.clip(scale * height, smallest[0], largest[0])
    new_width = np.clip(int(new_height / height * width), smallest[1], largest[1])
    return int(np.clip(int(new_width / width * height), smallest[0], largest[0])), int(new_width)


def intensity_labels(before: np.ndarray, after: np.ndarray, where: np.ndarray, config: NSAConfig) -> np.ndarray:
    """Labels (H, W) float32 in [0, 1]: how strongly each pixel was changed, 0 where nothing visible happened.

    The label is a logistic function of the median change of intensity in a disc about the pixel, as in the source. The change is
    the mean over channels, of 255. `where` (H, W) bool tells the patches.
    """
    cv2 = open_cv()
    scale = max(before.shape[:2]) / REFERENCE_SIDE
    change = np.abs(before.astype(np.float32) - after.astype(np.float32)).mean(-1) * where
    visible = cv2.medianBlur((change > config.tolerance).astype(np.uint8), _odd(5 * scale))
    strength = disc_median(change * visible, 5 * scale)
    labels = visible / (1 + np.exp(-config.slope * (strength - config.midpoint)))
    return (labels * where).astype(np.float32)


def disc_median(values: np.ndarray, radius: float) -> np.ndarray:
    """Medians of `values` (H, W), none below 0, over a disc about each pixel; 0 outside the box of those above 0."""
    result = np.zeros_like(values)
    if not values.any():
        return result
    reach = math.floor(radius)
    # the filter needs what is around the box, too
    spans = [np.flatnonzero(values.any(axis)) for axis in (1, 0)]
    box = tuple(slice(max(0, span[0] - reach), span[-1] + 1 + reach) for span in spans)
    across, down = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    result[box] = ndimage.median_filter(values[box], footprint=across**2 + down**2 <= radius**2, mode="nearest")
    return result


def _odd(size: float) -> int:
    return max(3, 2 * math.floor(size / 2) + 1)
