"""What all baselines have in common: a model that makes a score and a map of each image, and how it is trained."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.utils import ModelOutput

from iltm_anomaly.modeling import SafetensorsModel
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.recipes.pixel_recipe import StageRecipe
from iltm_anomaly.scoring import smooth

MAX_SIDE = 4096  # pixels of an image's side; a configuration that claims more is a mistake or malice
IMAGES_AT_ONCE = 16


class MissingExtraError(ImportError):
    """A package of an optional extra is not installed."""


@dataclass
class BaselineRecipe:
    """How one baseline is trained under one preset.

    Args:
        stage: the gradient descent; None for a method without one.
        config: fields of the model's configuration that differ from their defaults.
        mixed_precision: precision of the gradient descent, "no" (float32), "bf16" or "fp16".
        compile: run the model through torch.compile.
    """

    stage: StageRecipe | None = None
    config: dict[str, Any] = field(default_factory=dict)
    mixed_precision: str = "no"
    compile: bool = False


@strict
class BaselineConfig(PreTrainedConfig):
    """Fields of every baseline.

    Args:
        image_size: (height, width) of `pixel_values`.
        in_channels: 1 (grey) or 3 (colour).
        smoothing: standard deviation of the Gaussian filter over maps, as a share of the image's longer side. By default it is
            that of ILTM's maps, 4 pixels of 128.
    """

    # fields that count layers; for `claimed_sizes` all other whole numbers are widths
    depth_fields: ClassVar[tuple[str, ...]] = ()
    # fields that a recipe cannot set, since they follow from others, or the method has no use for them
    fixed_fields: ClassVar[tuple[str, ...]] = ("image_size", "in_channels")

    image_size: tuple[int, ...] | list[int] = (128, 128)
    in_channels: int = 3
    smoothing: float = 1 / 32

    def __post_init__(self, **kwargs):
        for f in fields(self):
            if isinstance(getattr(self, f.name), list) and "tuple" in str(f.type):
                setattr(self, f.name, tuple(getattr(self, f.name)))  # JSON gives lists back
        super().__post_init__(**kwargs)

    def validate_baseline(self):
        """Raises ValueError where image size, channels or smoothing are out of range."""
        if len(self.image_size) != 2 or not all(8 <= side <= MAX_SIDE for side in self.image_size):
            raise ValueError(
                f"image_size must be (height, width) of 8 to {MAX_SIDE} pixels, got {self.image_size}: baselines are for images"
            )
        if self.in_channels not in (1, 3):
            raise ValueError(f"in_channels must be 1 (grey) or 3 (colour), got {self.in_channels}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {self.smoothing}")

    def check_ranges(self, *names: str) -> None:
        """Raises ValueError unless each of these fields is a pair (smallest, largest) of positive numbers."""
        for name in names:
            values = getattr(self, name)
            if len(values) != 2 or not 0 < values[0] <= values[1]:
                raise ValueError(f"{name} must be (smallest, largest), both positive, got {values}")

    def claimed_sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        """Numbers of layers and widths by name. `hub.checks` compares them with the weights before it builds a model: no model
        has more layers than tensors, or a width above the count of its numbers."""
        own = {f.name for f in fields(self)} - {f.name for f in fields(PreTrainedConfig)} - {"image_size"}
        depths: dict[str, int] = {}
        widths: dict[str, int] = {}
        for name in sorted(own):
            for key, value in _whole_numbers(name, getattr(self, name)):
                (depths if name in self.depth_fields else widths)[key] = value
        return depths, widths


def _as_float(value: Any, kind: str) -> Any:
    """A whole number as a float, alone or in a list, where `kind`, the type of a field, allows floats alone: users write 1 for
    1.0."""
    if "float" not in kind or "int" in kind:
        return value
    if isinstance(value, list | tuple):
        return [_as_float(item, kind) for item in value]
    return float(value) if type(value) is int else value


def _whole_numbers(name: str, value: Any) -> Iterator[tuple[str, int]]:
    if type(value) is int:
        yield name, value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _whole_numbers(name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _whole_numbers(f"{name}.{key}", item)


@dataclass
class AnomalyModelOutput(ModelOutput):
    """
    Args:
        loss: what training minimises; None if labels are needed and none are given.
        prediction: a reconstruction, or logits of classes or maps, as the model's `forward` says.
    """

    loss: Tensor | None = None
    prediction: Tensor | None = None


class BaselineModel(SafetensorsModel):
    """Images (B, C, H, W) in [0, 1] of `config.image_size` to scores (B,) and maps (B, H, W). Higher is more anomalous.

    Attributes:
        recipes: by preset: "paper" (the settings of the method's source), "cpu" (two cores, minutes) and "tiny" (for tests).
        version: counts changes of training or maps that no field of the configuration tells of. The benchmark trains and measures
            again what another version has made.
    """

    if TYPE_CHECKING:
        config: Any  # of `config_class`
    config_class: Any = BaselineConfig
    base_model_prefix = "baseline"
    main_input_name = "pixel_values"
    recipes: ClassVar[dict[str, BaselineRecipe]]
    version: ClassVar[int] = 1

    @classmethod
    def recipe_for(
        cls, preset: str, category: str | None = None, config: dict[str, Any] | None = None
    ) -> BaselineRecipe:
        """A preset's recipe.

        Args:
            preset: of `recipes`.
            category: of MVTec AD. With the preset "paper", a method takes the settings that its source has for the category.
            config: fields of the configuration in place of the preset's.

        Raises:
            ValueError: for an unknown preset.
        """
        if preset not in cls.recipes:
            raise ValueError(f"{cls.__name__} has no preset {preset!r}; it has {', '.join(cls.recipes)}")
        recipe = cls.recipes[preset]
        return replace(recipe, config=recipe.config | (config or {}))

    @classmethod
    def config_defaults(cls) -> dict[str, Any]:
        """Fields of the configuration that a recipe can set, with their defaults."""
        inherited = {f.name for f in fields(PreTrainedConfig)} | set(cls.config_class.fixed_fields)
        return {f.name: f.default for f in fields(cls.config_class) if f.name not in inherited}

    @classmethod
    def configure(cls, processor: ILTMImageProcessor, num_images: int, settings: dict[str, Any]) -> Any:
        """The configuration of a model for the images that `processor` makes.

        Args:
            processor: fixes the size and the channels.
            num_images: number of training images.
            settings: other fields of the configuration, with their values.

        Raises:
            ValueError: if a setting is unknown or out of range, or the processor makes volumes.
        """
        if processor.is_volumetric:
            raise ValueError("baselines are for images: the processor makes volumes")
        own = sorted(cls.config_defaults())
        if unknown := sorted(set(settings) - set(own)):
            raise ValueError(f"{cls.__name__} has no setting {unknown[0]!r}; it has {own}")
        size = {"image_size": processor.padded_size, "in_channels": processor.num_channels}
        kinds = {f.name: str(f.type) for f in fields(cls.config_class)}
        try:
            return cls.config_class(**size | {name: _as_float(value, kinds[name]) for name, value in settings.items()})
        except StrictDataclassError as error:
            raise ValueError(f"{cls.__name__}: {error}") from error

    def load_pretrained_parts(self) -> None:
        """Loads weights that training starts from, if the method has any. Only here may a hub be asked."""

    def training_batch(self, images: Any, indices: Tensor, seed: int) -> dict[str, Tensor]:
        """Arguments of `forward` for one step, on the CPU. They depend on nothing but what is given here.

        Args:
            images: (N, C, H, W) uint8, a tensor or a `PixelCache`.
            indices: (B,) the images of the step.
            seed: of the step.
        """
        return {"pixel_values": unit_range(images[indices])}

    @torch.no_grad()
    def fit_statistics(self, images: Any, seed: int) -> None:
        """Computes what the method takes from all training images at once, after gradient descent."""

    @torch.no_grad()
    def anomaly_maps(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in [0, 1] -> scores (B,) and maps (B, H, W), float32. Unless a method says otherwise, a map is the
        absolute difference of an image to its prediction, averaged over channels, and the score is its maximum."""
        maps = self.smoothed((pixel_values - self(pixel_values).prediction).abs().float().mean(1))
        return maps.amax((1, 2)), maps

    def check_pixels(self, pixel_values: Tensor) -> None:
        """Raises ValueError unless `pixel_values` have the shape (B, C, H, W) of the configured channels and size."""
        expected = (self.config.in_channels, *self.config.image_size)
        if tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"pixel_values must have shape (B, {', '.join(map(str, expected))}), got {tuple(pixel_values.shape)}: "
                "let ILTMImageProcessor resize"
            )

    def batches(self, images: Any) -> Iterator[Tensor]:
        """Images (N, C, H, W) uint8 in order, a few at a time: (B, C, H, W) float32 in [0, 1] on the model's device."""
        for start in range(0, len(images), IMAGES_AT_ONCE):
            yield unit_range(images[start : start + IMAGES_AT_ONCE]).to(self.device)

    def smoothed(self, maps: Tensor) -> Tensor:
        """Maps (B, H, W), each with the filter of `config.smoothing`."""
        sigma = self.config.smoothing * max(self.config.image_size)
        return torch.stack([smooth(values, sigma) for values in maps])

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialises as PyTorch does by default, in place of the N(0, 0.02) of transformers."""
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            for name, buffer in module.named_buffers():
                (init.ones_ if name == "running_var" else init.zeros_)(buffer)
        else:
            for buffer in module.buffers(recurse=False):
                init.zeros_(buffer)


def unit_range(images: Tensor) -> Tensor:
    """Images uint8 -> float32 in [0, 1]."""
    return images.float() / 255
