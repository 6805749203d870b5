"""What a run on frozen features costs: a round by the number of training images, and an image beside PatchCore.

    python scripts/benchmarks/bench_features.py --images 100 335 1000 3000 --threads 1

Training tokens are random numbers of the right shape: the time of a round does not depend on what they are. Extracting them takes
most of the time of an image for each of them, and is not repeated here. PatchCore has the same backbone, and its default bank of
20,000 patches.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.comparison.baselines.training import train_baseline
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.tokenizers.features import FeatureTokenizerModel
from iltm_anomaly.training.features import TrainingTokens, fit_round, judge

SIDE = 256
SCORED = 12  # images of which the median time is told


def peak() -> float:
    """Largest memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def time_round(images: int) -> ILTMAnomalyPipeline:
    """Prints what a round takes with this many training images; returns its pipeline."""
    tokenizer = FeatureTokenizerModel.from_backbone()
    generator = torch.Generator().manual_seed(0)
    size = tokenizer.get_buffer("metric").shape[0]
    features = torch.empty(images, SIDE // 8, SIDE // 8, size, dtype=torch.float16)
    for image in features:
        image.copy_(torch.randn(image.shape, generator=generator))
    pixels: Any = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8).expand(images, -1, -1, -1)
    tokens = TrainingTokens(features, pixels, seed=0)
    weights = torch.ones(features.shape[:3])
    started = time.monotonic()
    pipeline, _ = fit_round(tokenizer, tokens, weights, ILTMImageProcessor(size=SIDE))
    fitted = time.monotonic()
    judge(tokens, weights, 0.25)
    judged = time.monotonic()
    print(
        f"| {images} | {fitted - started:.1f} | {judged - fitted:.1f} | {features.nbytes / 2**30:.2f} | {peak():.2f} |",
        flush=True,
    )
    return pipeline


def time_images(pipeline: ILTMAnomalyPipeline) -> None:
    """Prints what an image takes, one at a time, in turn with PatchCore."""
    pictures = [np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8) for number in range(SCORED)]
    training = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).repeat(10, 1, 1, 1)
    with tempfile.TemporaryDirectory() as folder:
        processor = ILTMImageProcessor(size=SIDE)
        patchcore = train_baseline("patchcore", training, processor, Path(folder) / "patchcore", show_progress=False)
    taken: dict[str, list[float]] = {"features": [], "patchcore": []}
    for picture in pictures:
        for name, pipe in (("features", pipeline), ("patchcore", patchcore)):
            started = time.monotonic()
            pipe(picture)
            taken[name].append(time.monotonic() - started)
    ours, theirs = (1000 * float(np.median(values)) for values in taken.values())
    print(f"an image of {SIDE} pixels: {ours:.0f} ms, PatchCore {theirs:.0f} ms, ratio {ours / theirs:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", type=int, default=[100, 335], help="training images (default: 100 335)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} thread(s)\n")
    print(
        "| training images | a fit, s | recurrence, s | their tokens, GiB | peak memory, GiB |\n| --- | --- | --- | --- | --- |"
    )
    for images in arguments.images:
        pipeline = time_round(images)
    print()
    time_images(pipeline)


if __name__ == "__main__":
    main()
