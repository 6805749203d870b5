"""What a pipeline folder consists of, and which of our classes each part is."""

from pathlib import Path
from typing import Any

from iltm_anomaly.hub.checks import read_json
from iltm_anomaly.prior import PerformerPriorModel, PositionPriorModel
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.tokenizers.features import FeatureTokenizerModel
from iltm_anomaly.tokenizers.vqvae import VQVAEModel

# Classes are looked up here, never imported by the name that a JSON file gives.
TOKENIZERS: dict[str, Any] = {"VQVAEModel": VQVAEModel, "FeatureTokenizerModel": FeatureTokenizerModel}
PRIORS: dict[str, Any] = {
    "VQVAEModel": PerformerPriorModel,
    "FeatureTokenizerModel": PositionPriorModel,
}  # by tokenizer
FORMER_TOKENIZER = "vqvae"  # the folder that version 0.1 stored its only tokenizer in


def expected_classes(folder: Path) -> dict[str, Any]:
    """The class that each part of a pipeline folder must be of, by the name of the part. An unknown tokenizer is expected to be a
    VQ-VAE, so that `check_folder` refuses it by name."""
    index = read_json(folder / "model_index.json")
    part = FORMER_TOKENIZER if "tokenizer" not in index and FORMER_TOKENIZER in index else "tokenizer"
    entry = index.get(part)
    named = entry[1] if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) else ""
    return {
        part: TOKENIZERS.get(named, VQVAEModel),
        "prior": PRIORS.get(named, PerformerPriorModel),
        "image_processor": ILTMImageProcessor,
    }
