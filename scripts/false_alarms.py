"""False alarms that are to be expected by the scores of training images, and those that there are on good test images.

    python scripts/false_alarms.py BENCHMARK_DIR ...   # of what `iltm-anomaly benchmark --methods features` has written

Nothing is scored again: a run lists the scores of its training images, and a cell keeps those of its test images.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from iltm_anomaly.thresholds import TrainingScores
from iltm_anomaly.training.suspects import LIST

SHARES = (0.1, 0.05, 0.01)


def training_scores(run: Path) -> TrainingScores:
    """As training keeps them, by the list that it leaves."""
    with open(run / LIST, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    scores = np.array([float(row["score"]) for row in rows])
    good = np.array([float(row["rejected_share"]) == 0 for row in rows])
    good = good if good.mean() >= 0.5 else np.ones_like(good)
    return TrainingScores(scores[good], None, scores[~good])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    cells = [cell for folder in parser.parse_args().folders for cell in sorted(folder.glob("cells/*_features.npz"))]
    head = " | ".join(f"{share:.0%}" for share in SHARES)
    print(f"| set, share of defective training images | good test images | {head} | found at 1% |")
    print("| --- | --- |" + " --- |" * (len(SHARES) + 1))
    for cell in cells:
        name = cell.stem.removesuffix("_features")
        runs = sorted(cell.parents[1].glob(f"runs/{name}_*/features"))
        if len(runs) != 1:
            raise SystemExit(f"{cell}: {len(runs)} runs are of that name, not one")
        known = training_scores(runs[0])
        with np.load(cell) as stored:
            scores, defective = stored["scores"], stored["labels"] == 1
        limits = [known.threshold(share) for share in SHARES]
        shares = [f"{(scores[~defective] >= limit).mean():.1%} ({known.reached(limit):.1%})" for limit in limits]
        found = f"{(scores[defective] >= limits[-1]).mean():.0%}"
        print(f"| {' | '.join([name, str(int((~defective).sum())), *shares, found])} |")


if __name__ == "__main__":
    main()
