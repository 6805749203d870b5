"""Abnormality maps: how dense the healed reconstructions are at the observed pixel (method: KDE per pixel and channel).

The decoder runs up to its dropout once per distinct healed code map. What follows, dropping whole channels and one transposed
convolution, is linear, so the channel mask is applied to the convolution's weights: all dropout passes of a code map are the
output channels of one convolution. It is an ordinary one, with the pixels of a cell as channels too: the transposed one is
slow on CPUs. The image is walked in strips, so that memory does not grow with its height.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from iltm_anomaly.tokenizers.vqvae import VQVAEModel

# Reconstructed values of one strip (samples * passes * channels * pixels), which is what is alive at once.
STRIP_ELEMENTS = 1 << 21
# Code maps that go through the decoder together: one of them fills a CPU's cache.
TRUNK_BATCH = {"cpu": 1, "cuda": 16}
LOG2_E = math.log2(math.e)  # exponentials are powers of two: `exp2` is four times as fast on CPUs as `exp`
CONV = {2: F.conv2d, 3: F.conv3d}


def _variance(values: Tensor) -> Tensor:
    """Over the first axis, with ddof 0; several times as fast on CPUs as `Tensor.var`."""
    return (values - values.mean(0)).square_().mean(0)


def bandwidth(variance: Tensor, count: int, floor: float | Tensor) -> Tensor:
    """Kernel width per pixel, 1.06 std N^(-1/5) + floor, from the variance of N reconstructions (ddof 0)."""
    return variance.sqrt().mul_(1.06 * count**-0.2).add_(floor)


def negative_log_density(
    reconstructions: Tensor,
    image: Tensor,
    bandwidth_floor: float | Tensor,
    relative: bool = True,
    decoder_passes: int | None = None,
) -> Tensor:
    """-log f(x) per pixel, f the Gaussian KDE of the reconstructions; natural log, float32, finite.

    Args:
        reconstructions: (N, ...) in [0, 1].
        image: (...) the observed values x.
        bandwidth_floor: added to the normal-reference bandwidth, in units of pixel values; a number, or one per pixel.
        relative: density over the height of a kernel's peak, so that 0 is "as reconstructed" at every bandwidth. Without it
            the peak, 0.4 / h, makes pixels of different spread incomparable.
        decoder_passes: D of 2 or more, if the N reconstructions are D decodings of each healed sample in turn: density over the
            peak of a Gaussian of variance h^2 + s^2, s^2 the variance among the D (mean over samples), so that about 0 is "as
            the decoder draws". It may fall below 0, by log(1 + s^2 / h^2) / 2 at most. None: over the peak of a kernel, h^2.
    """
    variance = _variance(reconstructions)
    h = bandwidth(variance, len(reconstructions), bandwidth_floor)
    exponent = (reconstructions - image).square_().mul_(-0.5 * LOG2_E / h.square())
    largest = exponent.amax(0)  # log-sum-exp: far from all reconstructions every single term is zero in float32
    log_density = (largest + exponent.sub_(largest).exp2_().mean(0).log2_()) / LOG2_E
    if not relative:
        return -(log_density - torch.log(h * math.sqrt(2 * math.pi)))
    if decoder_passes is not None:
        of_means = _variance(reconstructions.unflatten(0, (-1, decoder_passes)).mean(1))
        of_decoder = (variance - of_means).clamp_(min=0) * (decoder_passes / (decoder_passes - 1))
        log_density += 0.5 * torch.log1p(of_decoder / h.square())
    return -log_density


def draw_channel_masks(count: int, passes: int, channels: int, dropout: float, generator: torch.Generator) -> Tensor:
    """Dropout of whole channels, (count, passes, channels) float32: 0, or 1 / (1 - p) where a channel stays."""
    kept = torch.rand(count, passes, channels, generator=generator) >= dropout
    return kept / (1 - dropout)


def _subpixel_kernels(weight: Tensor) -> Tensor:
    """A transposed convolution of kernel 4, stride 2 and padding 1 as an ordinary one of kernel 2.

    It makes 2^dims pixels of every cell, P: along an axis the even pixel of cell y draws on cells y - 1 and y with taps 3 and 1,
    the odd one on y and y + 1 with taps 2 and 0. (F, C, 4, ...) -> (P, C, F, 2, ...), the last axis running fastest in P.
    """
    dims = weight.dim() - 2
    taps: list[tuple[Any, ...]] = [(..., *(slice(1 - odd, None, 2) for odd in pixel)) for pixel in _pixels(dims)]
    kernels = [weight[tap] for tap in taps]
    return torch.stack(kernels).flip(*range(-dims, 0)).transpose(1, 2)


def _pixels(dims: int) -> list[tuple[int, ...]]:
    return list(itertools.product((0, 1), repeat=dims))


def _interleave(parts: Tensor, out: Tensor) -> None:
    """Pixels of cells (P, ..., *cells + 1) from kernels of 2 into `out` (..., *cells * 2)."""
    dims = len(parts).bit_length() - 1
    for part, pixel in zip(parts, _pixels(dims), strict=True):
        target: tuple[Any, ...] = (..., *(slice(odd, None, 2) for odd in pixel))
        cells = (slice(odd, side - 1 + odd) for odd, side in zip(pixel, part.shape[-dims:], strict=True))
        source: tuple[Any, ...] = (..., *cells)
        out[target] = part[source]


@torch.no_grad()
def reconstruction_strips(
    vqvae: VQVAEModel, codes: Tensor, num_dropout_passes: int, generator: torch.Generator
) -> Iterator[tuple[slice, Tensor]]:
    """Decodes every code map `num_dropout_passes` times with dropout on, strip by strip along the first spatial axis.

    Args:
        vqvae: the decoder; its mode does not matter, no random state but `generator` is used.
        codes: (S, *grid) int64; equal maps are decoded once, with dropout passes of their own.
        num_dropout_passes: D.
        generator: on the CPU.

    Yields:
        The strip's slice of the first spatial axis, and its reconstructions (S * D, C, rows, ...), clamped to [0, 1].
    """
    distinct, index = torch.unique(codes, dim=0, return_inverse=True)
    batch = TRUNK_BATCH.get(codes.device.type, TRUNK_BATCH["cuda"])
    features: Tensor | None = None  # (U, F, *cells), filled part by part: of volumes it takes gigabytes
    for start in range(0, len(distinct), batch):
        part = vqvae.decode_trunk(distinct[start : start + batch])
        if features is None:
            features = part.new_empty(len(distinct), *part.shape[1:], dtype=torch.float32)
        features[start : start + batch] = part
    assert features is not None  # there is at least one sample
    weight = vqvae.decoder_head.weight.float()  # (F, C, 4, ...)
    bias = vqvae.get_parameter("decoder_head.bias").float()  # (C,)
    masks = draw_channel_masks(len(codes), num_dropout_passes, len(weight), vqvae.config.dropout, generator)
    # one set of weights per sample, pixels of a cell and dropout passes as output channels: (S, P * D * C, F, 2, ...)
    kernels = _subpixel_kernels(weight)
    weights = torch.einsum("sdf,pcf...->spdcf...", masks.to(codes.device), kernels).flatten(1, 3)
    biases = bias.repeat(len(kernels) * num_dropout_passes)

    rows, *others = features.shape[2:]
    channels = (num_dropout_passes, len(bias))
    step = max(1, STRIP_ELEMENTS // (len(codes) * math.prod(channels) * 2 * math.prod(2 * n for n in others)))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        # A row of pixels draws on the rows of cells beside it: one more on either side, zeros outside the image.
        low, high = max(start - 1, 0), min(stop + 1, rows)
        strip = F.pad(features[:, :, low:high], (*(0, 0) * len(others), low - start + 1, stop + 1 - high))
        out = strip.new_empty(len(codes), *channels, 2 * (stop - start), *(2 * n for n in others))
        for i, sample_weight, sample in zip(index.tolist(), weights, out, strict=True):
            parts = CONV[features.dim() - 2](strip[i : i + 1], sample_weight, biases, padding=(0, *[1] * len(others)))
            _interleave(parts.view(len(kernels), *channels, *parts.shape[2:]), sample)
        yield slice(2 * start, 2 * stop), out.flatten(0, 1).clamp_(0, 1)


@dataclass
class DensityMap:
    """
    Args:
        surprise: (*spatial) float32, -log density averaged over channels (a product of channel densities); 0 or more if
            relative to a kernel's own peak.
        healed: (C, *spatial) float32, mean reconstruction: the image as the model would have expected it.
    """

    surprise: Tensor
    healed: Tensor


def density_map(
    vqvae: VQVAEModel,
    codes: Tensor,
    image: Tensor,
    num_dropout_passes: int,
    generator: torch.Generator,
    bandwidth_floor: float | Tensor,
    relative: bool = True,
    decoder_spread: bool = False,
) -> DensityMap:
    """`negative_log_density` of one image (C, *spatial) under the reconstructions of its healed codes (S, *grid), streamed;
    `bandwidth_floor` is a number or (*spatial), `decoder_spread` says which peak it is relative to."""
    surprise, healed = torch.empty_like(image[0]), torch.empty_like(image)
    passes = num_dropout_passes if decoder_spread else None
    for rows, reconstructions in reconstruction_strips(vqvae, codes, num_dropout_passes, generator):
        healed[:, rows] = reconstructions.mean(0)
        floor = bandwidth_floor[rows] if isinstance(bandwidth_floor, Tensor) else bandwidth_floor
        density = negative_log_density(reconstructions, image[:, rows], floor, relative, passes)
        surprise[rows] = density.mean(0)
    return DensityMap(surprise, healed)


def upsample_tokens(tokens: Tensor, spatial: tuple[int, ...], mode: str = "linear") -> Tensor:
    """Token values (*grid) to pixels (*spatial): "linear" between token centres, or "nearest"."""
    if mode == "linear":
        mode = {2: "bilinear", 3: "trilinear"}[tokens.dim()]
    align = None if mode == "nearest" else False
    return F.interpolate(tokens[None, None].float(), size=spatial, mode=mode, align_corners=align)[0, 0]


def smooth(values: Tensor, sigma: float) -> Tensor:
    """Gaussian filter over all axes, `sigma` in pixels; the border is repeated. 0 returns the values as they are."""
    if sigma <= 0:
        return values
    filtered = ndimage.gaussian_filter(values.cpu().numpy().astype(np.float32), sigma, mode="nearest")
    return torch.from_numpy(filtered).to(values.device)


def combine(tokens: Tensor, pixels: Tensor, likelihood_share: float, surprise_floor: float = 0.0) -> Tensor:
    """Weighted geometric mean of two surprises of 0 or more, of one shape: abnormal is what is so to both, on a scale that needs
    no weight between nats of different models.

    Args:
        tokens: -log likelihood of the codes.
        pixels: -log density of the pixels.
        likelihood_share: exponent of `tokens`, 1 minus that of `pixels`; at 0, the authors' map, `pixels` may have any sign.
        surprise_floor: added to `pixels`, in nats. A defect that the prior has seen too often is not healed, and the VQ-VAE draws
            it well: a factor near 0 would hide what the tokens still tell of it.
    """
    if not likelihood_share:
        return pixels
    return tokens.clamp(min=0) ** likelihood_share * (pixels.clamp(min=0) + surprise_floor) ** (1 - likelihood_share)


def resampling_gate(resampled: Tensor, spatial: tuple[int, ...], sigma_tokens: float = 0.75) -> Tensor:
    """Pixels near a resampled token, (*grid) bool -> (*spatial) bool.

    The authors' gate: the mask repeated to pixels, a Gaussian filter of 6 pixels (0.75 of a token of 8), and everything above
    0.375 % of its maximum.
    """
    spread = upsample_tokens(resampled, spatial, "nearest").cpu().numpy()
    sigma = [sigma_tokens * side / cells for side, cells in zip(spatial, resampled.shape, strict=True)]
    spread = ndimage.gaussian_filter(spread, sigma, mode="constant")
    return torch.from_numpy(spread > 0.05 * 0.075 * spread.max()).to(resampled.device)
