"""Stage 1: a VQ-VAE turns an image or a volume into a grid of codes."""

from transformers import AutoConfig, AutoModel

from iltm_anomaly.vqvae.configuration_vqvae import VQVAEConfig
from iltm_anomaly.vqvae.modeling_vqvae import VQVAEModel, VQVAEOutput

AutoConfig.register(VQVAEConfig.model_type, VQVAEConfig)
AutoModel.register(VQVAEConfig, VQVAEModel)

__all__ = ["VQVAEConfig", "VQVAEModel", "VQVAEOutput"]
