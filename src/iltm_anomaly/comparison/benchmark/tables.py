"""The paper's Table 2 with our figures beside the printed ones, as Markdown and LaTeX."""

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from iltm_anomaly import headings
from iltm_anomaly.comparison.baselines.methods import METHODS
from iltm_anomaly.comparison.benchmark.published import comparable, is_impossible, load_published, published
from iltm_anomaly.comparison.benchmark.results import REFERENCE, Results
from iltm_anomaly.data.contamination import OVERLAP

# The paper calls pixel AUROC AUROC.
TITLES = {metric: headings.IMAGES[metric] for metric in headings.METRICS} | {"pixel_auroc": "AUROC"}
PER_IMAGE = {"pixel_auroc": "per_image_auroc", "aupro": "per_image_aupro"}
NOTES = (
    "Per cent. AUROC is of pixels. Our figures are pooled over all test pixels of a category, mean over seeds; in brackets mean "
    "and standard deviation over its defective test images, each measured alone. The paper does not say which of the two its "
    "own figures (in italics) are, nor at what contamination, over what the deviation is, or which map its VQ-VAE + Transformer "
    "used; its deviations look like those over images. The best of ours in a row is bold."
)
IMPOSSIBLE = "† no values between 0 and 100 have this mean and deviation: a misprint, never compared against."
OTHER_SEEDS = "‡ of other seeds than the row says."


@dataclass(frozen=True)
class Entry:
    """One cell of the table, in per cent.

    Args:
        pooled: our figure over all test pixels, or images.
        per_image: our mean and standard deviation over defective images, each measured alone.
        printed: the paper's mean and standard deviation.
        best: whether `pooled` is the best of its row.
        other_seeds: whether it is of other seeds than the row says.
    """

    pooled: float | None = None
    per_image: tuple[float, float] | None = None
    printed: tuple[float, float] | None = None
    best: bool = False
    other_seeds: bool = False


@dataclass(frozen=True)
class LevelTable:
    """The table at one contamination; a row is (category, metric, an entry per method)."""

    methods: list[str]
    in_paper: list[bool]
    rows: list[tuple[str, str, list[Entry]]]


def level_table(results: Results, level: float) -> LevelTable:
    """Lays out the cells of one level."""
    methods, rows = results.methods(level), []
    for category in results.categories(level):
        seeds = _seeds_of_row(results, category, level)
        label = f"{category} (seed{'s' if seeds[1:] else ''} {', '.join(map(str, seeds))})"
        for metric in TITLES:
            entries = [_entry(results, method, category, level, metric) for method in methods]
            rows.append((label, metric, _mark_best(entries)))
    complete = results.complete(level)
    if len(complete) > 1:
        for metric in TITLES:
            entries = [_mean_entry(results, method, complete, level, metric) for method in methods]
            rows.append((f"mean of {len(complete)}: {', '.join(complete)}", metric, _mark_best(entries)))
    in_paper = [any(row[2][column].printed for row in rows) for column in range(len(methods))]
    return LevelTable(methods, in_paper, rows)


def _entry(results: Results, method: str, category: str, level: float, metric: str) -> Entry:
    vector, per_image = results.vector(method, category, level, metric), None
    if metric in PER_IMAGE:
        found: list[Any] = [
            results.field(method, category, level, f"{PER_IMAGE[metric]}_{name}") for name in ("mean", "std")
        ]
        per_image = None if None in found else (100 * found[0], 100 * found[1])
    return Entry(
        None if vector is None else 100 * float(vector[0]),
        per_image,
        published(METHODS[method].paper, category, metric),
        other_seeds=has_other_seeds(results, method, [category], level),
    )


def _mean_entry(results: Results, method: str, categories: list[str], level: float, metric: str) -> Entry:
    vector = results.mean(method, level, metric)
    printed: list[Any] = [comparable(METHODS[method].paper, category, metric) for category in categories]
    return Entry(
        None if vector is None else 100 * float(vector[0]),
        None,
        None if None in printed else (float(np.mean(printed)), np.nan),
        other_seeds=has_other_seeds(results, method, categories, level),
    )


def _seeds_of_row(results: Results, category: str, level: float) -> list[int]:
    """The seeds of ILTM, or of the first method if ILTM has no cell."""
    found = (results.seeds(method, category, level) for method in (REFERENCE, *results.methods(level)))
    return next(seeds for seeds in found if seeds)


