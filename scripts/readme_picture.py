"""Draws the README's picture from a finished demo: one good part and one of each fault, with the pipeline's map and verdict.

    iltm-anomaly demo --output demo
    python scripts/readme_picture.py demo --output docs/demo.png

Rows are chosen by rule, not by looks: of each kind of test image the one with the median score (of an even number the lower of
the two in the middle).
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.data.images import read_image

matplotlib.use("agg")

from matplotlib import pyplot as plt
from matplotlib.colors import PowerNorm

# Inches, at 100 dots an inch: cells show the 96 pixels of a demo image at twice their size.
CELL = 2.02
LABELS = 1.75
TOP = 0.3
BAR = 0.62
OUTLINE = "#ff00ff"  # neither the part nor the colours of the map come near it
COLOURS = "inferno"


@dataclass
class Row:
    """One test image and what the pipeline has made of it; all pictures are of one size.

    Args:
        kind: folder of the test image, such as `good` or `no_label`.
        image, healed: (H, W, 3) uint8.
        truth: (H, W) bool.
        anomaly_map: (H, W) float32.
        score: of the image, the map's highest value.
        good_below: how many of the good test images have a lower score.
    """

    kind: str
    image: np.ndarray
    healed: np.ndarray
    truth: np.ndarray
    anomaly_map: np.ndarray
    score: float
    good_below: int


def median_rows(pipe: ILTMAnomalyPipeline, data: Path) -> tuple[list[Row], int]:
    """The median-scored image of each folder in `data/test`, good ones first; and how many good ones there are."""
    kinds = sorted(path.name for path in (data / "test").iterdir() if path.name != "good")
    rows: list[Row] = []
    good = np.empty(0)
    for kind in ["good", *kinds]:
        paths = sorted((data / "test" / kind).glob("*.png"))
        out = pipe([str(path) for path in paths])
        scores = out.scores.numpy()
        if kind == "good":
            good = scores
        chosen = int(np.argsort(scores, kind="stable")[(len(scores) - 1) // 2])
        image = np.asarray(read_image(paths[chosen]))
        mask = data / "ground_truth" / kind / f"{paths[chosen].stem}_mask.png"
        truth = np.asarray(read_image(mask).convert("L")) > 127 if mask.exists() else np.zeros(image.shape[:2], bool)
        rows.append(
            Row(
                kind=kind,
                image=image,
                healed=np.asarray(out.healed_images[chosen].convert("RGB")),
                truth=truth,
                anomaly_map=out.anomaly_maps[chosen],
                score=float(scores[chosen]),
                good_below=int((good < scores[chosen]).sum()),
            )
        )
    return rows, len(good)


def verdict(row: Row, threshold: float) -> tuple[str, str]:
    """What the pipeline calls the image, whether that is right, and a colour for it."""
    called = "abnormal" if row.score >= threshold else "normal"
    if bool(row.truth.any()) == (called == "abnormal"):
        return f"called {called}: right", "#107010"
    return f"called {called}: {'missed' if row.truth.any() else 'false alarm'}", "#b00020"


def draw(rows: list[Row], threshold: float, num_good: int, path: Path) -> None:
    """Writes the picture as a PNG."""
    columns = ["input", "its defect", "healed", "abnormality map"]
    width, height = LABELS + len(columns) * CELL + BAR, TOP + len(rows) * CELL
    figure = plt.figure(figsize=(width, height), dpi=100)
    norm = PowerNorm(0.5, vmin=0, vmax=max(2 * threshold, *(row.score for row in rows)))

    def cell(column: int, index: int):
        gap = (CELL - 1.92) / 2
        left, bottom = LABELS + column * CELL, height - TOP - (index + 1) * CELL
        sides = (left + gap) / width, (bottom + gap) / height, (CELL - 2 * gap) / width, (CELL - 2 * gap) / height
        axes = figure.add_axes(sides)
        axes.axis("off")
        return axes

    for column, name in enumerate(columns):
        figure.text((LABELS + (column + 0.5) * CELL) / width, 1 - 0.19 / height, name, ha="center", fontsize=9)
    for index, row in enumerate(rows):
        top = height - TOP - index * CELL
        name = row.kind.replace("_", " ")
        figure.text(0.06 / width, (top - 0.32) / height, name, fontsize=10, weight="bold")
        says, colour = verdict(row, threshold)
        figure.text(0.06 / width, (top - 0.52) / height, says, fontsize=8.5, color=colour)
        beside = f"score {row.score:.1f}" + (
            f"\nabove {row.good_below} of {num_good} good parts" if row.truth.any() else ""
        )
        figure.text(0.06 / width, (top - 0.6) / height, beside, fontsize=8, va="top", linespacing=1.5)
        for column, picture in enumerate((row.image, row.image, row.healed)):
            cell(column, index).imshow(picture, interpolation="nearest")
        axes = figure.axes[-2]
        shown = cell(3, index).imshow(row.anomaly_map, cmap=COLOURS, norm=norm, interpolation="bilinear")
        if row.truth.any():
            axes.contour(row.truth, [0.5], colors=OUTLINE, linewidths=1.6)
            figure.axes[-1].contour(row.truth, [0.5], colors=OUTLINE, linewidths=0.7)
    bar = figure.add_axes(((width - BAR + 0.06) / width, 0.06 / height, 0.12 / width, (height - TOP - 0.12) / height))
    ticks = [tick for tick in (0, 0.5, 1, 2, 4, 8, 16, 32) if tick <= norm.vmax and abs(tick - threshold) > 0.5]
    figure.colorbar(shown, cax=bar, ticks=ticks, format="%g").ax.tick_params(labelsize=7.5)
    bar.axhline(threshold, color="#00d0ff", linewidth=2)
    bar.text(
        1.35,
        threshold,
        f"{threshold:.1f}\nlimit",
        color="#0080b0",
        fontsize=7.5,
        va="center",
        transform=bar.get_yaxis_transform(),
    )
    figure.canvas.draw()
    pixels = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    plt.close(figure)
    # 256 colours: a third of the size. The strongest colours are few pixels, which MAXCOVERAGE keeps.
    pixels.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, metavar="DIR", help="folder that `iltm-anomaly demo` has written")
    parser.add_argument(
        "--output", type=Path, default=Path("docs/demo.png"), metavar="PNG", help="default: docs/demo.png"
    )
    arguments = parser.parse_args()
    pipe = ILTMAnomalyPipeline.from_pretrained(arguments.demo / "run" / "model")
    threshold = pipe.settings.score_threshold
    if threshold is None:
        parser.error(f"{arguments.demo} holds a pipeline without a threshold: was its training finished?")
    rows, num_good = median_rows(pipe, arguments.demo / "data" / "part")
    draw(rows, threshold, num_good, arguments.output)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
