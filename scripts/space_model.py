"""Trains the model of the Space and draws its examples, all on generated images: `space/model` and `space/examples`.

python scripts/space_model.py

Half the demo's image size and half its codes, and weights in float16, make a folder of 4 MB, which a repository can carry.
"""

import shutil
import tempfile
from pathlib import Path

from PIL import Image

from iltm_anomaly.evaluation.evaluate import evaluate_run, format_results
from iltm_anomaly.hub.cards import MARKER, load_results, render_card
from iltm_anomaly.hub.data_sources import CONTAMINATION
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.synthetic.dataset import generate_dataset, render_image, write_mvtec_tree
from iltm_anomaly.training.arguments import TrainArguments
from iltm_anomaly.training.train import train

SPACE = Path(__file__).resolve().parents[1] / "space"
SIZE = 192  # pixels along each side of the generated images
SMALL = ["image_size=128", "features.vocab_size=1024"]  # what differs from the demo's recipe
STORED = """- Weights: stored in float16, with those of the backbone (EfficientNet-Lite0, Apache 2.0)"""
EXAMPLES = {"good": 1, "label_askew": 1, "chipped_corner": 2, "no_screw": 3, "scratch": 3, "dent": 1}
"""Seeds of images by their defect; the last two defects are in no training image."""


def make_model(work: Path) -> dict[str, bytes]:
    """Trains and measures in `work`, and saves the pipeline in `space/model`; returns its card and the card's picture."""
    dataset = generate_dataset(size=SIZE, num_train=160, contamination=CONTAMINATION, recurring=True)
    data, run = write_mvtec_tree(dataset, work / "data", "part"), work / "run"
    train(TrainArguments(str(data), run, preset="demo", overrides=SMALL))
    print(format_results(evaluate_run(run, str(data), None, work)))

    pipe = ILTMAnomalyPipeline.from_pretrained(run)
    pipe.training_report["data"]["source"] = "data/part"
    del pipe.training_report["command"]  # it names folders of this machine
    shutil.rmtree(SPACE / "model", ignore_errors=True)
    pipe.to(dtype="float16").save_pretrained(SPACE / "model")
    return render_card("iltm-parts", load_results([work / "results.json"]), pipe.training_report, "space/model")


def write_card(files: dict[str, bytes]) -> None:
    """Writes the card, which a push is to leave as it is, with what sets this model apart from the demo's."""
    own = {"iltm-anomaly demo": "make weights", "- Recipe: demo": f"- Recipe: demo with {' '.join(SMALL)}\n{STORED}"}
    lines = [line for line in files["README.md"].decode().splitlines() if not line.startswith(MARKER)]
    said = [next((text for begin, text in own.items() if line.startswith(begin)), line) for line in lines]
    (SPACE / "model" / "README.md").write_text("\n".join(said) + "\n")
    (SPACE / "model" / "picture.png").write_bytes(files["picture.png"])


def draw_examples() -> None:
    shutil.rmtree(SPACE / "examples", ignore_errors=True)
    (SPACE / "examples").mkdir()
    for defect, seed in EXAMPLES.items():
        image, _ = render_image("part", SIZE, defect, seed)
        Image.fromarray(image).save(SPACE / "examples" / f"{defect}.png", optimize=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        write_card(make_model(Path(folder)))
    draw_examples()
    print(f"written: {SPACE / 'model'}, {SPACE / 'examples'}")
