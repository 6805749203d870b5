"""What is to be measured: methods, categories, levels and seeds, and the images that each of them means."""

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from iltm_anomaly.comparison.baselines.methods import BASELINES, METHODS, Method
from iltm_anomaly.comparison.baselines.vqvae_transformer import residual_settings
from iltm_anomaly.comparison.benchmark.published import load_published
from iltm_anomaly.data.contamination import (
    DISJOINT,
    PROTOCOLS,
    ContaminationRecord,
    apply_record,
    draw_record,
    largest_train_size,
)
from iltm_anomaly.data.images import files_below
from iltm_anomaly.data.layout import is_category, list_categories
from iltm_anomaly.data.mvtec import load_mvtec
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.recipes.feature_recipe import FeatureRecipe
from iltm_anomaly.recipes.pixel_recipe import Recipe
from iltm_anomaly.recipes.recipe import load_recipe
from iltm_anomaly.settings import InferenceSettings
from iltm_anomaly.training.bounds import check_sizes
from iltm_anomaly.training.checkpoint import file_digest

logger = logging.getLogger(__name__)


LEFT_OUT = ("capsule", "toothbrush", "transistor")  # categories of MVTec AD that Table 2 does not have
COMMON, ALL = "common", "all"  # values of train_size
OWN_SCHEDULE = "paper"  # the preset under which a method trains as long as its own paper says
BASELINE_PRESETS = ("paper", "cpu", "tiny")  # presets that baselines have; under any other they take "cpu"


@dataclass
class BenchmarkArguments:
    """What a user chooses.

    Args:
        data: folder that the categories are in.
        output: folder of the results. A second benchmark in the same folder continues the first.
        categories: paths of category folders below `data`; "official" stands for the paper's 12, "all15" for all of MVTec AD.
        methods: names of `METHODS`; "all" stands for those that need nothing from elsewhere, "paper" for those of Table 2.
        contamination: levels.
        seeds: each is that of the split, of training and of all else that is random.
        protocol: where contamination comes from, of `PROTOCOLS`.
        preset: recipe of ILTM; the baselines take their settings of the same name.
        image_size: side of the images of all methods, in place of the recipe's.
        train_size: training images of every cell; "common" is, for each category, the largest number that all levels allow;
            "all" is all good images and as many defective ones as a level needs.
        baseline_seconds: training time of every other method; None gives each the time that one round of the prior took in the
            ILTM run of the same images; with the preset "paper" it follows the schedule of its own paper instead.
        baseline_config: fields of the configuration of other methods in place of the preset's, as {"nsa": {"slope": 0.2}}.
        cpu: do not use a GPU.
        show_progress: progress bars.
    """

    data: str
    output: Path
    categories: list[str]
    methods: list[str] = field(default_factory=lambda: ["all"])
    contamination: list[float] = field(default_factory=lambda: [0.0, 0.1, 0.2])
    seeds: list[int] = field(default_factory=lambda: [0])
    protocol: str = DISJOINT
    preset: str = "cpu"
    image_size: int | None = None
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
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be {' or '.join(PROTOCOLS)}, got {self.protocol!r}")
        if self.train_size not in (COMMON, ALL) and not (isinstance(self.train_size, int) and self.train_size > 0):
            raise ValueError(f"train_size must be a number above 0, {COMMON!r} or {ALL!r}, got {self.train_size!r}")
        if unknown := [name for name in self.baseline_config if name not in BASELINES]:
            raise ValueError(f"{unknown[0]!r} has no configuration to change; those that have: {', '.join(BASELINES)}")
        if self.baseline_seconds is not None and self.baseline_seconds <= 0:
            raise ValueError(f"baseline_seconds must be above 0, got {self.baseline_seconds}")


@dataclass(frozen=True)
class Category:
    """A category folder: `name` in tables, and the `source` and `folder` that `load_mvtec` takes."""

    name: str
    source: str
    folder: str

    def digest(self) -> str:
        """SHA-256 over name and content of every file; the folder that they lie in does not count."""
        digest, root = hashlib.sha256(), Path(self.source, self.folder)
        for path in sorted(files_below(root)):
            name = path.relative_to(root)
            if any(part.startswith(".") for part in name.parts) or path.name == "Thumbs.db":
                continue  # written by file browsers
            digest.update(f"{name.as_posix()}\0{file_digest(path)}\n".encode())
        return digest.hexdigest()


