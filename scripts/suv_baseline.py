"""The trivial detector of a folder of test volumes: the value of a voxel, such as its SUV, is its abnormality.

python scripts/suv_baseline.py runs/sts/data --output runs/sts/suv.json
"""

import argparse
from pathlib import Path

from iltm_anomaly.data.volume_files import read_volume
from iltm_anomaly.data.volumes import load_volumes
from iltm_anomaly.evaluation.ground_truth import ground_truth_masks
from iltm_anomaly.metrics import evaluate_maps, lesion_detection
from iltm_anomaly.provenance import provenance
from iltm_anomaly.training.checkpoint import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    test = load_volumes(arguments.data)["test"]
    maps, masks = [read_volume(path).values for path in test["image"]], ground_truth_masks(test, volumes=True)
    result = {
        "method": "value",
        "seed": None,
        "round": None,
        **evaluate_maps(maps, masks),
        **lesion_detection(maps, masks),
    }
    write_json(
        arguments.output,
        {"results": [result], "test_images": len(maps), "data": str(arguments.data), **provenance("cpu")},
    )
    print(
        {
            key: round(result[key], 4)
            for key in ("aupr", "pixel_auroc", "aupro", "best_dice", "lesion_sensitivity_at_2_fp")
        }
    )


if __name__ == "__main__":
    main()
