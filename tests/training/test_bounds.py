"""Numbers of a recipe that nothing is allocated for."""

import pytest

from iltm_anomaly.recipes.reading import preset_names
from iltm_anomaly.recipes.recipe import load_recipe
from iltm_anomaly.training.bounds import check_sizes
from iltm_anomaly.training.train import TrainArguments, train


@pytest.mark.parametrize(
    ("preset", "field", "value"),
    [
        ("tiny", "image_size", 2**20),
        ("tiny-features", "image_size", 2**20),
        ("tiny", "vqvae.vocab_size", 10**30),
        ("tiny-features", "features.vocab_size", 10**30),
        ("tiny", "prior.num_hidden_layers", 10**7),
        ("tiny", "vqvae.num_res_blocks", 10**7),
        ("tiny", "vqvae.channels", [10**9]),
    ],
)
def test_what_no_machine_could_train_is_refused_at_once(tmp_path, preset, field, value):
    with pytest.raises(ValueError, match=rf"recipe\.{field} is 1\d+, more than \d+: no machine could train that"):
        train(TrainArguments("nowhere", tmp_path / "run", preset=preset, overrides=[f"{field}={value}"]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", preset_names())
def test_the_presets_are_within_bounds(name):
    check_sizes(load_recipe(name))
