"""A plot of PRO against FPR."""

from typing import TYPE_CHECKING

from .region_overlap import ProCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    thin = curve.thin()  # a curve of millions of points would make a vector file of many MB
    text = f"AUPRO {curve.aupro:.4f}" if label is None else f"{label} (AUPRO {curve.aupro:.4f})"
    (line,) = ax.plot(thin.fpr, thin.pro, label=text)
    ax.fill_between(thin.fpr, thin.pro, alpha=0.15, color=line.get_color(), linewidth=0)
    ax.set(xlim=(0, curve.limit), ylim=(0, 1.01), xlabel="False positive rate", ylabel="Per-region overlap (PRO)")
    ax.legend(loc="lower right")
    return ax
