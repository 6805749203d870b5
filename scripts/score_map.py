"""Metrics of one map, NIfTI as `iltm-anomaly detect` writes it, against ground truth. The scan itself is a map too: high SUV.

python scripts/score_map.py runs/pet_fdg/maps/STS_001_suv_0123456789.nii.gz STS_001_lesion.nii.gz --output map.json
python scripts/score_map.py STS_001_suv.nii.gz STS_001_lesion.nii.gz --output suv.json
"""

import argparse
from pathlib import Path

from iltm_anomaly.data.volume_files import read_mask, read_volume
from iltm_anomaly.metrics import evaluate_maps, lesion_detection
from iltm_anomaly.provenance import provenance
from iltm_anomaly.training.checkpoint import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("map", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    volume = read_volume(arguments.map)
    maps, masks = [volume.values], [read_mask(arguments.truth, volume.grid)]
    result = evaluate_maps(maps, masks) | lesion_detection(maps, masks)
    write_json(
        arguments.output,
        {"map": arguments.map.name, "truth": arguments.truth.name, "metrics": result, **provenance("cpu")},
    )
    shown = ("aupr", "pixel_auroc", "aupro", "best_dice")
    print({key: round(100 * float(result[key]), 1) for key in shown})


if __name__ == "__main__":
    main()
