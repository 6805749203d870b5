"""What CutPaste and NSA share: a ResNet-18, that of transformers."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, ResNetConfig, ResNetModel

from iltm_anomaly.comparison.baselines.modeling import BaselineConfig, BaselineModel
from iltm_anomaly.processing.image_processing import ILTMImageProcessor

RESNET_FIELDS = ("embedding_size", "hidden_sizes", "depths", "layer_type", "downsample_in_bottleneck")


@strict
class ResNetBaselineConfig(BaselineConfig):
    """Fields of a baseline with a ResNet, by the names of `transformers.ResNetConfig`; defaults are ResNet-18. Grey images are
    shown to it as three equal channels.

    Args:
        embedding_size: channels after the first convolution.
        hidden_sizes, depths: channels and residual layers of each stage.
        layer_type: "basic" or "bottleneck".
        downsample_in_bottleneck: halve in the first convolution of a bottleneck.
        weights: name or folder of a ResNet of transformers that training starts from, with its sizes in place of those above.
            None starts from scratch.
    """

    depth_fields: ClassVar[tuple[str, ...]] = ("depths",)

    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] | list[int] = (64, 128, 256, 512)
    depths: tuple[int, ...] | list[int] = (2, 2, 2, 2)
    layer_type: str = "basic"
    downsample_in_bottleneck: bool = False
    weights: str | None = None

    def validate_resnet(self):
        """Raises ValueError where a size is out of range."""
        if len(self.hidden_sizes) != len(self.depths) or not self.depths or min(self.depths) < 1:
            raise ValueError(
                f"need one depth of at least 1 for each of hidden_sizes {self.hidden_sizes}, got {self.depths}"
            )
        if min(self.embedding_size, *self.hidden_sizes) < 1:
            raise ValueError(f"embedding_size and hidden_sizes must be positive, got {self.hidden_sizes}")

    @property
    def resnet(self) -> ResNetConfig:
        """The configuration of the ResNet itself."""
        values: dict[str, Any] = {name: getattr(self, name) for name in RESNET_FIELDS}
        return ResNetConfig(**values | {name: list(values[name]) for name in ("hidden_sizes", "depths")})


def narrow(width: int) -> dict[str, Any]:
    """Fields of a ResNet-18 with `width` channels in its first stage, in place of 64."""
    return {"embedding_size": width, "hidden_sizes": tuple(width * 2**stage for stage in range(4))}


class ResNetBaselineModel(BaselineModel):
    """A baseline with a ResNet.

    Attributes:
        resnet_name: name of the attribute that holds the ResNet.
    """

    resnet_name: ClassVar[str]

    @classmethod
    def configure(cls, processor: ILTMImageProcessor, num_images: int, settings: dict[str, Any]) -> Any:
        weights = settings.get("weights")
        return super().configure(processor, num_images, settings | (_sizes_of(weights) if weights else {}))

    def load_pretrained_parts(self) -> None:
        if self.config.weights is not None:
            stored = ResNetModel.from_pretrained(self.config.weights)
            self.get_submodule(self.resnet_name).load_state_dict(stored.state_dict())


def _sizes_of(weights: str) -> dict[str, Any]:
    """`RESNET_FIELDS` of a ResNet by name or folder; raises ValueError if it is another kind of model."""
    config = AutoConfig.from_pretrained(weights)
    if not isinstance(config, ResNetConfig):
        raise ValueError(f"weights {weights!r} are of a {config.model_type}, expected a ResNet of transformers")
    if config.downsample_in_first_stage or config.hidden_act != "relu" or config.num_channels != 3:
        raise ValueError(
            f"weights {weights!r} are of an unusual ResNet: expected ReLU, three channels and no early halving"
        )
    return {name: getattr(config, name) for name in RESNET_FIELDS}
