"""Averages `results.json` files of several seeds into one Markdown table, one row a round.

python scripts/results_table.py docs/results/bottle_seed*.json
"""

import sys
from pathlib import Path

from iltm_anomaly.hub.cards import load_results, rounds_table

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print(rounds_table(load_results([Path(argument) for argument in sys.argv[1:]])))
