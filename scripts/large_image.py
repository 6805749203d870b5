"""Memory and time of one large image in tiles: python scripts/large_image.py runs/sheets --side 4096 --tile 256

The image repeats a random patch. Memory is the peak of the process, before (with the model loaded and one tile scored) and after.
"""

import argparse
import resource
import sys
import time

import numpy as np
import torch

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.hub.folders import resolve_model_folder

UNIT = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss, per MB


def peak() -> int:
    """Largest resident memory of this process so far, in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / UNIT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run or pipeline folder, or Hub id")
    parser.add_argument("--side", type=int, default=4096, help="of the image, in pixels (default: 4096)")
    parser.add_argument("--tile", type=int, default=256, help="side of a tile, in pixels (default: 256)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = ILTMAnomalyPipeline.from_pretrained(resolve_model_folder(arguments.model)[0])
    patch = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    pipeline(patch, tile=0)
    repeats = -(-arguments.side // 256)
    image = np.tile(patch, (repeats, repeats, 1))[: arguments.side, : arguments.side]
    before, started = peak(), time.process_time()
    output = pipeline(image, tile=arguments.tile)
    seconds, count = time.process_time() - started, len(output.resampled_tokens[0])
    print(
        f"{arguments.side} x {arguments.side}: {count} tiles, {seconds:.0f} s, peak {before} MB before, {peak()} MB after"
    )


if __name__ == "__main__":
    main()
