"""`python scripts/benchmark.py ...`: the options of `iltm-anomaly benchmark`."""

import sys

from iltm_anomaly.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
