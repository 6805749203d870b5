"""The options of `iltm-anomaly push`."""

import sys

from iltm_anomaly.cli import main

if __name__ == "__main__":
    sys.exit(main(["push", *sys.argv[1:]]))
