"""What each effort costs and finds, on the same test images in one process: rows of the table in docs/efforts.md.

python scripts/efforts.py runs/pcb --data deeppcb --category pcb --images 100
"""

import argparse
import dataclasses
from pathlib import Path

import torch

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.calibration import calibration_images
from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.evaluation.evaluate import protocol_split, score_dataset, verdicts
from iltm_anomaly.evaluation.ground_truth import ground_truth_masks
from iltm_anomaly.settings import EFFORTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder; thresholds that it misses are measured, and saved nowhere")
    parser.add_argument("--data", required=True)
    parser.add_argument("--category")
    parser.add_argument("--images", type=int, default=100, help="of the test images, evenly spread (default: 100)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = ILTMAnomalyPipeline.from_pretrained(arguments.run / "model")
    report = pipeline.training_report
    if not pipeline.has_features and pipeline.settings.threshold_at_score is None:
        pixels = PixelCache(arguments.run / "images.arrow")
        known = pipeline.settings.score_threshold
        limits = pipeline.settings.surprise_limit, pipeline.noise
        pipeline.calibrate(calibration_images(pixels, report["seed"]), pipeline.encode(pixels))
        print(f"full: threshold {known} was measured as {pipeline.settings.score_threshold}")
        pipeline.settings.surprise_limit, pipeline.noise = limits
    test, _ = protocol_split(arguments.data, arguments.category, report["data"].get("contamination"))
    count = min(arguments.images, len(test))
    test = test.select([number * len(test) // count for number in range(count)])
    masks = ground_truth_masks(test, False)
    calibrated = dataclasses.replace(pipeline.settings)
    pipeline(test[0]["image"])  # what is made once
    for effort in EFFORTS:
        pipeline.settings = calibrated.at(effort)
        output, metrics, seconds = score_dataset(pipeline, test, masks)
        found = verdicts(output, test["label"], pipeline.settings.score_threshold)
        percent = " | ".join(f"{100 * metrics[name]:.1f}" for name in ("pixel_auroc", "aupro", "image_auroc"))
        print(f"| {effort} | {seconds / count:.3f} s | {percent} | {found}", flush=True)


if __name__ == "__main__":
    main()
