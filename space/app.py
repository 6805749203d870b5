"""Space, or a page on your own machine: an image in; how abnormal it is, where, and what the model expected in its place.

python space/app.py [MODEL]  # a run folder, pipeline folder or Hub id; without it $ILTM_MODEL, or the model beside this file
"""

import logging
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from iltm_anomaly import ILTMAnomalyPipeline
from iltm_anomaly.data.images import ImageReadError, read_image
from iltm_anomaly.drawing import edge, largest
from iltm_anomaly.hub.folders import local_folder
from iltm_anomaly.settings import lowest_value
from iltm_anomaly.thresholds import TrainingScores, abnormal_pixels

try:
    import gradio as gr
except ImportError:
    sys.exit(
        "this page needs gradio: run `make page`, which gives it an environment, or pip install 'iltm-anomaly[space]'"
    )

HERE = Path(__file__).parent
OWN_MODEL = HERE / "model"
MODEL = os.environ.get("ILTM_MODEL", str(OWN_MODEL))
EXAMPLES = sorted((HERE / "examples").glob("*.png"))
SHOWN = (448, 1024)  # pixels along the longer side of what is shown, at least and at most
MOST_PIXELS = 50_000_000
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow refuses twice as many before it decodes them
MOST_BYTES = 50 * 2**20  # of an uploaded file
LONGEST_QUEUE = 16
KEPT_SECONDS = 3000  # that an image is kept; every ten minutes what is older is removed
COLOURS = matplotlib.colormaps["turbo"]
MAP, EXPECTED = "where it is abnormal", "what the model expected"
INTRODUCTION = """# What is wrong with this image?
Drop an image: the page says whether it differs from the images that the model was trained on, and where.
"""
LIMITS = """
**When not to use it.** The model knows one kind of object, seen in one way: anything else is abnormal to it. It overlooks
what is smaller than one of its tokens, and what looks right but is in a wrong place. A score is no probability. Let a person
decide where a missed defect or a false alarm does harm; it is no medical device.

Images are scored on this server and sent nowhere else; within an hour they are removed.
"""
# Gradio has no words for its pictures: of the examples they are the names of the files, of the result the verdict.
NAME_PICTURES = """() => {
    const name = () => {
        for (const image of document.querySelectorAll('#examples img'))
            image.alt ||= image.src.split('/').pop().replace('.png', '').replaceAll('_', ' ');
        const words = ['The image as it was given', document.querySelector('#verdict').innerText];
        document.querySelectorAll('#pictures img').forEach((image, index) => image.alt = words[index]);
    };
    new MutationObserver(name).observe(document.body, {childList: true, characterData: true, subtree: true});
    name();
}"""
STYLE = """
#card .prose { overflow-wrap: anywhere }
#bar { padding: 0 2px; font-size: 0.9em }
#bar p { display: flex; justify-content: space-between; margin: 0 }
#bar span { position: relative; left: var(--at); display: inline-block; transform: translateX(calc(-1 * var(--at))) }
#bar .scale { height: 1.1em; border-radius: 4px; position: relative }
#bar .scale i { position: absolute; left: var(--at); width: 3px; margin-left: -1px; height: 0.8em; background: currentColor }
#bar .scale i:first-child { top: -0.4em }
#bar .scale i:last-child { bottom: -0.4em }
"""
logger = logging.getLogger(__name__)

Shown = tuple[str, str, Any]  # the verdict and the colour bar, as Markdown and HTML, and both pictures


@dataclass(frozen=True)
class Found:
    """What is kept of a scored image, so that another threshold costs no scoring.

    Args:
        image, expected: as they are shown, RGB.
        values: (H, W), the map of the image as it is shown.
        score: of the image.
    """

    image: Image.Image
    expected: Image.Image
    values: np.ndarray
    score: float


