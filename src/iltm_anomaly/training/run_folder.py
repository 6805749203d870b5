"""The folder of a run: what identifies the run, and what is in it.

run.json            recipe, seed, training images (count, checksum, where from), and every sitting with versions and commit
recipe.yaml         the recipe, to be given to --preset again
images.arrow        the training images, decoded and resized
checkpoint.bin      of the stage under way; checkpoint.bin.previous is the one before
tokenizer/, rounds/round_N/   finished stages, see `Stage`
codes.bin           codes of the training images; rounds/round_N/keep.bin what round N masked
training_log.jsonl, pictures/
model/              the pipeline, written last
.lock               held by the process that trains
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from iltm_anomaly.hub.checks import REPORT, check_shape
from iltm_anomaly.locks import LOCK_FILE, locked
from iltm_anomaly.provenance import provenance
from iltm_anomaly.recipes.pixel_recipe import Recipe
from iltm_anomaly.recipes.recipe import recipe_from_dict
from iltm_anomaly.training.checkpoint import load_checkpoint, load_json, save_checkpoint, write_atomically, write_json
from iltm_anomaly.training.processes import on_main
from iltm_anomaly.training.stage import Stage

logger = logging.getLogger(__name__)

# What a run.json must hold.
RECORD: dict[str, Any] = {"recipe": {}, "seed": int, "images_sha256": str, "data": REPORT["data"]}
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

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other runs out of the folder while the block runs.

        Raises:
            InUseError: if another process trains in it.
            MainProcessError: in the other processes of the run, if so.
        """
        with ExitStack() as stack:

            def lock() -> None:
                with suppress(OSError):  # nothing can be mixed up in a folder that cannot be written
                    stack.enter_context(locked(self.path / LOCK_FILE))

            on_main(self.accelerator, lock)
            yield

    def claim(self, recipe: Recipe, seed: int, resume: bool) -> str | None:
        """Checks that a run with this recipe, whatever its settings of inference, and seed may use the folder; returns the
        checksum of the images of the run that it holds, None if it holds none.

        Raises:
            RunFolderError: if it holds a run and `resume` is False, or another run, or what it holds is damaged.
        """
        found = on_main(self.accelerator, lambda: read_record(self._record))
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
        on_main(self.accelerator, self._rename_stages)
        return found["images_sha256"]

    def _rename_stages(self) -> None:
        """Version 0.1 named the folder of the tokenizer after the only one that there was."""
        former, today = self.path / "vqvae", self.path / "tokenizer"
        if former.exists() and not today.exists():
            os.replace(former, today)

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
            known = read_record(self._record) or {
                "recipe": recipe.to_dict(),
                "seed": seed,
                "images": images,
                "images_sha256": images_digest,
                "data": data_record(),
            }
            known["recipe"] = recipe.to_dict()  # what may change has, perhaps
            known["sittings"] = [*(known.get("sittings") or []), sitting]
            write_atomically(self.path / "recipe.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False).encode())
            write_json(self._record, known)
            return known["data"]

        return on_main(self.accelerator, write)

    @property
    def _record(self) -> Path:
        return self.path / "run.json"

    def stage(self, name: str, follows: str) -> Stage:
        """A stage by the name of its folder; `follows` is the checksum of what it rests on."""
        return Stage(self.path / name, follows, self.accelerator)

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


def read_record(path: Path) -> dict[str, Any] | None:
    """What a run.json holds, None if there is none.

    Raises:
        RunFolderError: if it is not what identifies a run.
    """
    if not path.exists():
        return None
    try:
        found = load_json(path)
        check_shape(found, RECORD | {"sittings": [{"precision": str}]}, str(path))
        whole = bool(found) and all(found.get(name) is not None for name in RECORD)
    except ValueError:
        whole = False
    if not whole:
        raise RunFolderError(
            f"{path} is damaged: it must hold {', '.join(RECORD)} of a run. Put a copy in its place, or give another --output"
        )
    return found


def _completed(recipe: dict[str, Any]) -> dict[str, Any]:
    """What training depended on, of an earlier version with the fields that it did not have yet."""
    recipe = {name: value for name, value in recipe.items() if name != "inference"}
    try:
        return recipe_from_dict(recipe).training_fields()
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
