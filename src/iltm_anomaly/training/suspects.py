"""Which training images look defective: a list, and a picture of the first of them with the tokens that they gave up."""

import csv
import logging
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file
from torch import Tensor

from iltm_anomaly import masking
from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.data.images import path_in_table
from iltm_anomaly.drawing import project
from iltm_anomaly.training.checkpoint import load_checkpoint, load_json

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "token_weights.safetensors"  # of a round, beside its pipeline: "weights" (N, *grid)
MASKS_FILE = "keep.bin"  # of a round of a run on codes, beside its prior: "keep" (N, copies, tokens)
LIST, PICTURE = "training_images.csv", "training_images.png"
COLUMNS = ["path", "score", "looks_defective", "rejected_share"]
ACROSS, DOWN, CELL, MARGIN, LABEL = 6, 4, 160, 6, 18  # of the picture: cells, and pixels
DIMMED = 0.45  # brightness of what was kept


def report_suspects(folder: Path, pixels: PixelCache, scores: Tensor, weights: Tensor, threshold: float) -> None:
    """Writes `LIST`, the training images by falling score, and `PICTURE`, the first of them with what was kept dimmed; logs how
    many look defective, and the first of these.

    Args:
        folder: of the run.
        pixels: the training images.
        scores: (N,) of images, each judged by models that have not seen it.
        weights: (N, *grid) of their tokens in the last round.
        threshold: score from which on an image looks defective.
    """
    order = scores.argsort(descending=True, stable=True).tolist()
    rejected, names, looks_defective = rejected_shares(weights), names_of(pixels), (scores >= threshold).tolist()
    with open(folder / LIST, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for image in order:
            verdict = int(looks_defective[image])
            writer.writerow([names[image], f"{scores[image]:.4f}", verdict, f"{rejected[image]:.4f}"])
    shown = order[: ACROSS * DOWN]
    labels = [(f"{rank}.  {scores[image]:.2f}", looks_defective[image]) for rank, image in enumerate(shown, 1)]
    _draw([pixels[image] for image in shown], weights[shown], labels).save(folder / PICTURE)
    defective = [names[image] for image in order if looks_defective[image]]
    examples = ", ".join("/".join(Path(name).parts[-2:]) for name in defective[:3])
    logger.info(
        "%d of %d training images look defective%s: %s lists all, to be read from the top, %s shows the first",
        len(defective),
        len(order),
        f" ({examples}{', ...' if len(defective) > 3 else ''})" if defective else "",
        folder / LIST,
        PICTURE,
    )


def report_masked(folder: Path, pixels: PixelCache, round_folder: Path) -> None:
    """`report_suspects` of a run on codes, whose score of an image is the share of its tokens that the last round masked; an
    outlier among these shares looks defective. There is nothing to report of a run without masks."""
    weights = weights_of(round_folder)
    if weights is not None:
        shares = masked_shares(weights)
        report_suspects(folder, pixels, shares, weights, outlier_share(shares))


def outlier_share(shares: Tensor) -> float:
    """From which share on that of an image is an outlier among those of all, (N,)."""
    return math.nextafter(masking.outlier_limit(shares), math.inf)


def masked_shares(weights: Tensor) -> Tensor:
    """Share (N,) of each image's tokens that were masked, of `weights_of` a run on codes or tissues."""
    return 1 - weights.float().flatten(1).mean(1)


def weights_of(round_folder: Path) -> Tensor | None:
    """Weights (N, *grid) of the tokens that a round was fitted with, of a run of any kind; None if it kept all. Of a run on codes
    it is how often each token was kept in the augmented copies of its image, which differ by small shifts and turns.

    Raises:
        OSError, SafetensorError, KeyError, ValueError: if a file is damaged or missing.
    """
    if not (round_folder / "stage.json").is_file():  # it is a pipeline of its own
        return load_file(round_folder / WEIGHTS_FILE)["weights"]
    state, _ = load_checkpoint(round_folder / MASKS_FILE)
    if state is None:
        return None
    return state["keep"].float().mean(1).unflatten(1, tuple(load_json(round_folder / "config.json")["grid_shape"]))


def names_of(pixels: PixelCache) -> list[str]:
    """How `LIST` calls each of the training images: by its path, or by its number where it has none."""
    return [path_in_table(name) or f"image {number}" for number, name in enumerate(pixels.names)]


def rejected_shares(weights: Tensor) -> list[float]:
    """Share of the tokens of each image that were given up, of their weights (N, *grid)."""
    return (weights <= 0.5).flatten(1).float().mean(1).tolist()


def _draw(images: list[Tensor], weights: Tensor, labels: list[tuple[str, bool]]) -> Image.Image:
    """Images (C, H, W) uint8 in rows of `ACROSS`, each under its label, red of those that look defective; dimmed where tokens
    (h, w) were kept, but for images that neither look defective nor gave up any."""
    rows = -(-len(images) // ACROSS)
    step = CELL + MARGIN
    sheet = Image.new("RGB", (ACROSS * step + MARGIN, rows * (step + LABEL) + MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for place, (image, weight, (label, looks_defective)) in enumerate(zip(images, weights, labels, strict=True)):
        left, top = MARGIN + place % ACROSS * step, MARGIN + place // ACROSS * (step + LABEL)
        pen.text((left, top), label, fill="firebrick" if looks_defective else "black", font=font)
        is_whole = not looks_defective and bool((weight > 0.5).all())
        sheet.paste(picture_of(image, None if is_whole else weight), (left, top + LABEL))
    return sheet


def picture_of(image: Tensor, weight: Tensor | None = None) -> Image.Image:
    """An image (C, H, W) uint8 as a picture of `CELL` pixels a side, dimmed where tokens (h, w) were kept; of a volume
    (C, D, H, W) its projection from the front, dimmed where all tokens (d, h, w) behind a place were kept."""
    if image.dim() == 4:
        image = torch.from_numpy(project(image[0].numpy()).copy())[None]
        weight = None if weight is None else torch.from_numpy(1 - project((weight <= 0.5).numpy()).astype(np.float32))
    colours = np.broadcast_to(image.permute(1, 2, 0).numpy(), (*image.shape[1:], 3))
    picture = Image.fromarray(np.ascontiguousarray(colours)).resize((CELL, CELL), Image.Resampling.BICUBIC)
    if weight is None:
        return picture
    light = torch.where(weight > 0.5, DIMMED, 1.0)
    mask = Image.fromarray((255 * light).byte().numpy()).resize((CELL, CELL), Image.Resampling.NEAREST)
    return Image.composite(picture, Image.new("RGB", picture.size), mask)
