"""Fields that a recipe no longer has, or never had, and what is said about them."""

import copy
from typing import Any

from iltm_anomaly.settings import InferenceSettings, without_gate

# Fields of version 0.1 that are gone, with the value that the code now always has.
RETIRED: dict[str, dict[str, Any]] = {
    "": {"compile": False},
    "stage1": {"momentum": 0.9},
    "stage2": {"momentum": 0.9, "ema_decay": None},
    "rounds": {"codes": "copies", "initialization": "fresh", "max_masked_fraction": 0.5},
    "vqvae": {"commitment_cost": 0.25, "spectral_weight": 1.0, "ema_epsilon": 1e-5},
    "prior": {
        "ordering": "raster",
        "num_random_features": None,
        "intermediate_ratio": 4,
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "feature_redraw_interval": 1000,
    },
    "augmentation": {
        "affine_probability": 0.8,
        "reference_size": 256,
        "elastic_spacing": 64.0,
        "contrast_probability": 0.6,
        "intensity_probability": 0.6,
        "noise_probability": 0.6,
    },
}
# Fields of the parts that a recipe does not choose, and why.
REFUSED = {
    "vqvae": {"in_channels": "it follows from recipe.num_channels"},
    "prior": {
        "vocab_size": "it follows from recipe.vqvae.vocab_size",
        "grid_shape": "it follows from recipe.image_size",
    },
    "inference": {
        "surprise_limit": "it is measured on the training images, outlier_scale deviations above their median",
        "score_threshold": "it is measured on the training images; `detect --threshold` takes another one",
        "threshold_at_fast": "it is measured on the training images",
        "threshold_at_score": "it is measured on the training images",
        "tile": "images are cut as in training, by recipe.tile",
    },
}
# `stop_early` was two numbers, of which these pairs were in use.
CONVERGENCE = {True: (0.95, 0.001), False: (1.0, 0.0)}


def without_retired(values: Any) -> Any:
    """`values` of a recipe without the fields that are gone.

    Raises:
        ValueError: if one of them has a value that is no longer possible, or a field is not the recipe's to choose.
    """
    if not isinstance(values, dict):
        return values
    values = copy.deepcopy(values)
    tables = {name: value for name, value in {**values, "": values}.items() if isinstance(value, dict)}
    for name, fields in REFUSED.items():
        for field in fields.keys() & tables.get(name, {}).keys():
            raise ValueError(f"recipe.{name} must not hold {field!r}: {fields[field]}")
    rounds, inference = tables.get("rounds", {}), tables.get("inference", {})
    if "codes" in rounds:  # of version 0.1, in which what `inference` left out had a value of its own
        defaults = InferenceSettings()
        for field in ("token_threshold", "neighbourhood", "outlier_scale"):
            inference.setdefault(field, getattr(defaults, field))
        values["inference"] = inference
    for name, fields in RETIRED.items():
        for field, only in fields.items():
            _drop(tables.get(name, {}), name, field, only)
    if {"convergence_iou", "convergence_change"} & rounds.keys():
        pair = rounds.pop("convergence_iou", 0.95), rounds.pop("convergence_change", 0.001)
        meant = [stop_early for stop_early, numbers in CONVERGENCE.items() if pair == numbers]
        if not meant:
            raise ValueError(
                "recipe.rounds.convergence_iou and convergence_change have become stop_early, which is true for 0.95 and 0.001, "
                f"false for 1.0 and 0.0; got {pair[0]} and {pair[1]}"
            )
        rounds.setdefault("stop_early", meant[0])
    if "gate" in inference:
        values["inference"] = without_gate(inference, "recipe.inference")
    return values


def without_retired_of_stage(stage: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same for a stage by itself, as runs and cells of other methods have it; None stays None."""
    return without_retired({"stage2": stage})["stage2"]


def _drop(table: dict[str, Any], name: str, field: str, only: Any) -> None:
    if (value := table.pop(field, only)) != only:
        where = ".".join(filter(None, ("recipe", name, field)))
        raise ValueError(f"{where} can no longer be chosen: leave it out, it is always {only!r}, got {value!r}")
