"""Space for the AUPRO metric: upload anomaly maps and masks, get the value and the curve."""

from typing import Any

import numpy as np
from PIL import Image

from iltm_anomaly.metrics import aupro, plot_pro_curve

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")  # Pillow knows more, and starts Ghostscript for one


def read(path: str) -> np.ndarray:
    """Read a map: the array of an .npy file, else the grey values of an image."""
    return np.load(path) if path.endswith(".npy") else np.asarray(Image.open(path, formats=FORMATS).convert("F"))


def score(map_files: list[str], mask_files: list[str], limit: float = 0.3) -> tuple[str, Any]:
    """AUPRO of the maps (.npy or image) against the masks (.npy or image, non-zero is anomalous), in the order given.

    Returns:
        A line of text, and a matplotlib figure or None if the input is invalid.
    """
    try:
        curve = aupro(
            [read(path) for path in map_files or []],
            [read(path) > 0 for path in mask_files or []],
            limit=limit,
            return_curve=True,
        )
    except (ValueError, OSError) as error:
        return f"Error: {error}", None
    return f"AUPRO up to FPR {limit:g}: {curve.aupro:.6f}", plot_pro_curve(curve).figure


def build() -> Any:
    """The Gradio interface."""
    import gradio

    return gradio.Interface(
        fn=score,
        inputs=[
            gradio.File(file_count="multiple", type="filepath", label="Anomaly maps (.npy or image)"),
            gradio.File(file_count="multiple", type="filepath", label="Masks, in the same order (.npy or image)"),
            gradio.Slider(0.01, 1.0, value=0.3, label="Limit of the false positive rate"),
        ],
        outputs=[gradio.Text(label="Result"), gradio.Plot(label="PRO against FPR")],
        title="AUPRO",
        description="Exact area under the per-region-overlap curve, by the official definition of MVTec AD.",
    )


if __name__ == "__main__":
    build().launch()
