"""Renders `model_cards/`, a card for each of `CARDS`, from `docs/results/NAME.jsonl`.

python scripts/model_cards.py
"""

import shutil
from pathlib import Path

from iltm_anomaly.hub.cards import load_results, render_card

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "model_cards"
CARDS = ("bottle", "demo")


def render_all() -> dict[str, bytes]:
    """Content by path below `model_cards`."""
    files = {}
    for name in CARDS:
        documents = load_results([REPOSITORY / "docs" / "results" / f"{name}.jsonl"])
        for path, content in render_card(f"iltm-{name}", documents).items():
            files[f"{name}/{path}"] = content
    return files


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, content in render_all().items():
        (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / name).write_bytes(content)
        print(FOLDER / name)
