"""What each effort costs and finds, on the same test images in one process: rows of the table in docs/efforts.md. Seconds are
those of the processor, with one thread: on a busy machine they say more than those of the clock.

python scripts/efforts.py runs/pcb --data deeppcb --category pcb --images 100
"""

import argparse
import dataclasses
import time

import numpy as np
import torch

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.evaluation.evaluate import protocol_split, verdicts
from iltm_anomaly.evaluation.ground_truth import ground_truth_masks
from iltm_anomaly.hub.folders import resolve_model_folder
from iltm_anomaly.metrics import evaluate_maps
from iltm_anomaly.settings import EFFORTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run or pipeline folder, or Hub id")
    parser.add_argument("--data", required=True)
    parser.add_argument("--category")
    parser.add_argument("--images", type=int, default=100, help="of the test images, evenly spread (default: 100)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = ILTMAnomalyPipeline.from_pretrained(resolve_model_folder(arguments.model)[0])
    record = pipeline.training_report["data"].get("contamination")
    test, _ = protocol_split(arguments.data, arguments.category, record)
    count = min(arguments.images, len(test))
    test = test.select([number * len(test) // count for number in range(count)])
    masks = ground_truth_masks(test, False)
    calibrated = dataclasses.replace(pipeline.settings)
    pipeline(test[0]["image"])  # what is made once
    for effort in EFFORTS:
        pipeline.settings = calibrated.at(effort)
        started = time.process_time()
        output = pipeline(test["image"])
        seconds = time.process_time() - started
        metrics = evaluate_maps(output.anomaly_maps, masks, output.scores.numpy(), np.array(test["label"]))
        found = verdicts(output, test["label"], pipeline.settings.score_threshold)
        percent = " | ".join(f"{100 * metrics[name]:.1f}" for name in ("pixel_auroc", "aupro", "image_auroc"))
        print(f"| {effort} | {seconds / count:.3f} s | {percent} | {found}", flush=True)


if __name__ == "__main__":
    main()
