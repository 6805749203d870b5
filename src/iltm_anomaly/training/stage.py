"""A stage of a run: not begun, under way in the run's checkpoint, or finished in a folder of its own."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from iltm_anomaly.provenance import commit
from iltm_anomaly.training.checkpoint import (
    file_digest,
    fill_folder,
    load_checkpoint,
    load_json,
    save_checkpoint,
    write_json,
)
from iltm_anomaly.training.processes import on_main

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=PreTrainedModel)
WEIGHTS, SUMMARY = "model.safetensors", "stage.json"


class Stage:
    """The main process writes; all processes must see the same folder.

    Args:
        folder: of the stage, in the run's: weights, and stage.json with results, checksum and the checksum of what they rest on.
        follows: checksum of what the stage rests on; once that is another one, the stage is outdated.
        accelerator: tells which process this is.
    """

    def __init__(self, folder: Path, follows: str, accelerator: Accelerator):
        self.folder, self.follows, self.accelerator = folder, follows, accelerator

    def load(self, model_class: type[Model]) -> tuple[Model, dict[str, Any]] | None:
        """The finished model and its summary; None if it is not finished, or was set aside because it is damaged or outdated."""
        if not on_main(self.accelerator, self._is_whole):
            return None
        model = model_class.from_pretrained(self.folder).eval().to(self.accelerator.device)
        if self.accelerator.is_main_process:
            logger.info("%s is finished: loaded from %s", self.folder.name, self.folder)
        return model, load_json(self.folder / SUMMARY)

    def save(self, model: PreTrainedModel, summary: dict[str, Any], **tensors: torch.Tensor) -> dict[str, Any]:
        """Saves the finished stage, and each of `tensors` beside it as `<name>.bin`; returns the summary, with the checksum of
        the weights and the commit of the code."""

        def fill(target: Path) -> None:
            model.save_pretrained(target)
            for key, tensor in tensors.items():
                save_checkpoint(target / f"{key}.bin", {key: tensor})
            origin = {"weights_sha256": file_digest(target / WEIGHTS), "follows": self.follows, "commit": commit()}
            write_json(target / SUMMARY, summary | origin)

        def save() -> dict[str, Any]:
            fill_folder(self.folder, fill)
            return load_json(self.folder / SUMMARY)

        return on_main(self.accelerator, save)

    def amend(self, **values: Any) -> None:
        """Adds values to the summary of the finished stage."""
        path = self.folder / SUMMARY
        on_main(self.accelerator, lambda: write_json(path, load_json(path) | values))

    def tensor(self, key: str) -> torch.Tensor | None:
        """A tensor saved with the stage, None if it is not there or damaged."""
        state, _ = load_checkpoint(self.folder / f"{key}.bin")
        return None if state is None else state[key]

    def _is_whole(self) -> bool:
        if not self.folder.exists():
            return False
        try:
            summary = load_json(self.folder / SUMMARY)
            problem = None if file_digest(self.folder / WEIGHTS) == summary["weights_sha256"] else "is damaged"
            if not isinstance(summary["seconds"], int | float):
                problem = "is damaged"
            if any(load_checkpoint(file)[0] is None for file in self.folder.glob("*.bin")):
                problem = "is damaged"
            if problem is None and summary["follows"] != self.follows:
                problem = "rests on another run of the stage before it"
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"is damaged ({error})"
        if problem is None:
            return True
        aside = self.folder.with_name(self.folder.name + ".set_aside")
        logger.warning("%s %s: skipped, moved to %s, and trained again", self.folder, problem, aside)
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(self.folder, aside)
        return False
