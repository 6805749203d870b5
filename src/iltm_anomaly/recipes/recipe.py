"""Recipes: every number of a training run, as data. The shipped ones are the YAML files in `presets/`."""

import math
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import yaml
from huggingface_hub.errors import StrictDataclassError

from iltm_anomaly.masking import RejectionRule

OPTIMIZERS = ("adam", "sgd")
SCHEDULES = ("one_cycle", "exponential", "constant")
VOLUME_FIELDS = (
    "size",
    "spacing",
    "intensity_range",
    "intensity_percentiles",
    "intensity_power",
    "foreground",
    "stretch",
)
PRECISIONS = ("no", "bf16", "fp16")
CODES = ("copies", "live")
KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a table of fields"}


@dataclass
class StageRecipe:
    """How one model is optimised.

    Args:
        epochs, steps: how long, one of the two: passes over the training images, or steps, which cost the same time whatever the
            number of images.
        batch_size: images per step, over all processes, so that a recipe trains the same model on any number of them.
        micro_batch_size: images that one process holds at once; a larger share of a step is split and its gradients
            accumulated. None never splits. Of memory only: results differ by rounding.
        learning_rate: the highest one.
        schedule: "one_cycle" (linear warm-up over `warmup` of the steps, then cosine to zero), "exponential" or "constant".
        gamma: decay of the exponential schedule, per epoch or per step as `gamma_per` says.
        max_grad_norm: gradient clipping; 0 leaves gradients alone.
        weight_decay: decoupled (AdamW); 0 is plain Adam.
        ema_decay: pairs (first epoch, decay) of the codebook's moving averages; stage 1 only.
        optimizer, momentum: "adam", or "sgd" with this momentum.
    """

    epochs: int | None = None
    batch_size: int = 16
    micro_batch_size: int | None = None
    learning_rate: float = 1e-3
    schedule: str = "one_cycle"
    warmup: float = 0.1
    gamma: float = 0.9999
    gamma_per: str = "epoch"
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    ema_decay: list[list[float]] | None = None
    steps: int | None = None
    optimizer: str = "adam"
    momentum: float = 0.9

    def __post_init__(self):
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {OPTIMIZERS}, got {self.optimizer!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {SCHEDULES}, got {self.schedule!r}")
        if self.gamma_per not in ("epoch", "step"):
            raise ValueError(f"gamma_per must be 'epoch' or 'step', got {self.gamma_per!r}")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"a stage needs 'epochs' or 'steps', and not both; got {self.epochs} and {self.steps}")
        for name in ("epochs", "steps", "batch_size", "micro_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        for name in ("weight_decay", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for pair in self.ema_decay or []:
            numbers = isinstance(pair, list | tuple) and all(type(value) in (int, float) for value in pair)
            if not (numbers and len(pair) == 2 and pair[0] >= 0 and 0 <= pair[1] < 1):
                raise ValueError(f"ema_decay must be pairs [first epoch, decay from 0 to 1], got {self.ema_decay}")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole stage."""
        return self.steps if self.epochs is None else self.epochs * steps_per_epoch  # type: ignore[return-value]

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of the 0-based `step`: a function of the step alone, so that a resumed run needs no state for it."""
        total = self.total_steps(steps_per_epoch)
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "exponential":
            elapsed = step // steps_per_epoch if self.gamma_per == "epoch" else step
            return self.learning_rate * self.gamma**elapsed
        rising = max(1, round(self.warmup * total))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))

    def ema_decay_at(self, epoch: int) -> float | None:
        """Codebook decay of the 0-based `epoch`, or None to leave the model's own."""
        decay = None
        for first_epoch, value in self.ema_decay or []:
            if epoch >= first_epoch:
                decay = value
        return decay


