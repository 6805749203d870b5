"""The tokenizer of frozen features."""

from iltm_anomaly.tokenizers.features.configuration_feature_tokenizer import FeatureTokenizerConfig
from iltm_anomaly.tokenizers.features.modeling_feature_tokenizer import FeatureTokenizerModel

__all__ = ["FeatureTokenizerConfig", "FeatureTokenizerModel"]
