"""Whether bfloat16 is faster than float32 where a run is trained: some CPUs are built for it and still slower in it."""

import time

import torch
from torch import Tensor

from iltm_anomaly.recipes.pixel_recipe import Recipe
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig, VQVAEModel

STEPS = 3  # of training that are timed in each precision, in turn; the fastest counts
TOKENS_OF_A_VOLUME = 4  # along each side of the cube that stands for volumes, whose size is not known yet


def faster_precision(recipe: Recipe, device: torch.device) -> str:
    """Whether to train in "bf16" or in float32, "no", by steps of training of the recipe's tokenizer on random images. Random
    states stay as they were."""
    with torch.random.fork_rng():
        model = VQVAEModel(VQVAEConfig(in_channels=recipe.num_channels, **recipe.vqvae)).to(device)  # type: ignore[arg-type]
        side = recipe.image_size or TOKENS_OF_A_VOLUME * model.pixels_per_token
        count = 1 if recipe.is_volumetric else recipe.stage1.batch_size
        pixels = torch.rand(count, recipe.num_channels, *[side] * (3 if recipe.is_volumetric else 2)).to(device)
        if not recipe.is_volumetric:
            model, pixels = (value.to(memory_format=torch.channels_last) for value in (model, pixels))
        model.train()
        _step_seconds(model, pixels, False)  # the first step allocates
        seconds = [[_step_seconds(model, pixels, reduced) for reduced in (False, True)] for _ in range(STEPS)]
    in_float32, in_bfloat16 = (min(column) for column in zip(*seconds, strict=True))
    return "bf16" if in_bfloat16 < in_float32 else "no"


def _step_seconds(model: VQVAEModel, pixels: Tensor, reduced: bool) -> float:
    started = time.perf_counter()
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=reduced):
        loss = model(pixels).loss
    loss.backward()
    loss.item()  # waits for a GPU
    return time.perf_counter() - started
