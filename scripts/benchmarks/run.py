"""Benchmarks B1 to B6 and B9 beside performer-pytorch and MONAI: attention, training, generation, healing, long sequences, maps.

    python scripts/benchmarks/run.py                      # all of it, some ten CPU minutes, 8 GB of memory
    python scripts/benchmarks/run.py --only B1 B6         # some of it; the others keep their last results
    python scripts/benchmarks/run.py --quick              # small sizes, a few minutes, for a look; writes no results

Times are CPU seconds of one thread (`process_time`), contenders interleaved, minimum and median of the runs; ratios are
those of medians. Memory is the growth of the peak resident set in a fresh process per contender. A ratio counts only where
the outputs agree. Peers that are not installed are left out, and the result says so (`pip install --no-deps monai` beside
a CPU build of torch).
"""

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import harness  # before torch: it fixes the number of threads
import peers
from table import load, markdown

BENCHES = {
    "B1": "bench_attention",
    "B2": "bench_training",
    "B3": "bench_generation",
    "B4": "bench_healing",
    "B5": "bench_length",
    "B6": "bench_map",
    "B9": "bench_vqvae",
}
RESULTS = Path(__file__).parents[2] / "docs" / "results"


def run_bench(bench: str, quick: bool) -> dict[str, Any]:
    module = importlib.import_module(BENCHES[bench])
    rate = harness.matmul_rate()
    report = harness.Report(quick, rate, peers.missing())
    print(f"--- {bench}: {module.__doc__.splitlines()[0]} ({rate / 1e9:.0f} GFLOP/s)", flush=True)
    module.run(report)
    return {"title": module.__doc__.splitlines()[0], "environment": harness.environment(), **report.as_json()}


def main() -> None:
    """Runs the chosen benches; writes JSON and tables after each, so that an interrupted run keeps what it has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES), metavar="B", help="B1 to B6, B9")
    parser.add_argument("--quick", action="store_true", help="small sizes, few runs; prints and writes nothing")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "benchmarks.jsonl", help="a line a bench; the table is beside it"
    )
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        bench, contender, size = options.child
        print(json.dumps(harness.first_call(importlib.import_module(BENCHES[bench]).memory(contender, int(size)))))
        return
    results = load(options.output) if options.output.exists() and not options.quick else {}
    for bench in options.only:
        results[bench] = run_bench(bench, options.quick)
        if not options.quick:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps({"bench": name, **report}) + "\n" for name, report in sorted(results.items())]
            options.output.write_text("".join(lines))
            options.output.with_suffix(".md").write_text(markdown(results))
    print(markdown(results))


if __name__ == "__main__":
    main()
