"""Recipes: the shipped ones load, mistakes are named, schedules have the values they promise."""

import itertools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

import iltm_anomaly.recipes.recipe as recipe_module
from iltm_anomaly.data.augmentation import AugmentationConfig
from iltm_anomaly.prior import PerformerPriorConfig
from iltm_anomaly.recipes.feature_recipe import FIELDS as FEATURE_FIELDS
from iltm_anomaly.recipes.feature_recipe import FeatureRecipe
from iltm_anomaly.recipes.pixel_recipe import FIELDS, Recipe, RoundsRecipe, Stage1Recipe, StageRecipe
from iltm_anomaly.recipes.place_recipe import FIELDS as PLACE_FIELDS
from iltm_anomaly.recipes.place_recipe import PlaceRecipe
from iltm_anomaly.recipes.reading import preset_names
from iltm_anomaly.recipes.recipe import json_schema, load_recipe
from iltm_anomaly.recipes.retired import without_retired_of_stage
from iltm_anomaly.recipes.uptake_recipe import FIELDS as UPTAKE_FIELDS
from iltm_anomaly.recipes.uptake_recipe import UptakeRecipe
from iltm_anomaly.settings import InferenceSettings
from iltm_anomaly.tokenizers.features import FeatureTokenizerConfig
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig

MINIMAL = {"name": "mine", "image_size": 64, "stage1": {"epochs": 2}, "stage2": {"epochs": 3}}


