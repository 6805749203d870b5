"""Recipes: the shipped ones load, mistakes are named, schedules have the values they promise."""

import itertools
import math

import pytest
import yaml

from iltm_anomaly.data.augmentation import AugmentationConfig
from iltm_anomaly.prior import PerformerPriorConfig
from iltm_anomaly.recipes.recipe import Recipe, RoundsRecipe, StageRecipe, load_recipe, preset_names
from iltm_anomaly.settings import InferenceSettings
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig

MINIMAL = {"name": "mine", "image_size": 64, "stage1": {"epochs": 2}, "stage2": {"epochs": 3}}


def test_presets_are_there():
    assert {"cpu", "demo", "paper", "tiny"} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_builds_its_parts(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    vqvae = VQVAEConfig(in_channels=recipe.num_channels, **recipe.vqvae)
    grid = (4, 5, 6)  # of a volume: its sides follow from the data
    if recipe.image_size is not None:
        assert recipe.image_size % vqvae.downsampling == 0
        grid = (recipe.image_size // vqvae.downsampling,) * 2
    prior = PerformerPriorConfig(vocab_size=vqvae.vocab_size, grid_shape=grid, **recipe.prior)
    AugmentationConfig(**recipe.augmentation)
    InferenceSettings.from_dict(recipe.inference)
    for values, config in ((recipe.vqvae, vqvae), (recipe.prior, prior)):
        unknown = set(values) - set(type(config).__dataclass_fields__)
        assert not unknown, f"configurations take any keyword: {unknown} would have no effect"


def test_an_unknown_optimizer_is_named():
    with pytest.raises(ValueError, match="optimizer must be one of"):
        StageRecipe(steps=1, optimizer="lion")


def test_paper_preset_is_the_papers():
    recipe = load_recipe("paper")
    assert (recipe.stage1.epochs, recipe.stage1.batch_size, recipe.stage1.learning_rate) == (20000, 16, 1e-4)
    assert (recipe.stage2.epochs, recipe.stage2.batch_size, recipe.stage2.learning_rate) == (80, 1, 1e-3)
    assert recipe.stage1.schedule == recipe.stage2.schedule == "exponential"
    assert recipe.stage1.gamma == recipe.stage2.gamma == 0.9999 and recipe.prior["masking"] == "value"
    decays = [recipe.stage1.ema_decay_at(epoch) for epoch in (0, 38, 39, 78, 79, 158, 159, 198, 199, 19999)]
    assert decays == [0.5, 0.5, 0.7, 0.7, 0.8, 0.8, 0.95, 0.95, 0.99, 0.99]


def test_round_trip_through_yaml(tmp_path):
    for name in preset_names():
        recipe = load_recipe(name)
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe.to_dict()))
        assert load_recipe(path) == load_recipe(str(path)) == recipe


