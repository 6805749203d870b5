"""CutPaste (Li et al., "CutPaste: self-supervised learning for anomaly detection and localization", CVPR 2021): the three-way
task on patches, which is its variant for localisation.

A ResNet learns to tell unchanged patches from patches with a pasted rectangle and from patches with a pasted scar. Afterwards its
features are given two Gaussian densities: one of overlapping patches for the map, one of whole images for the score.
"""

import math
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ResNetModel

from iltm_anomaly.comparison.baselines.density import GaussianDensity
from iltm_anomaly.comparison.baselines.modeling import (
    AnomalyModelOutput,
    BaselineRecipe,
    unit_range,
)
from iltm_anomaly.comparison.baselines.resnet import ResNetBaselineConfig, ResNetBaselineModel, narrow
from iltm_anomaly.processing.images import LUMA
from iltm_anomaly.recipes.pixel_recipe import StageRecipe
from iltm_anomaly.seeds import sample_seed
from iltm_anomaly.tokenizers.features.backbones import imagenet_normalized

NORMAL, CUT_PASTE, SCAR = range(3)  # classes
REFERENCE_SIDE = 256  # side, in pixels, of the images that sizes of scars refer to
PATCHES_AT_ONCE = 1024
# Turning the two colour axes of YIQ changes the hue.
RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