def test_presets_are_there():
    assert {"cpu", "demo", "features", "paper", "tiny"} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_builds_its_parts(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    if isinstance(recipe, UptakeRecipe):
        assert recipe.is_volumetric and recipe.volume["context_range"] == [-250, 300]
        return
    if isinstance(recipe, PlaceRecipe):
        assert recipe.is_volumetric and recipe.volume["stretch"]
        return
    if isinstance(recipe, FeatureRecipe):
        config = FeatureTokenizerConfig(in_channels=recipe.num_channels, **recipe.features)
        assert recipe.image_size % config.pixels_per_token == 0 and not recipe.is_volumetric
        return
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
    with pytest.raises(ValueError, match="'adam' or 'sgd'"):
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
    assert recipe.stage1 == Stage1Recipe(epochs=2) and recipe.rounds == RoundsRecipe()


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"colour": 1}, "recipe has no field 'colour'.*image_size"),
        ({"stage1": {"epochs": 2, "lr": 1.0}}, "recipe.stage1 has no field 'lr'.*learning_rate"),
        ({"rounds": {"tau": 1.0}}, "recipe.rounds has no field 'tau'.*token_threshold"),
        ({"stage2": {"epochs": 0}}, "epochs must be at least 1, got 0"),
        ({"stage2": {"epochs": 1, "batch_size": 0}}, "batch_size must be at least 1, got 0"),
        ({"stage1": {"epochs": 1, "schedule": "cosine"}}, "schedule must be one of .*'cosine'"),
        ({"stage1": {"epochs": 1, "gamma_per": "batch"}}, "gamma_per must be one of 'epoch' or 'step', got 'batch'"),
        ({"rounds": {"rounds": -1}}, "recipe.rounds.rounds must be at least 0, got -1"),
        ({"rounds": {"code_copies": 0}}, "recipe.rounds.code_copies must be at least 1, got 0"),
        ({"rounds": {"stop_early": "never"}}, "recipe.rounds.stop_early must be true or false, got 'never'"),
        ({"stage2": {}}, "recipe.stage2: a stage needs 'epochs' or 'steps', and not both; got None and None"),
        ({"stage2": {"epochs": 1, "steps": 1}}, "a stage needs 'epochs' or 'steps', and not both; got 1 and 1"),
        ({"stage2": {"steps": 0}}, "steps must be at least 1, got 0"),
        ({"stage2": None}, "recipe.stage2 must be a table of fields"),
        ({"stage1": {"epochs": 1, "learning_rate": "low"}}, "recipe.stage1.learning_rate must be a number, got 'low'"),
        ({"stage1": {"epochs": 1, "learning_rate": True}}, "recipe.stage1.learning_rate must be a number, got True"),
        ({"stage1": {"epochs": 1, "learning_rate": math.nan}}, "learning_rate must be a finite number, got nan"),
        (
            {"stage1": {"epochs": 1, "warm_up": 0.0}},
            r"recipe.stage1 has no field 'warm_up' \(do you mean 'warmup'\?\)",
        ),
        ({"stage1": {"epochs": "many"}}, "recipe.stage1.epochs must be a whole number, got 'many'"),
        ({"stage1": {"epochs": 2.5}}, "recipe.stage1.epochs must be a whole number, got 2.5"),
        ({"mixed_precision": True}, "recipe.mixed_precision must be one of 'auto', 'no', 'bf16' or 'fp16', got True"),
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
        ({"stage1": {"epochs": 1, "micro_batch_size": 0}}, "micro_batch_size must be at least 1, got 0"),
        ({"augmentation": {"noise_std": "much"}}, "recipe.augmentation.noise_std must be a number, got 'much'"),
        ({"augmentation": {"noise_std": -1.0}}, "recipe.augmentation: noise_std must not be negative, got -1"),
        ({"rounds": {"token_threshold": 5.0}}, "recipe.rounds.token_threshold must be at most 1.0, got 5"),
        ({"rounds": {"neighbourhood": -1.0}}, "recipe.rounds.neighbourhood must be at least 0.0, got -1"),
        ({"stage1": {"epochs": 1, "ema_decay": [0.5]}}, r"recipe.stage1.ema_decay\[0\] must be a list, got 0.5"),
        (
            {"stage1": {"epochs": 1, "ema_decay": [[0, "x"]]}},
            r"ema_decay\[0\]\[1\] must be a whole number or a number, got 'x'",
        ),
        (
            {"stage1": {"epochs": 1, "ema_decay": [[0, 1.0]]}},
            r"recipe.stage1.ema_decay: must be pairs .*got \[\[0, 1.0\]\]",
        ),
        ({"stage2": {"epochs": 1, "ema_decay": [[0, 0.5]]}}, "stage2.ema_decay can no longer be chosen"),
        ({"stage1": {"epochs": 1, "learning_rate": -1.0}}, "learning_rate must be above 0.0, got -1"),
        ({"stage2": {"epochs": 1, "weight_decay": -1.0}}, "weight_decay must be at least 0.0, got -1"),
        ({"inference": {"num_samples": 0}}, "recipe.inference.num_samples must be at least 1, got 0"),
        (
            {"inference": {"decoder_spread": True, "num_dropout_passes": 1}},
            "recipe.inference: setting 'decoder_spread' needs 2",
        ),
        ({"vqvae": {"channels": "wide"}}, "recipe.vqvae.channels must be a list, got 'wide'"),
        ({"vqvae": {"channels": [8, "x"]}}, r"recipe.vqvae.channels\[1\] must be a whole number, got 'x'"),
        ({"inference": {"score_threshold": 5.0}}, "recipe.inference must not hold 'score_threshold': it is measured"),
        ({"inference": {"surprise_limit": 5.0}}, "recipe.inference must not hold 'surprise_limit': it is measured"),
        ({"rounds": {"token_threshold": "low"}}, "recipe.rounds.token_threshold must be a number, got 'low'"),
        ({"vqvae": {"dropout": 2.0}}, r"recipe.vqvae: dropout must be in \[0, 1\), got 2.0"),
        ({"prior": {"masking": "none"}}, "recipe.prior.masking must be one of 'token' or 'value', got 'none'"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, complaint):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | changes))
    with pytest.raises(ValueError, match=complaint):
        load_recipe(path)


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.e-3", ".1e-2", "1.0e-3", "0.001"])
def test_numbers_are_numbers_however_they_are_written(tmp_path, number):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "{name: mine, image_size: 64, mixed_precision: no, stage2: {steps: 1}, "
        f"stage1: {{steps: 1, learning_rate: {number}, ema_decay: [[0, {number}]]}}, vqvae: {{dropout: {number}, ema_decay: 0}}}}"
    )
    recipe = load_recipe(path)
    assert recipe.stage1.learning_rate == recipe.stage1.ema_decay[0][1] == recipe.vqvae["dropout"] == 0.001
    assert recipe.mixed_precision == "no" and type(recipe.vqvae["ema_decay"]) is float