@dataclass
class RoundsRecipe:
    """The iterative part.

    Args:
        rounds: masked rounds after round 0; fewer are run if the masks stop changing.
        token_threshold, neighbourhood, outlier_scale: which tokens are masked, see `masking.RejectionRule`.
        codes: "copies" extracts the codes of `code_copies` augmented copies of every image once, as the authors did, and trains
            every round on them; "live" extracts those of one new copy before every epoch, so that no two epochs are alike.
        code_copies: of "copies"; epochs take them in turn, so that there are never more than epochs of stage 2. None extracts one
            for every epoch, so that a round sees none twice: a prior that knows its training codes by heart finds none of them
            unlikely.
        initialization: "fresh" weights every round, or "continue" from the round before.
        convergence_iou, convergence_change: see `masking.has_converged`.
        max_masked_fraction: a round that would mask more is refused.
    """

    rounds: int = 3
    token_threshold: float | None = None
    neighbourhood: float = 1.0
    outlier_scale: float = 3.0
    codes: str = "copies"
    code_copies: int | None = None
    initialization: str = "fresh"
    convergence_iou: float = 0.95
    convergence_change: float = 0.001
    max_masked_fraction: float = 0.5

    def __post_init__(self):
        if self.initialization not in ("fresh", "continue"):
            raise ValueError(f"initialization must be 'fresh' or 'continue', got {self.initialization!r}")
        if self.codes not in CODES:
            raise ValueError(f"codes must be one of {CODES}, got {self.codes!r}")
        if self.rounds < 0 or (self.code_copies is not None and self.code_copies < 1):
            raise ValueError(f"need rounds >= 0 and code_copies >= 1, got {self.rounds} and {self.code_copies}")
        if not 0 <= self.max_masked_fraction <= 1:
            raise ValueError(f"max_masked_fraction must be in [0, 1], got {self.max_masked_fraction}")
        _ = self.rule  # checks its fields: now, not after days of training

    @property
    def rule(self) -> RejectionRule:
        """Which tokens are masked."""
        return RejectionRule(self.token_threshold, self.neighbourhood, self.outlier_scale)


