"""Frozen networks that turn images into feature maps: backbones of transformers, or EfficientNet-Lite0 from its own package."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoBackbone, AutoConfig
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from iltm_anomaly.tokenizers.features.efficientnet_lite import EfficientNetLite0Features

OFFLINE_BACKBONE = "efficientnet-lite0"
# Backbones that a saved model may name: plain networks of transformers that load nothing by themselves.
BACKBONE_TYPES = (
    "resnet",
    "convnext",
    "convnextv2",
    "swin",
    "swinv2",
    "focalnet",
    "dinov2",
    "dinov2_with_registers",
)
ONE_STRIDE = ("dinov2", "dinov2_with_registers")


def backbone_of(backbone_config: dict[str, Any] | None, levels: Sequence[int] | None) -> Any:
    """The network, with random weights until its `load_pretrained` is called: EfficientNet-Lite0 without a configuration."""
    if backbone_config is None:
        return EfficientNetLite0Features(tuple(levels or ()))
    return TransformersBackbone(backbone_config, levels)


def check_backbone(name: str, backbone_config: dict[str, Any] | None) -> None:
    """Raises ValueError for a backbone that is not of `BACKBONE_TYPES`."""
    kind = None if backbone_config is None else backbone_config.get("model_type")
    if (kind is not None and kind not in BACKBONE_TYPES) or (kind is None) != (name == OFFLINE_BACKBONE):
        raise ValueError(
            f"backbone {name!r} is of the kind {kind!r}, expected one of {', '.join(BACKBONE_TYPES)}, or {OFFLINE_BACKBONE!r}"
        )


def pretrained_config(name: str) -> dict[str, Any] | None:
    """The configuration of a backbone, from its folder or from a hub; None for EfficientNet-Lite0, which needs none."""
    return None if name == OFFLINE_BACKBONE else AutoConfig.from_pretrained(name).to_diff_dict()


def imagenet_normalized(pixel_values: Tensor) -> Tensor:
    """Images (B, C, H, W) in [0, 1], C = 1 or 3 -> (B, 3, H, W), normalised by ImageNet's mean and standard deviation."""
    mean, std = (
        pixel_values.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return (pixel_values - mean) / std


def on_one_grid(levels: Sequence[Tensor], grid: Sequence[int]) -> Tensor:
    """Feature maps (B, C, h, w) of several levels, finer ones averaged and coarser ones interpolated -> (B, *grid, sum of C)."""
    size = (grid[0], grid[1])
    same = [
        F.adaptive_avg_pool2d(level, size)
        if level.shape[2] > size[0]
        else F.interpolate(level, size=size, mode="bilinear", align_corners=False)
        for level in levels
    ]
    return torch.cat(same, 1).permute(0, 2, 3, 1)


class TransformersBackbone(nn.Module):
    """Feature maps of a backbone of transformers."""

    def __init__(self, backbone_config: dict[str, Any], levels: Sequence[int] | None):
        super().__init__()
        values = dict(backbone_config)
        self.levels = list(levels or ())
        own = AutoConfig.for_model(values.pop("model_type"), **values)
        own.set_output_features_output_indices(out_indices=self.levels, out_features=None)
        self.network = AutoBackbone.from_config(own)
        self.channels = list(self.network.channels)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) in [0, 1] -> one feature map (B, C, h, w) per level."""
        return list(self.network(imagenet_normalized(pixel_values)).feature_maps)

    def load_pretrained(self, name: str) -> None:
        """Loads the weights from the folder `name`, or from a hub if there is no such folder."""
        # not by AutoBackbone, which asks the Hub about folders, too
        stored = type(self.network).from_pretrained(name, out_indices=self.levels)
        self.network.load_state_dict(stored.state_dict())
