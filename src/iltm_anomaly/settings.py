"""What a user may choose at inference."""

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from iltm_anomaly import masking
from iltm_anomaly.ranges import check_fields

MEASURED = frozenset(
    {
        "surprise_limit",
        "score_threshold",
        "threshold_at_fast",
        "threshold_at_score",
        "code_scale",
        "position_scale",
        "usual_fine",
        "usual_coarse",
        "usual_detail",
        "map_scale",
        "sum_scale",
        "sum_offset",
        "usual_pixels",
        "pixel_scale",
        "token_limit",
        "false_alarm_share",
    }
)
"""Settings that calibration finds out from the training images, stored apart from those that somebody chose."""
EFFORTS = ("full", "fast", "score")
"""What an image is worth: "full" is as the settings say, "fast" a few samples, "score" one pass of tokenizer and prior in which
nothing is healed. Of features, where nothing is drawn, "score" leaves out the healed image alone."""
FAST = {"num_samples": 5, "num_dropout_passes": 8, "num_contexts": 2}  # at most


@dataclass
class InferenceSettings:
    """How a map is made, and the threshold that calibration sets.

    Args:
        token_threshold: probability below which a code is healed, every code for itself. None lets the next two decide, see
            `masking.RejectionRule`.
        neighbourhood: standard deviation, in tokens, of the Gaussian window over which surprise is averaged before a code is
            judged.
        outlier_scale: a code is healed if its surprise lies this many robust standard deviations above the median of all
            training codes.
        surprise_limit: the surprise, in nats, that `outlier_scale` comes to; calibration measures it.
        accept_likelier: heal a region only where that makes the codes likelier, see `healing.accept_likelier`. It matters where
            the prior cannot foresee what it heals.
        num_samples: healed samples per image, S. The time of healing and of the map grows with it.
        num_dropout_passes: decodings of each sample with channels dropped, D. The time of the map grows with it. 0 takes one
            with all channels.
        bandwidth_floor: least width of a kernel of the density, in pixel values, which reach from 0 to 1.
        reconstruction_noise: add to the floor how far each pixel of a training image usually is from its reconstruction, so that
            edges which the decoder always blurs are not taken for defects.
        relative_density: take the density of a pixel relative to the peak of its kernel, so that it surprises by 0 where it fits
            and by more where it does not. False is the authors' density, which is absolute and counts near healed codes only.
        own_reconstruction: a pixel surprises by no less than it does given the reconstruction of the image's own codes. Where
            the prior cannot foresee what is healed, the samples differ so much that any pixel fits among them, and a defect
            that the VQ-VAE could not draw would be lost. It needs `relative_density`.
        decoder_spread: take the peak of a kernel widened by the decoder's own spread over dropout passes. Where the decoder is
            unsure, as at edges, what it draws itself is far from a kernel's peak. It needs `relative_density` and 2 passes.
        likelihood_share: weight of the codes' surprise in the map, from 0 to 1; the pixels' surprise has the rest. See
            `scoring.combine`.
        surprise_floor: added to the pixels' surprise, in nats, so that a defect which the VQ-VAE draws well is not hidden by a
            factor near 0. See `scoring.combine`.
        num_contexts: healed samples under whose context every code is scored again for the map; 0 scores it in its own context,
            where what follows a defect is unlikely too.
        smoothing: standard deviation, in tokens, of the Gaussian filter over either part of the map; 0 leaves it alone.
        score_threshold: from here on a pixel, and an image that has such a pixel, is called abnormal; None before
            calibration.
        threshold_at_fast, threshold_at_score: `score_threshold` of the two lower efforts, whose maps have another scale; None
            before calibration, and of models that version 0.1 has made.
        tile: side in pixels of the tiles that training images were cut into, and images are; None takes them whole.

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
    smoothing: float = 0.5
    score_threshold: float | None = None
    threshold_at_fast: float | None = None
    threshold_at_score: float | None = None
    tile: int | None = None

    def __post_init__(self):
        check_fields(self)
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

    def at(self, effort: str) -> Self:
        """The settings at one of `EFFORTS`, with its own threshold as `score_threshold`.

        Raises:
            ValueError: if it is none of these, or its threshold was not measured although that of full effort was.
        """
        _check_effort(effort)
        if effort == "full":
            return self
        threshold = getattr(self, f"threshold_at_{effort}")
        if threshold is None and self.score_threshold is not None:
            raise ValueError(
                f"the model has no threshold for effort {effort!r}, since it was made before efforts had their own: leave effort "
                "out, or continue its run with `iltm-anomaly train ... --resume`, which measures it"
            )
        lower = {name: min(most, getattr(self, name)) for name, most in FAST.items()}
        if effort == "score":
            lower = {"token_threshold": 0.0, "num_samples": 1, "num_dropout_passes": 0, "decoder_spread": False}
        return replace(self, **lower, score_threshold=threshold)

    def set_thresholds(self, thresholds: dict[str, float]) -> None:
        """Takes the thresholds of all `EFFORTS`."""
        self.score_threshold = thresholds["full"]
        self.threshold_at_fast, self.threshold_at_score = thresholds["fast"], thresholds["score"]

    @property
    def rule(self) -> masking.RejectionRule:
        """Which codes are healed."""
        return masking.RejectionRule(self.token_threshold, self.neighbourhood, self.outlier_scale)

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str | Path = "calibration") -> "InferenceSettings":
        """Settings from plain data, of version 0.1 too.

        Args:
            values: by name; what is left out has its default.
            where: they come from, for messages.

        Raises:
            ValueError: if a setting does not exist or is out of range.
        """
        return _read(cls, without_gate(values, str(where)), where)


@dataclass
class FeatureSettings:
    """How the map of a pipeline on features is made (`feature_map`); calibration sets those that are None.

    Args:
        code_share: weight of a token's distance to the nearest code, from 0 to 1; its distance to what its position usually holds
            has the rest.
        coarse_weight: weight of the coarse look: of how unusual the tokens around are together.
        detail_weight: how much more what is abnormal counts where detail confirms it.
        smoothing: standard deviation, in tokens, of the Gaussian filter over the map.
        score_share: the score of an image rests on the mean of this share of its map, its highest values.
        pixel_weight: weight in the map of the view of pixels, where there is one; that of the features has 1.
        code_scale, position_scale: what a distance of either kind is divided by, so that both are on one scale.
        usual_fine, usual_coarse, usual_detail: medians of the looks at normal tokens, which count as 0.
        map_scale: what a map is divided by, so that its highest values are on the scale of scores.
        sum_scale, sum_offset: by which the sum of the fine and the coarse look is brought to that scale.
        usual_pixels, pixel_scale: the median of the view of pixels, which counts as 0, and what it is divided by to be on the
            scale of the map; None where there is no such view.
        token_limit: surprise from which on a token is healed.
        score_threshold: score from which on an image is called abnormal, and a pixel of its map; None before calibration.
        false_alarm_share: share of training images that reach the threshold, defective ones among them: about the most that false
            alarms are to be expected to be.
        tile: as of `InferenceSettings`.

    Raises:
        ValueError: if a setting is not of its type or not in `RANGES`.
    """

    code_share: float = 0.35
    coarse_weight: float = 0.6
    detail_weight: float = 10.0
    smoothing: float = 0.6
    score_share: float = 0.01
    pixel_weight: float = 0.5
    code_scale: float | None = None
    position_scale: float | None = None
    usual_fine: float | None = None
    usual_coarse: float | None = None
    usual_detail: float | None = None
    map_scale: float | None = None
    sum_scale: float | None = None
    sum_offset: float | None = None
    usual_pixels: float | None = None
    pixel_scale: float | None = None
    token_limit: float | None = None
    score_threshold: float | None = None
    false_alarm_share: float | None = None
    tile: int | None = None

    def __post_init__(self):
        check_fields(self)

    def at(self, effort: str) -> Self:
        """The settings at one of `EFFORTS`; scores and threshold are those of all.

        Raises:
            ValueError: if it is none of these.
        """
        _check_effort(effort)
        return replace(self, token_limit=None) if effort == "score" else self

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str | Path = "calibration") -> "FeatureSettings":
        """Settings from plain data; as `InferenceSettings.from_dict`."""
        return _read(cls, values, where)


@dataclass
class VolumeSettings:
    """What pipelines on tissues and on places have in common; calibration sets it.

    Args:
        token_limit: logarithm of the map from which on a token is healed.
        score_threshold: value of the map from which on a voxel, and a volume that has such a voxel, is called abnormal; None
            before calibration.
        false_alarm_share: share of training volumes that reach the threshold, those with lesions among them.

    Raises:
        ValueError: if a setting is not of its type or not in `RANGES`.
    """

    token_limit: float | None = None
    score_threshold: float | None = None
    false_alarm_share: float | None = None

    tile: ClassVar[None] = None  # volumes are not cut

    def __post_init__(self):
        check_fields(self)

    def at(self, effort: str) -> Self:
        """As of `FeatureSettings`."""
        _check_effort(effort)
        return replace(self, token_limit=None) if effort == "score" else self

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str | Path = "calibration") -> Self:
        """Settings from plain data; as `InferenceSettings.from_dict`."""
        return _read(cls, values, where)


@dataclass
class UptakeSettings(VolumeSettings):
    """How the map of a pipeline on tissues, which is in units of the file, is made (`uptake_map`).

    Args:
        tissue_weight: exponent of a tissue's odds in the map, where uptake has 1; 0 leaves the CT out.
        smoothing: standard deviation, in voxels of the model, of the Gaussian filter over uptake; over odds it is three times as
            wide.
    """

    tissue_weight: float = 0.5
    smoothing: float = 1.0


@dataclass
class PlaceSettings(VolumeSettings):
    """How the map of a pipeline on places is made (`place_map`).

    Args:
        background: uptake, in units of the file such as SUV, that is added to both the scan's and the highest usual one before
            they are divided, so that differences of less than about so much do not count; so much is usual everywhere.
        smoothing: standard deviation, in voxels of the model, of the Gaussian filter over uptake.
    """

    background: float = 1.0
    smoothing: float = 1.0


Settings = InferenceSettings | FeatureSettings | UptakeSettings | PlaceSettings


def _check_effort(effort: str) -> None:
    if effort not in EFFORTS:
        raise ValueError(f"effort must be one of {', '.join(EFFORTS)}, got {effort!r}")


def chosen_and_measured(settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of any kind as plain data, those that were chosen and those that are `MEASURED`."""
    values = asdict(settings)
    measured = {name: values.pop(name) for name in list(values) if name in MEASURED}
    return values, measured


