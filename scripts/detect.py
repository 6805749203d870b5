"""`accelerate launch scripts/detect.py ...`: the options of `iltm-anomaly detect`, over all processes that are launched."""

import sys

from iltm_anomaly.cli import main

if __name__ == "__main__":
    sys.exit(main(["detect", *sys.argv[1:]]))
