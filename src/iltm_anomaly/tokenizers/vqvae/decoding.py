"""Many decodings of one image, with channels dropped, for little more than the cost of one.

The decoder runs once up to its dropout. What follows, dropping whole channels and one transposed convolution, is linear, so the
channel mask is applied to the convolution's weights: all dropout passes of a grid of codes are the output channels of one
convolution. It is an ordinary one, with the pixels of a cell as channels too, because the transposed one is slow on CPUs. The
image is walked in strips, so that memory does not grow with its height.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Decoded values of one strip (samples * passes * channels * pixels), which is what is alive at once.
STRIP_ELEMENTS = 1 << 21
CONV = {2: F.conv2d, 3: F.conv3d}


def draw_channel_masks(count: int, passes: int, channels: int, dropout: float, generator: torch.Generator) -> Tensor:
    """Dropout of whole channels, (count, passes, channels) float32: 0, or 1 / (1 - dropout) where a channel stays."""
    kept = torch.rand(count, passes, channels, generator=generator) >= dropout
    return kept / (1 - dropout)


def decoded_strips(
    features: Tensor, index: Tensor, weight: Tensor, bias: Tensor, masks: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """The decoder's last layer under every channel mask, strip by strip along the first spatial axis.

    Args:
        features: (U, F, *cells) float32, the decoder's features of U grids of codes.
        index: (S,) int64, the grid that each of S samples has.
        weight, bias: (F, C, 4, ...) and (C,) float32 of a transposed convolution with kernel 4, stride 2 and padding 1.
        masks: (S, D, F) float32, factors of the features of each sample in each of D passes.

    Yields:
        The strip's slice of the first spatial axis, and its pixels (S * D, C, rows, ...), clamped to [0, 1].
    """
    samples, passes = masks.shape[:2]
    kernels = _subpixel_kernels(weight)
    # one set of weights per sample, with pixels of a cell and passes as output channels: (S, P * D * C, F, 2, ...)
    weights = torch.einsum("sdf,pcf...->spdcf...", masks.to(features.device), kernels).flatten(1, 3)
    biases = bias.repeat(len(kernels) * passes)

    rows, *others = features.shape[2:]
    channels = (passes, len(bias))
    step = max(1, STRIP_ELEMENTS // (samples * math.prod(channels) * 2 * math.prod(2 * n for n in others)))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        # A row of pixels draws on the rows of cells beside it: one more on either side, zeros outside the image.
        low, high = max(start - 1, 0), min(stop + 1, rows)
        strip = F.pad(features[:, :, low:high], (*(0, 0) * len(others), low - start + 1, stop + 1 - high))
        out = strip.new_empty(samples, *channels, 2 * (stop - start), *(2 * n for n in others))
        for i, sample_weight, sample in zip(index.tolist(), weights, out, strict=True):
            parts = CONV[features.dim() - 2](strip[i : i + 1], sample_weight, biases, padding=(0, *[1] * len(others)))
            _interleave(parts.view(len(kernels), *channels, *parts.shape[2:]), sample)
        yield slice(2 * start, 2 * stop), out.flatten(0, 1).clamp_(0, 1)


def _subpixel_kernels(weight: Tensor) -> Tensor:
    """A transposed convolution of kernel 4, stride 2 and padding 1 as an ordinary one of kernel 2.

    It makes P = 2^dims pixels of every cell. Along an axis the even pixel of cell y draws on cells y - 1 and y with taps 3 and 1,
    the odd one on y and y + 1 with taps 2 and 0. (F, C, 4, ...) -> (P, C, F, 2, ...); the last axis runs fastest in P.
    """
    dims = weight.dim() - 2
    taps: list[tuple[Any, ...]] = [(..., *(slice(1 - odd, None, 2) for odd in pixel)) for pixel in _pixels(dims)]
    kernels = [weight[tap] for tap in taps]
    return torch.stack(kernels).flip(*range(-dims, 0)).transpose(1, 2)


def _pixels(dims: int) -> list[tuple[int, ...]]:
    return list(itertools.product((0, 1), repeat=dims))


def _interleave(parts: Tensor, out: Tensor) -> None:
    """Pixels of cells (P, ..., *cells + 1), as the kernels of 2 make them, into `out` (..., *cells * 2)."""
    dims = len(parts).bit_length() - 1
    for part, pixel in zip(parts, _pixels(dims), strict=True):
        target: tuple[Any, ...] = (..., *(slice(odd, None, 2) for odd in pixel))
        cells = (slice(odd, side - 1 + odd) for odd, side in zip(pixel, part.shape[-dims:], strict=True))
        source: tuple[Any, ...] = (..., *cells)
        out[target] = part[source]
