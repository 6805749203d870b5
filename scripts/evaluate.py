"""`python scripts/evaluate.py ...`: the options of `iltm-anomaly evaluate`, in one process."""

import sys

from iltm_anomaly.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
