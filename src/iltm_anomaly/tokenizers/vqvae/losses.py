"""Reconstruction loss of Eq. 7: squared error of pixels and of Fourier amplitudes ("jukebox loss")."""

import torch
from torch import Tensor


def fourier_amplitude(x: Tensor) -> Tensor:
    """Amplitudes of the orthonormal n-D Fourier transform over channels and space, (B, C, *spatial) real -> one half of
    the spectrum, (B, C, ..., W // 2 + 1); the other half is its mirror image."""
    return torch.fft.rfftn(x.float(), dim=tuple(range(1, x.dim())), norm="ortho").abs()


def spectral_loss(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of Fourier amplitudes over the whole spectrum; (B, C, *spatial) x2 -> scalar.

    One n-D transform, as in the authors' code, although Eq. 7 writes STFT: no windows, no logarithm, no phase. The
    amplitude does not change when an image is shifted in a circle.
    """
    difference = (fourier_amplitude(reconstruction) - fourier_amplitude(target)).square()
    width = target.shape[-1]
    # Columns 1 .. (W - 1) // 2 stand for their mirror images too; column 0 and, for even W, column W / 2 do not.
    doubled = difference[..., 1 : (width + 1) // 2].sum()
    return (difference.sum() + doubled) / target.numel()


def jukebox_loss(reconstruction: Tensor, target: Tensor, spectral_weight: float = 1.0) -> Tensor:
    """Pixel squared error plus `spectral_weight` times `spectral_loss` (Eq. 7, first two terms); zero for equal images."""
    loss = (reconstruction.float() - target.float()).square().mean()
    if spectral_weight:
        loss = loss + spectral_weight * spectral_loss(reconstruction, target)
    return loss
