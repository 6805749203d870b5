"""What the benchmarks of B1 to B6 share: interleaved CPU times, added peak memory, output checks, targets.

Import this module before torch: it fixes the number of threads.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402

torch.set_num_threads(1)

OURS, PERFORMER, MONAI, SDPA = "ours", "performer-pytorch", "MONAI", "torch SDPA"
Timing = dict[str, Any]


def timed(function: Callable[[], Any]) -> float:
    """CPU seconds of one call, all threads of the process."""
    start = time.process_time()
    function()
    return time.process_time() - start


def summary(seconds: list[float]) -> Timing:
    return {"min_s": min(seconds), "median_s": statistics.median(seconds), "runs": len(seconds)}


def interleaved(contenders: dict[str, Callable[[], Any]], runs: int, warm_up: bool = True) -> dict[str, Timing]:
    """Times all contenders in turn, A B A B: what slows the machine down for a while slows all of them."""
    if warm_up:
        for function in contenders.values():
            function()
    seconds: dict[str, list[float]] = {label: [] for label in contenders}
    for _ in range(runs):
        for label, function in contenders.items():
            seconds[label].append(timed(function))
    return {label: summary(values) for label, values in seconds.items()}


def matmul_rate(runs: int = 5) -> float:
    """FLOP/s of the best float32 square matmul, 1024 and 2048 wide, one thread: what every share below refers to."""
    best = 0.0
    for width in (1024, 2048):
        a, b, out = torch.rand(width, width), torch.rand(width, width), torch.empty(width, width)
        torch.mm(a, b, out=out)
        seconds = min(timed(lambda a=a, b=b, out=out: torch.mm(a, b, out=out)) for _ in range(runs))
        best = max(best, 2 * width**3 / seconds)
    return best


def first_call(function: Callable[[], Any]) -> dict[str, float]:
    """MB by which the peak resident set during the call exceeds the resident set before it (Linux), and CPU seconds of the call,
    those included that the system takes to hand out memory which the process does not have yet."""

    def status(key: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
        return int(line.split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # resets the peak: imports and set-up have one of their own
    before = status("VmRSS")
    seconds = timed(function)
    return {"peak_mb": (status("VmHWM") - before) / 1024, "first_s": seconds}


def in_fresh_process(bench: str, contender: str, size: int) -> dict[str, float]:
    """`first_call` of `<bench module>.memory(contender, size)` in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("run.py")), "--child", bench, contender, str(size)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def peak_in_fresh_process(bench: str, contender: str, size: int) -> float:
    return in_fresh_process(bench, contender, size)["peak_mb"]


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest absolute difference over the largest magnitude of the reference."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@dataclass
class Report:
    """Results of one bench.

    Args:
        quick: smaller sizes and fewer runs, for a look; its figures are no results.
        rate: measured matmul FLOP/s of this machine, one thread.
        missing: contenders that are not installed, and why.
        profiles: where our time goes, a row per case.
        times: a row per case and contender.
        checks: outputs that were compared, a row each.
        targets: what was to be shown, a row each.
        notes: what the numbers do not say, in sentences.
    """

    quick: bool
    rate: float
    missing: dict[str, str]
    times: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    targets: list[dict[str, Any]] = field(default_factory=list)
    profiles: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_times(
        self, case: str, timings: dict[str, Timing], flop: dict[str, float] | None = None, derived: str = ""
    ) -> None:
        """`flop`: the least a contender's method needs; `derived`: how a time came about that was not measured."""
        for contender, timing in timings.items():
            row = {"case": case, "contender": contender, **timing, "derived": derived if contender != OURS else ""}
            needed = (flop or {}).get(contender)
            if needed:
                row |= {"flop": needed, "bound_s": needed / self.rate}
                row["share_of_rate"] = row["bound_s"] / timing["min_s"]
            self.times.append(row)
            print(f"{case}: {contender} {timing['min_s']:.4g} s (median {timing['median_s']:.4g})", flush=True)

    def add_peak(self, case: str, contender: str, peak_mb: float) -> None:
        row = next(row for row in self.times if row["case"] == case and row["contender"] == contender)
        row["peak_mb"] = peak_mb
        print(f"{case}: {contender} {peak_mb:.1f} MB", flush=True)

    def profile(self, case: str, function: Callable[[], Any], count: int = 8) -> None:
        """Records the operators in which a call of ours spends its time, as shares of what all of them take by themselves."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
            function()
        seconds = {event.key: event.self_cpu_time_total for event in trace.key_averages()}
        largest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:count]
        self.profiles.append({"case": case, "shares": {key: seconds[key] / sum(seconds.values()) for key in largest}})

    def check(self, case: str, compared: str, value: float, tolerance: float) -> bool:
        """Records how far two outputs are apart; a ratio counts only if this returns True."""
        agrees = value <= tolerance
        self.checks.append(
            {"case": case, "compared": compared, "difference": value, "tolerance": tolerance, "agrees": agrees}
        )
        print(f"{case}: {compared}: {value:.2g} (tolerance {tolerance:g})", flush=True)
        return agrees

    def target(
        self, what: str, value: float, limit: float, counts: bool = True, at_least: bool = True, note: str = ""
    ) -> None:
        """`counts`: whether the outputs agreed; without that no ratio is met."""
        met = counts and (value >= limit if at_least else value <= limit)
        what = f"(quick) {what}" if self.quick else what
        sign = ">=" if at_least else "<="
        self.targets.append(
            {"what": what, "value": value, "target": f"{sign} {limit:g}", "counts": counts, "met": met, "note": note}
        )
        print(f"TARGET {what}: {value:.3g} ({sign} {limit:g}) {'met' if met else 'not met'}", flush=True)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def ratio(timings: dict[str, Timing], peer: str) -> float:
    """Median over median."""
    return timings[peer]["median_s"] / timings[OURS]["median_s"]


def environment() -> dict[str, Any]:
    """Versions, processor and commit."""
    versions = {}
    for package in ("torch", "performer-pytorch", "monai", "vector-quantize-pytorch", "scipy", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "python": platform.python_version(),
        "versions": versions,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "commit": commit,
        "command": " ".join(["python scripts/benchmarks/run.py", *sys.argv[1:]]),
    }
