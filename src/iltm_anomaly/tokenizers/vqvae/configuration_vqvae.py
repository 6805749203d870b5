"""Configuration of the VQ-VAE."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class VQVAEConfig(PreTrainedConfig):
    """Configuration of `VQVAEModel`. Defaults are the paper's 2-D model (appendix A; widths from its released code).

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: channels of the image; 3 for colour.
        channels: width of each level; every level halves the resolution, so three of them make a grid of 1/8.
        num_res_blocks: residual blocks per level, in encoder and decoder.
        vocab_size: number of codes, K.
        embedding_dim: length of a code. The paper takes 32 for images, 128 for PET.
        commitment_cost: beta of Eq. 7.
        spectral_weight: weight of the Fourier amplitude term of Eq. 7; 0 leaves it out.
        dropout: share of whole channels dropped before the last up-convolution, in training and for reconstructions.
        ema_decay: decay of the codebook's moving averages.
        ema_epsilon: Laplace smoothing of the code counts.
        dead_code_threshold: codes used less than this share of an even use are moved onto an encoder output of the batch;
            0, as in the authors' code, never moves one.
    """

    model_type = "iltm_vqvae"

    spatial_dims: int = 2
    in_channels: int = 3
    channels: tuple[int, ...] | list[int] = (128, 128, 256)
    num_res_blocks: int = 3
    vocab_size: int = 256
    embedding_dim: int = 32
    commitment_cost: float = 0.25
    spectral_weight: float = 1.0
    dropout: float = 0.05
    ema_decay: float = 0.99
    ema_epsilon: float = 1e-5
    dead_code_threshold: float = 0.0

    def __post_init__(self, **kwargs):
        self.channels = tuple(self.channels)  # JSON gives a list back
        super().__post_init__(**kwargs)

    def validate_sizes(self):
        """Raises ValueError where a size or rate is out of range."""
        if self.spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 (images) or 3 (volumes), got {self.spatial_dims}")
        if not self.channels or min(self.channels) < 1:
            raise ValueError(f"channels must hold at least one positive width, got {self.channels}")
        for name in ("in_channels", "vocab_size", "embedding_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_res_blocks", "commitment_cost", "spectral_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("dropout", "ema_decay", "dead_code_threshold"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not self.ema_epsilon > 0:
            raise ValueError(f"ema_epsilon must be positive, got {self.ema_epsilon}: it keeps unused codes finite")

    @property
    def downsampling(self) -> int:
        """Pixels per code along each axis."""
        return 2 ** len(self.channels)

    @property
    def pixels_per_token(self) -> int:
        """`downsampling` under the name that all tokenizers have it by."""
        return self.downsampling

    def claimed_sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        """Counts of layers and widths by name, which `hub.checks` compares with the weights."""
        depths = {"num_res_blocks": self.num_res_blocks, "len(channels)": len(self.channels)}
        widths = {name: getattr(self, name) for name in ("vocab_size", "embedding_dim", "in_channels")}
        return depths, widths | {"channels": max(self.channels)}