def test_defaults_of_a_minimal_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    recipe = load_recipe(path)
    assert recipe.stage1 == StageRecipe(epochs=2) and recipe.rounds == RoundsRecipe()


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"colour": 1}, "recipe has no field 'colour'.*image_size"),
        ({"stage1": {"epochs": 2, "lr": 1.0}}, "recipe.stage1 has no field 'lr'.*learning_rate"),
        ({"rounds": {"tau": 1.0}}, "recipe.rounds has no field 'tau'.*token_threshold"),
        ({"stage2": {"epochs": 0}}, "epochs must be at least 1, got 0"),
        ({"stage2": {"epochs": 1, "batch_size": 0}}, "batch_size must be at least 1, got 0"),
        ({"stage1": {"epochs": 1, "schedule": "cosine"}}, "schedule must be one of .*'cosine'"),
        ({"stage1": {"epochs": 1, "gamma_per": "batch"}}, "gamma_per must be 'epoch' or 'step', got 'batch'"),
        ({"rounds": {"initialization": "warm"}}, "initialization must be .*'warm'"),
        ({"rounds": {"rounds": -1}}, "rounds >= 0"),
        ({"rounds": {"code_copies": 0}}, "code_copies >= 1"),
        ({"stage2": {}}, "a stage needs 'epochs' or 'steps', and not both; got None and None"),
        ({"stage2": {"epochs": 1, "steps": 1}}, "a stage needs 'epochs' or 'steps', and not both; got 1 and 1"),
        ({"stage2": {"steps": 0}}, "steps must be at least 1, got 0"),
        ({"stage2": None}, "recipe.stage2 must be a table of fields"),
        (
            {"stage1": {"epochs": 1, "learning_rate": "1e-3"}},
            "recipe.stage1.learning_rate must be a number, got '1e-3'",
        ),
        ({"stage1": {"epochs": "many"}}, "recipe.stage1.epochs must be a whole number, got 'many'"),
        ({"stage1": {"epochs": 2.5}}, "recipe.stage1.epochs must be a whole number, got 2.5"),
        ({"mixed_precision": False}, "recipe.mixed_precision must be text, got False: put it in quotes"),
        ({"num_channels": True}, "recipe.num_channels must be a whole number, got True"),
        ({"vqvae": None}, "recipe.vqvae must be a table of fields, got None"),
        ({"vqvae": {"vocabulary": 64}}, "recipe.vqvae has no field 'vocabulary'.*vocab_size"),
        ({"prior": {"num_layers": 2}}, "recipe.prior has no field 'num_layers'.*num_hidden_layers"),
        (
            {"prior": {"vocab_size": 2}},
            "recipe.prior must not hold 'vocab_size': it follows from recipe.vqvae.vocab_size",
        ),
        ({"vqvae": {"in_channels": 1}}, "must not hold 'in_channels': it follows from recipe.num_channels"),
        ({"augmentation": {"flip": 1}}, "recipe.augmentation has no field 'flip'.*rotation"),
        ({"inference": {"samples": 1}}, "recipe.inference has no field 'samples'.*num_samples"),
        ({"image_size": 60}, "recipe.image_size must be a positive multiple of 8"),
        ({"mixed_precision": "fp8"}, "mixed_precision must be one of .*'fp8'"),
        ({"rounds": {"codes": "fresh"}}, "codes must be one of .*'fresh'"),
        ({"stage1": {"epochs": 1, "micro_batch_size": 0}}, "micro_batch_size must be at least 1, got 0"),
        ({"augmentation": {"noise_std": "1e-2"}}, "recipe.augmentation.noise_std must be a number, got '1e-2': write"),
        ({"rounds": {"token_threshold": 5.0}}, "token_threshold is a probability, from 0 to 1, got 5"),
        ({"rounds": {"neighbourhood": -1.0}}, "neighbourhood >= 0"),
        ({"stage1": {"epochs": 1, "ema_decay": [0.5]}}, r"ema_decay must be pairs .*got \[0.5\]"),
        ({"stage1": {"epochs": 1, "ema_decay": [[0, "5e-1"]]}}, r"ema_decay must be pairs .*'5e-1'"),
        ({"stage1": {"epochs": 1, "learning_rate": -1.0}}, "learning_rate must be above 0, got -1"),
        ({"stage2": {"epochs": 1, "weight_decay": -1.0}}, "weight_decay must not be negative, got -1"),
        ({"rounds": {"max_masked_fraction": -3.0}}, r"max_masked_fraction must be in \[0, 1\], got -3"),
        ({"inference": {"score_threshold": 5.0}}, "recipe.inference must not hold 'score_threshold': it is measured"),
        ({"inference": {"surprise_limit": 5.0}}, "recipe.inference must not hold 'surprise_limit': it is measured"),
        ({"rounds": {"token_threshold": "low"}}, "recipe.rounds.token_threshold must be a number, got 'low'"),
        ({"vqvae": {"dropout": 2.0}}, r"dropout must be in \[0, 1\), got 2.0"),
        ({"prior": {"masking": "none"}}, "masking must be one of .*'none'"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, complaint):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | changes))
    with pytest.raises(ValueError, match=complaint):
        load_recipe(path)


