"""Registers our classes with AutoConfig, AutoModel and AutoImageProcessor, as transformers documents it."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from iltm_anomaly.hub.parts import PRIORS, TOKENIZERS
from iltm_anomaly.modeling import WholePipeline
from iltm_anomaly.processing.image_processing import ILTMImageProcessor

for model in (*TOKENIZERS.values(), *PRIORS.values(), WholePipeline):
    AutoConfig.register(model.config_class.model_type, model.config_class)
    AutoModel.register(model.config_class, model)

PROCESSORS: dict[str, type] = {"pil": ILTMImageProcessor, "torchvision": ILTMImageProcessor}  # it needs no torchvision
for tokenizer in TOKENIZERS.values():
    AutoImageProcessor.register(tokenizer.config_class, image_processor_classes=PROCESSORS)
