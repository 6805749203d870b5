"""ILTM (Iterative Latent Token Masking): anomaly detection that learns from contaminated data."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from iltm_anomaly._registration import watch_imports

__version__ = "0.1.0"

if TYPE_CHECKING:
    from iltm_anomaly.data.contamination import contaminate
    from iltm_anomaly.data.mvtec import load_mvtec
    from iltm_anomaly.output import AnomalyResult, ILTMAnomalyOutput
    from iltm_anomaly.pipeline import ILTMAnomalyPipeline
    from iltm_anomaly.prior import (
        PerformerPriorConfig,
        PerformerPriorModel,
        PlacePriorConfig,
        PlacePriorModel,
        PositionPriorConfig,
        PositionPriorModel,
        TissuePriorConfig,
        TissuePriorModel,
    )
    from iltm_anomaly.processing.image_processing import ILTMImageProcessor
    from iltm_anomaly.settings import FeatureSettings, InferenceSettings, PlaceSettings, UptakeSettings
    from iltm_anomaly.tokenizers.features import FeatureTokenizerConfig, FeatureTokenizerModel
    from iltm_anomaly.tokenizers.place import PlaceTokenizerConfig, PlaceTokenizerModel
    from iltm_anomaly.tokenizers.tissue import TissueTokenizerConfig, TissueTokenizerModel
    from iltm_anomaly.tokenizers.vqvae import VQVAEConfig, VQVAEModel

# Public names by module, imported on first use: `iltm-anomaly --help` must not wait for torch.
_PUBLIC = {
    "VQVAEConfig": "tokenizers.vqvae",
    "VQVAEModel": "tokenizers.vqvae",
    "FeatureTokenizerConfig": "tokenizers.features",
    "FeatureTokenizerModel": "tokenizers.features",
    "PlaceTokenizerConfig": "tokenizers.place",
    "PlaceTokenizerModel": "tokenizers.place",
    "TissueTokenizerConfig": "tokenizers.tissue",
    "TissueTokenizerModel": "tokenizers.tissue",
    "TissuePriorConfig": "prior",
    "TissuePriorModel": "prior",
    "PlacePriorConfig": "prior",
    "PlacePriorModel": "prior",
    "PositionPriorConfig": "prior",
    "PositionPriorModel": "prior",
    "PerformerPriorConfig": "prior",
    "PerformerPriorModel": "prior",
    "ILTMImageProcessor": "processing.image_processing",
    "ILTMAnomalyPipeline": "pipeline",
    "ILTMAnomalyOutput": "output",
    "AnomalyResult": "output",
    "InferenceSettings": "settings",
    "FeatureSettings": "settings",
    "PlaceSettings": "settings",
    "UptakeSettings": "settings",
    "load_mvtec": "data.mvtec",
    "contaminate": "data.contamination",
}
__all__ = [
    "AnomalyResult",
    "FeatureSettings",
    "FeatureTokenizerConfig",
    "FeatureTokenizerModel",
    "ILTMAnomalyOutput",
    "ILTMAnomalyPipeline",
    "ILTMImageProcessor",
    "InferenceSettings",
    "PerformerPriorConfig",
    "PerformerPriorModel",
    "PlacePriorConfig",
    "PlacePriorModel",
    "PlaceSettings",
    "PlaceTokenizerConfig",
    "PlaceTokenizerModel",
    "PositionPriorConfig",
    "PositionPriorModel",
    "TissuePriorConfig",
    "TissuePriorModel",
    "TissueTokenizerConfig",
    "TissueTokenizerModel",
    "UptakeSettings",
    "VQVAEConfig",
    "VQVAEModel",
    "__version__",
    "contaminate",
    "load_mvtec",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


watch_imports()