@pytest.mark.parametrize("content", ["", "- 1\n- 2\n", "just words", "name: [unclosed"])
def test_file_that_is_no_recipe(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"recipe|mine\.yaml"):
        load_recipe(path)


def test_missing_field_is_named(tmp_path):
    for key in MINIMAL:
        with pytest.raises(ValueError, match=f"recipe needs '{key}'"):
            Recipe.from_dict({k: v for k, v in MINIMAL.items() if k != key})


def test_unknown_name_lists_the_presets():
    with pytest.raises(ValueError, match=r"no preset and no file 'huge'.*'paper'"):
        load_recipe("huge")


# schedules


def rates(stage, per_epoch):
    return [stage.learning_rate_at(step, per_epoch) for step in range(stage.epochs * per_epoch)]


def test_constant():
    assert set(rates(StageRecipe(3, learning_rate=0.2, schedule="constant"), 4)) == {0.2}


def test_exponential():
    stage = StageRecipe(3, learning_rate=0.2, schedule="exponential", gamma=0.5)
    assert rates(stage, 2) == pytest.approx([0.2, 0.2, 0.1, 0.1, 0.05, 0.05])
    stage.gamma_per = "step"
    assert rates(stage, 2) == pytest.approx([0.2 * 0.5**step for step in range(6)])


def test_steps_take_the_place_of_epochs():
    assert StageRecipe(3).total_steps(4) == 12 and StageRecipe(steps=3).total_steps(4) == 3
    stage = StageRecipe(steps=20)
    assert [stage.learning_rate_at(step, 3) for step in (0, 19)] == [
        StageRecipe(5).learning_rate_at(step, 4) for step in (0, 19)
    ]


def test_one_cycle():
    values = rates(StageRecipe(10, learning_rate=0.2, warmup=0.1), 20)
    assert values[:20] == pytest.approx([0.2 * (step + 1) / 20 for step in range(20)])
    assert values[20] == values[19] == max(values) == 0.2
    assert values[110] == pytest.approx(0.1), "half way down the cosine"
    assert values[65] == pytest.approx(0.1 * (1 + math.cos(math.pi / 4)))
    assert all(a > b for a, b in itertools.pairwise(values[20:])) and 0 < values[-1] < 1e-4


@pytest.mark.parametrize("stage", [StageRecipe(1), StageRecipe(1, warmup=0.0), StageRecipe(2, warmup=1.0)])
def test_one_cycle_of_few_steps(stage):
    for per_epoch in (1, 2, 3):
        assert all(0 < rate <= stage.learning_rate for rate in rates(stage, per_epoch))


def test_codebook_decay():
    assert StageRecipe(9).ema_decay_at(5) is None
    stage = StageRecipe(9, ema_decay=[[2, 0.5], [4, 0.9]])
    assert [stage.ema_decay_at(epoch) for epoch in (0, 1, 2, 3, 4, 100)] == [None, None, 0.5, 0.5, 0.9, 0.9]


def test_a_recipe_is_for_images_or_for_volumes():
    volume = {k: v for k, v in MINIMAL.items() if k != "image_size"} | {"volume": {}, "vqvae": {"spatial_dims": 3}}
    assert Recipe.from_dict(volume).is_volumetric
    for values, reason in (
        (volume | {"image_size": 64}, "not both"),
        (volume | {"vqvae": {}}, "needs spatial_dims: 3"),
        (MINIMAL | {"vqvae": {"spatial_dims": 3}}, "needs volume"),
        (volume | {"volume": {"spacng": 4}}, "'spacng'"),
        (volume | {"volume": {"size": 64}}, "recipe.volume"),
        (volume | {"volume": {"spacing": -1}}, "recipe.volume: .*spacing"),
        (volume | {"volume": {"intensity_range": [6, 0]}}, "recipe.volume: .*intensity_range"),
    ):
        with pytest.raises(ValueError, match=reason):
            Recipe.from_dict(values)
