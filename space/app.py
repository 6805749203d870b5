"""Space: an image in; its score, overlay, healed image and token likelihoods out."""

import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
import matplotlib
import numpy as np
from PIL import Image

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.data.images import ImageReadError, read_image
from iltm_anomaly.drawing import overlay
from iltm_anomaly.settings import lowest_value

HERE = Path(__file__).parent
MODEL = os.environ.get("ILTM_MODEL", str(HERE / "model"))
EXAMPLES = sorted((HERE / "examples").glob("*.png"))
SIDE = 320  # of the shown pictures, at least
MOST_PIXELS = 50_000_000
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow refuses twice as many before it decodes them
MOST_BYTES = 50 * 2**20  # of an uploaded file
LONGEST_QUEUE = 16
TITLES = ("Input", "Abnormality", "Healed", "Code likelihoods")
LEGEND = """
Abnormality: from green to dark red, the image is ever less like what the model expects. Healed: what it expected there. Code
likelihoods: a square for each code of the image, the darker the less likely.
"""
logger = logging.getLogger(__name__)

Shown = tuple[str, Image.Image | None, Image.Image | None, Image.Image | None, Image.Image | None]


@cache
def load_model() -> ILTMAnomalyPipeline:
    """The model, once."""
    pipe = ILTMAnomalyPipeline.from_pretrained(MODEL)
    if pipe.image_processor.is_volumetric:
        raise ValueError(f"{MODEL} is a model of volumes, and this page shows images")
    return pipe


def likelihood_picture(log_likelihoods: np.ndarray) -> Image.Image:
    """A square for each code, the darker the less likely: (h, w), natural log."""
    lowest = min(float(log_likelihoods.min()), -1e-6)
    colours = matplotlib.colormaps["magma"](1 - log_likelihoods / lowest)[..., :3]
    squares = Image.fromarray((colours * 255).round().astype(np.uint8))
    return squares.resize((SIDE, SIDE), Image.Resampling.NEAREST)


def enlarge(image: Image.Image) -> Image.Image:
    """A small picture at a size that can be looked at."""
    factor = -(-SIDE // max(image.size))
    return (
        image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST) if factor > 1 else image
    )


def message(text: str) -> Shown:
    """A line in place of a result."""
    return f"### {text}", None, None, None, None


def detect(path: str | None, num_samples: int, progress: Any = gr.Progress()) -> Shown:  # noqa: B008 - Gradio reads it
    """What the page shows for a file; a file that cannot be used gives a line that says why."""
    if path is None:
        return message("Drop an image first.")
    progress(0.0, desc="reading the image")
    try:
        image = read_image(path)
    except ImageReadError as error:
        reason = str(error).replace(str(Path(path)), Path(path).name)  # its place on the server is nobody's business
        return message(f"This file cannot be used: {reason}")
    progress(0.1, desc="loading the model")
    try:
        pipe = load_model()
    except (OSError, ValueError) as error:
        logger.exception("cannot load %s", MODEL)
        return message(f"The model cannot be loaded: {error}. Set the variable ILTM_MODEL of this Space.")
    progress(0.3, desc="healing and scoring")
    out = pipe(image, num_samples=int(num_samples))
    score, values, threshold = float(out.scores[0]), out.anomaly_maps[0], pipe.settings.score_threshold
    verdict = f"### Score {score:.2f}"
    if threshold is not None:
        share = 100 * float(out.masks[0].mean())
        verdict += f", threshold {threshold:.2f}: {'abnormal' if out.masks[0].any() else 'normal'}"
        verdict += f" ({share:.1f} % of the pixels)"
    log_likelihoods = out.token_log_likelihoods[0].numpy()
    verdict += (
        f"\n\nLog-likelihood of the codes: {log_likelihoods.min():.1f} (black) to {log_likelihoods.max():.1f}; "
        f"{int(out.resampled_tokens[0].sum())} of {log_likelihoods.size} healed."
    )
    progress(1.0, desc="done")
    abnormality = overlay(
        image,
        values,
        float(values.max()) if threshold is None else threshold,
        lowest=lowest_value(pipe.settings),
    )
    pictures = map(enlarge, (image, abnormality, out.healed_images[0]))
    return verdict, *pictures, likelihood_picture(log_likelihoods)


def build() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="ILTM anomaly detection") as page:
        gr.Markdown(
            "# ILTM anomaly detection\nFinds what an image has that the images the model was trained on do not."
        )
        with gr.Row():
            with gr.Column(scale=1):
                file = gr.File(label="Image", file_count="single", type="filepath", elem_id="file")
                samples = gr.Slider(1, 50, value=20, step=1, label="Healed samples")
                button = gr.Button("Detect", variant="primary", elem_id="detect")
                examples = gr.Dataset(
                    components=[gr.Image(visible=False)],
                    samples=[[str(example)] for example in EXAMPLES],
                    type="index",
                    label="Examples",
                    elem_id="examples",
                    visible=bool(EXAMPLES),
                )
            with gr.Column(scale=3):
                verdict = gr.Markdown("### Drop an image.", elem_id="verdict")
                pictures = []
                with gr.Row():
                    for name in TITLES:
                        with gr.Column(min_width=160):
                            gr.Markdown(f"**{name}**")
                            picture = gr.Image(
                                type="pil",
                                format="png",
                                interactive=False,
                                show_label=False,
                                alt_text=name,
                                buttons=["fullscreen", "download"],
                                elem_id=f"picture{len(pictures)}",
                            )
                            pictures.append(picture)
                gr.Markdown(LEGEND)
        examples.click(lambda index: str(EXAMPLES[index]), examples, file)
        gr.on([button.click, file.change], detect, [file, samples], [verdict, *pictures])
    return page


def serve() -> None:
    """Shows the page. One image at a time is scored, so that memory is bounded; who finds the queue full comes again."""
    page = build()
    page.queue(max_size=LONGEST_QUEUE, default_concurrency_limit=1)
    page.launch(max_file_size=MOST_BYTES)


if __name__ == "__main__":
    serve()
