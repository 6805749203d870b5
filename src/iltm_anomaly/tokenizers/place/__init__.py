"""The tokenizer of places: the code of a voxel says where in the body it lies."""

from iltm_anomaly.tokenizers.place.configuration_place_tokenizer import PlaceTokenizerConfig
from iltm_anomaly.tokenizers.place.modeling_place_tokenizer import PlaceTokenizerModel

__all__ = ["PlaceTokenizerConfig", "PlaceTokenizerModel"]
