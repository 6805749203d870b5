"""Makes data sets of volumes in the layout that `iltm-anomaly train --volumes` and `evaluate` read, from the shared real data.

    python scripts/prepare_volumes.py sts_pet ../shared/data/volumes/sts_pet runs/sts/data
    python scripts/prepare_volumes.py hippocampus ../shared/data/volumes/hippocampus_mri runs/hippocampus/data

`sts_pet`: FDG-PET of 26 patients, each with a tumour: 18 to train on and the other 8 to test on. Links, no copies. Training
uses no mask; `evaluate` compares what the rounds masked with those of the training volumes.
`hippocampus`: 260 MRI crops: 200 to train on, 30 to test on as they are, and 30 with a lesion put in: a soft-edged ball, brighter
or darker by 60 to 120 of 255 grey levels, radius 3 to 6 mm.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from iltm_anomaly.data.volume_files import find_volumes, read_volume, volume_stem, write_volume
from iltm_anomaly.data.volume_grid import Volume
from iltm_anomaly.seeds import sample_seed

SOFTNESS = 1.0  # mm, over which the edge of an implanted lesion fades


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source.resolve())


def sts_pet(source: Path, output: Path, seed: int) -> None:
    scans = sorted(source.glob("*_suv.nii.gz"))
    order = np.random.default_rng(sample_seed(seed)).permutation(len(scans))
    for position, number in enumerate(order.tolist()):
        name = scans[number].name
        link(scans[number], output / ("train" if position < 18 else "test") / "tumour" / name)
        mask = scans[number].with_name(name.replace("_suv", "_lesion"))
        link(mask, output / "ground_truth" / "tumour" / name.replace(".nii", "_mask.nii"))


def implant(volume: Volume, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Values with one lesion in the middle half of the volume, and its mask."""
    shape, spacing = np.array(volume.grid.shape), np.array(volume.grid.ras_spacing)  # the crops are in RAS order
    centre = shape * generator.uniform(0.3, 0.7, 3)
    radius = generator.uniform(3, 6)
    axes = np.ogrid[tuple(slice(side) for side in shape)]
    distance = np.sqrt(sum(((axis - c) * s) ** 2 for axis, c, s in zip(axes, centre, spacing, strict=True)))
    share = np.clip(0.5 + (radius - distance) / SOFTNESS, 0, 1)
    at = volume.values[tuple(np.round(centre).astype(int))]
    change = generator.uniform(60, 120) * (1 if at < 128 else -1)
    return np.clip(volume.values + share * change, 0, 255).astype(np.float32), share >= 0.5


def hippocampus(source: Path, output: Path, seed: int) -> None:
    scans = find_volumes(source / "images")
    order = np.random.default_rng(sample_seed(seed)).permutation(len(scans))
    for position, number in enumerate(order.tolist()):
        path = scans[number]
        if position < 200:
            link(path, output / "train" / "good" / path.name)
        elif position < 230:
            link(path, output / "test" / "good" / path.name)
        else:
            volume = read_volume(path)
            values, mask = implant(volume, np.random.default_rng(sample_seed(seed, number)))
            write_volume(values, output / "test" / "implanted" / path.name, volume)
            write_volume(mask, output / "ground_truth" / "implanted" / f"{volume_stem(path)}_mask.nii.gz", volume)


SETS: dict[str, Callable[[Path, Path, int], None]] = {"sts_pet": sts_pet, "hippocampus": hippocampus}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETS)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.output.exists() and any(arguments.output.iterdir()):
        raise SystemExit(f"{arguments.output} is not empty")
    SETS[arguments.name](arguments.source, arguments.output, arguments.seed)


if __name__ == "__main__":
    main()
