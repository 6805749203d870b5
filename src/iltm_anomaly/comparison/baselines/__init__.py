"""The other methods of the paper's Table 2, and others for scale: all see the same images, at the same size, without labels.

    >>> pipeline = train_baseline("cutpaste", images, processor, "runs/bottle_cutpaste", budget_seconds=600)
    >>> out = pipeline("part.png")   # out.scores, out.anomaly_maps, out.masks, as of ILTMAnomalyPipeline
    >>> pipeline = BaselinePipeline.from_pretrained("runs/bottle_cutpaste/model")

VQ-VAE + Transformer is round 0 of an ILTM run: `from_run(run_folder)`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iltm_anomaly.comparison.baselines.methods import BASELINES
    from iltm_anomaly.comparison.baselines.pipeline import BaselineOutput, BaselinePipeline
    from iltm_anomaly.comparison.baselines.round_zero import from_run
    from iltm_anomaly.comparison.baselines.training import train_baseline

# Public names by module, imported on first use, so that importing the package does not wait for torch.
_PUBLIC = {
    "BASELINES": "methods",
    "BaselineOutput": "pipeline",
    "BaselinePipeline": "pipeline",
    "from_run": "round_zero",
    "train_baseline": "training",
}
__all__ = ["BASELINES", "BaselineOutput", "BaselinePipeline", "from_run", "train_baseline"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
