"""Configuration of the prior of tissues."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class TissuePriorConfig(PreTrainedConfig):
    """Configuration of `TissuePriorModel`.

    Args:
        vocab_size: number of codes, K.
        grid_shape: grid of tokens; one prior takes any, this is the one of the pipeline.
    """

    model_type = "iltm_tissue_prior"

    vocab_size: int = 256
    grid_shape: tuple[int, ...] | list[int] = (32, 32, 32)

    def __post_init__(self, **kwargs):
        self.grid_shape = tuple(self.grid_shape)  # JSON gives a list back
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Raises ValueError where a value is out of range."""
        if len(self.grid_shape) != 3 or not 1 <= min(self.grid_shape) <= math.prod(self.grid_shape) <= 2**31:
            raise ValueError(f"grid_shape must hold three positive sizes, got {self.grid_shape}")
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size must be at least 1, got {self.vocab_size}")

    def claimed_sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        """Counts of layers and widths by name, which `hub.checks` compares with the weights."""
        return {}, {"vocab_size": self.vocab_size}
