"""Renders `model_cards/` from `docs/results/*_seed*.json`: one card for each group of files that differ in their seed alone.

python scripts/model_cards.py
"""

import shutil
from collections import defaultdict
from pathlib import Path

from iltm_anomaly.hub.cards import load_results, render_card

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "docs" / "results"
CARDS = REPOSITORY / "model_cards"


def render_all() -> dict[str, bytes]:
    """Content by path below `model_cards`."""
    groups = defaultdict(list)
    for path in sorted(RESULTS.glob("*_seed*.json")):
        groups[path.stem.split("_seed")[0]].append(path)
    files = {}
    for name, paths in groups.items():
        for path, content in render_card(f"iltm-{name}", load_results(paths)).items():
            files[f"{name}/{path}"] = content
    return files


if __name__ == "__main__":
    shutil.rmtree(CARDS, ignore_errors=True)
    for name, content in render_all().items():
        (CARDS / name).parent.mkdir(parents=True, exist_ok=True)
        (CARDS / name).write_bytes(content)
        print(CARDS / name)
