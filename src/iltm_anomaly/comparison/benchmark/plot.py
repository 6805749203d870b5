"""Metrics against contamination, a line per method: a row of panels for each category, and one for their mean."""

import io

from iltm_anomaly.comparison.baselines.methods import METHODS
from iltm_anomaly.comparison.benchmark.results import REFERENCE, Results
from iltm_anomaly.comparison.benchmark.tables import TITLES


def draw_plot(results: Results) -> bytes:
    """The plot of `Results.curve` as a PNG. The mean is over the categories of `Results.drop_range`, if there are several."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = results.categories()
    found = results.drop_range()
    common = found[2] if found else []
    names = [*([f"mean of {len(common)}"] if len(common) > 1 else []), *rows]
    figure = Figure(figsize=(11, 2.3 * len(names) + 0.6), dpi=110, layout="constrained")
    panels = figure.subplots(len(names), len(TITLES), squeeze=False, sharex=True)
    for axes_of_row, name in zip(panels, names, strict=True):
        categories = [name] if name in rows else common
        for axes, (metric, title) in zip(axes_of_row, TITLES.items(), strict=True):
            for number, method in enumerate(results.methods()):
                points = [(100 * level, 100 * value) for level, value in results.curve(method, metric, categories)]
                width = 2.5 if method == REFERENCE else 1.2
                axes.plot(
                    *zip(*points, strict=True) if points else ([], []),
                    marker="o",
                    markersize=3.5,
                    linewidth=width,
                    color=f"C{number}",
                    label=METHODS[method].title,
                )
            axes.set_title(f"{name}: {title}", fontsize=9)
            axes.grid(alpha=0.3)
            axes.set_xticks([100 * level for level in results.levels])
        axes_of_row[0].set_ylabel("per cent")
    for axes in panels[-1]:
        axes.set_xlabel("defective training images, per cent")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
