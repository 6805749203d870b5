"""Augmentations of the paper (appendix A; magnitudes of its first author's public code), for images and volumes.

Likelihoods are computed on the training data itself, and augmentation keeps the models from learning it by heart. Elastic
deformation, which the appendix adds for PET, is a cubic B-spline on control points (Rueckert et al., IEEE TMI 18(8), 1999). It is
added to the affine map, so that both together cost one interpolation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from iltm_anomaly.seeds import sample_seed, uniforms

PADDING_MODES = ("zeros", "border", "reflection")

# Places of the uniform numbers of each sample. They are fixed, so that changing one setting leaves the other draws alone.
_AFFINE, _ROTATION, _TRANSLATION, _SCALE, _CONTRAST, _INTENSITY, _NOISE, _ELASTIC = 0, 1, 4, 7, 10, 12, 14, 15
_DRAWS = 16

# By the number of dimensions: a cubic B-spline deformation does not fold while no control point moves further than this share
# of the distance between control points (Choi and Lee, Graphical Models 62(6), 2000).
_FOLDING_LIMIT = {2: 0.48, 3: 0.40}


@dataclass(frozen=True)
class AugmentationConfig:
    """Magnitudes and probabilities; defaults are the authors'.

    Args:
        affine_probability: share of samples that are rotated, shifted and scaled (the three together).
        rotation: largest angle in radians, about each axis for volumes.
        translation: largest shift along each axis, in pixels of an image with `reference_size` pixels. It grows with the
            image, so that the depicted part moves equally far at every size: 4 at 256 is 2 at 128.
        reference_size: the image size that `translation` is given for.
        scale: largest relative change of size, drawn for each axis.
        padding_mode: what fills pixels from outside the image: "zeros" (the authors' code), "border" (edge pixels) or
            "reflection". Zeros bring black margins into the codes; border suits parts that fill the image.
        elastic_probability: share of samples that are bent.
        elastic_spacing: distance between control points; the unit is that of `translation`, along the longest side.
        elastic_magnitude: standard deviation of the shift of a control point along each axis, in the same unit; shifts are
            cut off where space would fold.
        contrast_probability: share of samples whose values x become x ** gamma.
        contrast: gamma is uniform from 1 - contrast to 1 + contrast.
        intensity_probability: share of samples that become brighter.
        intensity: largest offset; offsets are uniform from 0.
        noise_probability: share of samples that get Gaussian noise.
        noise_std: standard deviation of that noise.
    """

    affine_probability: float = 0.8
    rotation: float = 0.04
    translation: float = 4.0
    reference_size: int = 256
    scale: float = 0.05
    padding_mode: str = "zeros"
    elastic_probability: float = 0.0
    elastic_spacing: float = 64.0
    elastic_magnitude: float = 8.0
    contrast_probability: float = 0.6
    contrast: float = 0.025
    intensity_probability: float = 0.6
    intensity: float = 0.025
    noise_probability: float = 0.6
    noise_std: float = 0.025

    def __post_init__(self):
        if self.padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {self.padding_mode!r}")
        for name in ("affine", "elastic", "contrast", "intensity", "noise"):
            name += "_probability"
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("rotation", "translation", "elastic_magnitude", "intensity", "noise_std"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("scale", "contrast"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not self.elastic_spacing > 0:
            raise ValueError(f"elastic_spacing must be positive, got {self.elastic_spacing}")
        if self.reference_size < 1:
            raise ValueError(f"reference_size must be at least 1 pixel, got {self.reference_size}")


@torch.no_grad()
def augment(pixel_values: torch.Tensor, config: AugmentationConfig, seeds: Sequence[int]) -> torch.Tensor:
    """Augments a batch: affine, elastic, contrast, intensity, noise, each with its probability, then clamp to [0, 1].

    What happens to a sample follows from its own seed alone. So results do not depend on which samples share a batch, nor on
    the number of processes; nor on the device, since noise is drawn on the CPU.

    Args:
        pixel_values: (B, C, H, W) or (B, C, D, H, W) float in [0, 1]; not changed.
        config: magnitudes and probabilities.
        seeds: B integers, for instance `seeds.sample_seed(seed, epoch, row)`.

    Returns:
        Tensor of the same shape, type and device, in [0, 1].

    Raises:
        ValueError: wrong rank, not floating point, or another number of seeds than samples.
    """
    if pixel_values.ndim not in (4, 5):
        raise ValueError(f"pixel_values must be (B, C, H, W) or (B, C, D, H, W), got {tuple(pixel_values.shape)}")
    if not pixel_values.is_floating_point():
        raise ValueError(f"pixel_values must be floats in [0, 1], got {pixel_values.dtype}; divide by the full range")
    if len(seeds) != len(pixel_values):
        raise ValueError(f"one seed per sample: got {len(seeds)} seeds for {len(pixel_values)} samples")
    if len(pixel_values) == 0:
        return pixel_values.clone()
    draws = np.stack([uniforms(sample_seed(int(seed)), _DRAWS) for seed in seeds])  # (B, draws)
    values = pixel_values.float().clone()  # half precision would lose the small contrast changes
    affine = draws[:, _AFFINE] < config.affine_probability
    elastic = draws[:, _ELASTIC] < config.elastic_probability
    chosen = np.flatnonzero(affine & ~elastic)
    if len(chosen):
        matrices = torch.from_numpy(_affine_matrices(draws[chosen], values.shape[2:], config))
        values[chosen] = _warp(values[chosen], matrices.to(values.device), config.padding_mode)
    # One by one, because a field of displacements is larger than its volume.
    for row in np.flatnonzero(elastic).tolist():
        part = slice(row, row + 1)
        matrices = torch.from_numpy(_affine_matrices(draws[part], values.shape[2:], config, identity=not affine[row]))
        field = _elastic_field(values.shape[2:], config, sample_seed(int(seeds[row]), 2), values.device)
        values[part] = _warp(values[part], matrices.to(values.device), config.padding_mode, field)
    for row, seed in enumerate(seeds):
        _change_intensities(values[row], draws[row], config, int(seed))
    return values.clamp_(0, 1).to(pixel_values.dtype)


def _change_intensities(values: torch.Tensor, draws: np.ndarray, config: AugmentationConfig, seed: int) -> None:
    # One sample, in place. It stays in the CPU cache and needs no masks, which is faster than the whole batch at once.
    if draws[_CONTRAST] < config.contrast_probability:
        gamma = 1 + config.contrast * (2 * draws[_CONTRAST + 1] - 1)
        values.clamp_(0, 1).pow_(float(gamma))
    if draws[_INTENSITY] < config.intensity_probability:
        values.add_(float(config.intensity * draws[_INTENSITY + 1]))
    if draws[_NOISE] < config.noise_probability:
        generator = torch.Generator().manual_seed(sample_seed(seed, 1))
        noise = torch.randn(values.shape, generator=generator)
        values.add_(noise.to(values.device), alpha=config.noise_std)


def _affine_matrices(
    draws: np.ndarray, spatial: Sequence[int], config: AugmentationConfig, identity: bool = False
) -> np.ndarray:
    """(B, n, n + 1) float32 maps from output to input coordinates, which are x first and in [-1, 1] as for `grid_sample`."""
    dims = len(spatial)
    if identity:
        return np.tile(np.eye(dims, dims + 1, dtype=np.float32), (len(draws), 1, 1))
    sizes = np.array(spatial[::-1], dtype=np.float64)  # x first
    angles = config.rotation * (2 * draws[:, _ROTATION : _ROTATION + 3] - 1)
    rotations = _rotation(angles[:, 0], 0, 1, dims)
    if dims == 3:
        rotations = rotations @ _rotation(angles[:, 1], 0, 2, dims) @ _rotation(angles[:, 2], 1, 2, dims)
    scales = 1 + config.scale * (2 * draws[:, _SCALE : _SCALE + dims] - 1)
    shifts = config.translation / config.reference_size * (2 * draws[:, _TRANSLATION : _TRANSLATION + dims] - 1)
    linear = rotations * scales[:, None, :]  # in pixels
    # to coordinates: [-1, 1] spans another length along each axis
    linear = linear * (sizes[None, :] / sizes[:, None])
    return np.concatenate([linear, 2 * shifts[:, :, None]], axis=2).astype(np.float32)


def _rotation(angles: np.ndarray, first: int, second: int, dims: int) -> np.ndarray:
    matrices = np.tile(np.eye(dims), (len(angles), 1, 1))
    matrices[:, first, first] = matrices[:, second, second] = np.cos(angles)
    matrices[:, first, second] = -np.sin(angles)
    matrices[:, second, first] = np.sin(angles)
    return matrices


def _elastic_field(
    spatial: Sequence[int], config: AugmentationConfig, seed: int, device: torch.device
) -> torch.Tensor:
    """(1, *spatial, n) displacements for `grid_sample`, x first: a cubic B-spline through random control points."""
    dims, longest = len(spatial), max(spatial)
    pixel = longest / config.reference_size  # length of a pixel of the reference image
    spacing = max(1.0, config.elastic_spacing * pixel)
    bases = [_spline_basis(side, spacing) for side in spatial]
    generator = torch.Generator().manual_seed(seed)
    field = torch.randn(dims, *(basis.shape[1] for basis in bases), generator=generator)  # pixels, x first
    limit = _FOLDING_LIMIT[dims] * spacing
    field = (field * (config.elastic_magnitude * pixel)).clamp_(-limit, limit).to(device)
    for basis in bases:  # each axis moves to the end, so that after the last one they are in order again
        field = torch.tensordot(field, basis.to(device), dims=([1], [1]))
    scale = torch.tensor([2 / side for side in spatial[::-1]], device=device)  # [-1, 1] spans each side
    return (field.movedim(0, -1) * scale).unsqueeze(0)


def _spline_basis(side: int, spacing: float) -> torch.Tensor:
    """(side, points) float32 weights of control points `spacing` pixels apart, some of them beyond both ends; rows sum to 1."""
    points = np.arange(-1, int(np.ceil((side - 1) / spacing)) + 2)
    distance = np.abs(np.arange(side)[:, None] / spacing - points)
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.maximum(2 - distance, 0) ** 3 / 6
    return torch.from_numpy(np.where(distance < 1, near, far).astype(np.float32))


def _warp(
    values: torch.Tensor, matrices: torch.Tensor, padding_mode: str, displacement: torch.Tensor | None = None
) -> torch.Tensor:
    grid = torch.nn.functional.affine_grid(matrices, list(values.shape), align_corners=False)
    if displacement is not None:
        grid = grid + displacement
    return torch.nn.functional.grid_sample(
        values, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False
    )
