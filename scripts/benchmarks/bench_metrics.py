"""Benchmarks B7 and B8: AUPRO against other implementations, and the `evaluate` module against a naive metric.

    python scripts/benchmarks/bench_metrics.py                # about 10 minutes on one core, 8 GB of memory
    python scripts/benchmarks/bench_metrics.py --quick        # under a minute, small maps, for a look

Times are CPU seconds of one thread (`process_time`), contenders interleaved, minimum and median of the repeats.
Memory is the growth of the peak resident set in a fresh process per contender, after its imports and a small warm-up.
All contenders get the same float32 maps and 8-bit masks in memory. A ratio is given only where the values agree.

Contenders that are not installed are left out, and the result says so. anomalib 2.7, adeval 1.1.0 and torchmetrics 1.9
were run in a virtual environment of their own (`pip install anomalib adeval torchmetrics opencv-python-headless`).
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"  # before numpy is imported
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
from scipy import ndimage  # noqa: E402

from iltm_anomaly.metrics import StreamingAUPRO, aupro, pixel_auroc  # noqa: E402

LIMIT = 0.3
AGREE = 1e-4  # values further apart than this are not the same metric
RESULTS = Path(__file__).parents[2] / "docs" / "results" / "bench_metrics.json"
SIZES = {"110 x 256 x 256": (110, 256, 5), "83 x 900 x 900": (83, 900, 2)}
QUICK = {"20 x 128 x 128": (20, 128, 3)}


# ---- data ----------------------------------------------------------------------------------------------------------


def make_maps(count: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth float32 maps (N, H, W) and 8-bit masks; three in four images have one to three elliptic defects."""
    rng = np.random.default_rng(seed)
    scores = np.empty((count, size, size), dtype=np.float32)
    masks = np.zeros((count, size, size), dtype=np.uint8)
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    for score, mask in zip(scores, masks, strict=True):
        coarse = ndimage.zoom(rng.normal(size=(16, 16)), size / 16, order=1)
        score[:] = 2 * coarse + rng.normal(size=(size, size)) * 0.5 + rng.normal() * 0.3
        for _ in range(rng.integers(1, 4) if rng.random() < 0.75 else 0):
            (cy, cx), (ry, rx) = rng.uniform(0.1, 0.9, 2), rng.uniform(0.02, 0.12, 2)
            inside = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
            mask[inside] = 1
            score[inside] += rng.uniform(0.5, 3)
    return scores, masks


def transform(scores: np.ndarray, kind: str) -> np.ndarray:
    """The same maps on another scale: linear and exponentiated have the same AUPRO, tied and 8-bit another one."""
    if kind == "linear":
        return scores
    if kind == "exponentiated":
        return np.exp(3 * scores)
    if kind == "tied":
        return np.round(scores, 1)
    return np.clip(np.round(scores * 20 + 128), 0, 255).astype(np.float32)


# ---- contenders ----------------------------------------------------------------------------------------------------


def official(scores: np.ndarray, masks: np.ndarray) -> float:
    """The official algorithm, written from its definition: one argsort of all pixels, one mask per region."""
    false = np.zeros(scores.shape, dtype=np.uint32)
    gain = np.zeros(scores.shape, dtype=np.float64)
    regions = 0
    for i, mask in enumerate(masks):
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        false[i] = labels == 0
        for label in range(1, count + 1):
            region = labels == label
            gain[i][region] = 1 / np.count_nonzero(region)
        regions += count
    flat = scores.ravel()
    order = np.argsort(flat)[::-1]
    ordered = flat[order]
    keep = np.append(ordered[1:] != ordered[:-1], True)
    fpr = np.cumsum(false.ravel()[order], dtype=np.float64)
    fpr = np.concatenate([[0], fpr[keep] / fpr[-1], [1]])
    pro = np.concatenate([[0], np.cumsum(gain.ravel()[order])[keep] / regions, [1]])
    stop = int(np.searchsorted(fpr, LIMIT))
    last = np.interp(LIMIT, fpr[stop - 1 : stop + 1], pro[stop - 1 : stop + 1])
    return float(np.trapezoid(np.append(pro[:stop], last), np.append(fpr[:stop], LIMIT)) / LIMIT)


