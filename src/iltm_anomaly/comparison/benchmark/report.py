"""The report on cells: table.md, table.tex and plot.png. It is made of the JSON files alone."""

from pathlib import Path
from statistics import median
from typing import Any

from iltm_anomaly.comparison.baselines.methods import METHODS
from iltm_anomaly.comparison.benchmark.plot import draw_plot
from iltm_anomaly.comparison.benchmark.published import comparable
from iltm_anomaly.comparison.benchmark.results import FEATURES, REFERENCE, TRIVIAL, Estimate, Results
from iltm_anomaly.comparison.benchmark.statistics import DRAWS, LEVEL
from iltm_anomaly.comparison.benchmark.tables import (
    IMPOSSIBLE,
    NOTES,
    OTHER_SEEDS,
    TITLES,
    contaminated,
    has_other_seeds,
    latex,
    level_table,
    markdown_level,
    markdown_table,
    percent,
)
from iltm_anomaly.data.contamination import DISJOINT, PROTOCOLS
from iltm_anomaly.training.checkpoint import write_atomically

REFERENCE_NOTES = (
    f"Points that ILTM's last round is ahead, on the same test images; {LEVEL:.0%} percentile intervals of {DRAWS} bootstrap "
    "draws of the test images, which are the same for all seeds. They tell how far other test images would change the "
    "difference, not other trainings: for that compare the seeds. The mean is over the categories that all methods have. "
    "*paper*: the same difference of printed figures."
)
FEATURES_NOTES = "Points that its last round is ahead, with intervals as above."
TRIVIAL_NOTES = "Points ahead of a detector that learns nothing but the mean training image, with intervals as above."


def write_report(source: Path) -> list[Path]:
    """Writes the three files, and three of other names for the protocol "overlap" if it has cells; returns their paths.

    Args:
        source: a folder that holds cells/, into which the files go, or a JSON Lines file of cells; then they go into a folder
            beside it, named as the file without .jsonl.

    Raises:
        ValueError: if there is no finished cell, or cells do not belong together.
    """
    folder = source.with_suffix("") if source.is_file() else source
    files: dict[str, bytes] = {}
    for results in Results.load(source):
        end = "" if results.protocol == DISJOINT else f"_{results.protocol}"
        files |= {
            f"table{end}.md": markdown(results).encode(),
            f"table{end}.tex": latex(results).encode(),
            f"plot{end}.png": draw_plot(results),
        }
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in files]


def markdown(results: Results) -> str:
    """The whole report as Markdown: what table.md holds."""
    parts = ["# Benchmark", _conditions(results), NOTES, IMPOSSIBLE]
    for level in results.levels:
        text = markdown_level(level_table(results, level))
        parts += [f"## {contaminated(results, level)}", text]
        parts += [OTHER_SEEDS] if "‡" in text else []
    parts += ["## Mean over categories", markdown_means(results)]
    parts += ["## Training time", markdown_times(results)]
    parts += ["## Drop under contamination", markdown_drops(results)]
    for reference, title, notes in (
        (REFERENCE, "ILTM minus each method", REFERENCE_NOTES),
        *([(FEATURES, "ILTM on features minus each method", FEATURES_NOTES)] if FEATURES in results.methods() else []),
        (TRIVIAL, "Each method minus the mean image", TRIVIAL_NOTES),
    ):
        parts += [f"## {title}", notes]
        for level in results.levels:
            for metric in TITLES:
                table = markdown_differences(results, level, metric, reference)
                parts += [f"### {TITLES[metric]}, {percent(level)} contamination", table] if table else []
    for title, lines in (("Missing cells", results.missing()), ("Not comparable without reserve", results.problems)):
        parts += [f"## {title}", "\n".join(f"- {line}" for line in lines)] if lines else []
    return "\n\n".join(parts) + "\n"


def _conditions(results: Results) -> str:
    """A paragraph on the conditions that the cells were measured under."""
    documents = results.documents.values()
    presets = sorted({document["preset"] for document in documents})
    sides = sorted({document["settings"]["recipe"].get("image_size", 0) for document in documents} - {0})
    pixels = f", {'/'.join(f'{side} x {side}' for side in sides)} pixels" if sides else ""
    sizes = sorted({(d["settings"]["category"], d["training_images"]) for d in documents})
    per_category = {c: "/".join(str(n) for name, n in sizes if name == c) for c in results.categories()}
    hashes = (str(document.get("commit")).partition("+") for document in documents)
    commits = sorted({f"{commit[:7]}{plus}{changes}" for commit, plus, changes in hashes})
    devices = sorted({f"{d['hardware']['device']}, {d['hardware']['threads']} thread(s)" for d in documents})
    return (
        f"{len(results.documents)} cells. Preset {', '.join(presets)}{pixels}. Protocol {results.protocol}: "
        f"{PROTOCOLS[results.protocol]}. Training images: "
        + ", ".join(f"{category} {count}" for category, count in per_category.items())
        + f". Machine: {'; '.join(devices)}. Commits: {', '.join(commits)}. Methods had the same training and test images of "
        "each category, level and seed, at the same resolution."
    )


