"""What is to be measured: methods, categories, levels and seeds, and the images that each of them means."""

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iltm_anomaly.data.contamination import contaminate, contamination_record, largest_train_size
from iltm_anomaly.data.images import files_below
from iltm_anomaly.data.mvtec import is_category, list_categories, load_mvtec
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.recipes.recipe import Recipe, load_recipe
from iltm_anomaly.settings import InferenceSettings
from iltm_anomaly.training.checkpoint import file_digest

if TYPE_CHECKING:
    from datasets import DatasetDict

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Method:
    """One column of the table.

    Args:
        title: its heading.
        paper: its column in the paper's Table 2, None for what the paper does not have.
        of_run: scored from the ILTM run of its images; the others are trained on their own.
        has_kde: its map is made by the recipe's settings of inference.
        in_all: part of "all".
    """

    title: str
    paper: str | None = None
    of_run: bool = False
    has_kde: bool = False
    in_all: bool = True


# In the order of the paper's columns, then what is not in it. The paper does not say which map its round 0 used.
METHODS = {
    "autoencoder": Method("AE", "autoencoder"),
    "vae": Method("VAE", "vae"),
    "cutpaste": Method("CutPaste", "cutpaste"),
    "nsa": Method("NSA", "nsa"),
    "vqvae_transformer": Method("VQ-VAE + Transformer (KDE)", "vqvae_transformer", of_run=True, has_kde=True),
    "vqvae_transformer_residual": Method("VQ-VAE + Transformer (residual)", "vqvae_transformer", of_run=True),
    "iltm": Method("ILTM", "iltm", of_run=True, has_kde=True),
    "mean_image": Method("Mean image"),
    "patchcore": Method("PatchCore", in_all=False),  # needs weights of a network trained on ImageNet
}
LEFT_OUT = ("capsule", "toothbrush", "transistor")  # categories of MVTec AD that Table 2 has not
COMMON, ALL = "common", "all"  # train_size
OWN_SCHEDULE = "paper"  # preset under which a method trains as long as its own paper says
BASELINE_PRESETS = ("paper", "cpu", "tiny")  # of other presets the baselines know nothing: they take those of "cpu"


