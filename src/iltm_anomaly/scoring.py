"""What is observed against what healed codes lead one to expect: anomaly maps.

The expectation is a set of draws for each healed grid of codes; the surprise of an observed value is its negative log-density
under a Gaussian KDE of all draws. Maps of the tokens and of the observed values are combined into one.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from iltm_anomaly.healing import Healed, healed_log_likelihood
from iltm_anomaly.prior import PerformerPriorModel
from iltm_anomaly.settings import InferenceSettings, as_reconstructed
from iltm_anomaly.tokenizers.base import TokenizerModel

LOG2_E = math.log2(math.e)  # exponentials are powers of two: `exp2` is four times as fast on CPUs as `exp`


@dataclass
class ObservedSurprise:
    """
    Args:
        values: (*observed) float32, -log density averaged over channels (a product of channel densities); 0 or more if
            relative to a kernel's own peak.
        expected: (F, *observed) float32, mean of all draws: what the model would have expected to observe.
    """

    values: Tensor
    expected: Tensor


@torch.no_grad()
def anomaly_map(
    tokenizer: TokenizerModel,
    prior: PerformerPriorModel,
    codes: Tensor,
    healed: Healed,
    observed: Tensor,
    spatial: tuple[int, ...],
    settings: InferenceSettings,
    noise: Tensor | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Map of one image, and the image as the model expected it.

    Args:
        codes: (*grid) int64, the image's own.
        healed: what became of them.
        observed: (F, *observed) float32, see `TokenizerModel.observe`.
        spatial: size of the image in pixels.
        settings: how maps are made.
        noise: (*observed) float32, the usual error of what is expected, or None.
        generator: of the draws, on the CPU.

    Returns:
        Map (*spatial) float32, and the picture of what was expected (C, *spatial) in [0, 1].
    """
    grid, is_healed = tuple(codes.shape), bool(healed.resampled.any())
    # 1. surprise of the tokens, where any is healed under the context of healed codes
    token_surprise = -healed.log_likelihood
    if is_healed and settings.num_contexts and settings.likelihood_share:
        contexts = healed.samples[: settings.num_contexts].flatten(1)
        token_surprise = -healed_log_likelihood(prior, codes.flatten(), contexts).view(grid)
    # 2. surprise of what is observed, among what healed codes lead one to expect
    surprise = observed_surprise(tokenizer, healed.samples, observed, settings, noise, generator)
    values = surprise.values
    if settings.own_reconstruction and is_healed:
        # as many draws as of the healed codes, because kernels are wider the fewer there are
        own = codes.expand(len(healed.samples), *grid)
        values = values.maximum(observed_surprise(tokenizer, own, observed, settings, noise, generator).values)
    if not settings.relative_density and is_healed:
        gate = resampling_gate(healed.resampled, tuple(values.shape))
        values = values.where(gate, as_reconstructed(settings))
    # 3. one map of both
    sigma = settings.smoothing * tokenizer.pixels_per_token
    tokens = smooth(to_pixels(token_surprise, spatial), sigma)
    pixels = smooth(to_pixels(values, spatial), sigma)
    combined = combine(tokens, pixels, settings.likelihood_share, settings.surprise_floor)
    return combined, tokenizer.show(surprise.expected)


def observed_surprise(
    tokenizer: TokenizerModel,
    codes: Tensor,
    observed: Tensor,
    settings: InferenceSettings,
    noise: Tensor | None,
    generator: torch.Generator,
) -> ObservedSurprise:
    """`negative_log_density` of what is observed (F, *observed) under draws of what codes (S, *grid) lead one to expect, made
    part by part; `noise` (*observed) is added to the bandwidth's floor."""
    floor: float | Tensor = settings.bandwidth_floor
    if noise is not None:
        floor = floor + noise.to(observed.device)
    passes = settings.num_dropout_passes
    values, expected = torch.empty_like(observed[0]), torch.empty_like(observed)
    parts = tokenizer.draw_expected(codes, passes, generator) if passes else [(slice(None), tokenizer.expect(codes))]
    for rows, draws in parts:
        expected[:, rows] = draws.mean(0)
        density = negative_log_density(
            draws,
            observed[:, rows],
            floor[rows] if isinstance(floor, Tensor) else floor,
            settings.relative_density,
            passes if settings.decoder_spread else None,
        )
        values[rows] = density.mean(0)
    return ObservedSurprise(values, expected)


# Density


def _variance(values: Tensor) -> Tensor:
    """Over the first axis, with ddof 0; several times as fast on CPUs as `Tensor.var`."""
    return (values - values.mean(0)).square_().mean(0)


