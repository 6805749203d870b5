"""SoftPatch (Jiang et al., "SoftPatch: unsupervised anomaly detection with noisy data", NeurIPS 2022), which is not in the
paper's table: PatchCore for contaminated data. A training patch that stands out among those at the same place of all images is
discarded if it is among the worst, and else makes what is compared with it more suspicious."""

import math
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from iltm_anomaly.comparison.baselines.modeling import BaselineRecipe
from iltm_anomaly.comparison.baselines.patchcore import (
    CORESET_CANDIDATES,
    PatchCoreConfig,
    PatchCoreModel,
    nearest_rows,
)

DISTANCES_AT_ONCE = 1 << 24
# of the mean length of features: distances below are rounding, as between images of one empty background
LEAST_DISTANCE = 1e-5


@strict
class SoftPatchConfig(PatchCoreConfig):
    """Configuration of `SoftPatchModel`: the fields of `PatchCoreConfig`, with the source's bank, and two more.

    Args:
        neighbours: number of neighbours of the local outlier factor.
        discarded: share of the training patches with the highest factors that the bank is not chosen from.
    """

    model_type = "iltm_softpatch"

    bank_share: float = 0.1
    selection: str = "coreset"
    neighbours: int = 6
    discarded: float = 0.15

    def validate_softpatch(self):
        """Raises ValueError where a value is out of range."""
        if self.neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, got {self.neighbours}")
        if not 0 <= self.discarded < 1:
            raise ValueError(f"discarded must be in [0, 1), got {self.discarded}")
        if self.bank_share + self.discarded > 1:
            raise ValueError(
                f"bank_share {self.bank_share} is more than what discarded {self.discarded} leaves of the training patches"
            )

    def claimed_sizes(self) -> tuple[dict[str, int], dict[str, int]]:
        depths, widths = super().claimed_sizes()
        return depths, {name: value for name, value in widths.items() if name != "neighbours"}


class SoftPatchModel(PatchCoreModel):
    """Map and score are those of `PatchCoreModel`, with distances times the outlier factor of the nearest patch."""

    config_class: Any = SoftPatchConfig
    recipes: ClassVar[dict[str, BaselineRecipe]] = {
        "paper": BaselineRecipe(),
        "cpu": BaselineRecipe(),
        "tiny": BaselineRecipe(config={"bank_size": 500, "input_side": 64}),
    }

    def __init__(self, config: SoftPatchConfig):
        super().__init__(config)
        self.register_buffer("weights", torch.zeros(config.bank_rows))

    def distances(self, features: Tensor) -> Tensor:
        found, nearest = nearest_rows(features, self.get_buffer("bank"))
        return found * self.get_buffer("weights")[nearest]

    @torch.no_grad()
    def fit_statistics(self, images: Any, seed: int) -> None:
        """Fills the bank and its weights from the training images, of which it holds the features of all patches at once."""
        config, generator = self.config, torch.Generator().manual_seed(seed)
        features = torch.cat([self.features(batch).flatten(1, 2) for batch in self.batches(images)])
        factors = outlier_factors(features, config.neighbours).flatten()
        patches = features.flatten(0, 1)
        kept = factors.argsort(stable=True)[: math.ceil(len(factors) * (1 - config.discarded))]
        order = torch.randperm(len(kept), generator=generator)
        candidates = kept[order[: max(config.bank_rows, CORESET_CANDIDATES)].to(kept.device)]
        chosen = candidates[self.selected(patches[candidates], generator)]
        self.get_buffer("bank").copy_(patches[chosen])
        self.get_buffer("weights").copy_(factors[chosen])


def outlier_factors(features: Tensor, neighbours: int) -> Tensor:
    """Local outlier factors (N, P) of features (N, P, D) of N images, each among those of its position alone (Breunig et al.
    2000): how much denser the neighbours of a patch lie than the patch itself, about 1 for any that lies among its like."""
    count = len(features)
    if count == 1:
        return features.new_ones(features.shape[:2])
    neighbours = min(neighbours, count - 1)
    least = LEAST_DISTANCE * float(features.norm(dim=2).mean())
    found = []
    for part in features.transpose(0, 1).split(max(1, DISTANCES_AT_ONCE // count**2)):
        # what all have in common would only cost digits
        distances = torch.cdist(*[part - part.mean(1, keepdim=True)] * 2)
        distances.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        near, rows = distances.topk(neighbours, largest=False)
        reach = torch.maximum(near, _of_neighbours(near[..., -1], rows))
        density = 1 / (reach.mean(2) + least)
        found.append(_of_neighbours(density, rows).mean(2) / density)
    return torch.cat(found).T


def _of_neighbours(values: Tensor, rows: Tensor) -> Tensor:
    """The values (P, N) of each patch's neighbours, whose numbers are `rows` (P, N, K): (P, N, K)."""
    return values.gather(1, rows.flatten(1)).view(rows.shape)
