"""PatchCore (Roth et al., "Towards total recall in industrial anomaly detection", CVPR 2022), which is not in the paper's table:
how far the ImageNet features of a patch are from the nearest ones of training patches. Nothing is trained."""

import logging
import math
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor
from torch.nn import functional as F

from iltm_anomaly.comparison.baselines.modeling import (
    AnomalyModelOutput,
    BaselineConfig,
    BaselineModel,
    BaselineRecipe,
)
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.tokenizers.features.backbones import (
    OFFLINE_BACKBONE,
    ONE_STRIDE,
    backbone_of,
    check_backbone,
    on_one_grid,
    pretrained_config,
)
from iltm_anomaly.tokenizers.features.fitting import QUERIES_AT_ONCE, nearest

logger = logging.getLogger(__name__)

CORESET_CANDIDATES = 100_000
CORESET_DIMENSIONS = 64  # dimensions of the random projection that the coreset is chosen in


@strict
class PatchCoreConfig(BaselineConfig):
    """Configuration of `PatchCoreModel`.

    Args:
        backbone: "efficientnet-lite0", or the name or folder of a backbone of transformers of one of
            `tokenizers.features.backbones.BACKBONE_TYPES`.
        backbone_config: the backbone's own configuration, which `configure` fills in; None for EfficientNet-Lite0.
        levels: numbers of the feature maps used, counted from 1 after the stem; None takes those of strides 8 and 16 (the
            source's layers 2 and 3). For DINOv2, whose blocks all have one stride, they must be named.
        input_side: smaller images are enlarged to this shorter side, in pixels, as the backbone was trained on larger objects.
        bank_size: the largest number of patches kept.
        bank_share: the largest share of all training patches kept: if all were, training images would have distance 0.
        selection: "random", as many patches of every image, or "coreset", which adds the patch furthest from those kept, one by
            one. A coreset keeps every rare defect of contaminated data.
        bank_rows: number of patches kept, which `configure` fills in.
    """

    model_type = "iltm_patchcore"
    fixed_fields = (*BaselineConfig.fixed_fields, "bank_rows")

    backbone: str = OFFLINE_BACKBONE
    backbone_config: dict | None = None
    levels: tuple[int, ...] | list[int] | None = None
    input_side: int = 256
    bank_size: int = 20_000
    bank_share: float = 0.25
    selection: str = "random"
    bank_rows: int = 1
    smoothing: float = 4 / 224

    def __post_init__(self, **kwargs):
        if self.levels is None:
            kind = None if self.backbone_config is None else self.backbone_config.get("model_type")
            self.levels = {None: (3, 5), "focalnet": (1, 2)}.get(kind, (2, 3))
            if kind in ONE_STRIDE:
                raise ValueError(f"{kind} has no feature maps of strides 8 and 16: name blocks, such as levels=[6, 9]")
        super().__post_init__(**kwargs)

    def validate_patchcore(self):
        """Raises ValueError where a value is out of range, or for an unknown kind of backbone."""
        check_backbone(self.backbone, self.backbone_config)
        if self.selection not in ("random", "coreset"):
            raise ValueError(f"selection must be 'random' or 'coreset', got {self.selection!r}")
        if min(self.bank_size, self.bank_rows) < 1 or not 0 < self.bank_share <= 1:
            raise ValueError(
                f"need bank_size >= 1 and bank_share in (0, 1], got {self.bank_size} and {self.bank_share}"
            )
        if not 1 <= self.input_side <= 1024:
            raise ValueError(f"input_side must be 1 to 1024 pixels, got {self.input_side}")

    def claimed_sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        depths, widths = super().claimed_sizes()
        limits = ("bank_size", "input_side")  # not sizes of weights
        return depths, {name: value for name, value in widths.items() if name not in limits}


