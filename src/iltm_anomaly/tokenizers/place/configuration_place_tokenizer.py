"""Configuration of the tokenizer of places."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class PlaceTokenizerConfig(PreTrainedConfig):
    """Configuration of `PlaceTokenizerModel`.

    Args:
        grid_shape: grid of places (D, H, W), that of the volumes.
        in_channels: 1, the uptake.
        pixels_per_token: 1, every voxel is a token.
        spatial_dims: 3, volumes.
    """

    model_type = "iltm_place_tokenizer"

    grid_shape: tuple[int, ...] | list[int] = (8, 8, 8)
    in_channels: int = 1
    pixels_per_token: int = 1
    spatial_dims: int = 3

    def __post_init__(self, **kwargs):
        self.grid_shape = tuple(self.grid_shape)  # JSON gives a list back
        super().__post_init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        """Number of codes: every place has its own."""
        return math.prod(self.grid_shape)

    def validate_sizes(self):
        """Raises ValueError where a value is out of range."""
        if len(self.grid_shape) != 3 or not 1 <= min(self.grid_shape) <= math.prod(self.grid_shape) <= 2**31:
            raise ValueError(f"grid_shape must hold three positive sizes, got {self.grid_shape}")
        if (self.in_channels, self.pixels_per_token, self.spatial_dims) != (1, 1, 3):
            raise ValueError(
                f"need in_channels 1, pixels_per_token 1 and spatial_dims 3, got {self.in_channels}, "
                f"{self.pixels_per_token} and {self.spatial_dims}"
            )

    def claimed_sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        """Counts of layers and widths by name, which `hub.checks` compares with the weights."""
        return {}, {"grid_shape": math.prod(self.grid_shape)}
