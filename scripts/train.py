"""`accelerate launch scripts/train.py ...`: the options of `iltm-anomaly train`."""

import sys

from iltm_anomaly.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
