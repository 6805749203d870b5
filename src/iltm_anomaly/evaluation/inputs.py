"""What `detect` is pointed at: files, folders, patterns, data sets and lists of these become one list of images."""

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from iltm_anomaly.data import may_be_on_hub
from iltm_anomaly.data.dicom import find_dicom_folders
from iltm_anomaly.data.hub import image_splits
from iltm_anomaly.data.images import IMAGE_SUFFIXES, ImageReadError, find_images, path_in_table, read_image
from iltm_anomaly.data.layout import is_dataset_folder
from iltm_anomaly.data.volume_files import VOLUME_SUFFIXES, find_volumes, read_volume
from iltm_anomaly.data.volume_grid import Volume
from iltm_anomaly.evaluation.rows import JOURNALS, OWN_FOLDERS, TABLE, is_own_table

STANDARD_INPUT = "-"  # names come from there, one a line

load_splits = cache(image_splits)  # in every process once: its files are mapped, not read into memory


@dataclass(frozen=True)
class Input:
    """One image or volume, before it is read.

    Args:
        path: of the file or DICOM folder; of an image in a data set what stands for it, DATA_SET/SPLIT/ROW.
        problem: why there is nothing to read, of a folder that cannot be looked into.
        row: data set, split and row, of an image in a data set.
    """

    path: Path
    problem: str = ""
    row: tuple[str, str, int] | None = None

    @property
    def name(self) -> str:
        """What tables call it."""
        return path_in_table(self.path)

    @property
    def stamp(self) -> str:
        """What changes when the image does: size and time of a file, the fingerprint of a data set; empty if there is no file."""
        if self.row is not None:
            return str(load_splits(self.row[0])[self.row[1]]._fingerprint)
        with suppress(OSError, ValueError):
            status = os.stat(self.path)
            return f"{status.st_size} {status.st_mtime_ns}"
        return ""

    def read(self, volumes: bool) -> Image.Image | Volume:
        """The image in RGB, or the volume.

        Raises:
            ImageReadError: if it cannot be read; the message names it.
        """
        if self.problem:
            raise ImageReadError(self.problem)
        if self.row is None:
            return read_volume(self.path) if volumes else read_image(self.path)
        name, split, number = self.row
        source = load_splits(name)[split][number]["image"]
        if source is None:
            raise ImageReadError(f"cannot read image {self.path}: the row holds none")
        return read_image(self.path if source["bytes"] is not None else source["path"], source["bytes"])


def list_inputs(inputs: Iterable[str | Path], volumes: bool = False, output: Path | None = None) -> list[Input]:
    """All images, or all volumes, that `inputs` name, each once, in order: files; folders with all that lies below them; patterns
    as of a shell, with ** for any folders; data sets that `datasets` reads, as folder or Hub id owner/name, with all their
    splits; "-" for names of these on the standard input, one a line.

    In a folder without NIfTI files every folder of DICOM files is a volume. What `detect` has written is left out, below `output`
    and in folders of earlier calls.

    Raises:
        ValueError: if there is no image at all, a folder holds none, a pattern fits no file, or a data set has no column of
        images. FileNotFoundError: if a data set is not on the Hub, or that cannot be reached.
    """
    found: dict[str, Input] = {}
    for item in _names(inputs):
        for one in _expand(item, volumes, output):
            found.setdefault(str(one.path), one)
    if not found:
        raise ValueError("there is no image to score: the inputs name none")
    return list(found.values())


def _names(inputs: Iterable[str | Path]) -> Iterator[Path]:
    """What was given, with the lines of the standard input in place of "-", and what fits a pattern in its place."""
    for item in map(str, inputs):
        for name in (line.rstrip("\r\n") for line in sys.stdin) if item == STANDARD_INPUT else (item,):
            if not name:
                continue
            if not glob.has_magic(name) or os.path.lexists(name):
                yield Path(name)
            elif fitting := sorted(glob.glob(os.path.expanduser(name), recursive=True)):
                yield from map(Path, fitting)
            else:
                raise ValueError(f"no file fits the pattern {name} (looked in {Path.cwd()})")


def _expand(item: Path, volumes: bool, output: Path | None) -> Iterator[Input]:
    """The images of one file, folder or data set; see `list_inputs`."""
    if not volumes and _is_dataset(item):
        splits = load_splits(str(item))
        for split, rows in splits.items():
            yield from (Input(item / split / str(row), row=(str(item), split, row)) for row in range(len(rows)))
        return
    if not os.path.isdir(item):
        yield Input(item)
        return
    refused: list[OSError] = []
    found = (find_volumes if volumes else find_images)(item, recursive=True, refused=refused.append)
    left_out = cache(lambda folder: _wrote(folder, item, output) or _holds_masks(folder, item))
    found = [path for path in found if not any(map(left_out, path.parents))]
    if not found and volumes:
        found = find_dicom_folders(item)
    if not found and not refused:
        raise ValueError(f"{item} holds no {'volume' if volumes else 'image'}")
    yield from map(Input, found)
    for error in refused:
        reason = f"cannot look into the folder {error.filename}: {error.strerror}"
        yield Input(Path(error.filename), reason)


def _is_dataset(item: Path) -> bool:
    """Whether `datasets` reads it: a folder of its own kind, or what can only be the name of a data set on the Hub."""
    if os.path.isdir(item):
        return is_dataset_folder(item)
    is_file = os.path.lexists(item) or item.name.lower().endswith((*IMAGE_SUFFIXES, *VOLUME_SUFFIXES))
    return not is_file and may_be_on_hub(str(item))


def _holds_masks(folder: Path, root: Path) -> bool:
    """Whether a folder below `root` has the ground truth of a category in the layout of MVTec AD."""
    return folder.name == "ground_truth" and root in folder.parents and (folder.parent / "test").is_dir()


def _wrote(folder: Path, root: Path, output: Path | None) -> bool:
    """Whether `detect` made a folder: it is one of `OWN_FOLDERS` of `output`, or beside a table of scores below `root`."""
    if folder.name not in OWN_FOLDERS:
        return False
    if output is not None and folder.parent.absolute() == output.absolute():
        return True
    if root not in folder.parents:
        return False
    return is_own_table(folder.parent / TABLE) or any(folder.parent.glob(JOURNALS))