class Page:
    """
    Args:
        model: run folder, pipeline folder or Hub id.

    Raises:
        ValueError: if it is none of these, is of volumes, or has no threshold.
        OSError: if it cannot be read, or the Hub not be reached.
    """

    def __init__(self, model: str):
        folder = local_folder(model)
        self.pipe = ILTMAnomalyPipeline.from_pretrained(folder)
        threshold = self.pipe.settings.score_threshold
        if self.pipe.image_processor.is_volumetric:
            raise ValueError(f"{model} is a model of volumes, and this page shows images")
        if threshold is None:
            raise ValueError(f"{model} has no threshold: continue its training with `iltm-anomaly train ... --resume`")
        self.threshold = float(threshold)
        self.lowest = lowest_value(self.pipe.settings)
        width = 2 * max(self.threshold - self.lowest, 1e-3)
        self.digits = max(0, 3 - math.floor(math.log10(width)))  # that are shown of a score
        self.highest = round(self.lowest + width, self.digits)
        self.known = TrainingScores.of_report(self.pipe.training_report)
        self.card = card_text(folder / "README.md")
        self.examples = EXAMPLES if folder.resolve() == OWN_MODEL.resolve() else []

    def detect(self, path: str | None, threshold: float, seen: str) -> tuple[Found | None, *Shown]:
        """Scores a file; one that cannot be used gives a line that says why."""
        if path is None:
            return None, *message("Drop an image, or take an example.")
        try:
            image = read_image(path)
        except ImageReadError as error:
            reason = str(error).replace(str(Path(path)), Path(path).name)  # where it lies here is nobody's business
            return None, *message(f"This file cannot be used: {reason}")
        try:
            out = self.pipe(image)
        except ValueError as error:  # sizes that the model cannot take, and scores that are not finite
            return None, *message(f"This image cannot be scored: {error}")
        least, most = SHOWN
        step = -(-max(image.size) // most)
        factor = max(1, -(-least // max(image.size)))
        pictures = [one.convert("RGB").reduce(step) for one in (image, out.healed_images[0])]
        size = (pictures[0].width * factor, pictures[0].height * factor)
        found = Found(
            *(picture.resize(size, Image.Resampling.BICUBIC) for picture in pictures),
            largest(out.anomaly_maps[0], step).repeat(factor, 0).repeat(factor, 1),
            float(out.scores[0]),
        )
        return found, *self.show(found, threshold, seen)

    def show(self, found: Found | None, threshold: float, seen: str) -> Shown:
        """The verdict and the pictures at a threshold."""
        if found is None:
            return message("Drop an image, or take an example.")
        mask = abnormal_pixels(found.values, found.score, threshold)
        words = self.verdict(found, threshold, mask)
        drawn = np.array(found.expected if seen == EXPECTED else self.coloured(found))
        for _ in range(2):  # pixels wide
            rim = edge(mask)
            drawn[rim] = 255, 0, 255
            mask = mask & ~rim
        return words, self.bar(found, threshold), (found.image, Image.fromarray(drawn))

    def coloured(self, found: Found) -> Image.Image:
        """The image under its map: every value has its colour, the lowest ones too."""
        share = self.share(found.values)
        colour, opacity = COLOURS(share)[..., :3], 0.45 + 0.3 * share[..., None]
        grey = np.asarray(found.image.convert("L"), dtype=np.float32)[..., None] / 255
        return Image.fromarray((255 * ((1 - opacity) * grey + opacity * colour)).round().astype(np.uint8))

    def share(self, values: Any) -> Any:
        """Where values lie on the scale of colours, in [0, 1]."""
        return np.clip((values - self.lowest) / (self.highest - self.lowest), 0, 1)

    def verdict(self, found: Found, threshold: float, mask: np.ndarray) -> str:
        """In plain words; they also stand for the pictures where these are not seen."""
        score, limit = (f"{value:.{self.digits}f}" for value in (found.score, threshold))
        lines = [f"### {'Abnormal' if found.score >= threshold else 'Normal'}: score {score}, threshold {limit}"]
        if self.known is not None:
            lower, count = float((self.known.good < found.score).mean()), len(self.known.good)
            part = "All" if lower == 1 else "None" if lower == 0 else f"{max(1, int(100 * lower))}\u00a0%"
            lines.append(f"{part} of the {count} training images that look good score lower than this.")
            alarms = 100 * self.known.false_alarms(threshold)
            expected = "fewer than 0.1\u00a0%" if alarms < 0.1 else f"about {alarms:.1f}\u00a0%"
            lines.append(f"At this threshold {expected} of good images are to be expected to be called abnormal.")
        outlined = f"{100 * mask.mean():.1f}\u00a0% of the image" if mask.any() else "nothing"
        lines.append(f"Its map is highest {place_of_highest(found.values)}; the outline holds {outlined}.")
        return "\n\n".join((lines[0], " ".join(lines[1:])))

    def bar(self, found: Found, threshold: float) -> str:
        """The colours with what they mean, and where score and threshold lie."""
        stops = ", ".join(matplotlib.colors.to_hex(COLOURS(value)) for value in np.linspace(0, 1, 17))
        score, limit = (f'style="--at: {100 * float(self.share(value)):.1f}%"' for value in (found.score, threshold))
        return (
            f"<div {score}><span>score {found.score:.{self.digits}f}</span></div>"
            f'<div class="scale" style="background: linear-gradient(to right, {stops})"><i {score}></i><i {limit}></i></div>'
            f"<div {limit}><span>threshold {threshold:.{self.digits}f}</span></div>"
            f"<p><b>{self.lowest:g}: as expected</b><b>{self.highest:g} and above</b></p>"
        )

    def build(self) -> gr.Blocks:
        """The page."""
        with gr.Blocks(
            title="ILTM anomaly detection", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)
        ) as page:
            gr.Markdown(INTRODUCTION)
            found = gr.State(time_to_live=KEPT_SECONDS)
            with gr.Row():
                with gr.Column(scale=1, min_width=280):
                    file = gr.File(label="Image", file_count="single", type="filepath", elem_id="file", height=140)
                    examples = gr.Dataset(
                        components=[gr.Image(visible=False)],
                        samples=[[str(example)] for example in self.examples],
                        type="index",
                        label="Examples",
                        elem_id="examples",
                        visible=bool(self.examples),
                    )
                    threshold = gr.Slider(
                        self.lowest,
                        self.highest,
                        value=round(self.threshold, self.digits),
                        step=10**-self.digits,
                        label="Threshold: abnormal from here on",
                        elem_id="threshold",
                    )
                    seen = gr.Radio([MAP, EXPECTED], value=MAP, label="On the right, show", elem_id="seen")
                with gr.Column(scale=2, min_width=320):
                    verdict = gr.Markdown(message("Drop an image, or take an example.")[0], elem_id="verdict")
                    pictures = gr.ImageSlider(
                        type="pil",
                        format="png",
                        interactive=False,
                        show_label=False,
                        slider_position=10,
                        elem_id="pictures",
                        buttons=["fullscreen", "download"],
                    )
                    bar = gr.HTML(elem_id="bar")
                    gr.Markdown(LIMITS)
            if self.card:
                with gr.Accordion("The model and its limits", open=False, elem_id="card"):
                    gr.Markdown(self.card)
            shown = [verdict, bar, pictures]
            examples.click(lambda index: str(self.examples[index]), examples, file)
            file.change(self.detect, [file, threshold, seen], [found, *shown])
            gr.on(
                [threshold.input, seen.input],
                self.show,
                [found, threshold, seen],
                shown,
                show_progress="hidden",
                trigger_mode="always_last",
            )
            page.load(None, js=NAME_PICTURES)
        return page


def message(text: str) -> Shown:
    """A line in place of a result."""
    return f"### {text}", "", None


def place_of_highest(values: np.ndarray) -> str:
    """Where a map (H, W) is highest, in words."""
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    rows, columns = ("upper", "", "lower"), ("left", "", "right")
    words = rows[3 * int(row) // values.shape[0]], columns[3 * int(column) // values.shape[1]]
    return (
        "in the middle"
        if not any(words)
        else f"at the {' '.join(filter(None, words))} {'edge' if '' in words else 'corner'}"
    )


def card_text(path: Path) -> str:
    """The model card without what is for machines, and without its picture; "" if there is none."""
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    text = text.split("---\n", 2)[-1] if text.startswith("---\n") else text
    return "\n".join(line for line in text.splitlines() if not line.startswith(("<!--", "![")))


def build(model: str) -> gr.Blocks:
    """The page of a model; of one that cannot be loaded, a page that says so."""
    try:
        return Page(model).build()
    except (OSError, ValueError) as error:
        logger.exception("cannot load %s", model)
        with gr.Blocks(title="ILTM anomaly detection", analytics_enabled=False) as page:
            advice = "Set the variable ILTM_MODEL of this Space, or name another model: `python space/app.py MODEL`."
            gr.Markdown(f"### The model cannot be loaded\n{error}\n\n{advice}", elem_id="verdict")
        return page


def serve(model: str) -> None:
    """Shows the page. One image at a time is scored, so that memory is bounded; who finds the queue full comes again."""
    page = build(model)
    page.queue(max_size=LONGEST_QUEUE, default_concurrency_limit=1)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # of the visitor's machine
    page.launch(max_file_size=MOST_BYTES, run_history=False, theme=gr.themes.Default(**fonts), css=STYLE)


if __name__ == "__main__":
    serve(sys.argv[1] if len(sys.argv) > 1 else MODEL)
