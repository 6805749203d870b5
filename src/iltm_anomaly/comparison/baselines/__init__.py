"""The other methods of the paper's Table 2, and two for scale: all see the same images, at the same size, without labels.

    >>> pipeline = train_baseline("cutpaste", images, processor, "runs/bottle_cutpaste", budget_seconds=600)
    >>> out = pipeline("part.png")   # out.scores, out.anomaly_maps, out.masks, as of ILTMAnomalyPipeline
    >>> pipeline = BaselinePipeline.from_pretrained("runs/bottle_cutpaste/model")

VQ-VAE + Transformer is round 0 of an ILTM run: `vqvae_transformer.from_run(run_folder)`.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iltm_anomaly.comparison.baselines.pipeline import BaselineOutput, BaselinePipeline
    from iltm_anomaly.comparison.baselines.training import train_baseline


@dataclass(frozen=True)
class Baseline:
    """A method: where it is, and what it is called in tables.

    Args:
        title: as in the paper's table.
        module, class_name: of its model.
    """

    title: str
    module: str
    class_name: str

    @property
    def model_class(self) -> Any:
        """The model, imported now."""
        return getattr(import_module(f"{__name__}.{self.module}"), self.class_name)


BASELINES: dict[str, Baseline] = {
    "mean_image": Baseline("Mean image", "mean_image", "MeanImageModel"),
    "autoencoder": Baseline("AE", "autoencoder", "AutoencoderModel"),
    "vae": Baseline("VAE", "vae", "VAEModel"),
    "cutpaste": Baseline("CutPaste", "cutpaste", "CutPasteModel"),
    "nsa": Baseline("NSA", "nsa", "NSAModel"),
    "patchcore": Baseline("PatchCore", "patchcore", "PatchCoreModel"),
}
# Trained as a part of an ILTM run, but saved and loaded like the others.
VQVAE_TRANSFORMER = Baseline("VQ-VAE + Transformer", "vqvae_transformer", "VQVAETransformerModel")

_PUBLIC = {"BaselineOutput": "pipeline", "BaselinePipeline": "pipeline", "train_baseline": "training"}
__all__ = [
    "BASELINES",
    "VQVAE_TRANSFORMER",
    "Baseline",
    "BaselineOutput",
    "BaselinePipeline",
    "train_baseline",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
