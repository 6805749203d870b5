"""What a run tells about itself: a log of JSON lines and pictures, always, and the trackers of `--report-to`."""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from iltm_anomaly.training.checkpoint import CheckpointError

logger = logging.getLogger(__name__)

LOG_NAME, PICTURES = "training_log.jsonl", "pictures"


class RunLog:
    """Values to `training_log.jsonl` and pictures to `pictures/`, by the main process only; both to the accelerator's trackers.

    Args:
        folder: run folder.
        is_main_process: whether this process writes.
        accelerator: holds the trackers, initialised; None has none.
    """

    def __init__(self, folder: Path, is_main_process: bool, accelerator: Accelerator | None = None):
        self.folder, self.enabled, self.accelerator = folder, is_main_process, accelerator
        self.path = folder / LOG_NAME
        if is_main_process:
            _drop_partial_line(self.path)

    def write(self, step: int | None = None, **values: Any) -> None:
        """One line. Numbers go to the trackers too, named after `stage`, at `step` of the whole run."""
        if self.enabled:
            line = json.dumps({"time": round(time.time(), 1), **values}) + "\n"
            try:
                with open(self.path, "a") as file:
                    file.write(line)  # in one piece
            except OSError as error:
                raise CheckpointError(f"cannot write {self.path}: {error.strerror or error}") from error
        if self.accelerator is not None and step is not None:
            prefix = str(values.get("stage", "run")).replace(" ", "_")
            numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
            self.accelerator.log({f"{prefix}/{key}": value for key, value in numbers.items()}, step=step)

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Writes `pictures/<name>.png`; trackers that take images get it too."""
        if not self.enabled:
            return
        try:
            (self.folder / PICTURES).mkdir(exist_ok=True)
            picture.save(self.folder / PICTURES / f"{name}.png")
        except OSError as error:
            raise CheckpointError(f"cannot write {self.folder / PICTURES}: {error.strerror or error}") from error
        for tracker in self.accelerator.trackers if self.accelerator is not None else []:
            if tracker.name == "trackio":
                import trackio

                tracker.log({name: trackio.Image(np.asarray(picture))}, step=step)
            elif tracker.name == "tensorboard":
                tracker.log_images({name: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({name: [np.asarray(picture)]}, step=step)


def _drop_partial_line(path: Path) -> None:
    # a process that was killed may have written half of one
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with open(path, "r+b") as file:
            file.truncate(whole)


def panel(rows: list[list[np.ndarray]]) -> Image.Image:
    """Rows of pictures (H, W) or (H, W, 3) in [0, 1], all of one size, as one RGB picture."""
    cells = [
        [
            cell if cell.ndim == 3 and cell.shape[2] == 3 else np.repeat(cell.reshape(*cell.shape[:2], 1), 3, 2)
            for cell in row
        ]
        for row in rows
    ]
    sheet = np.concatenate([np.concatenate(row, axis=1) for row in cells], axis=0)
    return Image.fromarray((sheet.clip(0, 1) * 255).round().astype(np.uint8))