@dataclass
class Group:
    """All cells of the same images: one category, level and seed.

    Args:
        methods: in the order in which they are run.
        files: digest of the category's files.
        protocol: of contamination; "disjoint" where there is none, as all protocols train on the same images then.
        source: all images of the category; None if it cannot be read.
        error: why the group cannot be measured.
        record: the contamination record as plain values; None if the protocol is not possible.
    """

    category: Category
    contamination: float
    seed: int
    train_size: int | None
    methods: list[str]
    files: str
    protocol: str = DISJOINT
    source: DatasetDict | None = None
    error: str | None = None
    record: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Name of the group, in files and messages."""
        end = "" if self.protocol == DISJOINT else f"_{self.protocol}"
        return f"{self.category.name}_c{self.contamination:g}_s{self.seed}{end}"

    @property
    def dataset(self) -> DatasetDict:
        """Train and test images. They are made anew each time: copies are kept in memory, and a plan has many groups."""
        assert self.source is not None and self.record is not None  # else the group has an error, and is not measured
        return apply_record(self.source, ContaminationRecord.from_dict(self.record))

    def counts(self) -> dict[str, int]:
        """Numbers of training and test images, and of the defective ones among them."""
        assert self.source is not None and self.record is not None
        labels, record = self.source["test"]["label"][:], self.record
        return {
            "training": len(record["good_indices"]) + len(record["pool_indices"]),
            "contaminated": len(record["pool_indices"]),
            "test": len(record["test_indices"]),
            "defective": sum(labels[row] == 1 for row in record["test_indices"]),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the training and test images: all files of the category, and which of them are chosen."""
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
    """What is measured.

    Args:
        arguments: what the user chose.
        recipe: of the ILTM runs.
        groups: all sets of images.
    """

    arguments: BenchmarkArguments
    recipe: Recipe
    groups: list[Group]

    def settings(self, group: Group, method: str) -> dict[str, Any]:
        """All that a cell depends on, defaults of the code included. A cell with other settings is measured again."""
        about = METHODS[method]
        recipe = self.recipe_of(method).training_fields()
        if about.preset is None and not about.of_run and not self.has_time_of_round(group, method):
            recipe = {name: recipe[name] for name in ("image_size", "num_channels")}
        settings = {
            "method": method,
            "category": group.category.name,
            "contamination": group.contamination,
            "protocol": group.protocol,
            "seed": group.seed,
            "train_size": group.train_size,
            "split_sha256": group.digest,
            "recipe": recipe,
            "baseline_seconds": self.given_seconds(group, method),
            "baseline": self.baseline(group, method) if method in BASELINES else None,
            "inference": self._inference(about) if about.of_run else None,
        }
        return json.loads(json.dumps(settings))  # as they are read back from a cell

    def recipe_of(self, method: str) -> Any:
        """The recipe of the ILTM run that a method has of its own, or of that of all others."""
        preset = METHODS[method].preset
        return self.recipe if preset is None else _resized(load_recipe(preset), self.arguments.image_size)

    def _inference(self, about: Method) -> dict[str, Any]:
        return vars(InferenceSettings(**self.recipe.inference)) if about.has_kde else residual_settings()

    def run_digest(self, group: Group) -> str:
        """SHA-256 of all that the training of a group's ILTM run depends on."""
        return digest_of([group.digest, self.recipe.training_fields()])

    @property
    def baseline_preset(self) -> str:
        """Name of the baselines' settings that go with the recipe."""
        return self.recipe.name if self.recipe.name in BASELINE_PRESETS else "cpu"

    def baseline(self, group: Group, method: str) -> dict[str, Any]:
        """How another method is trained on a group's images: its recipe, with every field of its configuration."""
        about, config = BASELINES[method], self.arguments.baseline_config.get(method)
        model_class = about.model_class
        recipe = asdict(about.recipe_for(self.baseline_preset, group.category.name, config))
        recipe["config"] = model_class.config_defaults() | recipe["config"]
        # cells of the first version do not name it
        return recipe | ({"version": model_class.version} if model_class.version > 1 else {})

    def has_time_of_round(self, group: Group, method: str) -> bool:
        """Whether another method is trained for as long as a round of the prior took, and so needs the ILTM run."""
        if self.arguments.baseline_seconds is not None or self.recipe.name == OWN_SCHEDULE:
            return False
        return self.is_trained(group, method)

    def given_seconds(self, group: Group, method: str) -> float | None:
        """`baseline_seconds`, None for a method that is not trained, which has no use for them."""
        return self.arguments.baseline_seconds if self.is_trained(group, method) else None

    def is_trained(self, group: Group, method: str) -> bool:
        """Whether a method is trained on its own, by gradient descent."""
        return method in BASELINES and self.baseline(group, method)["stage"] is not None


