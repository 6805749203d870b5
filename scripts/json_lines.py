"""Puts JSON files into one JSON Lines file, a document a line, as docs/results keeps them.

python scripts/json_lines.py runs/bottle*/evaluation/results.json > docs/results/bottle.jsonl
python scripts/json_lines.py runs/table/cells/*.json > docs/results/real_sets.jsonl
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for argument in sys.argv[1:]:
        print(json.dumps(json.loads(Path(argument).read_text(encoding="utf-8"))))
