"""What a user may choose at inference."""

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from iltm_anomaly import masking

# Least and largest value of each setting. What lies beyond is a mistake or malice: a huge filter takes all memory.
RANGES: dict[str, tuple[float, float]] = {
    "token_threshold": (0, 1),
    "neighbourhood": (0, 100),
    "outlier_scale": (0, 1e6),
    "surprise_limit": (0, 1e6),
    "num_samples": (1, 10_000),
    "num_dropout_passes": (1, 10_000),
    "num_contexts": (0, 10_000),
    "bandwidth_floor": (1e-6, 1),
    "likelihood_share": (0, 1),
    "surprise_floor": (0, 100),
    "smoothing": (0, 100),
    "score_threshold": (-1e30, 1e30),
}


@dataclass
class InferenceSettings:
    """How a map is made, and the threshold that calibration sets.

    Args:
        token_threshold, neighbourhood, outlier_scale: which codes are healed, see `masking.RejectionRule`.
        surprise_limit: of the outlier rule, in nats; set by calibration.
        accept_likelier: heal a region only where that makes the codes likelier, see `healing.accept_likelier`.
        num_samples: S, healed samples per image.
        num_dropout_passes: D, decodings of each sample with channels dropped.
        bandwidth_floor: of the KDE, in units of pixel values in [0, 1].
        reconstruction_noise: add to the floor how far each pixel of a training image usually is from its reconstruction, so that
            edges which the decoder always blurs are not taken for defects.
        relative_density: see `abnormality.negative_log_density`.
        own_reconstruction: a pixel surprises by no less than it does given the reconstruction of the image's own codes. Where
            the prior cannot foresee what is healed, the samples differ so much that any pixel fits among them, and a defect
            that the VQ-VAE could not draw would be lost. Needs `relative_density`.
        decoder_spread: density over the peak of a kernel widened by the decoder's own spread over dropout passes, rather than
            of a kernel alone: where the decoder is unsure, as at edges, what it draws itself is far from a kernel's peak. Needs
            `relative_density` and 2 passes or more. See `abnormality.negative_log_density`.
        likelihood_share, surprise_floor: see `abnormality.combine`.
        num_contexts: healed samples under whose context every code is scored again for the map; 0 scores it in its own context,
            where what follows a defect is unlikely too.
        gate: keep the density term near healed tokens only, as the authors' code does.
        smoothing: standard deviation of the Gaussian filter over either part of the map, in tokens; 0 leaves it alone.
        score_threshold: from here on a pixel, and an image that has such a pixel, is called abnormal; None before
            calibration.

    Raises:
        ValueError: if a setting is not of its type or not in `RANGES`, or another one that it needs is not set.
    """

    token_threshold: float | None = None
    neighbourhood: float = 1.0
    outlier_scale: float = 3.0
    surprise_limit: float | None = None
    accept_likelier: bool = False
    num_samples: int = 20
    num_dropout_passes: int = 20
    num_contexts: int = 5
    bandwidth_floor: float = 0.005
    reconstruction_noise: bool = True
    relative_density: bool = True
    own_reconstruction: bool = False
    decoder_spread: bool = False
    likelihood_share: float = 0.35
    surprise_floor: float = 0.0
    gate: bool = False
    smoothing: float = 0.5
    score_threshold: float | None = None

    def __post_init__(self):
        for setting in fields(self):
            value: Any = getattr(self, setting.name)
            if value is None and setting.default is None:
                continue
            if setting.type is bool:
                valid, expected = isinstance(value, bool), "true or false"
            else:
                low, high = RANGES[setting.name]
                kind: Any = Integral if setting.type is int else Real
                text = "whole number" if kind is Integral else "number"
                # the comparison is false for NaN
                valid = isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high
                expected = f"a {text} from {low:g} to {high:g}"
            if not valid:
                raise ValueError(f"setting {setting.name!r} must be {expected}, got {value!r}")
            if setting.type is not bool:  # numpy's numbers cannot be saved
                setattr(self, setting.name, int(value) if setting.type is int else float(value))
        if self.decoder_spread and self.num_dropout_passes < 2:
            raise ValueError("setting 'decoder_spread' needs 2 dropout passes at least: one says nothing of a spread")
        if not self.relative_density:
            for name in ("own_reconstruction", "decoder_spread"):
                if getattr(self, name):
                    raise ValueError(f"setting {name!r} needs 'relative_density': other densities cannot be compared")
            if self.likelihood_share:
                raise ValueError(
                    "setting 'likelihood_share' above 0 needs 'relative_density': the surprise of an absolute one is negative "
                    "where a pixel fits, and a product of surprises means nothing then"
                )

    @property
    def rule(self) -> masking.RejectionRule:
        """Which codes are healed."""
        return masking.RejectionRule(self.token_threshold, self.neighbourhood, self.outlier_scale)

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str | Path = "calibration") -> "InferenceSettings":
        """Raises ValueError on a setting that does not exist or is out of range; `where` the values come from is named."""
        known = sorted(f.name for f in fields(cls))
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"{where} has no setting {unknown[0]!r}; it has {known}")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def as_reconstructed(settings: InferenceSettings) -> float:
    """-log density where every reconstruction equals the pixel, which is what a pixel away from healed tokens counts as: zero if
    relative, else the authors' constant density, 1 / (sqrt(2 pi) floor), 2 at a floor of 0.2."""
    return 0.0 if settings.relative_density else math.log(math.sqrt(2 * math.pi) * settings.bandwidth_floor)


def lowest_value(settings: InferenceSettings) -> float:
    """What no map falls below, see `abnormality.combine`; a density alone, with `decoder_spread`, may."""
    return 0.0 if settings.likelihood_share else as_reconstructed(settings)
