"""False alarms that are to be expected, and those that there are: of the thresholds by training scores, on good test images.

python scripts/false_alarms.py runs/bottle DATA/mvtec/bottle/test/good
"""

import argparse
import json

import numpy as np

from iltm_anomaly.evaluation.detect import score_blocks
from iltm_anomaly.evaluation.inputs import list_inputs
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.thresholds import TrainingScores

SHARES = (0.2, 0.1, 0.05, 0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("good", help="folder of good images that the model has not seen")
    options = parser.parse_args()
    pipeline = ILTMAnomalyPipeline.from_pretrained(options.model)
    known = TrainingScores.of_report(pipeline.training_report)
    if known is None:
        raise SystemExit(f"{options.model} keeps no scores of its training images")
    files = list_inputs([options.good])
    blocks = [files[start : start + 8] for start in range(0, len(files), 8)]
    scores = np.array([found.score for _, found, _ in score_blocks(pipeline, blocks)])
    real = {f"{share:g}": round(float((scores >= known.threshold(share)).mean()), 4) for share in SHARES}
    own = pipeline.settings.score_threshold
    found = {
        "model": options.model,
        "good_images": len(scores),
        "training_scores": len(known.scores),
        "real_by_expected": real,
        "expected_at_own_threshold": round(known.false_alarms(own), 4),
        "real_at_own_threshold": round(float((scores >= own).mean()), 4),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
