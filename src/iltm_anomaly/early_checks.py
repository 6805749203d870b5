"""What is wrong with the words of a command, as far as it can be told before torch is imported, which takes seconds.

Nothing of it is imported here. The commands themselves check all of this again.
"""

import glob
import os
from argparse import Namespace
from pathlib import Path

from iltm_anomaly.data import HUB_ID, may_be_on_hub
from iltm_anomaly.data.images import find_problem
from iltm_anomaly.data.layout import (
    existing_folder,
    find_category,
    is_dataset_folder,
    labelled_folders,
    list_categories,
)
from iltm_anomaly.hub.folders import check_repo_id, local_model, model_folder
from iltm_anomaly.recipes.reading import read_preset


def check(words: Namespace) -> None:
    """Checks model, data, inputs, folder and preset of a command, those that it has.

    Raises:
        ValueError, OSError: if there are no such, or a category must be chosen.
    """
    command = words.command
    if command in ("evaluate", "detect", "export"):
        folder = local_model(words.model)
        if folder is not None and not (folder / "model_index.json").is_file():
            raise ValueError(f"{folder} is not a pipeline folder: it has no model_index.json")
    if command == "push":
        check_repo_id(words.repo_id)
        model_folder(words.model)
    if command == "report":
        existing_folder(words.folder)
    if command == "benchmark" and words.data is not None and not words.report_only:
        existing_folder(words.data)
    if command == "train" and words.push_to_hub is not None:
        check_repo_id(words.push_to_hub)
    if command in ("train", "evaluate"):
        _check_data(words.data, words.category, getattr(words, "volumes", False), command == "evaluate")
    if command == "detect" and words.labelled is not None:
        labelled_folders(words.labelled)
    output = getattr(words, "output", None)
    if command in ("train", "evaluate", "detect") and output is not None and Path(output).is_file():
        raise ValueError(f"{output} is a file: --output takes a folder")
    if command == "detect" and len(words.inputs) == 1:
        _check_input(words.inputs[0])
    if getattr(words, "preset", None) is not None:
        read_preset(words.preset)


def _check_data(data: str, category: str | None, volumes: bool, needs_category: bool) -> None:
    """Whether data can be there. A pattern of volumes and an id of the Hub are looked for later."""
    exists = Path(data).expanduser().exists()
    if not exists and (HUB_ID.fullmatch(data) or (volumes and glob.has_magic(data))):
        return
    folder = existing_folder(data)
    if volumes or is_dataset_folder(folder):
        return
    if category is not None or needs_category or list_categories(folder):
        find_category(folder, category)


def _check_input(name: str) -> None:
    """Whether the only input can be there. Patterns, the standard input and an id of the Hub are looked for later."""
    if name == "-" or glob.has_magic(name) or os.path.exists(name):
        return
    if not may_be_on_hub(name):
        raise ValueError(f"cannot read {name}: {find_problem(Path(name))}")
