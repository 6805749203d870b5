"""Five-fold test of a preset on `sts_pet`, split by patient: every patient is tested once, by a model that has not seen them.

    python scripts/pet_folds.py ../shared/data/volumes/sts_pet runs/folds --seeds 0 1 2

Prints round 0, the last round and "high SUV is abnormal" on the voxels of all patients together, with intervals of 95 % by
drawing patients again, those of the differences too, and writes `folds.json`. The settings of `pet-crop` were chosen on folds 0
and 1 alone; `--folds` names others.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from iltm_anomaly.data.volume_files import read_mask, read_volume
from iltm_anomaly.evaluation.rounds import each_round, load_rounds
from iltm_anomaly.metrics import aupr, evaluate_maps, lesion_detection
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.provenance import provenance
from iltm_anomaly.seeds import sample_seed
from iltm_anomaly.training.arguments import TrainArguments
from iltm_anomaly.training.checkpoint import write_json
from iltm_anomaly.training.train import train

FOLDS, DRAWS = 5, 1000
BINS = 2000  # of scores, by which draws of patients are counted; the figures themselves are exact
SHOWN = (
    "aupr",
    "best_dice",
    "aupro",
    "pixel_auroc",
    "per_patient_aupr",
    *(f"lesion_sensitivity_at_{n}_fp" for n in (0.5, 1, 2, 4)),
)
Maps = dict[str, np.ndarray]  # by name of patient


def folds_of(source: Path) -> list[list[Path]]:
    """The scans of each fold. The first two hold the eight patients that `prepare_volumes.py` tests on."""
    scans = sorted(source.glob("*_suv.nii.gz"))
    order = np.random.default_rng(sample_seed(0)).permutation(len(scans))[::-1]
    return [[scans[number] for number in part] for part in np.array_split(order, FOLDS)]


def make_data(folds: list[list[Path]], tested: int, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for number, fold in enumerate(folds):
        for scan in fold:
            mask = scan.with_name(scan.name.replace("_suv", "_lesion"))
            where = "test" if number == tested else "train"
            for source, target in (
                (scan, folder / where / "tumour" / scan.name),
                (mask, folder / "ground_truth" / "tumour" / scan.name.replace(".nii", "_mask.nii")),
            ):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source.resolve())
    return folder


def maps_of(run: Path, scans: list[Path]) -> list[Maps]:
    """Maps of round 0 and of the last round of a run."""
    pipeline = ILTMAnomalyPipeline.from_pretrained(run / "model")
    rounds = load_rounds(pipeline, run)
    return [
        {scan.name: one for scan, one in zip(scans, pipeline(scans).anomaly_maps, strict=True)}
        for number, _ in enumerate(each_round(pipeline, rounds, run))
        if number in (0, len(rounds) - 1)
    ]


def run_seed(folds: list[list[Path]], chosen: list[int], seed: int, preset: str, output: Path) -> dict[str, Maps]:
    """Maps of all patients of the chosen folds, of round 0 and of the last round; models and maps of earlier calls are used."""
    found: dict[str, Maps] = {"round 0": {}, "last round": {}}
    for number in chosen:
        run, names = output / f"seed{seed}_fold{number}", [scan.name for scan in folds[number]]
        kept = run / "maps.npz"
        if not kept.exists():
            data = make_data(folds, number, output / f"data_fold{number}")
            train(
                TrainArguments(str(data), run, preset=preset, volumes=True, seed=seed, resume=run.exists(), cpu=True)
            )
            first_and_last = maps_of(run, folds[number])
            labelled = zip(found, first_and_last, strict=True)
            np.savez(kept, **{f"{label}/{name}": one for label, maps in labelled for name, one in maps.items()})
        with np.load(kept) as stored:
            for label in found:
                found[label] |= {name: stored[f"{label}/{name}"] for name in names}
    return found


def at_thresholds(found: Maps, masks: Maps, thresholds: dict[str, float]) -> dict[str, float]:
    """What the thresholds of training make of the maps: patients called abnormal, lesions found, false positives a scan."""
    called = lesions = hit = false = 0
    for name, one in found.items():
        detected = one >= thresholds[name]
        regions, truth = (ndimage.label(where, np.ones((3, 3, 3)))[0] for where in (detected, masks[name]))
        called += bool(detected.any())
        lesions, hit = lesions + int(truth.max()), hit + int(np.count_nonzero(np.unique(truth[detected])))
        false += int(regions.max()) - int(np.count_nonzero(np.unique(regions[masks[name]])))
    return {
        "called": called,
        "lesions_found": hit,
        "lesions": lesions,
        "false_positives_per_scan": round(false / len(found), 3),
    }


def histograms(maps: Maps, masks: Maps) -> np.ndarray:
    """(patients, 2, BINS): normal and lesion voxels by falling score."""
    edges = np.unique(np.quantile(np.concatenate([one.ravel() for one in maps.values()]), np.linspace(0, 1, BINS)))
    counts = []
    for name, one in maps.items():
        place = np.clip(np.searchsorted(edges, one, side="right") - 1, 0, len(edges) - 1)
        counts.append([np.bincount(place[masks[name] == flag], minlength=len(edges))[::-1] for flag in (False, True)])
    return np.array(counts)


def drawn_figures(counts: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """AUPR and best Dice (len(draws), 2) of the patients of each draw, by histograms."""
    figures = []
    for draw in draws:
        normal, lesion = counts[draw].sum(0).cumsum(1)
        precision = lesion / np.maximum(normal + lesion, 1)
        gained = np.diff(lesion, prepend=0)
        figures.append([(precision * gained).sum() / lesion[-1], (2 * lesion / (normal + lesion + lesion[-1])).max()])
    return np.array(figures)


def measure(found: dict[str, Maps], masks: Maps) -> dict[str, Any]:
    """Figures of every method on all patients together, and intervals of AUPR and best Dice, of the last round's lead too."""
    names = sorted(masks)
    truth = [masks[name] for name in names]
    draws = np.random.default_rng(0).integers(len(names), size=(DRAWS, len(names)))
    result, drawn = {}, {}
    for method, maps in found.items():
        ordered = [maps[name] for name in names]
        figures: dict[str, Any] = {**evaluate_maps(ordered, truth), **lesion_detection(ordered, truth)}
        figures["per_patient_aupr"] = float(
            np.mean([aupr(*pair) for pair in zip([[m] for m in ordered], [[t] for t in truth], strict=True)])
        )
        drawn[method] = drawn_figures(histograms({name: maps[name] for name in names}, masks), draws)
        result[method] = figures | {"intervals": intervals(drawn[method])}
    for other in ("round 0", "high SUV"):
        result[f"last round - {other}"] = {"intervals": intervals(drawn["last round"] - drawn[other])}
    return result


