"""Stage 1: a VQ-VAE turns an image or a volume into a grid of codes."""

from iltm_anomaly.vqvae.configuration_vqvae import VQVAEConfig
from iltm_anomaly.vqvae.modeling_vqvae import VQVAEModel, VQVAEOutput

__all__ = ["VQVAEConfig", "VQVAEModel", "VQVAEOutput"]
