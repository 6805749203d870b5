"""Every method that is compared: the paper's Table 2, and others for scale. The benchmark has a column for each."""

from dataclasses import dataclass, field
from typing import Any

from iltm_anomaly.comparison.baselines.autoencoder import AutoencoderModel
from iltm_anomaly.comparison.baselines.cutpaste import CutPasteModel
from iltm_anomaly.comparison.baselines.mean_image import MeanImageModel
from iltm_anomaly.comparison.baselines.nsa import NSAModel
from iltm_anomaly.comparison.baselines.patchcore import PatchCoreModel
from iltm_anomaly.comparison.baselines.softpatch import SoftPatchModel
from iltm_anomaly.comparison.baselines.vae import VAEModel
from iltm_anomaly.comparison.baselines.vqvae_transformer import VQVAETransformerModel


@dataclass(frozen=True)
class Method:
    """
    Args:
        title: heading of its column.
        model_class: what a `BaselinePipeline` of it holds; None for ILTM.
        paper: name of its column in `published.yaml`, None if the paper's table does not have the method.
        of_run: it is scored from the ILTM run of its images; the others are trained on their own.
        has_kde: its map is made by the recipe's settings of inference.
        in_all: it is one of "all".
        config: fields of the model's configuration in place of any preset's, for a second row of one class.
        preset: the recipe of a run of ILTM of its own, whatever the benchmark's is; None for all others.
    """

    title: str
    model_class: Any = None
    paper: str | None = None
    of_run: bool = False
    has_kde: bool = False
    in_all: bool = True
    config: dict[str, Any] = field(default_factory=dict)
    preset: str | None = None

    def recipe_for(self, preset: str, category: str | None = None, config: dict[str, Any] | None = None) -> Any:
        """The recipe of its model, as of `BaselineModel.recipe_for`."""
        return self.model_class.recipe_for(preset, category, self.config | (config or {}))


# In the order of the paper's columns, then what it does not have. It does not say which map its VQ-VAE + Transformer used.
METHODS = {
    "autoencoder": Method("AE", AutoencoderModel, "autoencoder"),
    "vae": Method("VAE", VAEModel, "vae"),
    "cutpaste": Method("CutPaste", CutPasteModel, "cutpaste"),
    "nsa": Method("NSA", NSAModel, "nsa"),
    "vqvae_transformer": Method(
        "VQ-VAE + Transformer (KDE)", VQVAETransformerModel, "vqvae_transformer", of_run=True, has_kde=True
    ),
    "vqvae_transformer_residual": Method(
        "VQ-VAE + Transformer (residual)", VQVAETransformerModel, "vqvae_transformer", of_run=True
    ),
    "iltm": Method("ILTM", paper="iltm", of_run=True, has_kde=True),
    "features_round_0": Method("ILTM on features, round 0", preset="features", in_all=False),
    "features": Method("ILTM on features", preset="features", in_all=False),
    # what rejecting tokens could give at most: the tokens of true defects are rejected, which takes labels
    "features_oracle": Method("ILTM on features, true masks", preset="features", in_all=False),
    "mean_image": Method("Mean image", MeanImageModel),
    # these need weights of a network trained on ImageNet
    "patchcore": Method("PatchCore", PatchCoreModel, in_all=False),
    "patchcore_coreset": Method("PatchCore (coreset)", PatchCoreModel, in_all=False, config={"selection": "coreset"}),
    "softpatch": Method("SoftPatch", SoftPatchModel, in_all=False),
}
# Those that `train_baseline` trains.
BASELINES = {name: method for name, method in METHODS.items() if method.model_class and not method.of_run}
