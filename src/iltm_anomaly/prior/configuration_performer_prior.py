"""Configuration of the Performer prior over VQ-VAE codes."""

import math
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import PreTrainedConfig

from iltm_anomaly.prior.linear_attention import default_num_features

MASKING_MODES = ("token", "value")


@strict
class PerformerPriorConfig(PreTrainedConfig):
    """Configuration of `PerformerPriorModel`. Defaults are the paper's 2-D prior (appendix B).

    Args:
        vocab_size: number of codes, K. The model adds two input ids of its own: begin of sequence (K) and mask (K + 1).
        grid_shape: code grid, (H, W) or (D, H, W); its product is the sequence length. The sequence is in raster order: the last
            axis runs fastest.
        hidden_size: width of the embedding.
        num_hidden_layers, num_attention_heads: as in any transformer.
        head_dim: size of a head, apart from `hidden_size`: the number of useful random features depends on it, and
            32 / 8 = 4 would leave 5 of them.
        num_random_features: FAVOR+ features; None is int(d ln d), 266 for a head of 64.
        intermediate_ratio: width of the feed-forward part over `hidden_size`.
        dropout: of embedding, feed-forward and attention output.
        layer_norm_eps: of every layer normalisation.
        initializer_range: standard deviation of the embeddings at the start; linear layers keep PyTorch's own start
            but for biases, which are 0.
        masking: what a masked token loses. "token": replaced by a learned mask embedding in the input, and its key features
            are zeroed, so that nothing of it reaches any prediction. "value": the authors' way, only its values are zeroed.
        feature_redraw_interval: training steps between redraws of the random features; 0 never redraws.
    """

    model_type = "iltm_performer_prior"
    attribute_map: ClassVar[dict[str, str]] = {}
    # fields of configurations that version 0.1 wrote, with the only value that is possible
    retired_fields: ClassVar[dict[str, str]] = {"ordering": "raster"}

    vocab_size: int = 256
    grid_shape: tuple[int, ...] | list[int] = (32, 32)
    hidden_size: int = 32
    num_hidden_layers: int = 16
    num_attention_heads: int = 8
    head_dim: int = 64
    num_random_features: int | None = None
    intermediate_ratio: int = 4
    dropout: float = 0.1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    masking: str = "token"
    feature_redraw_interval: int = 1000

    def __post_init__(self, **kwargs):
        for name, only in self.retired_fields.items():
            if (value := kwargs.pop(name, only)) != only:
                raise StrictDataclassFieldValidationError(
                    name, ValueError(f"{name} must be one of ({only!r},), got {value!r}")
                )
        self.grid_shape = tuple(self.grid_shape)  # JSON gives a list back
        if self.num_random_features is None:
            self.num_random_features = default_num_features(max(1, self.head_dim))  # validation comes after
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Raises ValueError where a size or the masking mode is out of range."""
        positive = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim")
        for name in (*positive, "num_random_features", "intermediate_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.feature_redraw_interval < 0:
            raise ValueError(f"feature_redraw_interval must not be negative, got {self.feature_redraw_interval}")
        if not self.grid_shape or min(self.grid_shape) < 1:
            raise ValueError(f"grid_shape must hold positive sizes, got {self.grid_shape}")
        if self.masking not in MASKING_MODES:
            raise ValueError(f"masking must be one of {MASKING_MODES}, got {self.masking!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if not 0 < self.layer_norm_eps < math.inf:
            raise ValueError(
                f"layer_norm_eps must be positive, got {self.layer_norm_eps}: it keeps flat inputs finite"
            )

    @property
    def max_position_embeddings(self) -> int:
        """Sequence length: the number of codes in the grid."""
        return math.prod(self.grid_shape)

    @property
    def bos_token_id(self) -> int:
        return self.vocab_size

    @property
    def mask_token_id(self) -> int:
        return self.vocab_size + 1

    def claimed_sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        """Counts of layers and widths by name, which `hub.checks` compares with the weights."""
        names = ("vocab_size", "hidden_size", "num_attention_heads", "head_dim", "num_random_features")
        widths = {name: getattr(self, name) for name in (*names, "intermediate_ratio")}
        return {"num_hidden_layers": self.num_hidden_layers}, widths | {"grid_shape": math.prod(self.grid_shape)}