def resolve_methods(names: list[str]) -> list[str]:
    """Names of methods in the order in which they are run: ILTM and its round 0 first, as the others get the time of a round.

    Raises:
        ValueError: for an unknown name.
    """
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
        ValueError: if folders hold no category, all of which it names, or two have the same name.
    """
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
    """Reads every category once and splits it for every level and seed. An impossible split becomes a group with an error.

    Raises:
        ValueError: for arguments that mean nothing.
    """
    recipe = load_recipe(arguments.preset)
    if recipe.is_volumetric:
        raise ValueError(f"preset {arguments.preset} is for volumes; the benchmark is one of images")
    if isinstance(recipe, FeatureRecipe):
        raise ValueError(f"preset {arguments.preset} is one on features: leave it out and give --methods features")
    recipe, methods = _resized(recipe, arguments.image_size), resolve_methods(arguments.methods)
    check_sizes(recipe)
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
                protocol = arguments.protocol if fraction > 0 else DISJOINT
                group = Group(category, fraction, seed, train_size, methods, files, protocol, dataset, error)
                if dataset is not None:
                    _split(group, dataset)
                groups.append(group)
    plan = Plan(arguments, recipe, groups)
    for method in methods:
        plan.recipe_of(method)  # refuses an image size before hours of training
    return plan


def _resized(recipe: Any, side: int | None) -> Any:
    return recipe if side is None else type(recipe).from_dict(recipe.to_dict() | {"image_size": side})


def _check_baseline_config(arguments: BenchmarkArguments, recipe: Recipe) -> None:
    """Raises ValueError for settings that no training could be made with, before hours of training rather than after."""
    processor = ILTMImageProcessor(size=recipe.image_size, num_channels=recipe.num_channels)
    for method, config in arguments.baseline_config.items():
        model_class = BASELINES[method].model_class
        known = sorted(model_class.config_defaults())
        if unknown := sorted(set(config) - set(known)):
            raise ValueError(f"{method} has no setting {unknown[0]!r}; it has {', '.join(known)}")
        model_class.configure(processor, 1, BASELINES[method].config | config)


def _split(group: Group, dataset: DatasetDict) -> None:
    try:
        record = draw_record(dataset, group.contamination, group.seed, group.train_size, group.protocol)
    except ValueError as problem:
        group.error = str(problem)
        return
    group.record = record.to_dict()
    if not group.counts()["defective"]:
        group.error = f"{group.category.name} has no defective test image: there is nothing to measure a detector on"


def digest_of(values: Any) -> str:
    """SHA-256 of plain values, such as JSON can hold."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _train_size(category: str, dataset: DatasetDict, arguments: BenchmarkArguments) -> int | None:
    if arguments.train_size == ALL:
        return None
    if arguments.train_size != COMMON:
        return int(arguments.train_size)
    sizes = {fraction: largest_train_size(dataset, fraction) for fraction in arguments.contamination}
    # a level that is out of reach has size 0: it fails later, with a reason
    possible = {fraction: size for fraction, size in sizes.items() if size}
    if not possible:
        return None
    size = min(possible.values())
    if size < max(possible.values()):
        levels = ", ".join(f"{fraction:g}" for fraction, own in possible.items() if own == size)
        logger.info("%s: %d training images at every level, all that contamination %s allows", category, size, levels)
    return size