@dataclass
class Recipe:
    """A whole run. `vqvae`, `prior`, `augmentation` and `inference` hold fields of `VQVAEConfig`, `PerformerPriorConfig`,
    `AugmentationConfig` and `InferenceSettings` that differ from their defaults.

    Args:
        image_size: pixels along each side, for images.
        volume: for volumes, in place of `image_size`: fields of `ILTMImageProcessor.for_volumes`; those left out follow from the
            training volumes. `{}` leaves out all.
        gradient_checkpointing: keep fewer activations in memory and compute them again, a third more time.
        codebook_start: step of stage 1 at which the codebook is put onto the encoder's outputs by k-means; before it nothing
            is quantised. None starts from random codes, as the authors' code does; few of them ever live.
        mixed_precision: "no" (float32), "bf16" or "fp16".
        compile: run the models through torch.compile.
    """

    name: str
    stage1: StageRecipe
    stage2: StageRecipe
    image_size: int | None = None
    volume: dict[str, Any] | None = None
    gradient_checkpointing: bool = False
    rounds: RoundsRecipe = field(default_factory=RoundsRecipe)
    num_channels: int = 3
    mixed_precision: str = "no"
    codebook_start: int | None = 0
    compile: bool = False
    vqvae: dict[str, Any] = field(default_factory=dict)
    prior: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    inference: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if (self.image_size is None) == (self.volume is None):
            raise ValueError("recipe needs 'image_size' (for images) or 'volume' (for volumes), and not both")
        dims = self.vqvae.get("spatial_dims", 2)
        if (dims == 3) != self.is_volumetric:
            needed = "spatial_dims: 3" if self.is_volumetric else "volume: {}"
            raise ValueError(f"recipe.vqvae has spatial_dims {dims}: a recipe for volumes needs {needed} too")
        if unknown := sorted(set(self.volume or {}) - set(VOLUME_FIELDS)):
            raise ValueError(f"recipe.volume has no field {unknown[0]!r}; it has {sorted(VOLUME_FIELDS)}")
        if self.mixed_precision not in PRECISIONS:
            raise ValueError(f"mixed_precision must be one of {PRECISIONS}, got {self.mixed_precision!r}")

    @property
    def is_volumetric(self) -> bool:
        """Whether it trains on volumes."""
        return self.volume is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as written to `recipe.yaml` of a run."""
        return asdict(self)

    def training_fields(self) -> dict[str, Any]:
        """`to_dict` without the settings of inference, on which no training depends."""
        return {name: value for name, value in self.to_dict().items() if name != "inference"}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Recipe":
        """Raises ValueError on a key that no recipe has, that is missing, or whose value is wrong; names it."""
        recipe = _build(cls, values, "recipe")
        try:
            _check_parts(recipe)
        except StrictDataclassError as error:  # of the configurations of transformers
            raise ValueError(str(error)) from error
        return recipe


def _build(cls, values: dict[str, Any], where: str):
    known = {f.name: f for f in fields(cls)}
    if not isinstance(values, dict):
        raise ValueError(f"{where} must be a table of fields, got {values!r}; it has {sorted(known)}")
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{where} has no field {unknown[0]!r}; it has {sorted(known)}")
    for name, f in known.items():
        if name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{where} needs {name!r}")
    nested = {"stage1": StageRecipe, "stage2": StageRecipe, "rounds": RoundsRecipe} if cls is Recipe else {}
    built = {
        key: _build(nested[key], value, f"{where}.{key}") if key in nested else _checked(known[key], value, where)
        for key, value in values.items()
    }
    return cls(**built)


def _check_parts(recipe: Recipe) -> None:
    """Builds every part once. Configurations of transformers take any keyword: a misspelt one would have no effect."""
    from iltm_anomaly.data.augmentation import AugmentationConfig
    from iltm_anomaly.prior import PerformerPriorConfig
    from iltm_anomaly.processing.image_processing import ILTMImageProcessor
    from iltm_anomaly.settings import InferenceSettings
    from iltm_anomaly.tokenizers.vqvae import VQVAEConfig

    refused = {  # fields of parts that a recipe does not choose, and why
        "in_channels": "it follows from recipe.num_channels",
        "vocab_size": "it follows from recipe.vqvae.vocab_size",
        "grid_shape": "it follows from recipe.image_size",
        "surprise_limit": "it is measured on the training images, outlier_scale deviations above their median",
        "score_threshold": "it is measured on the training images; `detect --threshold` takes another one",
    }
    for part, cls, owns in (
        ("vqvae", VQVAEConfig, {"in_channels"}),
        ("prior", PerformerPriorConfig, {"vocab_size", "grid_shape"}),
        ("augmentation", AugmentationConfig, set()),
        ("inference", InferenceSettings, {"surprise_limit", "score_threshold"}),
    ):
        known = {f.name for f in fields(cls) if f.name in cls.__annotations__} - owns  # not what transformers adds
        for name in getattr(recipe, part):
            if name in owns:
                raise ValueError(f"recipe.{part} must not hold {name!r}: {refused[name]}")
            if name not in known:
                raise ValueError(f"recipe.{part} has no field {name!r}; it has {sorted(known)}")
    vqvae = VQVAEConfig(in_channels=recipe.num_channels, **recipe.vqvae)
    side = vqvae.downsampling if recipe.image_size is None else recipe.image_size
    if side < 1 or side % vqvae.downsampling:
        raise ValueError(
            f"recipe.image_size must be a positive multiple of {vqvae.downsampling}, since {len(vqvae.channels)} levels halve it "
            f"each, got {side}"
        )
    grid = (side // vqvae.downsampling,) * vqvae.spatial_dims
    PerformerPriorConfig(vocab_size=vqvae.vocab_size, grid_shape=grid, **recipe.prior)
    for setting in fields(AugmentationConfig):
        if setting.name in recipe.augmentation:
            _checked(setting, recipe.augmentation[setting.name], "recipe.augmentation")
    AugmentationConfig(**recipe.augmentation)
    InferenceSettings(**recipe.inference)
    if recipe.volume is not None:
        given = {name: value for name, value in recipe.volume.items() if value is not None}
        found: dict[str, Any] = {"size": [side] * 3, "spacing": 1.0}  # stand for what the training volumes will tell
        found |= {} if "intensity_percentiles" in given else {"intensity_range": [0.0, 1.0]}
        try:
            ILTMImageProcessor.for_volumes([], size_divisor=vqvae.downsampling, **(found | given))
        except (TypeError, ValueError) as error:
            raise ValueError(f"recipe.volume: {error}") from error


def _checked(known, value: Any, where: str) -> Any:
    """`value` if it is of the kind of the field `known`. YAML has its traps: 1e-3 is text to it, and a bare no is false."""
    options = get_args(known.type) if isinstance(known.type, UnionType) else (known.type,)
    kinds = [get_origin(option) or option for option in options]
    fits = type(value) in kinds or (type(value) is int and float in kinds)
    if not fits:
        hint = ": put it in quotes" if str in kinds else ""
        if float in kinds and isinstance(value, str):
            hint = ": write 1.0e-3 for 1e-3"
        raise ValueError(f"{where}.{known.name} must be {KINDS.get(kinds[0], kinds[0].__name__)}, got {value!r}{hint}")
    return value


def preset_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(
        p.name.removesuffix(".yaml")
        for p in resources.files(f"{__package__}.presets").iterdir()
        if p.name.endswith(".yaml")
    )


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A shipped recipe by name, or any recipe by the path of its YAML file.

    Raises:
        ValueError: if it is neither, or a field is unknown or out of range.
    """
    if str(name_or_path) in preset_names():
        text = (resources.files(f"{__package__}.presets") / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    elif Path(name_or_path).is_file():
        text = Path(name_or_path).read_text(encoding="utf-8")
    else:
        raise ValueError(f"no preset and no file {str(name_or_path)!r}; presets are {preset_names()}")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{name_or_path} is no valid YAML: {error}") from error
    return Recipe.from_dict(values)