def markdown_means(results: Results) -> str:
    """A row per method: each metric at each level, mean over the categories that all methods have."""
    header = ["method", *(f"{title} at {percent(level)}" for level in results.levels for title in TITLES.values())]
    lines = []
    for method in results.methods():
        shown = []
        for level in results.levels:
            mark = "‡" if has_other_seeds(results, method, results.complete(level), level) else ""
            vectors = [results.mean(method, level, metric) for metric in TITLES]
            shown += ["-" if vector is None else f"{100 * vector[0]:.1f}{mark}" for vector in vectors]
        lines.append([METHODS[method].title, *shown])
    over = "; ".join(f"{percent(level)}: {', '.join(results.complete(level)) or 'none'}" for level in results.levels)
    text = markdown_table(header, lines) + f"\n\nCategories: {over}."
    return text + ("\n\n‡ of other seeds than ILTM's." if "‡" in text else "")


def markdown_times(results: Results) -> str:
    """A row per category and level: the time that the other methods were given, and the time that each method took."""
    methods = results.methods()
    lines = []
    for category in results.categories():
        for level in results.levels:
            cells = {
                method: [
                    document
                    for key, document in results.documents.items()
                    if key[:3] == (method, category, level) and document["training_seconds"] is not None
                ]
                for method in methods
            }
            limits = [
                budget["seconds"]
                for documents in cells.values()
                for budget in (document.get("budget", {}) for document in documents)
                if budget.get("planned_steps") and budget["seconds"] is not None
            ]
            if any(cells.values()):
                limit = f"{median(limits):.0f}" if limits else ""
                lines.append([category, percent(level), limit, *map(_effort, cells.values())])
    header = ["category", "contamination", "time limit", *(METHODS[method].title for method in methods)]
    return (
        "Seconds, medians over seeds; in brackets the steps taken of those of the recipe. The limit is that of the "
        "methods that are trained on their own.\n\n" + markdown_table(header, lines)
    )


def _effort(documents: list[dict[str, Any]]) -> str:
    if not documents:
        return "-"
    budgets = [document.get("budget", {}) for document in documents]
    shares = [budget["steps"] / budget["planned_steps"] for budget in budgets if budget.get("planned_steps")]
    seconds = f"{median(document['training_seconds'] for document in documents):.0f}"
    return seconds + (f" ({median(shares):.0%})" if shares else "")


def markdown_drops(results: Results) -> str:
    """A row per method: what it loses from contamination 0 to the highest common level."""
    found = results.drop_range()
    if found is None:
        return "Needs the same categories at 0 and at a level above it."
    level, methods, categories = found
    header = ["method", *TITLES.values(), *(f"{title}, minus ILTM's drop" for title in TITLES.values())]
    lines = []
    for method in methods:
        drops = [_interval(results.drop(method, metric)) for metric in TITLES]
        relative = [
            "" if method == REFERENCE else _interval(results.drop(method, metric, REFERENCE)) for metric in TITLES
        ]
        mark = "§" if results.differs_between(method, categories, (0.0, level)) else ""
        lines.append([METHODS[method].title + mark, *drops, *relative])
    text = (
        f"Points lost from 0 to {percent(level)} (negative: gained), mean over {', '.join(categories)}; "
        f"{LEVEL:.0%} intervals.\n\n" + markdown_table(header, lines)
    )
    return text + ("\n\n§ of other settings at one of the two levels: no drop of one detector." if "§" in text else "")


def markdown_differences(results: Results, level: float, metric: str, reference: str = REFERENCE) -> str | None:
    """Differences of each method to `reference`: a row per category and seed, one for the mean over seeds, one for the printed
    figures, and one for the mean over categories. None if there is nothing to compare.

    Args:
        reference: ILTM, of either kind, from which the others are subtracted, or the mean image, which is subtracted from the
            others.
    """
    methods = [method for method in results.methods(level) if method != reference]
    if not methods or reference not in results.methods(level):
        return None
    pairs = [(method, reference) if reference == TRIVIAL else (reference, method) for method in methods]
    lines = []
    for category in results.categories(level):
        seeds = results.seeds(reference, category, level)
        for seed in seeds:
            row = [_interval(results.difference(*pair, category, level, metric, seed)) for pair in pairs]
            lines.append([category, f"seed {seed}", *row])
        if len(seeds) > 1:
            row = [_interval(results.difference(*pair, category, level, metric)) for pair in pairs]
            lines.append([category, "mean over seeds", *row])
        gaps = [_printed_gap(*pair, category, metric) for pair in pairs]
        if any(gap is not None for gap in gaps):
            lines.append([f"*{category}*", "*paper*", *("" if gap is None else f"*{gap:+.1f}*" for gap in gaps)])
    if len(results.complete(level)) > 1:
        row = [_interval(results.mean_difference(*pair, level, metric)) for pair in pairs]
        lines.append([f"mean of {len(results.complete(level))}", "", *row])
    return markdown_table(["category", "", *(METHODS[method].title for method in methods)], lines)


def _printed_gap(first: str, second: str, category: str, metric: str) -> float | None:
    """One method minus another in the paper's table; None if either figure is absent or impossible."""
    ours, theirs = (comparable(METHODS[name].paper, category, metric) for name in (first, second))
    return None if ours is None or theirs is None else ours - theirs


def _interval(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:+.1f} [{estimate.low:+.1f}, {estimate.high:+.1f}]"
