"""Configuration of the prior of tokens by their position."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class PositionPriorConfig(PreTrainedConfig):
    """Configuration of `PositionPriorModel`.

    Args:
        grid_shape: grid of tokens.
        hidden_size: numbers of a token, D.
        rank: directions of each position along which the variance is its own.
        shrinkage: variance that is added to every direction, in units of the variance of a direction over all positions.
    """

    model_type = "iltm_position_prior"

    grid_shape: tuple[int, ...] | list[int] = (32, 32)
    hidden_size: int = 176
    rank: int = 16
    shrinkage: float = 2.0

    def __post_init__(self, **kwargs):
        self.grid_shape = tuple(self.grid_shape)  # JSON gives a list back
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Raises ValueError where a value is out of range."""
        if not self.grid_shape or min(self.grid_shape) < 1:
            raise ValueError(f"grid_shape must hold positive sizes, got {self.grid_shape}")
        if not 1 <= self.rank <= self.hidden_size:
            raise ValueError(f"need 1 <= rank <= hidden_size, got {self.rank} and {self.hidden_size}")
        if not 0 < self.shrinkage < math.inf:
            raise ValueError(f"shrinkage must be positive, got {self.shrinkage}")

    def claimed_sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        """Counts of layers and widths by name, which `hub.checks` compares with the weights."""
        widths = {"grid_shape": math.prod(self.grid_shape), "hidden_size": self.hidden_size, "rank": self.rank}
        return {}, widths