class PatchCoreModel(BaselineModel):
    """Map: distance of locally pooled features to the nearest ones in the bank, smoothed. Score: the largest distance."""

    config_class = PatchCoreConfig
    recipes: ClassVar[dict[str, BaselineRecipe]] = {
        "paper": BaselineRecipe(config={"selection": "coreset"}),
        "cpu": BaselineRecipe(),
        "tiny": BaselineRecipe(config={"bank_size": 500, "input_side": 64}),
    }

    def __init__(self, config: PatchCoreConfig):
        super().__init__(config)
        self.backbone: Any = backbone_of(config.backbone_config, config.levels)
        self.register_buffer("bank", torch.zeros(config.bank_rows, sum(self.backbone.channels)))
        self.post_init()
        self.eval()

    @classmethod
    def configure(cls, processor: ILTMImageProcessor, num_images: int, settings: dict[str, Any]) -> PatchCoreConfig:
        name = settings.get("backbone", OFFLINE_BACKBONE)
        if name != OFFLINE_BACKBONE and settings.get("backbone_config") is None:
            settings = settings | {"backbone_config": pretrained_config(name)}
        config = super().configure(processor, num_images, settings)
        with torch.device("meta"):
            probe = cls(config)
            patches = probe.features(torch.zeros(1, config.in_channels, *config.image_size)).shape[1:3].numel()
        config.bank_rows = max(1, min(config.bank_size, int(config.bank_share * patches * num_images)))
        return config

    def load_pretrained_parts(self) -> None:
        self.backbone.load_pretrained(self.config.backbone)

    def train(self, mode: bool = True) -> "PatchCoreModel":
        return super().train(False)  # its batch normalisation keeps the statistics of ImageNet

    def features(self, pixel_values: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> locally pooled features (B, h, w, D) at the resolution of the finest level."""
        config = self.config
        factor = max(1.0, config.input_side / min(config.image_size))
        size = [round(side * factor) for side in config.image_size]
        pixels = pixel_values.expand(-1, 3, -1, -1)
        if factor > 1:
            pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        levels = [F.avg_pool2d(level, 3, 1, 1, count_include_pad=False) for level in self.backbone(pixels)]
        return on_one_grid(levels, max((level.shape[2:] for level in levels), key=math.prod))

    def forward(self, pixel_values: Tensor) -> AnomalyModelOutput:
        """Prediction: distances (B, h, w) at the resolution of the features. There is no loss."""
        self.check_pixels(pixel_values)
        features = self.features(pixel_values).float()
        return AnomalyModelOutput(prediction=self.distances(features.flatten(0, 2)).view(features.shape[:3]))

    def distances(self, features: Tensor) -> Tensor:
        """How far features (N, D) are from the bank: (N,)."""
        return nearest_distances(features, self.get_buffer("bank"))

    @torch.no_grad()
    def fit_statistics(self, images: Any, seed: int) -> None:
        """Fills the bank from the training images."""
        generator = torch.Generator().manual_seed(seed)
        bank = self.get_buffer("bank")
        coreset = self.config.selection == "coreset"
        wanted = max(len(bank), CORESET_CANDIDATES) if coreset else len(bank)
        per_image = -(-wanted // len(images))
        candidates = []
        for batch in self.batches(images):
            for own in self.features(batch).flatten(1, 2):
                candidates.append(own[torch.randperm(len(own), generator=generator)[:per_image].to(own.device)])
        found = torch.cat(candidates)
        bank.copy_(found[self.selected(found, generator)])

    def selected(self, candidates: Tensor, generator: torch.Generator) -> Tensor:
        """Indices of the candidates (N, D) that the bank keeps."""
        if self.config.selection == "coreset":
            return greedy_coreset(candidates, self.config.bank_rows, generator)
        return torch.randperm(len(candidates), generator=generator)[: self.config.bank_rows].to(candidates.device)

    @torch.no_grad()
    def anomaly_maps(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        distances = self(pixel_values).prediction
        size = self.config.image_size
        maps = F.interpolate(distances[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        return distances.amax((1, 2)), self.smoothed(maps)


def nearest_distances(queries: Tensor, bank: Tensor) -> Tensor:
    """Euclidean distances (N,) of queries (N, D) to the nearest row of `bank` (M, D)."""
    return nearest_rows(queries, bank)[0]


def nearest_rows(queries: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distances (N,) of queries (N, D) to the nearest row of `bank` (M, D), and the indices (N,) of these rows."""
    rows = nearest(queries, bank)
    parts = zip(queries.split(QUERIES_AT_ONCE), rows.split(QUERIES_AT_ONCE), strict=True)
    return torch.cat([(part - bank[own]).norm(dim=1) for part, own in parts]), rows


def greedy_coreset(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices (count,) of points (N, D) that leave no point far from all of them: each is the one furthest from those before it,
    in a random projection (the source's algorithm 1)."""
    size = min(CORESET_DIMENSIONS, points.shape[1])
    projection = torch.randn(points.shape[1], size, generator=generator).to(points) / size**0.5
    projected = points @ projection
    chosen = torch.empty(count, dtype=torch.long, device=points.device)
    chosen[0] = int(torch.randint(len(points), (1,), generator=generator))
    distance = torch.full((len(points),), torch.inf, device=points.device)
    for number in range(1, count):
        distance = torch.minimum(distance, (projected - projected[chosen[number - 1]]).square().sum(1))
        chosen[number] = distance.argmax()
    return chosen