@dataclass
class BenchmarkArguments:
    """What a user chooses.

    Args:
        data: folder that the categories are in.
        output: folder of the results; the same one again continues.
        categories: paths of category folders below `data`; "official" stands for the paper's 12, "all15" for all of MVTec AD.
        methods: names of `METHODS`; "all" stands for those that need nothing from elsewhere, "paper" for those of Table 2.
        contamination: levels.
        seeds: of split, training and all else that is random.
        preset: recipe of ILTM; the baselines take their settings of the same name.
        train_size: training images of every cell; "common" takes for each category the most at which all levels are possible,
            "all" all good images and as many defective ones as a level needs.
        baseline_seconds: training time of every other method; None gives each the time that one round of the prior took in the
            ILTM run of the same images; with the preset "paper" it follows the schedule of its own paper instead.
        baseline_config: fields of the configuration of other methods in place of the preset's, as {"nsa": {"slope": 0.2}}.
        cpu: do not use a GPU.
        show_progress: bars.
    """

    data: str
    output: Path
    categories: list[str]
    methods: list[str] = field(default_factory=lambda: ["all"])
    contamination: list[float] = field(default_factory=lambda: [0.0, 0.1, 0.2])
    seeds: list[int] = field(default_factory=lambda: [0])
    preset: str = "cpu"
    train_size: int | str = COMMON
    baseline_seconds: float | None = None
    baseline_config: dict[str, dict[str, Any]] = field(default_factory=dict)
    cpu: bool = False
    show_progress: bool = True

    def __post_init__(self):
        for name in ("categories", "methods", "contamination", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: give one at least")
            setattr(self, name, list(dict.fromkeys(getattr(self, name))))
        if bad := [fraction for fraction in self.contamination if not 0 <= fraction < 1]:
            raise ValueError(f"contamination must be in [0, 1), got {bad[0]}: training needs good images too")
        if self.train_size not in (COMMON, ALL) and not (isinstance(self.train_size, int) and self.train_size > 0):
            raise ValueError(f"train_size must be a number above 0, {COMMON!r} or {ALL!r}, got {self.train_size!r}")
        others = [name for name, method in METHODS.items() if not method.of_run]
        if unknown := [name for name in self.baseline_config if name not in others]:
            raise ValueError(f"{unknown[0]!r} has no configuration to change; those that have: {', '.join(others)}")
        if self.baseline_seconds is not None and self.baseline_seconds <= 0:
            raise ValueError(f"baseline_seconds must be above 0, got {self.baseline_seconds}")


@dataclass(frozen=True)
class Category:
    """A category folder: `name` in tables, and the `source` and `folder` that `load_mvtec` takes."""

    name: str
    source: str
    folder: str

    def digest(self) -> str:
        """SHA-256 over name and content of every file, wherever it lies: other images with the same split are another set."""
        digest, root = hashlib.sha256(), Path(self.source, self.folder)
        for path in sorted(files_below(root)):
            name = path.relative_to(root)
            if any(part.startswith(".") for part in name.parts) or path.name == "Thumbs.db":
                continue  # of file browsers
            digest.update(f"{name.as_posix()}\0{file_digest(path)}\n".encode())
        return digest.hexdigest()


@dataclass
class Group:
    """All cells of the same images: one category, level and seed.

    Args:
        methods: in the order in which they are to be run.
        files: digest of the category's files.
        dataset: train and test of the contamination protocol; None if it is not possible.
        error: why not.
        record: contamination record as plain values.
    """

    category: Category
    contamination: float
    seed: int
    train_size: int | None
    methods: list[str]
    files: str
    dataset: "DatasetDict | None" = None
    error: str | None = None
    record: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """For files and people."""
        return f"{self.category.name}_c{self.contamination:g}_s{self.seed}"

    @property
    def digest(self) -> str:
        """SHA-256 of the images, of training and test: of all files, and which of them are chosen."""
        return digest_of([self.files, self.record])

    @property
    def test_digest(self) -> str:
        """SHA-256 of the test images, the same at every level."""
        assert self.record is not None
        return digest_of([self.files, self.record["test_indices"], self.record["source_rows"]])

    def cell(self, method: str) -> str:
        """Name of a cell, without suffix."""
        return f"{self.name}_{method}"


@dataclass
class Plan:
    """All groups, with the recipe of their ILTM runs."""

    recipe: Recipe
    groups: list[Group]

    def settings(self, arguments: BenchmarkArguments, group: Group, method: str) -> dict[str, Any]:
        """What a cell depends on, defaults of the code among them; it is measured anew once that has changed."""
        about = METHODS[method]
        recipe = self.recipe.training_fields()
        if not about.of_run and not self.has_time_of_round(arguments, group, method):
            recipe = {name: recipe[name] for name in ("image_size", "num_channels")}
        settings = {
            "method": method,
            "category": group.category.name,
            "contamination": group.contamination,
            "seed": group.seed,
            "train_size": group.train_size,
            "split_sha256": group.digest,
            "recipe": recipe,
            "baseline_seconds": self.given_seconds(arguments, group, method),
            "baseline": None if about.of_run else self.baseline(arguments, group, method),
            "inference": self._inference(about) if about.of_run else None,
        }
        return json.loads(json.dumps(settings))  # as a cell gives them back

    def _inference(self, about: Method) -> dict[str, Any]:
        from iltm_anomaly.comparison.baselines.vqvae_transformer import residual_settings

        return vars(InferenceSettings(**self.recipe.inference)) if about.has_kde else residual_settings()

    def run_digest(self, group: Group) -> str:
        """SHA-256 of all that training an ILTM run depends on."""
        return digest_of([group.digest, self.recipe.training_fields()])

    @property
    def baseline_preset(self) -> str:
        """Name of the baselines' settings that go with the recipe."""
        return self.recipe.name if self.recipe.name in BASELINE_PRESETS else "cpu"

    def baseline(self, arguments: BenchmarkArguments, group: Group, method: str) -> dict[str, Any]:
        """How another method is trained in a group: its recipe, with every field of its configuration."""
        from iltm_anomaly.comparison.baselines import BASELINES

        model_class, config = BASELINES[method].model_class, arguments.baseline_config.get(method)
        recipe = asdict(model_class.recipe_for(self.baseline_preset, group.category.name, config))
        version = {"version": model_class.version} if model_class.version > 1 else {}  # cells of the first have none
        return recipe | {"config": model_class.config_defaults() | recipe["config"]} | version

    def has_time_of_round(self, arguments: BenchmarkArguments, group: Group, method: str) -> bool:
        """Whether another method is trained for as long as a round of the prior was, so that it needs the ILTM run."""
        if arguments.baseline_seconds is not None or self.recipe.name == OWN_SCHEDULE:
            return False
        return self.is_trained(arguments, group, method)

    def given_seconds(self, arguments: BenchmarkArguments, group: Group, method: str) -> float | None:
        """`baseline_seconds`, where the method has a training that they could limit."""
        return arguments.baseline_seconds if self.is_trained(arguments, group, method) else None

    def is_trained(self, arguments: BenchmarkArguments, group: Group, method: str) -> bool:
        """Whether a method is trained on its own, by gradient descent."""
        return not METHODS[method].of_run and self.baseline(arguments, group, method)["stage"] is not None


def resolve_methods(names: list[str]) -> list[str]:
    """Names of methods in the order in which they are run: what the run serves comes first, it gives the others their budget."""
    chosen = []
    for name in names:
        if name == "all":
            chosen += [key for key, method in METHODS.items() if method.in_all]
        elif name == "paper":
            chosen += [key for key, method in METHODS.items() if method.paper]
        elif name in METHODS:
            chosen.append(name)
        else:
            raise ValueError(f"unknown method {name!r}; there are all, paper, {', '.join(METHODS)}")
    return sorted(set(chosen), key=lambda name: (not METHODS[name].of_run, name != "iltm", list(METHODS).index(name)))


def resolve_categories(data: str, names: list[str]) -> list[Category]:
    """Category folders below `data`.

    Raises:
        ValueError: if a folder holds no category, naming all such, or two have the same name.
    """
    from iltm_anomaly.comparison.benchmark.published import load_published

    official = list(load_published()["categories"])
    meaning = {"official": official, "all15": [*official, *LEFT_OUT]}
    wanted = list(dict.fromkeys(path for name in names for path in meaning.get(name, [name])))
    root = Path(data).expanduser()
    if not root.is_dir():
        raise ValueError(f"no such folder: {root} (looked in {Path.cwd()}); give the one that the categories are in")
    absent = [path for path in wanted if not is_category(root / path)]
    if absent:
        raise ValueError(
            f"{root} has no categor{'ies' if absent[1:] else 'y'} {', '.join(absent)}: a category is a folder that holds a "
            f"folder train. Here are {', '.join(list_categories(root)) or 'none'}; give those of subfolders as mvtec/bottle"
        )
    folders = [Path(os.path.abspath(root / path)) for path in wanted]  # "." has no name
    categories = [Category(folder.name, str(folder.parent), folder.name) for folder in folders]
    if len({category.name for category in categories}) < len(categories):
        raise ValueError(f"two of the categories {', '.join(wanted)} have the same name: measure them in two folders")
    return categories


def make_plan(arguments: BenchmarkArguments) -> Plan:
    """Reads every category once and splits it for every level and seed. What is not possible becomes a group with an error.

    Raises:
        ValueError: for arguments that mean nothing.
    """
    recipe = load_recipe(arguments.preset)
    if recipe.is_volumetric:
        raise ValueError(f"preset {arguments.preset} is for volumes; the benchmark is one of images")
    methods = resolve_methods(arguments.methods)
    _check_baseline_config(arguments, recipe)
    groups = []
    for category in resolve_categories(arguments.data, arguments.categories):
        try:
            dataset, error = load_mvtec(category.source, category.folder), None
            train_size, files = _train_size(category.name, dataset, arguments), category.digest()
        except (ValueError, OSError) as problem:
            dataset, train_size, files, error = None, None, "", str(problem)
        for fraction in arguments.contamination:
            for seed in arguments.seeds:
                group = Group(category, fraction, seed, train_size, methods, files, error=error)
                if dataset is not None:
                    _split(group, dataset)
                groups.append(group)
    return Plan(recipe, groups)


def _check_baseline_config(arguments: BenchmarkArguments, recipe: Recipe) -> None:
    """Before hours of training rather than after."""
    from iltm_anomaly.comparison.baselines import BASELINES

    processor = ILTMImageProcessor(size=recipe.image_size, num_channels=recipe.num_channels)
    for method, config in arguments.baseline_config.items():
        model_class = BASELINES[method].model_class
        known = sorted(model_class.config_defaults())
        if unknown := sorted(set(config) - set(known)):
            raise ValueError(f"{method} has no setting {unknown[0]!r}; it has {', '.join(known)}")
        model_class.configure(processor, 1, config)


def _split(group: Group, dataset: "DatasetDict") -> None:
    try:
        group.dataset = contaminate(dataset, group.contamination, group.seed, group.train_size)
    except ValueError as problem:
        group.error = str(problem)
        return
    record = contamination_record(group.dataset)
    assert record is not None  # contaminate has just attached it
    group.record = record.to_dict()
    if 1 not in group.dataset["test"]["label"]:
        group.error = f"{group.category.name} has no defective test image: there is nothing to measure a detector on"


def digest_of(values: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _train_size(category: str, dataset: "DatasetDict", arguments: BenchmarkArguments) -> int | None:
    if arguments.train_size == ALL:
        return None
    if arguments.train_size != COMMON:
        return int(arguments.train_size)
    sizes = {fraction: largest_train_size(dataset, fraction) for fraction in arguments.contamination}
    # levels that are out of reach fail with a reason of their own
    possible = {fraction: size for fraction, size in sizes.items() if size}
    if not possible:
        return None
    size = min(possible.values())
    if size < max(possible.values()):
        levels = ", ".join(f"{fraction:g}" for fraction, own in possible.items() if own == size)
        logger.info("%s: %d training images at every level, all that contamination %s allows", category, size, levels)
    return size