def test_a_recipe_is_a_dataclass_like_any_other():
    recipe = load_recipe("cpu")
    changed = replace(recipe, rounds=replace(recipe.rounds, rounds=7))
    assert changed.rounds.rounds == 7 and changed != recipe and replace(changed, rounds=recipe.rounds) == recipe
    assert asdict(recipe) == recipe.to_dict() and "inference" not in recipe.training_fields()
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        replace(recipe.rounds, rounds=-1)


def test_what_is_healed_is_what_is_masked_unless_it_is_said():
    rounds = {"outlier_scale": 1.5, "token_threshold": 0.1}
    same = Recipe.from_dict(MINIMAL | {"rounds": rounds}).inference
    assert InferenceSettings(**same).rule == RoundsRecipe(**rounds).rule
    other = Recipe.from_dict(
        MINIMAL | {"rounds": rounds, "inference": {"outlier_scale": 2.0, "token_threshold": None}}
    )
    assert (other.inference["outlier_scale"], other.inference["token_threshold"]) == (2.0, None)


# values on the command line


@pytest.mark.parametrize(
    "preset, overrides, expected",
    [
        ("cpu", ["stage1.steps=500", "inference.num_samples=5"], {"stage1.steps": 500, "inference.num_samples": 5}),
        ("tiny", ["stage1.steps=500"], {"stage1.steps": 500, "stage1.epochs": None}),
        ("cpu", ["stage2.epochs=3"], {"stage2.steps": None, "stage2.epochs": 3}),
        ("cpu", ["rounds.outlier_scale=2e0"], {"rounds.outlier_scale": 2.0, "inference.outlier_scale": 2.0}),
        (
            "cpu",
            ["vqvae.channels=[8, 16]", "mixed_precision=no"],
            {"vqvae.channels": [8, 16], "mixed_precision": "no"},
        ),
        ("phantom", ["volume.foreground=null"], {"volume.foreground": None}),
        ("tiny", ["prior={head_dim: 4}", "prior.dropout=0"], {"prior.head_dim": 4, "prior.dropout": 0.0}),
    ],
)
def test_overrides(preset, overrides, expected):
    found = load_recipe(preset, overrides).to_dict()
    for path, value in expected.items():
        table, _, name = path.rpartition(".")
        assert (found[table] if table else found)[name] == value


def test_overrides_of_a_recipe_itself():
    recipe = load_recipe("cpu")
    assert load_recipe(recipe) == recipe
    assert load_recipe(recipe, ["rounds.rounds=0"]) == replace(recipe, rounds=replace(recipe.rounds, rounds=0))


