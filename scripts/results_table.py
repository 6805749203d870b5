"""Prints a file of results as a Markdown table: means over seeds, one row a round.

python scripts/results_table.py docs/results/bottle.jsonl
python scripts/results_table.py runs/bottle*/evaluation/results.json
python scripts/results_table.py docs/results/sts_pet.jsonl --each      # every round of every seed
python scripts/results_table.py docs/results/longer_training.jsonl     # cells of the benchmark: its whole report

Seeds that have ended after different numbers of rounds are averaged in their first and their last round alone.
"""

import argparse
from pathlib import Path
from typing import Any

from iltm_anomaly import headings
from iltm_anomaly.comparison.benchmark.report import markdown
from iltm_anomaly.comparison.benchmark.results import Results
from iltm_anomaly.comparison.benchmark.tables import markdown_table
from iltm_anomaly.hub.cards import load_results, read_documents, rounds_table


def first_and_last(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Documents of `iltm-anomaly evaluate` without the rounds between the first and the last."""
    numbers = sorted({document["results"][-1]["round"] for document in documents})
    last = {"round": f"last ({', '.join(map(str, numbers))})"}
    return [d | {"results": [d["results"][0], d["results"][-1] | last]} for d in documents]


def each_result(documents: list[dict[str, Any]]) -> str:
    """One row for every result, whatever method it is of."""
    rows = [result for d in documents for result in d.get("results") or [{"method": d["map"], **d["metrics"]}]]
    columns = headings.VOLUMES if any("lesions" in row for row in rows) else headings.IMAGES
    lines = []
    for row in rows:
        about = ["-" if row.get(key) is None else str(row[key]) for key in ("method", "seed", "round")]
        values = ["-" if row.get(key) is None else f"{100 * row[key]:.2f}" for key in columns]
        lines.append(about + values)
    return markdown_table(["method", "seed", "round", *columns.values()], lines)


def table(paths: list[Path], each: bool = False) -> str:
    """The table of the files' documents.

    Raises:
        ValueError: if they do not belong together.
    """
    documents = list(read_documents(paths).values())
    if "draws" in documents[0]:
        return "\n".join(map(markdown, Results.load(paths[0]))).rstrip()
    if each or any(result.get("method") != "iltm" for d in documents for result in d.get("results", [{}])):
        return each_result(documents)
    if len({len(document["results"]) for document in documents}) > 1:
        return rounds_table(first_and_last(documents))
    return rounds_table(load_results(paths))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--each", action="store_true", help="a row for every round of every seed, without means")
    arguments = parser.parse_args()
    print(table(arguments.files, arguments.each))
