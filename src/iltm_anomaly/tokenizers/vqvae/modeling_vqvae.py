"""VQ-VAE in two or three dimensions (appendix A): image to a grid of codes and back."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from iltm_anomaly.tokenizers.base import TokenizerModel
from iltm_anomaly.tokenizers.quantizer import EMAQuantizer, perplexity
from iltm_anomaly.tokenizers.vqvae.configuration_vqvae import VQVAEConfig
from iltm_anomaly.tokenizers.vqvae.decoding import decoded_strips, draw_channel_masks
from iltm_anomaly.tokenizers.vqvae.losses import jukebox_loss

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
UP_CONV = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
CHANNEL_DROPOUT = {2: nn.Dropout2d, 3: nn.Dropout3d}
# Grids of codes that go through the decoder together when many are drawn: one of them fills a CPU's cache.
GRIDS_AT_ONCE = {"cpu": 1, "cuda": 16}


@dataclass
class VQVAEOutput(ModelOutput):
    """
    Args:
        loss: Eq. 7 with the codebook term replaced by moving averages.
        reconstruction: (B, C, *spatial), not clamped.
        codes: (B, *grid) int64.
        commitment_loss: mean squared distance of encoder outputs to their codes, before `commitment_cost`.
        perplexity: effective number of codes in use in this batch, 1 to K.
    """

    loss: Tensor | None = None
    reconstruction: Tensor | None = None
    codes: Tensor | None = None
    commitment_loss: Tensor | None = None
    perplexity: Tensor | None = None


class ResidualBlock(GradientCheckpointingLayer):
    """3-convolution, ReLU, 1-convolution, skip, ReLU: the appendix's second ReLU stands after the addition."""

    def __init__(self, width: int, spatial_dims: int):
        super().__init__()
        conv = CONV[spatial_dims]
        self.layers = nn.Sequential(conv(width, width, 3, padding=1), nn.ReLU(inplace=True), conv(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layers(x))


class VQVAEModel(TokenizerModel):
    """Encoder, EMA codebook and decoder; the tokenizer that observes pixels.

    Pixel values are (B, C, *spatial) floats in [0, 1], every side a multiple of `config.downsampling`; `ILTMImageProcessor`
    makes them. Weights start from PyTorch's own convolution initialisation, not from transformers' N(0, 0.02).
    """

    config_class = VQVAEConfig
    base_model_prefix = "vqvae"
    supports_gradient_checkpointing = True

    def __init__(self, config: VQVAEConfig):
        super().__init__(config)
        dims, widths = config.spatial_dims, config.channels
        conv, up_conv = CONV[dims], UP_CONV[dims]

        encoder: list[nn.Module] = []
        for entering, width in zip((config.in_channels, *widths), widths, strict=False):
            encoder += [conv(entering, width, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
            encoder += [ResidualBlock(width, dims) for _ in range(config.num_res_blocks)]
        self.encoder = nn.Sequential(*encoder, conv(widths[-1], config.embedding_dim, 3, padding=1))

        self.quantizer = EMAQuantizer(
            config.vocab_size, config.embedding_dim, config.ema_decay, config.ema_epsilon, config.dead_code_threshold
        )

        decoder: list[nn.Module] = [conv(config.embedding_dim, widths[-1], 3, padding=1)]
        for level in reversed(range(len(widths))):
            decoder += [ResidualBlock(widths[level], dims) for _ in range(config.num_res_blocks)]
            if level:
                decoder += [up_conv(widths[level], widths[level - 1], 4, stride=2, padding=1), nn.ReLU(inplace=True)]
        self.decoder_trunk = nn.Sequential(*decoder)  # all that does not depend on dropout
        self.dropout = CHANNEL_DROPOUT[dims](config.dropout)
        self.decoder_head = up_conv(widths[0], config.in_channels, 4, stride=2, padding=1)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder[0]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            init.kaiming_uniform_(module.weight, a=5**0.5)
            bound = module.weight[0].numel() ** -0.5
            assert module.bias is not None
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, EMAQuantizer):
            init.normal_(module.codebook)
            init.copy_(module.code_sum, module.codebook)
            init.zeros_(module.code_count)
            init.zeros_(module.updates)

    def _check(self, pixel_values: Tensor) -> None:
        config, shape = self.config, tuple(pixel_values.shape)
        if len(shape) != config.spatial_dims + 2 or shape[1] != config.in_channels:
            raise ValueError(
                f"pixel_values must have shape (B, {config.in_channels}, {'D, ' * (config.spatial_dims == 3)}H, W), got {shape}"
            )
        if any(side % config.downsampling or not side for side in shape[2:]):
            raise ValueError(
                f"every side of {shape[2:]} must be a positive multiple of {config.downsampling}: "
                "let ILTMImageProcessor resize or pad"
            )

    def _encode_vectors(self, pixel_values: Tensor) -> Tensor:
        self._check(pixel_values)
        return self.encoder(pixel_values)  # (B, D, *grid)

    @staticmethod
    def _flatten(grid: Tensor) -> Tensor:
        return grid.movedim(1, -1).flatten(0, -2)  # (B, D, *grid) -> (T, D)

    def forward(self, pixel_values: Tensor, return_dict: bool | None = None) -> VQVAEOutput | tuple:
        """Encodes, quantises and decodes; in training mode also moves the codebook.

        Raises:
            ValueError: if channels or sides do not fit the configuration.
        """
        encoded = self._encode_vectors(pixel_values)
        vectors = self._flatten(encoded)
        quantized, codes, counts = self.quantizer(vectors)
        commitment = (vectors.float() - quantized).square().mean()
        # straight-through: the decoder's gradient reaches the encoder as if nothing had been quantised
        passed = (
            (vectors + (quantized - vectors).detach()).unflatten(0, (len(encoded), *encoded.shape[2:])).movedim(-1, 1)
        )
        reconstruction = self.decoder_head(self.dropout(self.decoder_trunk(passed.to(encoded.dtype))))
        loss = jukebox_loss(reconstruction, pixel_values, self.config.spectral_weight)
        output = VQVAEOutput(
            loss=loss + self.config.commitment_cost * commitment,
            reconstruction=reconstruction,
            codes=codes.view(len(encoded), *encoded.shape[2:]),
            commitment_loss=commitment,
            perplexity=perplexity(counts),
        )
        return output if return_dict is None or return_dict else output.to_tuple()

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Tensor:
        """(B, C, *spatial) -> codes (B, *grid) int64. Never moves the codebook.

        Raises:
            ValueError: if channels or sides do not fit the configuration.
        """
        encoded = self._encode_vectors(pixel_values)
        return self.quantizer.assign(self._flatten(encoded).float()).view(len(encoded), *encoded.shape[2:])

    def decode_trunk(self, codes: Tensor) -> Tensor:
        """The decoder up to its dropout: codes (B, *grid) -> features (B, channels[0], *spatial / 2)."""
        return self.decoder_trunk(self.quantizer.codebook[codes].movedim(-1, 1).to(self.dtype))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, *grid) -> image (B, C, *spatial), not clamped. Drops channels in training mode only."""
        return self.decoder_head(self.dropout(self.decode_trunk(codes)))

    def observe(self, pixel_values: Tensor) -> Tensor:
        return pixel_values.float()

    @torch.no_grad()
    def expect(self, codes: Tensor) -> Tensor:
        """Codes (B, *grid) -> image (B, C, *spatial) float32 in [0, 1]."""
        return self.decode(codes).float().clamp(0, 1)

    @torch.no_grad()
    def draw_expected(
        self, codes: Tensor, num_draws: int, generator: torch.Generator
    ) -> Iterator[tuple[slice, Tensor]]:
        """Decodes every grid of codes (S, *grid) `num_draws` times with channels dropped, see `TokenizerModel.draw_expected`.

        Equal grids are decoded once, with dropout passes of their own. The model's mode does not matter.
        """
        distinct, index = torch.unique(codes, dim=0, return_inverse=True)
        step = GRIDS_AT_ONCE.get(codes.device.type, GRIDS_AT_ONCE["cuda"])
        features: Tensor | None = None  # (U, F, *cells), filled part by part: of volumes it takes gigabytes
        for start in range(0, len(distinct), step):
            part = self.decode_trunk(distinct[start : start + step])
            if features is None:
                features = part.new_empty(len(distinct), *part.shape[1:], dtype=torch.float32)
            features[start : start + step] = part
        assert features is not None  # there is at least one sample
        weight = self.decoder_head.weight.float()
        bias = self.get_parameter("decoder_head.bias").float()
        masks = draw_channel_masks(len(codes), num_draws, len(weight), self.config.dropout, generator)
        yield from decoded_strips(features, index, weight, bias, masks)

    def show(self, expected: Tensor) -> Tensor:
        return expected

    @torch.no_grad()
    def initialize_codebook(self, pixel_values: Tensor) -> None:
        """Starts the codebook on the encoder's outputs for a batch (B, C, *spatial): without it few codes ever live."""
        self.quantizer.initialize_from(self._flatten(self._encode_vectors(pixel_values)))
