"""Configuration of the tokenizer of tissues."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class TissueTokenizerConfig(PreTrainedConfig):
    """Configuration of `TissueTokenizerModel`.

    Args:
        vocab_size: number of codes, K.
        in_channels: 2 for PET and CT, 1 for PET alone.
        scales: standard deviations, in voxels, of the Gaussian windows whose means of the last channel describe a voxel; a
            window of the middle one gives a standard deviation too.
        pixels_per_token: 1, every voxel is a token.
        spatial_dims: 3, volumes.
    """

    model_type = "iltm_tissue_tokenizer"

    vocab_size: int = 256
    in_channels: int = 2
    scales: tuple[float, ...] | list[float] = (0.7, 1.5, 3.0)
    pixels_per_token: int = 1
    spatial_dims: int = 3

    def __post_init__(self, **kwargs):
        self.scales = tuple(self.scales)  # JSON gives a list back
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Raises ValueError where a value is out of range."""
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size must be at least 1, got {self.vocab_size}")
        if self.in_channels not in (1, 2):
            raise ValueError(f"in_channels must be 1 (PET) or 2 (PET and CT), got {self.in_channels}")
        if not self.scales or not all(0 < scale <= 20 and math.isfinite(scale) for scale in self.scales):
            raise ValueError(f"scales must be numbers from above 0 to 20 voxels, got {self.scales}")
        if (self.pixels_per_token, self.spatial_dims) != (1, 3):
            raise ValueError(
                f"need pixels_per_token 1 and spatial_dims 3, got {self.pixels_per_token} and {self.spatial_dims}"
            )

    def claimed_sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        """Counts of layers and widths by name, which `hub.checks` compares with the weights."""
        return {}, {"vocab_size": self.vocab_size, "scales": len(self.scales)}