def streaming(scores: np.ndarray, masks: np.ndarray) -> float:
    """Our streaming form, in batches of ten images."""
    metric = StreamingAUPRO(LIMIT)
    for start in range(0, len(scores), 10):
        metric.update(scores[start : start + 10], masks[start : start + 10])
    return metric.compute()


@contextlib.contextmanager
def tolerate_missing_operators() -> Iterator[None]:
    """torchvision's wheel may not fit a CPU build of torch: its import fails over operators that nothing here uses."""
    import torch

    register = torch.library.register_fake

    def tolerant(op: Any, func: Any = None, /, **options: Any) -> Any:
        def decorate(function: Any) -> Any:
            with contextlib.suppress(RuntimeError):
                register(op, function, **options)
            return function

        return decorate if func is None else decorate(func)

    torch.library.register_fake = tolerant  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.library.register_fake = register


def load_anomalib() -> Callable[[np.ndarray, np.ndarray], float]:
    """anomalib's AUPRO."""
    import torch

    with tolerate_missing_operators():
        from anomalib.metrics.aupro import _AUPRO

    def run(scores: np.ndarray, masks: np.ndarray) -> float:
        metric = _AUPRO(fpr_limit=LIMIT)
        metric.update(torch.from_numpy(scores), torch.from_numpy(masks))
        return float(metric.compute())

    return run


def load_adeval() -> Callable[[np.ndarray, np.ndarray], float]:
    """adeval at its defaults (1000 uniform strips), given the true range of the scores."""
    if not hasattr(np, "trapz"):
        setattr(np, "trapz", np.trapezoid)  # noqa: B010  numpy 2.4 has removed it, and adeval 1.1.0 uses it
    from adeval import EvalAccumulator

    def run(scores: np.ndarray, masks: np.ndarray) -> float:
        low, high = float(scores.min()), float(scores.max())
        metric = EvalAccumulator(low, high, low, high)
        metric.add_anomap_batch(scores, masks)
        return metric._aupro()

    return run


def load_torchmetrics() -> Callable[[np.ndarray, np.ndarray], float]:
    """torchmetrics' exact pixel AUROC; it has no AUPRO."""
    import torch

    with tolerate_missing_operators():
        from torchmetrics.functional.classification import binary_auroc

    def run(scores: np.ndarray, masks: np.ndarray) -> float:
        # without validation; scores outside [0, 1] would pass through a sigmoid, which is monotone but rounds
        low, high = float(scores.min()), float(scores.max())
        scaled = torch.from_numpy((scores - low) / (high - low))
        return float(binary_auroc(scaled.ravel(), torch.from_numpy(masks).ravel().long(), validate_args=False))

    return run


AUPRO_CONTENDERS: dict[str, Callable[[], Callable[[np.ndarray, np.ndarray], float]]] = {
    "ours, exact": lambda: lambda scores, masks: aupro(scores, masks, LIMIT),
    "ours, streaming": lambda: streaming,
    "official algorithm": lambda: official,
    "anomalib": load_anomalib,
    "adeval": load_adeval,
}
AUROC_CONTENDERS: dict[str, Callable[[], Callable[[np.ndarray, np.ndarray], float]]] = {
    "ours, pixel AUROC": lambda: lambda scores, masks: pixel_auroc(scores, masks),
    "torchmetrics, pixel AUROC": load_torchmetrics,
}


def available() -> tuple[dict[str, Any], dict[str, str]]:
    """Contenders that load, and why the others do not."""
    found, missing = {}, {}
    for label, load in (AUPRO_CONTENDERS | AUROC_CONTENDERS).items():
        try:
            found[label] = load()
        except ImportError as error:
            missing[label] = str(error)
    return found, missing


def limit_threads() -> None:
    """One thread for the libraries that ignore the environment."""
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(1)
    with contextlib.suppress(ImportError):
        import cv2

        cv2.setNumThreads(1)


# ---- B7 ------------------------------------------------------------------------------------------------------------


