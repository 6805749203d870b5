"""Averages `results.json` files of several seeds into one Markdown table, one row a round.

python scripts/results_table.py docs/results/bottle_seed*.json
"""

import json
import sys
from pathlib import Path
from statistics import mean, pstdev

COLUMNS = {
    "pixel AUROC": "pixel_auroc",
    "AUPRO": "aupro",
    "image AUROC": "image_auroc",
    "tokens masked": "masked_fraction",
    "defect tokens masked": "masked_share_defect_tokens",
    "normal tokens masked": "masked_share_normal_tokens",
}


def table(paths: list[Path]) -> str:
    """Mean and standard deviation over files, in per cent; every file must hold the same rounds."""
    documents = [json.loads(path.read_text())["results"] for path in paths]
    rounds = [[result["round"] for result in results] for results in documents]
    if any(numbers != rounds[0] for numbers in rounds):
        raise ValueError(f"the files hold different rounds: {dict(zip(map(str, paths), rounds, strict=True))}")
    lines = ["| round | " + " | ".join(COLUMNS) + " |", "| --- " * (len(COLUMNS) + 1) + "|"]
    for results in zip(*documents, strict=True):
        cells = [str(results[0]["round"])]
        for key in COLUMNS.values():
            values = [100 * result[key] for result in results if result[key] is not None]
            spread = f" ± {pstdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.1f}{spread}" if values else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(table([Path(argument) for argument in sys.argv[1:]]))
