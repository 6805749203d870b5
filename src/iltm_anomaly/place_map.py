"""The map of a pipeline on places: uptake over the highest one that other bodies usually have about the same place.

1 is as hot as the hottest few of a hundred bodies are there. Heart, bladder and brain may be hot; what is as hot elsewhere stands
out. Less uptake than usual does not.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from iltm_anomaly.prior import PlacePriorModel
from iltm_anomaly.settings import PlaceSettings
from iltm_anomaly.tokenizers.place import PlaceTokenizerModel
from iltm_anomaly.uptake_map import log_uptake


@torch.no_grad()
def score_volumes(
    tokenizer: PlaceTokenizerModel,
    prior: PlacePriorModel,
    pixel_values: Tensor,
    settings: PlaceSettings,
    in_units: Callable[[Tensor], Tensor],
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Volumes (B, 1, D, H, W) in [0, 1] -> maps (D, H, W), healed volumes (1, D, H, W), log-likelihoods and healed tokens
    (B, D, H, W), all on the CPU; likelihoods up to a constant.

    Args:
        in_units: takes uptake from [0, 1] to units of the file.
    """
    # 1. voxels become tokens, of places that the prior knows
    codes = tokenizer.encode(pixel_values)
    uptake = torch.stack(
        [log_uptake(in_units(volume[0].cpu()), settings.smoothing, settings.background) for volume in pixel_values]
    )
    # 2. uptake over the highest usual one is a map
    above = uptake - prior(codes).cpu()
    healed = above > (torch.inf if settings.token_limit is None else settings.token_limit)
    # 3. in place of tokens that stand out stands what is usual at their place
    pictures = torch.where(healed[:, None], tokenizer.expect(codes).cpu(), pixel_values.float().cpu())
    return list(above.exp()), list(pictures), -above, healed