def has_other_seeds(results: Results, method: str, categories: list[str], level: float) -> bool:
    """Whether, in one of `categories`, a method's cells are of other seeds than ILTM's."""
    return any(results.seeds(method, c, level) != _seeds_of_row(results, c, level) for c in categories)


def _mark_best(entries: list[Entry]) -> list[Entry]:
    shown = [None if entry.pooled is None else round(entry.pooled, 1) for entry in entries]
    best = max((value for value in shown if value is not None), default=None)
    return [replace(e, best=value is not None and value == best) for e, value in zip(entries, shown, strict=True)]


# Markdown


def markdown_level(table: LevelTable) -> str:
    """The table at one level."""
    header = ["category", "metric"]
    for method, printed in zip(table.methods, table.in_paper, strict=True):
        header += [METHODS[method].title, "*paper*"] if printed else [METHODS[method].title]
    return markdown_table(header, _lines(table))


def markdown_table(header: list[str], lines: list[list[str]]) -> str:
    """A table of any content."""
    rule = ["---"] * len(header)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines])


def _lines(table: LevelTable) -> list[list[str]]:
    """The rows as text. The name of a category stands in its first row alone, as in the paper."""
    lines, above = [], None
    for label, metric, entries in table.rows:
        cells = ["" if label == above else label, TITLES[metric]]
        for entry, printed in zip(entries, table.in_paper, strict=True):
            cells += [_ours(entry), _theirs(entry)] if printed else [_ours(entry)]
        lines.append(cells)
        above = label
    return lines


def _ours(entry: Entry) -> str:
    if entry.pooled is None:
        return "-"
    text = f"**{entry.pooled:.1f}**" if entry.best else f"{entry.pooled:.1f}"
    text += "‡" if entry.other_seeds else ""
    return text if entry.per_image is None else text + " ({:.1f} ± {:.1f})".format(*entry.per_image)


def _theirs(entry: Entry) -> str:
    if entry.printed is None:
        return ""
    mean, deviation = entry.printed
    if np.isnan(deviation):
        return f"*{mean:.1f}*"
    return f"*{mean:.1f} ± {deviation:.1f}*" + (" †" if is_impossible(mean, deviation) else "")


# LaTeX


def latex(results: Results) -> str:
    """A table per level, for `\\input` into a document that loads booktabs and graphicx."""
    parts = ["% needs \\usepackage{booktabs,graphicx}"]
    for level in results.levels:
        body = latex_level(level_table(results, level))
        caption = f"{contaminated(results, level)}. {NOTES} Printed figures: {load_published()['source']}. "
        caption += f"{IMPOSSIBLE} {OTHER_SEEDS}" if "\\ddag" in body else IMPOSSIBLE
        parts.append(
            f"\\begin{{table}}\n\\centering\n\\caption{{{_to_latex(caption)}}}\n"
            f"\\resizebox{{\\textwidth}}{{!}}{{%\n{body}}}\n\\end{{table}}"
        )
    return "\n\n".join(parts) + "\n"


def latex_level(table: LevelTable) -> str:
    """The tabular at one level."""
    header, second = ["Category", ""], ["", ""]
    for method, printed in zip(table.methods, table.in_paper, strict=True):
        title = _to_latex(METHODS[method].title)
        header.append(f"\\multicolumn{{2}}{{c}}{{{title}}}" if printed else title)
        second += ["ours", "paper"] if printed else ["ours"]
    lines = ["\\begin{tabular}{ll" + "c" * (len(second) - 2) + "}", "\\toprule", " & ".join(header) + " \\\\"]
    lines += [" & ".join(second) + " \\\\"]
    for cells in _lines(table):
        lines += ["\\midrule"] if cells[0] else []
        lines.append(" & ".join(map(_to_latex, cells)) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _to_latex(text: str) -> str:
    """A text of the Markdown tables, or any other, for LaTeX."""
    text = re.sub(r"([%_&])", r"\\\1", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)
    text = re.sub(r"\*(.+?)\*", r"\\textit{\1}", text)
    return text.replace("†", "$^\\dag$").replace("‡", "$^\\ddag$").replace("±", "$\\pm$")


def contaminated(results: Results, level: float) -> str:
    """What the training images of a level were, in words."""
    text = f"{percent(level)} of the training images defective"
    return text + (", copies of test images" if results.protocol == OVERLAP and level > 0 else "")


def percent(level: float) -> str:
    """A share in per cent, as text."""
    return f"{100 * level:g} %"