def bandwidth(variance: Tensor, count: int, floor: float | Tensor) -> Tensor:
    """Kernel width, 1.06 std N^(-1/5) + floor (normal reference rule), from the variance of N draws (ddof 0)."""
    return variance.sqrt().mul_(1.06 * count**-0.2).add_(floor)


def negative_log_density(
    draws: Tensor,
    observed: Tensor,
    bandwidth_floor: float | Tensor,
    relative: bool = True,
    draws_per_sample: int | None = None,
) -> Tensor:
    """-log f(x) of each observed value x, f the Gaussian KDE of its draws; natural logarithm, float32, finite.

    Args:
        draws: (N, ...) float32.
        observed: (...) the values x.
        bandwidth_floor: added to the bandwidth, in units of the values; a number, or one per value.
        relative: density over the height of a kernel's peak, so that 0 means "as expected" at every bandwidth. Without it the
            peak, 0.4 / h, makes values of different spread incomparable.
        draws_per_sample: D of 2 or more, if the N draws are D of each healed sample in turn: density over the peak of a Gaussian
            of variance h^2 + s^2, s^2 the variance among the D (mean over samples), so that about 0 means "as it is drawn". The
            result may fall below 0, by log(1 + s^2 / h^2) / 2 at most. None: over the peak of a kernel, of variance h^2.
    """
    variance = _variance(draws)
    h = bandwidth(variance, len(draws), bandwidth_floor)
    exponent = (draws - observed).square_().mul_(-0.5 * LOG2_E / h.square())
    largest = exponent.amax(0)  # log-sum-exp: far from all draws every single term is zero in float32
    log_density = (largest + exponent.sub_(largest).exp2_().mean(0).log2_()) / LOG2_E
    if not relative:
        return -(log_density - torch.log(h * math.sqrt(2 * math.pi)))
    if draws_per_sample is not None:
        of_means = _variance(draws.unflatten(0, (-1, draws_per_sample)).mean(1))
        of_draws = (variance - of_means).clamp_(min=0) * (draws_per_sample / (draws_per_sample - 1))
        log_density += 0.5 * torch.log1p(of_draws / h.square())
    return -log_density


# Maps


def to_pixels(values: Tensor, spatial: tuple[int, ...], mode: str = "linear") -> Tensor:
    """Values on a coarser grid, of tokens for instance, at the pixels (*spatial): "linear" between centres, or "nearest"."""
    if tuple(values.shape) == spatial:
        return values.float()
    if mode == "linear":
        mode = {2: "bilinear", 3: "trilinear"}[values.dim()]
    align = None if mode == "nearest" else False
    return F.interpolate(values[None, None].float(), size=spatial, mode=mode, align_corners=align)[0, 0]


def smooth(values: Tensor, sigma: float) -> Tensor:
    """Gaussian filter over all axes, `sigma` in pixels; the border is repeated. 0 returns the values as they are."""
    if sigma <= 0:
        return values
    filtered = ndimage.gaussian_filter(values.cpu().numpy().astype(np.float32), sigma, mode="nearest")
    return torch.from_numpy(filtered).to(values.device)


def combine(tokens: Tensor, pixels: Tensor, likelihood_share: float, surprise_floor: float = 0.0) -> Tensor:
    """Weighted geometric mean of two surprises of one shape: abnormal is what is so to both. It needs no common scale for the
    nats of two models.

    Args:
        tokens: -log likelihood of the codes, 0 or more.
        pixels: -log density of what is observed, 0 or more; of any sign if `likelihood_share` is 0.
        likelihood_share: exponent of `tokens`, 1 minus that of `pixels`; 0 is the authors' map.
        surprise_floor: added to `pixels`, in nats. A defect that the prior has seen too often is not healed, and a VQ-VAE draws
            it well: a factor near 0 would hide what the tokens still tell of it.
    """
    if not likelihood_share:
        return pixels
    return tokens.clamp(min=0) ** likelihood_share * (pixels.clamp(min=0) + surprise_floor) ** (1 - likelihood_share)


def resampling_gate(resampled: Tensor, spatial: tuple[int, ...], sigma_tokens: float = 0.75) -> Tensor:
    """Pixels near a resampled token, (*grid) bool -> (*spatial) bool.

    The gate of the authors' code: the mask repeated to pixels, a Gaussian filter of 6 pixels (0.75 of a token of 8), and
    everything above 0.375 % of its maximum.
    """
    spread = to_pixels(resampled, spatial, "nearest").cpu().numpy()
    sigma = [sigma_tokens * side / cells for side, cells in zip(spatial, resampled.shape, strict=True)]
    spread = ndimage.gaussian_filter(spread, sigma, mode="constant")
    return torch.from_numpy(spread > 0.05 * 0.075 * spread.max()).to(resampled.device)
