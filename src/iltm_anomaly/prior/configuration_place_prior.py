"""Configuration of the prior of places."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class PlacePriorConfig(PreTrainedConfig):
    """Configuration of `PlacePriorModel`.

    Args:
        grid_shape: grid of places.
        reach: how far, in voxels along each axis, organs lie from where they usually do: what is as hot near by in other bodies
            is normal.
    """

    model_type = "iltm_place_prior"

    grid_shape: tuple[int, ...] | list[int] = (8, 8, 8)
    reach: int = 2

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
        if not 0 <= self.reach <= 20:
            raise ValueError(f"reach must be from 0 to 20 voxels, got {self.reach}")

    def claimed_sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        """Counts of layers and widths by name, which `hub.checks` compares with the weights."""
        return {}, {"grid_shape": math.prod(self.grid_shape)}
