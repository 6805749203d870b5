"""Folders as MVTec AD lays them out, for images and volumes alike: a root holds categories, a category `train` and `test`."""

import difflib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from iltm_anomaly.data import GOOD, GOOD_NAMES

DETECTED = "results"
"""Stem of the tables that `detect` writes, whose Parquet file makes no data set of its folder, or of the one above."""

logger = logging.getLogger(__name__)

Entry = tuple[Path, str | None, Path | None]
"""An image or volume, its defect type (None: unknown) and its ground truth (None: there is none)."""


def is_category(folder: str | os.PathLike) -> bool:
    """Whether a folder is laid out as a category of MVTec AD: it holds a `train` folder."""
    return (Path(folder) / "train").is_dir()


def list_categories(root: str | os.PathLike) -> list[str]:
    """Names of the categories below a folder, sorted."""
    return sorted(path.name for path in Path(root).iterdir() if is_category(path))


def labelled_folders(folder: Path) -> list[tuple[Path, bool]]:
    """The subfolders of a folder of images whose state is known, sorted, and whether the images of each are good: those in `good`
    (or `normal`, `ok`) are, those in all others are defective, as in `test` of MVTec AD.

    Raises:
        ValueError, OSError: if there is no such folder, or none of its subfolders is good, or all are.
    """
    subfolders = sorted(path for path in existing_folder(folder).glob("*") if path.is_dir() and path.name[0] != ".")
    found = [(path, path.name.lower() in GOOD_NAMES) for path in subfolders]
    if len({is_good for _, is_good in found}) < 2:
        names = ", ".join(path.name for path in subfolders) or "none"
        raise ValueError(
            f"{folder} must hold a subfolder good and one or more of defective images; its subfolders: {names}"
        )
    return found


def unknown_category(category: str, names: Sequence[str], where: str) -> str:
    """Error message for a category that does not exist: lists those that do, and suggests the most similar one."""
    by_lower_case = {name.lower(): name for name in names}
    similar = difflib.get_close_matches(category.lower(), by_lower_case, n=1)
    hint = f" Did you mean {by_lower_case[similar[0]]!r}?" if similar else ""
    return f"no category {category!r} in {where}; it has: {', '.join(names)}.{hint}"


def find_category(root: Path, category: str | None) -> Path:
    """The folder of a category below `root`, or `root` itself if it is one.

    Raises:
        ValueError: if there is no such category, or several and none is named.
    """
    if is_category(root):
        if category is None or category == root.resolve().name:
            return root
        raise ValueError(f"{root} is itself a category (it holds a train folder), so it has no category {category!r}")
    names = list_categories(root)
    if not names:
        raise ValueError(
            f"{root} is not in the layout of MVTec AD: neither it nor a subfolder holds a folder named train; "
            "a plain folder has no category and no ground truth: it can only be trained on, without a category"
        )
    if category is None:
        if len(names) > 1:
            raise ValueError(f"{root} holds {len(names)} categories, choose one: {', '.join(names)}")
        return root / names[0]
    if category not in names:
        raise ValueError(unknown_category(category, names, str(root)))
    return root / category


def is_dataset_folder(folder: Path) -> bool:
    """Whether a local folder is one that `datasets` reads: saved to disk, or with parquet or metadata files."""
    if is_saved(folder):
        return True
    stored = (path for pattern in ("*.parquet", "*/*.parquet") for path in folder.glob(pattern))
    if any(path.stem != DETECTED or not path.with_suffix(".csv").is_file() for path in stored):
        return True
    tables = (path for pattern in ("metadata.*", "*/metadata.*") for path in folder.glob(pattern))
    return any(path.suffix in (".csv", ".jsonl") and _names_files(path) for path in tables)


def is_saved(folder: Path) -> bool:
    """Whether `datasets` has saved the folder: the first file is of several splits, the second of one."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _names_files(table: Path) -> bool:
    # Without this column, `datasets` cannot know which file a row is about: such a table is somebody's notes.
    with open(table, encoding="utf-8", errors="replace") as file:
        return "file_name" in file.readline()


def existing_folder(path: str | os.PathLike) -> Path:
    """The folder, ~ expanded; raises FileNotFoundError or NotADirectoryError if there is none."""
    folder = Path(path).expanduser()
    if not folder.exists():
        raise FileNotFoundError(f"no such folder: {folder} (looked in {Path.cwd()})")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: give a folder")
    return folder


def list_category(
    folder: Path, kind: str, find: Callable[[Path], list[Path]], find_mask: Callable[[Path, str], Path | None]
) -> dict[str, list[Entry]]:
    """Lists train and, if there is one, test of a category, sorted by defect type (in train `good` comes first) and name.

    Files directly in train are of unknown type; those directly in test are left out, with a warning that calls them `kind`.

    Args:
        find: lists the images or volumes of a folder.
        find_mask: finds the ground truth of one of these, given its path and its defect type.
    """
    entries: dict[str, list[Entry]] = {}
    for base in (folder / "train", folder / "test"):
        if not base.is_dir():
            continue
        types = [path for path in base.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX"))]
        types.sort(key=lambda path: (path.parent.name == "train" and path.name != GOOD, path.name))
        entries[base.name] = [
            (path, defect.name, None if defect.name == GOOD else find_mask(path, defect.name))
            for defect in types
            for path in find(defect)
        ]
        loose = find(base)
        if base.name == "train":
            entries["train"] += [(path, None, None) for path in loose]
        elif loose:
            logger.warning("%d %s(s) directly in %s are in no defect folder; left out", len(loose), kind, base)
    # Train and test share the folders of ground truth, which is numbered as in test: what belongs to a test image must not be
    # taken for that of a training image of the same name.
    tested = {mask for _, _, mask in entries.get("test", [])}
    entries["train"] = [(path, defect, None if mask in tested else mask) for path, defect, mask in entries["train"]]
    return entries


def refuse_half_a_category(folder: Path) -> None:
    """Raises ValueError for a folder with test or ground_truth but no train: as a plain folder, its masks would be trained on."""
    if not is_category(folder) and any((folder / name).is_dir() for name in ("test", "ground_truth")):
        raise ValueError(
            f"{folder} has a folder test or ground_truth and none named train: give the one that holds all three"
        )


def refuse_hidden_categories(folder: Path, files: Iterable[Path]) -> None:
    """Raises ValueError if files of a plain folder must not be trained on: ground truth, or test images of a category below."""
    holding = {path for parent in {file.parent for file in files} for path in (parent, *parent.parents)}
    for path in sorted(path for path in holding if folder in path.parents):
        category = path.parent
        if path.name == "ground_truth" or (path.name == "test" and is_category(category)):
            known = is_category(category)
            remedy = f"Give {category.parent} and the category {category.name}" if known else "Move it elsewhere"
            raise ValueError(f"{path} lies in the plain folder {folder}: it would be trained on. {remedy}")
