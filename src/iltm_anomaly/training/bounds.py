"""What numbers of a recipe may cost, checked before anything is allocated."""

from typing import Any

from iltm_anomaly.training.run_folder import flat

SIDE, WIDTH, DEPTH = 2**14, 2**20, 1000  # pixels, numbers of a layer, and layers: far above what anybody has trained
LARGEST = {
    "image_size": SIDE,
    "size": SIDE,
    "pixels_per_token": SIDE,
    "num_hidden_layers": DEPTH,
    "num_res_blocks": DEPTH,
    **dict.fromkeys(
        (
            "channels",
            "num_channels",
            "vocab_size",
            "embedding_dim",
            "hidden_size",
            "num_attention_heads",
            "head_dim",
            "num_random_features",
            "intermediate_ratio",
        ),
        WIDTH,
    ),
}


def check_sizes(recipe: Any) -> None:
    """Raises ValueError if a size in a `Recipe` or `FeatureRecipe` is beyond what any machine could train."""
    for field, value in flat(recipe.to_dict()).items():
        most = LARGEST.get(field.rsplit(".", 1)[-1])
        for number in value if isinstance(value, list | tuple) else [value]:
            if most is not None and isinstance(number, int | float) and number > most:
                raise ValueError(
                    f"recipe.{field} is {number}, more than {most}: no machine could train that, lower it"
                )
