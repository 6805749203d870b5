"""Stage 1: a VQ-VAE turns an image or a volume into a grid of codes."""

from iltm_anomaly.tokenizers.vqvae.configuration_vqvae import VQVAEConfig
from iltm_anomaly.tokenizers.vqvae.modeling_vqvae import VQVAEModel, VQVAEOutput

__all__ = ["VQVAEConfig", "VQVAEModel", "VQVAEOutput"]
