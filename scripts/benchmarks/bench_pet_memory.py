"""Peak memory and time of the paper's PET models on this machine, preset `pet`: each case in a process of its own.

    python scripts/benchmarks/bench_pet_memory.py prior            # 14 layers, 20,480 tokens: a training step, a scoring pass
    python scripts/benchmarks/bench_pet_memory.py vqvae            # a training step on a 150 x 150 x 218 volume
    python scripts/benchmarks/bench_pet_memory.py pipeline         # NIfTI to map on the original grid, untrained models

Random weights and codes: neither memory nor time depends on them. Results go to docs/results/pet_memory.jsonl, a line a
case.
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iltm_anomaly import ILTMAnomalyPipeline, ILTMImageProcessor, InferenceSettings
from iltm_anomaly.prior import PerformerPriorConfig, PerformerPriorModel
from iltm_anomaly.provenance import provenance
from iltm_anomaly.recipes.recipe import load_recipe
from iltm_anomaly.synthetic.phantoms import generate_phantom
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig, VQVAEModel

RECIPE = load_recipe("pet")
GRID = (16, 32, 40)  # 20,480 tokens
SHAPE = (150, 150, 218)  # voxels of the real scan `pet_fdg`
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "pet_memory.jsonl"


def make_prior(grid: tuple[int, ...]) -> PerformerPriorModel:
    torch.manual_seed(0)
    return PerformerPriorModel(PerformerPriorConfig(grid_shape=grid, **RECIPE.prior))


def make_vqvae() -> VQVAEModel:
    torch.manual_seed(0)
    return VQVAEModel(VQVAEConfig(in_channels=1, **RECIPE.vqvae))


def step(model: torch.nn.Module, learning_rate: float, **inputs: Any) -> float:
    """One step of Adam with gradient checkpointing, as the recipe trains; returns the loss."""
    model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0, fused=True)
    loss = model.train()(**inputs).loss
    loss.backward()
    optimizer.step()
    return loss.item()


def prior_training() -> dict[str, Any]:
    model = make_prior(GRID)
    codes = torch.randint(256, (1, model.config.max_position_embeddings))
    mask = torch.rand(codes.shape) > 0.05
    return {"tokens": codes.shape[1], "loss": step(model, 1e-3, input_ids=codes, token_mask=mask)}


def prior_scoring() -> dict[str, Any]:
    model = make_prior(GRID).eval()
    codes = torch.randint(256, (1, model.config.max_position_embeddings))
    likelihood = model.log_likelihood(codes)
    return {"tokens": codes.shape[1], "finite": bool(likelihood.isfinite().all())}


def padded() -> torch.Tensor:
    sides = [-(-side // 8) * 8 for side in SHAPE]
    return torch.rand(1, 1, *sides, generator=torch.Generator().manual_seed(0))


def vqvae_training() -> dict[str, Any]:
    pixels = padded()
    return {"voxels": list(pixels.shape[2:]), "loss": step(make_vqvae(), 1e-4, pixel_values=pixels)}


def pipeline_scoring() -> dict[str, Any]:
    """A phantom on the grid of the real scan; one token in twenty is healed, 20 samples and 20 dropout passes."""
    values = generate_phantom(0, 2, spacing=4).volume.values
    values = np.pad(values, [(0, max(0, side - length)) for side, length in zip(SHAPE, values.shape, strict=True)])
    values = values[tuple(slice(side) for side in SHAPE)]
    processor = ILTMImageProcessor.for_volumes([values], spacing=1, intensity_range=(0, 15))
    vqvae = make_vqvae()
    grid = vqvae.grid_shape(processor.padded_size)
    settings = InferenceSettings(**RECIPE.inference | {"token_threshold": None, "neighbourhood": 0.0})
    pipeline = ILTMAnomalyPipeline(vqvae, make_prior(grid), processor, settings)
    codes = pipeline.encode(processor.preprocess(values)["pixel_values"])
    surprise = -pipeline.prior.log_likelihood(codes.flatten(1))
    settings.surprise_limit = float(torch.quantile(surprise, 0.95))
    output = pipeline(values)
    healed = int(output.resampled_tokens.sum())
    assert healed > 0.04 * codes.numel()  # else the samples are equal, and only one of them is decoded
    return {"map": list(output.anomaly_maps[0].shape), "tokens": codes.numel(), "healed_tokens": healed}


CASES: dict[str, list[Callable[[], dict[str, Any]]]] = {
    "prior": [prior_training, prior_scoring],
    "vqvae": [vqvae_training],
    "pipeline": [pipeline_scoring],
}


def measured(case: Callable[[], dict[str, Any]], queue: Any) -> None:
    """Runs one case and reports on it; "peak_gib" is the largest resident memory of the whole process."""
    torch.set_num_threads(1)
    wall, cpu = time.monotonic(), time.process_time()
    result = case()
    queue.put(
        {
            "case": case.__name__,
            **result,
            "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "wall_seconds": round(time.monotonic() - wall, 1),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), choices=list(CASES))
    context = multiprocessing.get_context("spawn")
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    results = {result["case"]: result for result in map(json.loads, lines)}
    for name in parser.parse_args().cases:
        for case in CASES[name]:
            queue = context.Queue()
            process = context.Process(target=measured, args=(case, queue))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{case.__name__} ended with code {process.exitcode}")
            results[case.__name__] = {**queue.get(), **provenance("cpu")}
            print(results[case.__name__])
            RESULTS.write_text("".join(json.dumps(result) + "\n" for result in results.values()))


if __name__ == "__main__":
    main()
