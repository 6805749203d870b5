"""Whether a GPU finds what the CPU finds, in which types, how fast and in how much memory: some minutes on one GPU.

    python scripts/check_cuda.py --output runs/cuda  # --device cpu compares the CPU with itself

The CPU trains on generated images, in float32. That model is scored on the device, in float32 and float16; its scores, maps and
AUROC are held against the CPU's. Then the device trains models of its own, in every precision and with one and two threads that
prepare the steps; their AUROC is held against that of the CPU's model. Writes check_cuda.json, and check_cuda.md for
docs/results.md. Ends with 1, and a line for each, where something lies outside TOLERANCES or a pipeline takes bfloat16.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.cli import quiet_libraries
from iltm_anomaly.comparison.benchmark.tables import markdown_table
from iltm_anomaly.data.mvtec import load_mvtec
from iltm_anomaly.evaluation.evaluate import score_dataset
from iltm_anomaly.evaluation.ground_truth import ground_truth_masks
from iltm_anomaly.provenance import provenance
from iltm_anomaly.recipes.feature_recipe import FeatureRecipe
from iltm_anomaly.recipes.recipe import load_recipe
from iltm_anomaly.synthetic.dataset import generate_dataset, write_mvtec_tree
from iltm_anomaly.training import context
from iltm_anomaly.training.arguments import TrainArguments
from iltm_anomaly.training.checkpoint import write_json
from iltm_anomaly.training.train import train

AUROC = ("pixel_auroc", "image_auroc")
TRAINED_IN = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}
WAYS = [("no", 1), ("no", 2), ("bf16", 1), ("fp16", 1)]  # to train: precision, threads that prepare the steps
# Largest differences from the CPU in float32. Scores: of an image, in the range of the CPU's scores. Maps: the mean over pixels,
# in the standard deviation of the CPU's maps. Convolutions of a GPU are in TF32 by default, which has as many digits as float16,
# and that takes 0.013 of either on a CPU. Trainings that round differently end in other models, of which AUROC alone is compared:
# on a CPU in bfloat16 that of tiny, trained on 60 images and too little to find anything, moves by 0.058 and 0.035.
TOLERANCES = {
    "same model": {"scores": 0.02, "maps": 0.02, "pixel_auroc": 0.01, "image_auroc": 0.02},
    "own model": {"pixel_auroc": 0.1, "image_auroc": 0.1},
}


def measured(device: str, images: int, work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What `work` returns, its images a second, and its peak of memory in MiB: of a GPU that of tensors, of the CPU that of the
    whole process with Python and its libraries (None where the system does not tell, as all but Linux)."""
    watermark = Path("/proc/self/clear_refs")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif watermark.exists():
        watermark.write_text("5")
    started = time.monotonic()
    result = work()  # ends with values on the CPU or in files: nothing is under way any more
    seconds = time.monotonic() - started
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
    if device == "cpu" and watermark.exists():
        status = Path("/proc/self/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) / 2**10
    return result, {"images_per_second": images / seconds, "peak_mib": peak}


def trained(data: Path, images: int, preset: str, device: str, precision: str, threads: int) -> tuple[Path, dict]:
    """A run in a new folder, and how it was trained. The number of threads is no setting of a user's, so it is put in here."""
    output = Path(tempfile.mkdtemp(dir=data.parent))
    overrides = [] if isinstance(load_recipe(preset), FeatureRecipe) else [f"mixed_precision={precision}"]
    chosen = {"preset": preset, "overrides": overrides, "cpu": device == "cpu", "show_progress": False}
    arguments = TrainArguments(str(data), output, **chosen)
    with mock.patch.object(context, "loading_threads", return_value=threads):
        _, cost = measured(device, images, lambda: train(arguments))
    used = json.loads((output / "run.json").read_text())["sittings"][-1]["precision"]
    asked = "" if used == precision else f" ({TRAINED_IN[precision]} asked)"  # the device is not built for it
    return output, {"device": device, "dtype": TRAINED_IN[used] + asked, "threads": threads, **cost}


def scored(pipeline: ILTMAnomalyPipeline, test: Any, masks: list[np.ndarray]) -> tuple[Any, dict[str, Any]]:
    """The pipeline's output on the test images, and how it was scored."""
    device, dtype = pipeline.device.type, str(pipeline.models[0].dtype).removeprefix("torch.")
    pipeline(test[0]["image"])  # what is made once
    (output, metrics, _), cost = measured(device, len(test), lambda: score_dataset(pipeline, test, masks))
    return output, {"device": device, "dtype": dtype, **{name: metrics[name] for name in AUROC}, **cost}


def differences(output: Any, values: dict[str, Any], reference: Any, expected: dict[str, Any]) -> dict[str, float]:
    """How far an output and its AUROC lie from those of the CPU, in the units of TOLERANCES."""
    exact, maps = reference.scores, np.stack(reference.anomaly_maps)
    return {
        "scores": float((output.scores - exact).abs().max() / (exact.max() - exact.min())),
        "maps": float(np.abs(np.stack(output.anomaly_maps) - maps).mean() / maps.std()),
        **{name: abs(values[name] - expected[name]) for name in AUROC},
    }


def check(preset: str, data: Path, device: str) -> list[dict[str, Any]]:
    """All that is trained and scored of a preset; the CPU's own comes first, and the others are held against it."""
    split = load_mvtec(data)
    test, images = split["test"], len(split["train"])
    masks = ground_truth_masks(test, False)
    run, cpu = trained(data, images, preset, "cpu", "no", 0)
    reference, expected = scored(ILTMAnomalyPipeline.from_pretrained(run), test, masks)
    rows: list[dict[str, Any]] = [{"preset": preset, "trained": cpu, "scored": expected}]

    def add(kind: str, how: dict[str, Any], pipeline: ILTMAnomalyPipeline) -> None:
        output, values = scored(pipeline, test, masks)
        found = differences(output, values, reference, expected)
        found = {name: found[name] for name in TOLERANCES[kind]}
        rows.append({"preset": preset, "kind": kind, "trained": how, "scored": values, "differences": found})

    pipeline = ILTMAnomalyPipeline.from_pretrained(run, device=device)
    add("same model", cpu, pipeline)
    add("same model", cpu, pipeline.to(torch.float16))
    rows[0]["takes_bfloat16"] = takes_bfloat16(pipeline)
    # nothing is optimised on features: there is neither a precision nor a step to prepare
    for precision, threads in [("no", 1)] if pipeline.has_features else WAYS:
        run, how = trained(data, images, preset, device, precision, threads)
        add("own model", how, ILTMAnomalyPipeline.from_pretrained(run, device=device))
    return rows


def takes_bfloat16(pipeline: ILTMAnomalyPipeline) -> bool:
    """Whether a pipeline can be cast to bfloat16, in which scores mean nothing."""
    try:
        pipeline.to(torch.bfloat16)
    except ValueError:
        return False
    return True


def name_of(row: dict[str, Any]) -> str:
    how, where = row["trained"], row["scored"]
    trained_so = f"trained on {how['device']} in {how['dtype']}, loading threads: {how['threads']}"
    return f"{row['preset']}, {trained_so}, scored on {where['device']} in {where['dtype']}"


def broken(rows: list[dict[str, Any]]) -> list[str]:
    """A line for everything that is not as it should be."""
    lines = [f"{row['preset']}: a pipeline takes bfloat16" for row in rows if row.get("takes_bfloat16")]
    for row in rows:
        for name, value in row.get("differences", {}).items():
            allowed = TOLERANCES[row["kind"]][name]
            if not value <= allowed:  # NaN too
                lines.append(f"{name_of(row)}: {name} differ by {value:.4f}, allowed {allowed}")
    return lines


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown; a training that several rows share is measured in the first."""

    def cost_of(measured: dict[str, Any]) -> list[str]:
        peak = measured["peak_mib"]
        return [f"{measured['images_per_second']:.2f}", "-" if peak is None else f"{peak:.0f}"]

    header = ["preset", "trained on", "loading threads", "images/s", "peak MiB", "scored on", "images/s", "peak MiB"]
    header += ["pixel AUROC", "image AUROC", "scores differ", "maps differ"]
    lines: list[list[str]] = []
    for number, row in enumerate(rows):
        how, where, found = row["trained"], row["scored"], row.get("differences", {})
        cells = [row["preset"], f"{how['device']}, {how['dtype']}", str(how["threads"])]
        cells += ["", ""] if number and rows[number - 1]["trained"] == how else cost_of(how)
        cells += [f"{where['device']}, {where['dtype']}", *cost_of(where)]
        cells += [f"{100 * where[name]:.2f}" for name in AUROC]
        lines.append(cells + [f"{found[name]:.5f}" if name in found else "" for name in ("scores", "maps")])
    return markdown_table(header, lines)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for check_cuda.json and check_cuda.md")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="held against the CPU")
    parser.add_argument("--presets", nargs="+", default=["tiny", "features"], help="(default: tiny features)")
    parser.add_argument("--images", type=int, default=60, help="for training; two thirds as many are tested on")
    arguments = parser.parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine, or this build of torch, has no CUDA: --device cpu compares the CPU with itself")
    count = max(2, arguments.images // 3)
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"num_train": arguments.images, "num_test_good": count, "num_test_defective": count}
        dataset = generate_dataset(size=96, contamination=0.2, recurring=True, **sizes)
        data = write_mvtec_tree(dataset, Path(folder) / "data", "part")
        rows = [row for preset in arguments.presets for row in check(preset, data, arguments.device)]
    lines, about = broken(rows), {"tf32": torch.backends.cudnn.allow_tf32, "cpu": provenance("cpu")["hardware"]}
    document = {"tolerances": TOLERANCES, "rows": rows, "broken": lines, **about, **provenance(arguments.device)}
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output / "check_cuda.json", document)
    (arguments.output / "check_cuda.md").write_text(table(rows) + "\n", encoding="utf-8")
    print("\n".join([table(rows), *lines]))
    return 1 if lines else 0


if __name__ == "__main__":
    quiet_libraries()
    sys.exit(main())
