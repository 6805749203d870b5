"""Recipes of runs on codes of pixels, of images or of volumes."""

import math
from dataclasses import field, fields
from typing import Annotated, Any, Literal, Self

from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from pydantic import (
    BeforeValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass

from iltm_anomaly.data.augmentation import PADDING_MODES, AugmentationConfig
from iltm_anomaly.masking import RejectionRule
from iltm_anomaly.prior import PerformerPriorConfig
from iltm_anomaly.prior.configuration_performer_prior import MASKING_MODES
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.ranges import RANGES
from iltm_anomaly.recipes.kinds import CONFIG, LEAST_TILE, AnyRecipe, Count, NotNegative, Share
from iltm_anomaly.recipes.retired import REFUSED, without_retired
from iltm_anomaly.recipes.tables import TableOf
from iltm_anomaly.settings import InferenceSettings
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig

RULE = ("token_threshold", "neighbourhood", "outlier_scale")  # what rounds and inference both have


@dataclass(config=CONFIG)
class StageRecipe:
    """How one model is optimised."""

    epochs: Count | None = None
    """How long the stage is, in passes over the training images; or give `steps`."""
    batch_size: Count = 16
    """Images per step, over all processes, so that a recipe trains the same model on any number of them."""
    micro_batch_size: Count | None = None
    """Most images that a process holds at once: a larger share of a step is split, and its gradients are added up. This saves
    memory and changes results by rounding alone. Without it nothing is split."""
    learning_rate: Annotated[StrictFloat, Field(gt=0)] = 1e-3
    """The highest learning rate of the schedule."""
    schedule: Literal["one_cycle", "exponential", "constant"] = "one_cycle"
    """one_cycle rises linearly during the `warmup` and falls to zero as a cosine; exponential is multiplied by `gamma`."""
    warmup: Share = 0.1
    """Share of the steps during which one_cycle rises."""
    gamma: Annotated[StrictFloat, Field(gt=0, le=1)] = 0.9999
    """Factor of the exponential schedule."""
    gamma_per: Literal["epoch", "step"] = "epoch"
    """How often the exponential schedule is multiplied by `gamma`."""
    max_grad_norm: NotNegative = 1.0
    """Gradients of a larger norm are scaled down to it; 0 leaves them alone."""
    weight_decay: NotNegative = 0.0
    """Of Adam, decoupled from the gradient (AdamW); of sgd, the factor of an L2 penalty."""
    steps: Count | None = None
    """How long the stage is, in steps, which take the same time whatever the number of images; or give `epochs`."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """adam, or sgd with a momentum of 0.9."""

    @model_validator(mode="after")
    def _check_length(self):
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"a stage needs 'epochs' or 'steps', and not both; got {self.epochs} and {self.steps}")
        return self

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


@dataclass(config=CONFIG)
class Stage1Recipe(StageRecipe):
    """How the tokenizer is optimised."""

    ema_decay: list[list[StrictInt | StrictFloat]] | None = None
    """Pairs [first epoch, decay]: the decay of the codebook's moving averages from that epoch on. Before the first pair, or
    without any, it is `vqvae.ema_decay`."""

    @field_validator("ema_decay")
    @classmethod
    def _check_decays(cls, value):
        if not all(len(pair) == 2 and pair[0] >= 0 and 0 <= pair[1] < 1 for pair in value or []):
            raise ValueError(f"must be pairs [first epoch, decay from 0 to below 1], got {value}")
        return value

    def ema_decay_at(self, epoch: int) -> float | None:
        """Codebook decay of the 0-based `epoch`, or None to leave the model's own."""
        decay = None
        for first_epoch, value in self.ema_decay or []:
            if epoch >= first_epoch:
                decay = value
        return decay


@dataclass(config=CONFIG)
class RoundsRecipe:
    """The iterative part: tokens that the rest of the data makes unlikely are masked, and the prior is trained again."""

    rounds: Annotated[StrictInt, Field(ge=0)] = 3
    """Masked rounds after round 0, at most."""
    token_threshold: Share | None = None
    """Probability below which a token is masked, each for itself. Without it `neighbourhood` and `outlier_scale` decide."""
    neighbourhood: Annotated[StrictFloat, Field(ge=0, le=100)] = 1.0
    """Standard deviation, in tokens, of the Gaussian window over which surprise is averaged before a token is judged."""
    outlier_scale: NotNegative = 3.0
    """A token is masked if its surprise lies this many robust standard deviations above the median of all training tokens."""
    code_copies: Count | None = None
    """Augmented copies of every image whose codes are extracted once; epochs take them in turn. Without it there is one for every
    epoch, so that a round sees none twice: a prior that knows its training codes by heart finds none of them unlikely."""
    stop_early: StrictBool = True
    """End once the masks hardly change from one round to the next (`masking.has_converged`)."""

    @property
    def rule(self) -> RejectionRule:
        """Which tokens are masked."""
        return RejectionRule(self.token_threshold, self.neighbourhood, self.outlier_scale)


TABLES = {
    "vqvae": TableOf(
        VQVAEConfig,
        "spatial_dims channels num_res_blocks vocab_size embedding_dim dropout ema_decay dead_code_threshold",
        {"spatial_dims": Literal[2, 3]},
    ),
    "prior": TableOf(
        PerformerPriorConfig,
        "hidden_size num_hidden_layers num_attention_heads head_dim dropout masking",
        {"masking": Literal[MASKING_MODES]},  # type: ignore[valid-type]
    ),
    "augmentation": TableOf(
        AugmentationConfig,
        "rotation translation scale padding_mode elastic_probability elastic_magnitude contrast intensity noise_std",
        {"padding_mode": Literal[PADDING_MODES]},  # type: ignore[valid-type]
    ),
    "volume": TableOf(
        ILTMImageProcessor.for_volumes,
        "size spacing intensity_range intensity_percentiles intensity_power foreground stretch",
        also=ILTMImageProcessor.__doc__,
    ),
    "inference": TableOf(
        InferenceSettings,
        " ".join(f.name for f in fields(InferenceSettings) if f.name not in REFUSED["inference"]),
        limits=RANGES,
    ),
}


@dataclass(config=CONFIG)
class Recipe(AnyRecipe):
    """A whole run, of images (`image_size`) or of volumes (`volume`)."""

    name: str
    """Name of the recipe, in reports."""
    stage1: Stage1Recipe
    """How the tokenizer is optimised."""
    stage2: StageRecipe
    """How the prior is optimised, in every round."""
    image_size: StrictInt | None = None
    """Pixels along each side, for images: a multiple of the downsampling, 2 for each of `vqvae.channels`."""
    tile: Annotated[StrictInt, Field(ge=LEAST_TILE)] | None = None
    """Pixels along each side of the tiles that images are cut into, in training and afterwards, where defects are small in them;
    null takes images whole."""
    volume: Annotated[dict[str, Any], TABLES["volume"]] | None = None
    """How volumes become grids, in place of `image_size`. What is left out follows from the training volumes; `{}` leaves out
    all."""
    gradient_checkpointing: StrictBool = False
    """Keep fewer activations in memory and compute them again, which takes a third more time."""
    rounds: RoundsRecipe = field(default_factory=RoundsRecipe)
    """How tokens are masked between rounds."""
    num_channels: StrictInt = 3
    """3 for colour, 1 for grey; volumes have 1."""
    mixed_precision: Annotated[
        Literal["auto", "no", "bf16", "fp16"], BeforeValidator(lambda value: "no" if value is False else value)
    ] = "no"
    """no is float32; a bare no, which YAML takes for false, means it too. auto is bf16 where a few steps show that it is faster,
    else no."""
    codebook_start: Annotated[StrictInt, Field(ge=0)] | None = 0
    """Step of stage 1 at which k-means puts the codebook onto the encoder's outputs; before it nothing is quantised. null starts
    from random codes, as the authors' code does; few of them ever live."""
    vqvae: Annotated[dict[str, Any], TABLES["vqvae"]] = field(default_factory=dict)
    """What differs from the defaults of `VQVAEConfig`."""
    prior: Annotated[dict[str, Any], TABLES["prior"]] = field(default_factory=dict)
    """What differs from the defaults of `PerformerPriorConfig`."""
    augmentation: Annotated[dict[str, Any], TABLES["augmentation"]] = field(default_factory=dict)
    """What differs from the defaults of `AugmentationConfig`."""
    inference: Annotated[dict[str, Any], TABLES["inference"]] = field(default_factory=dict)
    """What differs from the defaults of `InferenceSettings`. Tokens are healed by the limits of `rounds`, unless others are given
    here."""

    @model_validator(mode="after")
    def _check_parts(self):
        for name in RULE:  # so that settings of inference made of the table have them too
            self.inference.setdefault(name, getattr(self.rounds, name))
        if (self.image_size is None) == (self.volume is None):
            raise ValueError("recipe needs 'image_size' (for images) or 'volume' (for volumes), and not both")
        dims = self.vqvae.get("spatial_dims", 2)
        if (dims == 3) != self.is_volumetric:
            needed = "spatial_dims: 3" if self.is_volumetric else "volume: {}"
            raise ValueError(f"recipe.vqvae has spatial_dims {dims}: a recipe for volumes needs {needed} too")
        if self.is_volumetric and self.tile is not None:
            raise ValueError("recipe.tile is for images: volumes are not cut into tiles, leave it out")
        if self.is_volumetric and self.num_channels != 1:
            raise ValueError(f"recipe.num_channels must be 1 for volumes, got {self.num_channels}")
        vqvae = _made("vqvae", VQVAEConfig, in_channels=self.num_channels, **self.vqvae)
        side = vqvae.pixels_per_token if self.image_size is None else self.image_size
        if side < 1 or side % vqvae.pixels_per_token:
            raise ValueError(
                f"recipe.image_size must be a positive multiple of {vqvae.pixels_per_token}, since {len(vqvae.channels)} levels "
                f"halve it each, got {side}"
            )
        grid = (side // vqvae.pixels_per_token,) * vqvae.spatial_dims
        _made("prior", PerformerPriorConfig, vocab_size=vqvae.vocab_size, grid_shape=grid, **self.prior)
        _made("augmentation", AugmentationConfig, **self.augmentation)
        _made("inference", InferenceSettings, **self.inference)
        if self.volume is not None:
            given = {name: value for name, value in self.volume.items() if value is not None}
            found: dict[str, Any] = {"size": [side] * 3, "spacing": 1.0}  # stand for what training volumes will tell
            found |= {} if "intensity_percentiles" in given else {"intensity_range": [0.0, 1.0]}
            found |= {"volumes": [], "size_divisor": vqvae.pixels_per_token}
            _made("volume", ILTMImageProcessor.for_volumes, **(found | given))
        return self

    @property
    def is_volumetric(self) -> bool:
        """Whether it trains on volumes."""
        return self.volume is not None

    resample = Image.Resampling.LANCZOS  # as in version 0.1

    @classmethod
    def field_names(cls) -> dict[str, tuple[str, ...]]:
        return FIELDS

    def training_fields(self) -> dict[str, Any]:
        """`to_dict` without the settings of inference, on which no training depends."""
        return {name: value for name, value in self.to_dict().items() if name != "inference"}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """As of any recipe; of version 0.1 too."""
        return super().from_dict(without_retired(values))


PARTS = {"": Recipe, "stage1": Stage1Recipe, "stage2": StageRecipe, "rounds": RoundsRecipe}
FIELDS = {name: table.names for name, table in TABLES.items()}
FIELDS |= {name: tuple(f.name for f in fields(part)) for name, part in PARTS.items()}


def _made(table: str, make: Any, **values: Any) -> Any:
    """What `make` returns; what it refuses is said of the table."""
    try:
        return make(**values)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"recipe.{table}: {error.__cause__ or error}") from error