def read_settings(values: dict[str, Any], where: str | Path) -> Settings:
    """The settings of any kind of pipeline from plain data that comes from `where`.

    Raises:
        ValueError: if a setting does not exist or is out of range.
    """
    named = {"tissue_weight": UptakeSettings, "background": PlaceSettings, "code_share": FeatureSettings}
    kind: Any = next((kind for name, kind in named.items() if name in values), InferenceSettings)
    return kind.from_dict(values, where)


def _read(kind: Any, values: dict[str, Any], where: str | Path) -> Any:
    known = sorted(f.name for f in fields(kind))
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{where} has no setting {unknown[0]!r}; it has {known}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def without_gate(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Settings of version 0.1 without `gate`, which has become a part of `relative_density`.

    Raises:
        ValueError: if `gate` has the value that is no longer possible.
    """
    values = dict(values)
    implied = values.get("relative_density", True) is False
    if (gate := values.pop("gate", implied)) is not implied:
        raise ValueError(
            f"{where}: gate {gate!r} is no longer possible with relative_density {not implied}: only the authors' density "
            "(relative_density false) is kept near healed tokens, and it always is. Leave gate out"
        )
    return values


def as_reconstructed(settings: InferenceSettings) -> float:
    """-log density of a pixel that every reconstruction equals, which is also what a pixel away from healed tokens counts as.

    It is 0 if the density is relative. The authors' density is then 1 / (sqrt(2 pi) floor), which is 2 at a floor of 0.2.
    """
    return 0.0 if settings.relative_density else math.log(math.sqrt(2 * math.pi) * settings.bandwidth_floor)


def lowest_value(settings: Settings) -> float:
    """The value of a map where nothing is abnormal, and its least one, but for the density alone with `decoder_spread`, which may
    fall below. See `scoring.combine`."""
    if not isinstance(settings, InferenceSettings) or settings.likelihood_share:
        return 0.0
    return as_reconstructed(settings)
