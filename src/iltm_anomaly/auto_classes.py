"""Registers our classes with AutoConfig, AutoModel and AutoImageProcessor, as transformers documents it."""

from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from iltm_anomaly.modeling import ILTMConfig, WholePipeline
from iltm_anomaly.prior import (
    PerformerPriorConfig,
    PerformerPriorModel,
    PositionPriorConfig,
    PositionPriorModel,
    TissuePriorConfig,
    TissuePriorModel,
)
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.tokenizers.features import FeatureTokenizerConfig, FeatureTokenizerModel
from iltm_anomaly.tokenizers.tissue import TissueTokenizerConfig, TissueTokenizerModel
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig, VQVAEModel

MODELS: dict[Any, Any] = {
    VQVAEConfig: VQVAEModel,
    FeatureTokenizerConfig: FeatureTokenizerModel,
    TissueTokenizerConfig: TissueTokenizerModel,
    PerformerPriorConfig: PerformerPriorModel,
    PositionPriorConfig: PositionPriorModel,
    TissuePriorConfig: TissuePriorModel,
    ILTMConfig: WholePipeline,
}
for config, model in MODELS.items():
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)

PROCESSORS: dict[str, type] = {"pil": ILTMImageProcessor, "torchvision": ILTMImageProcessor}  # it needs no torchvision
for tokenizer in (VQVAEConfig, FeatureTokenizerConfig, TissueTokenizerConfig):
    AutoImageProcessor.register(tokenizer, image_processor_classes=PROCESSORS)
