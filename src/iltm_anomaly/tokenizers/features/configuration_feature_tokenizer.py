"""Configuration of the tokenizer of frozen features."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from iltm_anomaly.tokenizers.features.backbones import OFFLINE_BACKBONE, ONE_STRIDE, check_backbone

DEPTHS = ("depth", "layer", "stage", "block")
"""Words in the names of a backbone's settings that count layers."""


@strict
class FeatureTokenizerConfig(PreTrainedConfig):
    """Configuration of `FeatureTokenizerModel`.

    Args:
        backbone: "efficientnet-lite0", whose weights are installed with the package, or the Hub id or folder of a backbone of
            transformers of one of `backbones.BACKBONE_TYPES`.
        backbone_config: the backbone's own configuration, which `FeatureTokenizerModel.from_backbone` fills in; None for
            EfficientNet-Lite0.
        levels: numbers of the feature maps used, counted from 1 after the stem; None takes those of strides 4, 8 and 16 of
            EfficientNet-Lite0, of strides 8 and 16 of others. For DINOv2, whose blocks all have one stride, they must be named.
        vocab_size: number of codes, K.
        pixels_per_token: pixels along each side of a token; features are brought to this grid.
        spatial_dims: 2, images.
        in_channels: channels of an image, 1 or 3; a grey one is given to all three of the backbone.
    """

    model_type = "iltm_feature_tokenizer"

    backbone: str = OFFLINE_BACKBONE
    backbone_config: dict | None = None
    levels: tuple[int, ...] | list[int] | None = None
    vocab_size: int = 2048
    pixels_per_token: int = 8
    spatial_dims: int = 2
    in_channels: int = 3

    def __post_init__(self, **kwargs: Any):
        if self.levels is None:
            kind = None if self.backbone_config is None else self.backbone_config.get("model_type")
            self.levels = {None: (2, 3, 5), "focalnet": (1, 2)}.get(kind, (2, 3))
            if kind in ONE_STRIDE:
                raise ValueError(f"{kind} has no feature maps of several strides: name blocks, such as levels=[6, 9]")
        self.levels = tuple(self.levels)  # JSON gives a list back
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Raises ValueError where a value is out of range, or for a backbone that is not of `BACKBONE_TYPES`."""
        check_backbone(self.backbone, self.backbone_config)
        if self.spatial_dims != 2:
            raise ValueError(f"spatial_dims must be 2: backbones take images, got {self.spatial_dims}")
        if self.in_channels not in (1, 3):
            raise ValueError(f"in_channels must be 1 or 3, got {self.in_channels}")
        for name in ("vocab_size", "pixels_per_token"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def claimed_sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        """Counts of layers and widths by name, which `hub.checks` compares with the weights."""
        depths, widths = {}, {"vocab_size": self.vocab_size, "pixels_per_token": self.pixels_per_token}
        for name, value in (self.backbone_config or {}).items():
            numbers = [number for number in (value if isinstance(value, list) else [value]) if type(number) is int]
            if numbers and any(word in name for word in DEPTHS):
                depths[name] = sum(numbers)
            elif numbers and "image" not in name:
                widths[name] = max(numbers)
        return depths, widths