def time_contenders(found: dict[str, Any], sizes: dict[str, tuple[int, int, int]]) -> list[dict[str, Any]]:
    """CPU seconds and values of all contenders, interleaved, for each size and kind of scores."""
    rows = []
    for size, (count, side, repeats) in sizes.items():
        base, masks = make_maps(count, side)
        for kind in ("linear", "exponentiated", "tied", "8-bit"):
            scores = np.ascontiguousarray(transform(base, kind))
            seconds: dict[str, list[float]] = {label: [] for label in found}
            values: dict[str, float] = {}
            for _ in range(repeats if kind == "linear" else max(1, repeats // 2)):
                for label, run in found.items():
                    start = time.process_time()
                    values[label] = run(scores, masks)
                    seconds[label].append(time.process_time() - start)
            for label in found:
                reference = "ours, pixel AUROC" if label in AUROC_CONTENDERS else "official algorithm"
                row = {"size": size, "scores": kind, "contender": label, "value": values[label]}
                row |= {"difference": values[label] - values[reference], "against": reference}
                row |= {"min_s": min(seconds[label]), "median_s": statistics.median(seconds[label])}
                rows.append(row)
                print(f"{size} {kind:13} {label:26} {row['value']:.9f} {row['difference']:+.1e} {row['min_s']:.3f} s")
    return rows


def added_peak(run: Callable[[], Any]) -> tuple[Any, float]:
    """Result of `run`, and MB by which the peak resident set exceeds the resident set before it (Linux)."""

    def status(field: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
        return int(line.split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # reset the peak: making the data has its own
    before = status("VmRSS")
    result = run()
    return result, (status("VmHWM") - before) / 1024


def in_fresh_process(*arguments: str) -> dict[str, Any]:
    """Run one `--child` of this script and read the JSON on its last line."""
    command = [sys.executable, __file__, "--child", *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def child_b7(label: str, count: str, side: str) -> dict[str, Any]:
    """Peak memory of one contender."""
    run = (AUPRO_CONTENDERS | AUROC_CONTENDERS)[label]()
    limit_threads()
    run(*make_maps(2, 64))
    scores, masks = make_maps(int(count), int(side))
    value, peak = added_peak(lambda: run(scores, masks))
    return {"value": value, "peak_mb": peak}


def child_growth(images: str, side: str) -> dict[str, Any]:
    """Peak memory of the streaming form over many images, which are made on the fly."""
    metric = StreamingAUPRO(LIMIT)
    streaming(*make_maps(4, int(side)))

    def run() -> float:
        for seed in range(int(images) // 10):
            metric.update(*make_maps(10, int(side), seed))
        return metric.compute()

    value, peak = added_peak(run)
    return {"value": value, "error_bound": metric.error_bound, "peak_mb": peak}


# ---- B8 ------------------------------------------------------------------------------------------------------------


def naive_metric(folder: str) -> Any:
    """What one writes first: a metric with sequence features, whose `_compute` gets lists from Arrow."""
    import datasets
    import evaluate

    class Naive(evaluate.Metric):
        def _info(self) -> Any:
            maps = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
            features = datasets.Features({"predictions": maps, "references": maps})
            return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

        def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
            return {"aupro": aupro(np.asarray(predictions, dtype=np.float32), np.asarray(references), LIMIT)}

    return Naive(cache_dir=folder)


def child_b8(which: str, images: str, side: str) -> dict[str, Any]:
    """Peak memory and CPU time of one `evaluate` metric, fed with batches of ten."""
    with tolerate_missing_operators():
        import evaluate

    module = Path(__file__).parents[2] / "src" / "iltm_anomaly" / "metrics" / "aupro"
    count, size = int(images), int(side)
    with tempfile.TemporaryDirectory() as folder:
        metric = naive_metric(folder) if which == "naive" else evaluate.load(str(module), which, cache_dir=folder)
        metric.add_batch(**dict(zip(("predictions", "references"), make_maps(2, 32), strict=True)))
        metric.compute()
        batches = [make_maps(10, size, seed) for seed in range(count // 10)]  # not counted, as a loader would be

        def run() -> float:
            for scores, masks in batches:
                metric.add_batch(predictions=scores, references=masks)
            return metric.compute()["aupro"]

        start = time.process_time()
        value, peak = added_peak(run)
        return {"value": value, "peak_mb": peak, "cpu_s": time.process_time() - start}


# ---- report --------------------------------------------------------------------------------------------------------


def cpu_name() -> str:
    """The processor, as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def environment(missing: dict[str, str]) -> dict[str, Any]:
    """Versions, machine, commit and command line."""
    versions = {}
    for package in ("numpy", "scipy", "torch", "evaluate", "datasets", "anomalib", "adeval", "torchmetrics"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    return {
        "python": platform.python_version(),
        "versions": versions,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "commit": commit,
        "command": " ".join(sys.argv),
        "not_installed": missing,
        "limit": LIMIT,
    }


def ratios(rows: list[dict[str, Any]], memory: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times the exact form is faster and leaner than each contender whose value agrees, on linear scores."""
    found = []
    for row in rows:
        ours = "ours, pixel AUROC" if row["contender"] in AUROC_CONTENDERS else "ours, exact"
        if row["scores"] != "linear" or row["contender"] == ours:
            continue
        own = next(r for r in rows if (r["size"], r["scores"], r["contender"]) == (row["size"], "linear", ours))
        peaks = {m["contender"]: m["peak_mb"] for m in memory if m["size"] == row["size"]}
        agrees = bool(abs(row["difference"]) <= AGREE)
        found.append(
            {
                "size": row["size"],
                "ours": ours,
                "contender": row["contender"],
                "agrees": agrees,
                "time_ratio": row["min_s"] / own["min_s"] if agrees else None,
                "memory_ratio": peaks[row["contender"]] / peaks[ours] if agrees else None,
            }
        )
    return found


def targets(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What the metrics promise, the worst figure measured, and whether it keeps the promise."""

    def worst(contender: str, key: str) -> float | None:
        found = [row[key] for row in report["b7_ratios"] if row["contender"] == contender]
        return min((value for value in found if value is not None), default=None)

    def error(contender: str) -> float:
        return max(abs(row["difference"]) for row in report["b7_time"] if row["contender"] == contender)

    peaks = {row["metric"]: row["peak_mb"] for row in report["b8"]}
    growth = [row["peak_mb"] for row in report["streaming_growth"]]
    checks = [
        ("exact: largest difference to the official algorithm", error("ours, exact"), "<=", 1e-6),
        ("exact: times faster than the official algorithm", worst("official algorithm", "time_ratio"), ">=", 2),
        ("exact: times faster than anomalib", worst("anomalib", "time_ratio"), ">=", 3),
        ("exact: times less memory than anomalib", worst("anomalib", "memory_ratio"), ">=", 2),
        ("streaming: largest difference to the official algorithm", error("ours, streaming"), "<=", 1e-4),
        ("streaming: peak memory at 10 times as many images, ratio", growth[1] / growth[0], "<=", 1.25),
        ("evaluate module: times less memory than a naive metric", peaks["naive"] / peaks["default"], ">=", 10),
    ]
    return [
        {
            "target": name,
            "measured": value,
            "bound": f"{sign} {bound:g}",
            "met": None if value is None else bool(value <= bound if sign == "<=" else value >= bound),
        }
        for name, value, sign, bound in checks
    ]


def markdown(report: dict[str, Any]) -> str:
    """The tables of the report."""
    env = report["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in env["versions"].items())
    lines = [
        "# Metrics: B7 and B8",
        "",
        f"{env['cpu']}, one thread of {env['cores']}; Python {env['python']}, {versions}; "
        f"commit `{env['commit'][:10]}`; `python {env['command']}`.",
        "CPU seconds are the minimum (median) over interleaved repeats; memory is the growth of the peak resident set "
        "in a fresh process.",
        *(f"Not measured: {label} ({reason})." for label, reason in env["not_installed"].items()),
        "",
        "| target, worst case | measured | wanted | met |",
        "|---|---|---|---|",
        *(
            f"| {row['target']} | {'not measured' if row['measured'] is None else format(row['measured'], '.3g')} "
            f"| {row['bound']} | {'-' if row['met'] is None else 'yes' if row['met'] else '**no**'} |"
            for row in report["targets"]
        ),
        "",
        "## B7: time and error",
        "",
        "| maps | scores | contender | value | difference | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["b7_time"]:
        wrong = " **wrong**" if abs(row["difference"]) > AGREE else ""
        lines.append(
            f"| {row['size']} | {row['scores']} | {row['contender']} | {row['value']:.6f} | "
            f"{row['difference']:+.1e}{wrong} | {row['min_s']:.3f} ({row['median_s']:.3f}) |"
        )
    lines += ["", "## B7: peak memory", "", "| maps | contender | MB |", "|---|---|---|"]
    lines += [f"| {row['size']} | {row['contender']} | {row['peak_mb']:.0f} |" for row in report["b7_memory"]]
    lines += ["", "## B7: ratios, linear scores, only where the values agree", ""]
    lines += ["| maps | ours | against | times faster | times less memory |", "|---|---|---|---|---|"]
    for row in report["b7_ratios"]:
        figures = [f"{row[key]:.1f}" if row["agrees"] else "values differ" for key in ("time_ratio", "memory_ratio")]
        lines.append(f"| {row['size']} | {row['ours']} | {row['contender']} | {figures[0]} | {figures[1]} |")
    lines += ["", "## Streaming form: memory against the number of images", ""]
    lines += ["| images | side | peak MB | error bound |", "|---|---|---|---|"]
    for row in report["streaming_growth"]:
        lines.append(f"| {row['images']} | {row['side']} | {row['peak_mb']:.0f} | {row['error_bound']:.1e} |")
    lines += ["", "## B8: the `evaluate` module", ""]
    lines += ["| metric | images | value | peak MB | naive / this | CPU s |", "|---|---|---|---|---|---|"]
    naive = next(row for row in report["b8"] if row["metric"] == "naive")
    for row in report["b8"]:
        lines.append(
            f"| {row['metric']} | {row['images']} x {row['side']} x {row['side']} | {row['value']:.9f} | "
            f"{row['peak_mb']:.1f} | {naive['peak_mb'] / row['peak_mb']:.1f} | {row['cpu_s']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run everything and write the JSON and the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small maps, few repeats")
    parser.add_argument("--output", type=Path, default=None, help=f"JSON file; the tables go beside it ({RESULTS})")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        children: dict[str, Callable[..., dict[str, Any]]] = {"b7": child_b7, "growth": child_growth, "b8": child_b8}
        print(json.dumps(children[options.child[0]](*options.child[1:])))
        return
    sizes = QUICK if options.quick else SIZES
    found, missing = available()
    limit_threads()
    memory = []
    for size, (count, side, _) in sizes.items():
        for label in found:
            memory.append({"size": size, "contender": label, **in_fresh_process("b7", label, str(count), str(side))})
            print(f"{size} {label:26} {memory[-1]['peak_mb']:.0f} MB")
    growth_side, growth_images, wrapper = (
        (64, (400, 4000), (20, 64)) if options.quick else (256, (100, 1000), (120, 256))
    )
    growth = [
        {"images": n, "side": growth_side, **in_fresh_process("growth", str(n), str(growth_side))}
        for n in growth_images
    ]
    b8 = [
        {
            "metric": which,
            "images": wrapper[0],
            "side": wrapper[1],
            **in_fresh_process("b8", which, *map(str, wrapper)),
        }
        for which in ("naive", "default", "streaming")
    ]
    times = time_contenders(found, sizes)
    report: dict[str, Any] = {
        "environment": environment(missing),
        "b7_time": times,
        "b7_memory": memory,
        "b7_ratios": ratios(times, memory),
        "streaming_growth": growth,
        "b8": b8,
    }
    report["targets"] = [] if options.quick else targets(report)  # small maps prove nothing about them
    output = options.output or RESULTS
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n")
    output.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