@pytest.mark.parametrize(
    "override, complaint",
    [
        ("stage1.stps=5", r"--set stage1.stps=5: recipe.stage1 has no field 'stps' \(do you mean 'steps'\?\)"),
        ("stage1.steps=few", "--set stage1.steps=few: recipe.stage1.steps must be a whole number, got 'few'"),
        ("stage1.steps", "--set stage1.steps: 'stage1.steps' is not of the form FIELD=VALUE"),
        ("=5", "not of the form FIELD=VALUE"),
        ("name.first=x", "--set name.first=x: recipe has no field 'name.first': name is no table of fields"),
        ("stages.first.steps=5", "recipe has no field 'stages'"),
        ("vqvae.channels=[8", r"vqvae.channels=\[8 is no valid YAML"),
    ],
)
def test_mistakes_in_overrides_are_named(override, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_recipe("cpu", [override])


# the schema for editors


def leaves(schema, definitions):
    for name, value in schema["properties"].items():
        options = [value, *value.get("anyOf", [])]
        tables = [definitions[option["$ref"].rsplit("/", 1)[1]] for option in options if "$ref" in option]
        if tables:
            yield from ((f"{name}.{path}", leaf) for path, leaf in leaves(tables[0], definitions))
        else:
            yield name, value


def test_the_schema_is_up_to_date_and_explains_every_field():
    path = Path(recipe_module.__file__).with_name("recipe.schema.json")
    assert path.read_text() == json_schema(), "run `make schema`"
    schema = json.loads(json_schema())
    kinds = (
        ("Recipe", FIELDS),
        ("FeatureRecipe", FEATURE_FIELDS),
        ("UptakeRecipe", UPTAKE_FIELDS),
        ("PlaceRecipe", PLACE_FIELDS),
    )
    for kind, fields in kinds:
        found = dict(leaves(schema["$defs"][kind], schema["$defs"]))
        assert [name for name, leaf in found.items() if len(leaf.get("description", "")) < 10] == []
        named = {f"{table}.{name}".lstrip(".") for table, names in fields.items() for name in names} - {*fields}
        if kind == "FeatureRecipe":  # a recipe of pixels is in it
            inner = leaves(schema["$defs"]["Recipe"], schema["$defs"])
            named = named - {"pixels"} | {f"pixels.{name}" for name in dict(inner)}
        assert found.keys() == named


@pytest.mark.parametrize("name", preset_names())
def test_presets_name_their_schema(name):
    first = (Path(recipe_module.__file__).parent / "presets" / f"{name}.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=../recipe.schema.json"


# recipes of version 0.1

OLD = json.loads((Path(__file__).parent / "presets_0_1.json").read_text())  # the presets, with all of their fields
OLD.pop("demo")  # today's is on features
OLD.pop("pet-crop")  # this one on tissues
OLD.pop("phantom")  # and this one on places
for old in OLD.values():  # bfloat16 was assumed to be faster
    old["mixed_precision"] = {"bf16": "auto"}.get(old["mixed_precision"], old["mixed_precision"])


@pytest.mark.parametrize("name", OLD)
def test_presets_are_what_they_were(name):
    assert Recipe.from_dict(OLD[name]) == load_recipe(name)
    training = {key: value for key, value in OLD[name].items() if key != "inference"}
    assert Recipe.from_dict(training).training_fields() == load_recipe(name).training_fields()


@pytest.mark.parametrize(
    "table, values, complaint",
    [
        ("rounds", {"codes": "live"}, "recipe.rounds.codes can no longer be chosen: .* always 'copies', got 'live'"),
        (
            "rounds",
            {"initialization": "continue"},
            "rounds.initialization can no longer .* always 'fresh', got 'continue'",
        ),
        ("rounds", {"max_masked_fraction": 0.3}, "rounds.max_masked_fraction can no longer .* always 0.5, got 0.3"),
        ("rounds", {"convergence_iou": 0.9}, "have become stop_early, .* got 0.9 and 0.001"),
        ("stage1", {"momentum": 0.8}, "stage1.momentum can no longer .* always 0.9, got 0.8"),
        ("stage2", {"ema_decay": [[0, 0.5]]}, "stage2.ema_decay can no longer .* always None"),
        ("vqvae", {"ema_epsilon": 1e-3}, "vqvae.ema_epsilon can no longer .* always 1e-05, got 0.001"),
        ("prior", {"ordering": "spiral"}, "prior.ordering can no longer .* always 'raster', got 'spiral'"),
        ("augmentation", {"reference_size": 128}, "augmentation.reference_size can no longer .* always 256"),
        ("inference", {"gate": True}, "recipe.inference: gate True is no longer possible with relative_density True"),
        (
            "inference",
            {"gate": False, "relative_density": False, "likelihood_share": 0.0},
            "recipe.inference: gate False is no longer possible with relative_density False",
        ),
    ],
)
def test_values_that_are_gone_are_refused(table, values, complaint):
    changed = MINIMAL | {table: MINIMAL.get(table, {}) | values}
    with pytest.raises(ValueError, match=complaint):
        Recipe.from_dict(changed)


def test_compilation_is_gone():
    assert Recipe.from_dict(MINIMAL | {"compile": False}) == Recipe.from_dict(MINIMAL)
    with pytest.raises(ValueError, match="compile can no longer be chosen"):
        Recipe.from_dict(MINIMAL | {"compile": True})


def test_configurations_of_the_prior_of_version_0_1():
    assert PerformerPriorConfig(ordering="raster").to_dict() == PerformerPriorConfig().to_dict()
    assert not hasattr(PerformerPriorConfig(ordering="raster"), "ordering")


def test_stages_of_other_methods():
    stage = StageRecipe(epochs=3, optimizer="sgd")
    assert without_retired_of_stage({**asdict(stage), "momentum": 0.9, "ema_decay": None}) == asdict(stage)
    assert without_retired_of_stage(None) is None


def test_healing_of_version_0_1_did_not_follow_the_masks():
    old = RoundsRecipe(outlier_scale=1.5)
    values = MINIMAL | {"rounds": {**asdict(old), "codes": "copies"}}
    assert Recipe.from_dict(values).inference["outlier_scale"] == 3.0
    assert "inference" not in values, "what is given is not changed"


def test_settings_of_version_0_1_load():
    authors = {"relative_density": False, "likelihood_share": 0.0, "gate": True}
    assert InferenceSettings.from_dict(authors) == InferenceSettings(relative_density=False, likelihood_share=0.0)
    assert InferenceSettings.from_dict({"gate": False}) == InferenceSettings()
    with pytest.raises(
        ValueError, match=r"calibration\.json: gate True is no longer possible with relative_density True"
    ):
        InferenceSettings.from_dict({"gate": True}, "calibration.json")


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
    with pytest.raises(ValueError, match=r"no preset and no file 'huge'.*, paper,"):
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
    assert Stage1Recipe(9).ema_decay_at(5) is None
    stage = Stage1Recipe(9, ema_decay=[[2, 0.5], [4, 0.9]])
    assert [stage.ema_decay_at(epoch) for epoch in (0, 1, 2, 3, 4, 100)] == [None, None, 0.5, 0.5, 0.9, 0.9]


def test_a_recipe_is_for_images_or_for_volumes():
    volume = {k: v for k, v in MINIMAL.items() if k != "image_size"}
    volume |= {"volume": {}, "num_channels": 1, "vqvae": {"spatial_dims": 3}}
    assert Recipe.from_dict(volume).is_volumetric
    for values, reason in (
        (volume | {"image_size": 64}, "not both"),
        (volume | {"vqvae": {}}, "needs spatial_dims: 3"),
        (MINIMAL | {"vqvae": {"spatial_dims": 3}}, "needs volume"),
        (volume | {"num_channels": 3}, "recipe.num_channels must be 1 for volumes, got 3"),
        (volume | {"volume": {"spacng": 4}}, "recipe.volume has no field 'spacng' .*'spacing'"),
        (volume | {"volume": {"size": 64}}, "recipe.volume.size must be a list, got 64"),
        (volume | {"volume": {"spacing": "fine"}}, "recipe.volume.spacing must be a number or a list, got 'fine'"),
        (volume | {"volume": {"spacing": [1, 1, "x"]}}, r"recipe.volume.spacing\[2\] must be a number, got 'x'"),
        (volume | {"volume": {"spacing": -1}}, "recipe.volume: .*spacing"),
        (volume | {"volume": {"intensity_range": [6, 0]}}, "recipe.volume: .*intensity_range"),
    ):
        with pytest.raises(ValueError, match=reason):
            Recipe.from_dict(values)


# recipes on features


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("features.vocab=3", r"recipe.features has no field 'vocab' \(do you mean 'vocab_size'\?\)"),
        ("features.vocab_size=0", "recipe.features: vocab_size must be at least 1"),
        ("features.pixels_per_token=a", "recipe.features.pixels_per_token must be a whole number, got 'a'"),
        ("image_size=100", "recipe.image_size must be a positive multiple of 8, got 100"),
        ("num_channels=2", "in_channels must be 1 or 3"),
        ("stage1.steps=3", "recipe has no field 'stage1'"),
        ("rounds.abnormal_share=1.0", "recipe.rounds.abnormal_share must be below 1"),
    ],
)
def test_mistakes_in_a_recipe_on_features_are_named(override, complaint):
    with pytest.raises(ValueError, match=complaint):
        load_recipe("features", [override])
