"""The folder of a run: what identifies the run, and finished stages that are used only as long as they are whole.

run.json            recipe, seed, training images (count, checksum, where from), and every sitting with versions and commit
recipe.yaml         the recipe, to be given to --preset again
images.arrow        the training images, decoded and resized
checkpoint.bin      of the stage under way; checkpoint.bin.previous is the one before
vqvae/, rounds/round_N/   finished stages: weights, and stage.json with results, checksum and the checksum of what they rest on
codes.bin           codes of the training images; rounds/round_N/keep.bin what round N masked
training_log.jsonl, pictures/
model/              the pipeline, written last
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from accelerate import Accelerator
from transformers import PreTrainedModel

from iltm_anomaly.provenance import commit, provenance
from iltm_anomaly.recipes.recipe import Recipe
from iltm_anomaly.training.checkpoint import (
    file_digest,
    fill_folder,
    load_checkpoint,
    load_json,
    save_checkpoint,
    write_atomically,
    write_json,
)
from iltm_anomaly.training.processes import on_main

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=PreTrainedModel)
WEIGHTS, STAGE = "model.safetensors", "stage.json"
MEMORY_ONLY = ("micro_batch_size",)  # fields of a stage that a resumed run may change


class RunFolderError(RuntimeError):
    """The output folder holds a run that cannot be continued, or is not meant to be."""


class RunFolder:
    """One run on disk. The main process writes; all processes must see the same folder.

    Args:
        path: the folder.
        accelerator: tells which process this is.
    """

    def __init__(self, path: Path, accelerator: Accelerator):
        self.path, self.accelerator = path, accelerator

    # Whose folder it is

    def claim(self, recipe: Recipe, seed: int, resume: bool) -> str | None:
        """Checks that a run with this recipe, whatever its settings of inference, and seed may use the folder; returns the
        checksum of the images of the run that it holds, None if it holds none.

        Raises:
            RunFolderError: if it holds a run and `resume` is False, or another run.
        """
        found = on_main(self.accelerator, lambda: load_json(self._record) if self._record.exists() else None)
        if found is None:
            if resume and self.accelerator.is_main_process:
                logger.info("%s holds no run yet: starting one", self.path)
            return None
        if not resume:
            raise RunFolderError(f"{self.path} already holds a run: pass --resume to continue it, or another --output")
        changes = [
            *changes_between({"seed": found["seed"]}, {"seed": seed}),
            *changes_between(_completed(found["recipe"]), recipe.training_fields(), but=MEMORY_ONLY),
        ]
        refuse(self.path, changes, "Give the same recipe and seed, or another --output")
        return found["images_sha256"]

    def record(
        self, recipe: Recipe, seed: int, images: int, images_digest: str, data_record: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Writes what identifies the run, or adds this sitting to it; returns where the images of the run come from."""

        def write() -> dict[str, Any]:
            sitting = {
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "processes": self.accelerator.num_processes,
                "precision": self.accelerator.mixed_precision,
                **provenance(self.accelerator.device),
            }
            known = (load_json(self._record) if self._record.exists() else None) or {
                "recipe": recipe.to_dict(),
                "seed": seed,
                "images": images,
                "images_sha256": images_digest,
                "data": data_record(),
            }
            known["recipe"] = recipe.to_dict()  # what may change has, perhaps
            known["sittings"] = [*known.get("sittings", []), sitting]
            write_atomically(self.path / "recipe.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False).encode())
            write_json(self._record, known)
            return known["data"]

        return on_main(self.accelerator, write)

    @property
    def _record(self) -> Path:
        return self.path / "run.json"

    # Finished stages

    def save_stage(
        self, name: str, model: PreTrainedModel, summary: dict[str, Any], follows: str, **tensors: torch.Tensor
    ) -> dict[str, Any]:
        """Saves a finished stage; returns its summary, with the checksum of its weights and the commit of the code.

        Args:
            name: folder of the stage.
            follows: checksum of what it rests on; once that is another one, the stage is outdated.
            tensors: saved beside it, each as `<name>.bin`.
        """

        def fill(target: Path) -> None:
            model.save_pretrained(target)
            for key, tensor in tensors.items():
                save_checkpoint(target / f"{key}.bin", {key: tensor})
            origin = {"weights_sha256": file_digest(target / WEIGHTS), "follows": follows, "commit": commit()}
            write_json(target / STAGE, summary | origin)

        def save() -> dict[str, Any]:
            fill_folder(self.path / name, fill)
            return load_json(self.path / name / STAGE)

        return on_main(self.accelerator, save)

    def load_stage(self, name: str, model_class: type[Model], follows: str) -> tuple[Model, dict[str, Any]] | None:
        """A finished stage and its summary; None if it is not finished, or set aside because it is damaged or outdated."""
        folder = self.path / name
        if not on_main(self.accelerator, lambda: self._is_whole(folder, follows)):
            return None
        model = model_class.from_pretrained(folder).eval().to(self.accelerator.device)
        summary = load_json(folder / STAGE)
        if self.accelerator.is_main_process:
            logger.info("%s is finished: loaded from %s", name, folder)
        return model, summary

    def update_stage(self, name: str, **values: Any) -> None:
        """Adds values to the summary of a finished stage."""
        path = self.path / name / STAGE
        on_main(self.accelerator, lambda: write_json(path, load_json(path) | values))

    def _is_whole(self, folder: Path, follows: str) -> bool:
        if not folder.exists():
            return False
        try:
            summary = load_json(folder / STAGE)
            problem = None if file_digest(folder / WEIGHTS) == summary["weights_sha256"] else "is damaged"
            if any(load_checkpoint(file)[0] is None for file in folder.glob("*.bin")):
                problem = "is damaged"
            if problem is None and summary["follows"] != follows:
                problem = "rests on another run of the stage before it"
        except (OSError, ValueError, KeyError) as error:
            problem = f"is damaged ({error})"
        if problem is None:
            return True
        aside = folder.with_name(folder.name + ".set_aside")
        logger.warning("%s %s: skipped, moved to %s, and trained again", folder, problem, aside)
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(folder, aside)
        return False

    # Tensors that take long to compute

    def cached(self, name: str, follows: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The tensor in file `name`, computed and saved if it is not there, damaged, or rests on something else."""
        path = self.path / name
        state, problems = load_checkpoint(path)
        for problem in problems if self.accelerator.is_main_process else []:
            logger.warning("%s: computing it again", problem)
        self.accelerator.wait_for_everyone()  # all have looked before one writes
        if state is not None and state["follows"] == follows:
            return state["value"]
        value = compute()
        on_main(self.accelerator, lambda: save_checkpoint(path, {"follows": follows, "value": value}))
        return value

    def stage_tensor(self, name: str, key: str) -> torch.Tensor | None:
        """A tensor saved with a stage, None if it is not there or damaged."""
        state, _ = load_checkpoint(self.path / name / f"{key}.bin")
        return None if state is None else state[key]


def _completed(recipe: dict[str, Any]) -> dict[str, Any]:
    """What training depended on, of an earlier version with the fields that it did not have yet."""
    recipe = {name: value for name, value in recipe.items() if name != "inference"}
    try:
        return Recipe.from_dict(recipe).training_fields()
    except ValueError:
        return recipe


def changes_between(found: dict[str, Any], asked: dict[str, Any], but: Sequence[str] = ()) -> list[str]:
    """What differs between two tables, in words; fields named in `but` may."""
    theirs, ours = flat(found), flat(asked)
    return [
        f"{key} ({theirs.get(key)} there, {ours.get(key)} now)"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key) and key.rsplit(".", 1)[-1] not in but
    ]


def refuse(folder: Path, changes: list[str], remedy: str) -> None:
    """Raises RunFolderError if there are any changes to the run that `folder` holds."""
    if changes:
        raise RunFolderError(
            f"cannot resume {folder}: {', '.join(changes)} differ from the run that it holds. {remedy}"
        )


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested tables as one: {"stage1": {"epochs": 2}} -> {"stage1.epochs": 2}."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= flat(item, f"{prefix}.{key}" if prefix else str(key))
    return found