def intervals(figures: np.ndarray) -> dict[str, list[float]]:
    low, high = np.quantile(figures, [0.025, 0.975], axis=0)
    return {
        name: [round(float(a), 4), round(float(b), 4)]
        for name, a, b in zip(("aupr", "best_dice"), low, high, strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--preset", default="pet-crop")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)))
    arguments = parser.parse_args()
    folds = folds_of(arguments.source)
    scans = [scan for number in arguments.folds for scan in folds[number]]
    volumes = {scan.name: read_volume(scan) for scan in scans}
    masks = {
        name: read_mask(arguments.source / name.replace("_suv", "_lesion"), one.grid) for name, one in volumes.items()
    }
    suv = {name: one.values for name, one in volumes.items()}
    documents = []
    for seed in arguments.seeds:
        found = run_seed(folds, arguments.folds, seed, arguments.preset, arguments.output)
        result = measure({"high SUV": suv, **found}, masks)
        thresholds = {
            scan.name: json.loads((arguments.output / f"seed{seed}_fold{number}/model/calibration.json").read_text())[
                "score_threshold"
            ]
            for number in arguments.folds
            for scan in folds[number]
        }
        result["last round"]["at_threshold"] = at_thresholds(found["last round"], masks, thresholds)
        print(f"seed {seed} at the thresholds of training: {result['last round']['at_threshold']}")
        documents.append(
            {
                "seed": seed,
                "preset": arguments.preset,
                "folds": arguments.folds,
                "patients": len(scans),
                "results": result,
            }
        )
        for method, figures in result.items():
            shown = " ".join(f"{name} {100 * figures[name]:.1f}" for name in SHOWN if name in figures)
            print(f"seed {seed} {method}: {shown} {json.dumps(figures['intervals'])}", flush=True)
    write_json(arguments.output / "folds.json", {"seeds": documents, **provenance("cpu")})


if __name__ == "__main__":
    main()
