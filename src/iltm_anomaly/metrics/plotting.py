"""A plot of PRO against FPR."""

from typing import TYPE_CHECKING

import numpy as np

from .region_overlap import ProCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 2000  # more than a screen can show; a curve of millions of points would make a vector file of many MB


def plot_pro_curve(curve: ProCurve, ax: "Axes | None" = None, label: str | None = None) -> "Axes":
    """Draw PRO against FPR up to the limit, with the AUPRO in the legend.

    Args:
        curve: from `aupro(..., return_curve=True)` or `StreamingAUPRO.compute(return_curve=True)`.
        ax: matplotlib axes to draw on; a new figure without global state if None (save it with `ax.figure.savefig`).
        label: name in the legend.

    Returns:
        The axes.
    """
    if ax is None:
        from matplotlib.figure import Figure  # not pyplot: no global state, no display needed

        ax = Figure(figsize=(5, 4), layout="constrained").add_subplot()
    keep = slice(None)
    if curve.fpr.size > MAX_POINTS:
        # evenly spaced on both axes, because a good map has its steep part in a handful of points
        steps = np.concatenate([np.linspace(0, end, MAX_POINTS // 2) for end in (curve.limit, curve.pro[-1])])
        half = MAX_POINTS // 2
        picked = np.concatenate([np.searchsorted(curve.fpr, steps[:half]), np.searchsorted(curve.pro, steps[half:])])
        keep = np.unique(np.minimum(picked, curve.fpr.size - 1))
    text = f"AUPRO {curve.aupro:.4f}" if label is None else f"{label} (AUPRO {curve.aupro:.4f})"
    (line,) = ax.plot(curve.fpr[keep], curve.pro[keep], label=text)
    ax.fill_between(curve.fpr[keep], curve.pro[keep], alpha=0.15, color=line.get_color(), linewidth=0)
    ax.set(xlim=(0, curve.limit), ylim=(0, 1.01), xlabel="False positive rate", ylabel="Per-region overlap (PRO)")
    ax.legend(loc="lower right")
    return ax
