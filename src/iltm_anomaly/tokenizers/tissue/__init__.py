"""The tokenizer of tissues: the code of a voxel says what lies at and around it."""

from iltm_anomaly.tokenizers.tissue.configuration_tissue_tokenizer import TissueTokenizerConfig
from iltm_anomaly.tokenizers.tissue.modeling_tissue_tokenizer import TissueTokenizerModel, voxels_of

__all__ = ["TissueTokenizerConfig", "TissueTokenizerModel", "voxels_of"]
