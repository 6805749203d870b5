"""Prints B1 to B6 and B9 as Markdown: `python scripts/benchmarks/table.py docs/results/benchmarks.jsonl`."""

import json
import sys
from pathlib import Path
from typing import Any


def load(path: Path) -> dict[str, Any]:
    """Reports by the name of their bench, one a line of a JSON Lines file."""
    return {report.pop("bench"): report for report in map(json.loads, path.read_text().splitlines())}


def _seconds(value: float) -> str:
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def _environment(bench: str, report: dict[str, Any]) -> str:
    about = report["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    load = f"load {about['load_average'][0]:.1f}"
    left_out = "".join(f" Left out: {name} ({reason})." for name, reason in report["missing"].items())
    return (
        f"{about['cpu']}, {about['threads']} thread of {about['cores']} cores, {load}; "
        f"matmul {report['rate'] / 1e9:.0f} GFLOP/s; Python {about['python']}, {versions}; "
        f"commit `{about['commit'][:10]}`.{left_out}"
    )


def _targets(results: dict[str, Any]) -> list[str]:
    lines = ["| bench | what | measured | target | |", "|---|---|---|---|---|"]
    for bench, report in sorted(results.items()):
        for row in report["targets"]:
            verdict = "met" if row["met"] else ("not met" if row["counts"] else "outputs differ")
            note = f": {row['note']}" if row["note"] else ""
            lines.append(f"| {bench} | {row['what']} | {row['value']:.3g} | {row['target']} | {verdict}{note} |")
    return lines


def _times(report: dict[str, Any]) -> list[str]:
    lines = [
        "| case | contender | median (min) | added peak | FLOP bound | share of matmul rate |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["times"]:
        peak = f"{row['peak_mb']:.1f} MB" if "peak_mb" in row else ""
        bound = f"{row['flop'] / 1e9:.3g} GFLOP, {_seconds(row['bound_s'])}" if "flop" in row else ""
        share = f"{row['share_of_rate']:.0%}" if "flop" in row else ""
        time = f"{_seconds(row['median_s'])} ({_seconds(row['min_s'])})"
        time += f", derived: {row['derived']}" if row["derived"] else ""
        lines.append(f"| {row['case']} | {row['contender']} | {time} | {peak} | {bound} | {share} |")
    return lines


def _profiles(report: dict[str, Any]) -> list[str]:
    lines = []
    for row in report.get("profiles", []):
        shares = ", ".join(f"{key.removeprefix('aten::')} {share:.0%}" for key, share in row["shares"].items())
        lines.append(f"- {row['case']}: {shares}")
    return ["", "Where our time goes (operators' own time under torch.profiler):", "", *lines] if lines else []


def _checks(report: dict[str, Any]) -> list[str]:
    lines = ["| case | compared | difference | tolerance |", "|---|---|---|---|"]
    for row in report["checks"]:
        wrong = "" if row["agrees"] else " **differs**"
        lines.append(f"| {row['case']} | {row['compared']} | {row['difference']:.1e}{wrong} | {row['tolerance']:g} |")
    return lines


def markdown(results: dict[str, Any]) -> str:
    lines = ["# Benchmarks B1 to B6 and B9", ""]
    lines += [
        "CPU seconds of one thread, contenders interleaved in one process, ratios of medians; memory is the growth of the",
        "peak resident set in a fresh process. The FLOP bound is the least a method needs (formulas in",
        "`scripts/benchmarks/flops.py`) at the matmul rate of this machine, measured in the same process. `make bench` makes",
        "such a page in runs/bench/. The machine was shared: times are good to some 30 %.",
        "",
    ]
    lines += _targets(results)
    for bench, report in sorted(results.items()):
        lines += ["", f"## {report['title']}", "", _environment(bench, report), "", *_times(report), ""]
        lines += ["Outputs compared:", "", *_checks(report), *_profiles(report), "", *report["notes"]]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(markdown(load(Path(sys.argv[1]))))