@strict
class CutPasteConfig(ResNetBaselineConfig):
    """Configuration of `CutPasteModel`. Sizes of patches and scars are those of the paper and of its public re-implementation.

    Args:
        head_sizes: hidden layers between the pooled features, which the densities are fitted to, and the classes.
        patch_share: side of a patch over the image's shorter side; by default 64 of 256 pixels.
        steps_per_patch: number of overlapping patches that start within a patch's side.
        area: smallest and largest share of a patch that is pasted over.
        aspect: smallest ratio of a pasted rectangle's sides; the largest is its inverse.
        scar_width, scar_length: smallest and largest, in pixels of an image with sides of 256.
        scar_angle: largest angle by which a scar is turned, in degrees.
        jitter: strength of `color_jitter`, for the patch and for what is pasted into it.
        density_patches: number of training patches that the density of patches is fitted to.
    """

    model_type = "iltm_cutpaste"
    fixed_fields = (*ResNetBaselineConfig.fixed_fields, "smoothing")  # maps of overlapping patches are smooth

    head_sizes: tuple[int, ...] | list[int] = (512, 128)
    patch_share: float = 0.25
    steps_per_patch: int = 16
    area: tuple[float, ...] | list[float] = (0.02, 0.15)
    aspect: float = 0.3
    scar_width: tuple[float, ...] | list[float] = (2.0, 16.0)
    scar_length: tuple[float, ...] | list[float] = (10.0, 25.0)
    scar_angle: float = 45.0
    jitter: float = 0.1
    density_patches: int = 20_000

    def validate_patches(self):
        """Raises ValueError where a size is out of range."""
        if not 0 < self.patch_share <= 1 or self.steps_per_patch < 1:
            raise ValueError(
                f"need patch_share in (0, 1] and steps_per_patch >= 1, got {self.patch_share} and {self.steps_per_patch}"
            )
        self.check_ranges("area", "scar_width", "scar_length")
        if not (0 < self.aspect <= 1 and 0 <= self.jitter < 1 and self.area[1] < 1):
            raise ValueError(
                f"need aspect in (0, 1], jitter in [0, 1), area < 1; got {self.aspect}, {self.jitter}, {self.area}"
            )

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return max(8, round(self.patch_share * min(self.image_size)))

    @property
    def stride(self) -> int:
        """Pixels between overlapping patches."""
        return max(1, self.patch_size // self.steps_per_patch)


_stage = partial(StageRecipe, learning_rate=0.03, weight_decay=3e-5, optimizer="sgd")


class CutPasteModel(ResNetBaselineModel):
    """Map: Mahalanobis distance of each overlapping patch, spread over its pixels. Score: that of the whole image."""

    config_class = CutPasteConfig
    recipes: ClassVar[dict[str, BaselineRecipe]] = {
        "paper": BaselineRecipe(_stage(steps=65_536, batch_size=64, warmup=0.0, max_grad_norm=0)),
        "cpu": BaselineRecipe(
            _stage(steps=4000, batch_size=32, max_grad_norm=0), {**narrow(32), "steps_per_patch": 8}
        ),
        "tiny": BaselineRecipe(
            _stage(steps=100, batch_size=8),
            {**narrow(8), "steps_per_patch": 4, "head_sizes": (16,), "density_patches": 1000},
        ),
    }
    resnet_name = "resnet"

    def __init__(self, config: CutPasteConfig):
        super().__init__(config)
        self.resnet = ResNetModel(config.resnet)
        sizes = (config.hidden_sizes[-1], *config.head_sizes)
        head: list[nn.Module] = []
        for entering, size in pairwise(sizes):
            head += [nn.Linear(entering, size, bias=False), nn.BatchNorm1d(size), nn.ReLU()]
        self.head = nn.Sequential(*head, nn.Linear(sizes[-1], 3))
        self.patch_density = GaussianDensity(sizes[0])
        self.image_density = GaussianDensity(sizes[0])
        self.post_init()

    def training_batch(self, images: Any, indices: Tensor, seed: int) -> dict[str, Tensor]:
        """A patch of every image three times: unchanged, with a rectangle and with a scar."""
        patches = [
            three_way(unit_range(images[int(index)]).numpy(), self.config, sample_seed(seed, number))
            for number, index in enumerate(indices)
        ]
        labels = torch.tensor([NORMAL, CUT_PASTE, SCAR]).repeat(len(indices))
        return {"pixel_values": torch.from_numpy(np.concatenate(patches)), "labels": labels}

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Pooled features (B, D) of patches or images of any size."""
        return self.resnet(imagenet_normalized(pixel_values)).pooler_output.flatten(1)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> AnomalyModelOutput:
        """Patches (P, C, h, w) and classes (P,). Loss: cross entropy. Prediction: logits (P, 3)."""
        logits = self.head(self.embed(pixel_values))
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return AnomalyModelOutput(loss=loss, prediction=logits)

    @torch.no_grad()
    def fit_statistics(self, images: Any, seed: int) -> None:
        """Fits both densities to unchanged training images."""
        generator = torch.Generator().manual_seed(seed)
        per_image = max(1, -(-self.config.density_patches // len(images)))
        of_patches, of_images = [], []
        for batch in self.batches(images):
            of_images.append(self.embed(batch))
            patches, grid = overlapping_patches(batch, self.config)
            patches = patches.unflatten(0, (len(batch), -1))
            for own in patches:
                of_patches.append(self.embed(own[torch.randperm(math.prod(grid), generator=generator)[:per_image]]))
        self.patch_density.fit(torch.cat(of_patches))
        self.image_density.fit(torch.cat(of_images))

    @torch.no_grad()
    def anomaly_maps(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        self.check_pixels(pixel_values)
        patches, grid = overlapping_patches(pixel_values, self.config)
        distances = torch.cat([self.patch_density(self.embed(part)) for part in patches.split(PATCHES_AT_ONCE)])
        maps = spread_patches(distances.view(-1, *grid), self.config)
        return self.image_density(self.embed(pixel_values)), maps


def overlapping_patches(pixel_values: Tensor, config: CutPasteConfig) -> tuple[Tensor, tuple[int, int]]:
    """All patches of images (B, C, H, W). An image that is no whole number of strides is continued by its edge pixels.

    Returns:
        Patches (B * rows * columns, C, p, p), and (rows, columns).
    """
    size, stride = config.patch_size, config.stride
    missing = [-(side - size) % stride for side in pixel_values.shape[2:]]
    padded = F.pad(pixel_values, (0, missing[1], 0, missing[0]), mode="replicate")
    windows = padded.unfold(2, size, stride).unfold(3, size, stride)  # (B, C, rows, columns, p, p)
    patches = windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    return patches, (windows.shape[2], windows.shape[3])


def spread_patches(values: Tensor, config: CutPasteConfig) -> Tensor:
    """Values of patches (B, rows, columns) -> values of pixels (B, H, W): means over the patches that cover a pixel, weighted by
    a Gaussian about the centre of each patch, whose deviation is a quarter of its side ("receptive field upsampling")."""
    size = config.patch_size
    offset = torch.arange(size, device=values.device) - (size - 1) / 2
    profile = torch.exp(-0.5 * (offset / (size / 4)) ** 2)
    kernel = torch.outer(profile, profile)[None, None]
    both = torch.stack([values, torch.ones_like(values)], 1).flatten(0, 1).unsqueeze(1)
    total, weight = F.conv_transpose2d(both, kernel, stride=config.stride).view(len(values), 2, -1).unbind(1)
    rows = config.stride * (values.shape[1] - 1) + size
    height, width = config.image_size
    return (total / weight).unflatten(1, (rows, -1))[:, :height, :width]


# The task, on arrays (C, H, W) float32 in [0, 1]


def three_way(image: np.ndarray, config: CutPasteConfig, seed: int) -> np.ndarray:
    """A random patch of an image, the same with a rectangle pasted in, and the same with a scar: (3, C, p, p)."""
    generator = np.random.default_rng(seed)
    size = config.patch_size
    top, left = (int(generator.integers(0, side - size + 1)) for side in image.shape[1:])
    patch = color_jitter(image[:, top : top + size, left : left + size], config.jitter, generator)
    return np.stack([patch, cut_paste(patch, config, generator)[0], scar(patch, config, generator)[0]])


def cut_paste(
    image: np.ndarray, config: CutPasteConfig, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Pastes a rectangle of the image elsewhere in it; returns the new image and a mask of the place, (H, W) bool."""
    height, width = image.shape[1:]
    area = generator.uniform(*config.area) * height * width
    aspect = math.exp(generator.uniform(math.log(config.aspect), -math.log(config.aspect)))
    rows = min(max(1, round(math.sqrt(area * aspect))), height)
    columns = min(max(1, round(math.sqrt(area / aspect))), width)
    y, x, to_y, to_x = (int(generator.integers(0, n + 1)) for n in (height - rows, width - columns) * 2)
    pasted = color_jitter(image[:, y : y + rows, x : x + columns], config.jitter, generator)
    result, where = image.copy(), np.zeros((height, width), dtype=bool)
    result[:, to_y : to_y + rows, to_x : to_x + columns] = pasted
    where[to_y : to_y + rows, to_x : to_x + columns] = True
    return result, where


def scar(image: np.ndarray, config: CutPasteConfig, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pastes a long thin rectangle of the image, turned, elsewhere in it; returns the same as `cut_paste`."""
    height, width = image.shape[1:]
    scale = min(config.image_size) / REFERENCE_SIDE
    thickness = min(max(1, round(scale * generator.uniform(*config.scar_width))), width)
    length = min(max(2, round(scale * generator.uniform(*config.scar_length))), height)
    y, x = (int(generator.integers(0, n + 1)) for n in (height - length, width - thickness))
    strip = color_jitter(image[:, y : y + length, x : x + thickness], config.jitter, generator)
    angle = math.radians(generator.uniform(-config.scar_angle, config.scar_angle))
    # position of every pixel of the image along and across the turned strip, from the strip's upper left corner
    rows = np.arange(height)[:, None] - generator.uniform(0, height - 1)
    columns = np.arange(width)[None, :] - generator.uniform(0, width - 1)
    along = np.floor(rows * math.cos(angle) + columns * math.sin(angle) + length / 2).astype(int)
    across = np.floor(-rows * math.sin(angle) + columns * math.cos(angle) + thickness / 2).astype(int)
    where = (along >= 0) & (along < length) & (across >= 0) & (across < thickness)
    result = image.copy()
    result[:, where] = strip[:, along[where], across[where]]
    return result, where


def color_jitter(image: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Changes brightness, contrast and saturation by a factor of up to 1 -+ `strength`, and turns the hue by up to `strength` of
    a full circle."""
    brightness, contrast, saturation = 1 + strength * generator.uniform(-1, 1, 3)
    turn = 2 * math.pi * strength * generator.uniform(-1, 1)
    values = np.clip(image * brightness, 0, 1)
    grey = values.mean(0) if len(values) == 1 else np.tensordot(LUMA, values, 1)
    values = np.clip((values - grey.mean()) * contrast + grey.mean(), 0, 1)
    if len(values) == 3:
        cos, sin = saturation * math.cos(turn), saturation * math.sin(turn)
        rotation = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
        matrix = np.linalg.solve(RGB_TO_YIQ, rotation @ RGB_TO_YIQ)
        values = np.clip(np.tensordot(matrix, values, 1), 0, 1)
    return values.astype(np.float32)
