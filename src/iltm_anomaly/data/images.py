"""Image files: found in folders, read, and converted to 8-bit RGB whatever their colour mode.

Nothing here stretches an image by its own minimum and maximum: a bright defect would then darken the rest of its
image, and two images would no longer be comparable.
"""

import io
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".pbm")
"""Suffixes (lower case) of the files that a folder is searched for."""

IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
"""Pillow's names of the formats that are read, whatever a file is named. For another one Pillow would start Ghostscript."""

MOST_PIXELS = 100_000_000
"""Pixels of the largest image that is read, 10,000 x 10,000: a file of a few kilobytes may claim many more."""

BACKGROUND = (255, 255, 255)
"""The colour behind transparent pixels: white, as in a viewer or a browser."""

FLOAT_TOLERANCE = 1e-3
"""How far values of a float image may lie outside [0, 1], as interpolation makes them; they are clamped."""


EMPTY = "the file is empty (0 bytes)"

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet runs a cell that begins with one of these."""


class ImageReadError(ValueError):
    """An image file that cannot be used; the message names the file and the reason."""


def open_image(path: str | os.PathLike, content: bytes | None = None) -> Image.Image:
    """Opens and fully decodes an image file, with its EXIF rotation applied, in its own colour mode.

    Args:
        path: image file in one of `IMAGE_FORMATS`. Of a file with several frames or pages the first is taken.
        content: bytes of the file, if they have been read already; `path` is then its name in messages.

    Raises:
        ImageReadError: missing, empty, truncated or unknown file, or more than `MOST_PIXELS` pixels.
    """
    path = Path(path)
    if content is None:
        check_name(path)
    problem = find_problem(path) if content is None else None if content else EMPTY
    if problem is not None:
        raise ImageReadError(f"cannot read image {path}: {problem}")
    try:
        with Image.open(path if content is None else io.BytesIO(content), formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ImageReadError(
                    f"cannot read image {path}: it has {image.width} x {image.height} pixels, and {MOST_PIXELS:,} are the most; "
                    "reduce it or cut it into parts"
                )
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # cameras put a preview beside the picture in MPO files
                logger.warning("%s has %d frames or pages; only the first is used", path, frames)
            image.load()
            return ImageOps.exif_transpose(image)
    except ImageReadError:
        raise
    except UnidentifiedImageError:
        formats = ", ".join(IMAGE_FORMATS)
        raise ImageReadError(f"cannot read image {path}: not in an image format that is read ({formats})") from None
    except Exception as error:  # damaged files make Pillow raise nearly anything (struct, zlib, index errors)
        raise ImageReadError(f"cannot read image {path}: {error or type(error).__name__}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to mode "RGB", in 8 bits.

    Grey is repeated over the channels. Transparent pixels (alpha channel, palette entry or single colour) are laid on
    white (`BACKGROUND`). 16-bit grey is scaled from 0..65535, never from its own range. Float images ("F") must lie
    in [0, 1]. Pillow itself keeps only the upper 8 bits of 16-bit colour, and converts CMYK.

    Raises:
        ValueError: values outside the range of the mode, or a mode that Pillow does not convert to RGB.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _from_sixteen_bit(np.asarray(image)).convert("RGB")
    if image.mode == "F":
        values = check_unit_range(np.asarray(image), "float image")
        return Image.fromarray(np.round(values * 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        foreground = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        return Image.alpha_composite(background, foreground).convert("RGB")
    return image.convert("RGB")


def read_image(path: str | os.PathLike, content: bytes | None = None) -> Image.Image:
    """Reads an image file in mode "RGB": `open_image`, then `to_rgb`, whose docstrings have arguments and conversions.

    Raises:
        ImageReadError: the file cannot be read or converted; the message names it and says why.
    """
    image = open_image(path, content)
    try:
        return to_rgb(image)
    except ValueError as error:
        raise ImageReadError(f"cannot read image {Path(path)}: {error}") from error


def readable_images(sources: Iterable[dict[str, Any] | None]) -> Iterator[tuple[int, Image.Image]]:
    """Yields row number and 8-bit RGB image of the rows of a data set; images that cannot be read are left out, with a warning.

    Args:
        sources: {"path", "bytes"} of each row, as `datasets.Image(decode=False)` gives it. Where bytes are None, the file at path
            is read. The `filename` of an image is its path, or empty, as Pillow sets it on images that it opens.
    """
    for number, source in enumerate(sources):
        row = f"row {number} of the data set (counted from 0)"
        path, content = (None, None) if source is None else (source["path"], source["bytes"])
        try:
            if path is None and content is None:
                raise ImageReadError(f"{row} holds no image")
            image = read_image(path or f"in {row}", content)
        except ImageReadError as error:
            logger.warning("left out: %s", error)
            continue
        image.filename = path or ""  # type: ignore[attr-defined]
        yield number, image


def check_unit_range(values: np.ndarray, name: str) -> np.ndarray:
    """Returns values as float32, clamped to [0, 1]; `name` is what an error message calls them.

    Raises:
        ValueError: NaN or infinite values, or values outside [0, 1] by more than `FLOAT_TOLERANCE`.
    """
    values = np.asarray(values, dtype=np.float32)
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise ValueError(f"{name} holds {count} NaN or infinite values; replace them before passing it in")
    low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    if low < -FLOAT_TOLERANCE or high > 1 + FLOAT_TOLERANCE:
        raise ValueError(
            f"{name} must lie in [0, 1], got values from {low:g} to {high:g}; scale it by the range of its sensor, "
            "the same for all images (for instance divide by 255)"
        )
    return np.clip(values, 0.0, 1.0)


def warn_of_folder(error: OSError) -> None:
    """Says that a folder cannot be looked into; `error` is what listing it has raised."""
    logger.warning("left out: cannot look into the folder %s: %s", error.filename, error.strerror)


def files_below(root: Path) -> Iterator[Path]:
    """Yields all regular files below a folder, as `paths_below` finds them."""
    return (path for path in paths_below(root) if os.path.isfile(path))


def paths_below(root: Path, refused: Callable[[OSError], None] = warn_of_folder) -> Iterator[Path]:
    """Yields whatever is below a folder and no folder itself, links to nothing and pipes too. Links to folders are followed; a
    folder with several links to it is walked once. `refused` gets the error of each folder that cannot be listed."""
    walked = set()
    for folder, folders, files in os.walk(root, onerror=refused, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in walked:
            folders.clear()
            continue
        walked.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (Path(folder, name) for name in files)


def check_name(path: Path) -> None:
    """Raises ImageReadError for a name that is not UTF-8, since no table of a data set can hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ImageReadError(f"cannot read {str(path)!r}: its name is not valid UTF-8; rename it") from None


def path_in_table(path: str | os.PathLike) -> str:
    """A path as a cell of a CSV file. One that a spreadsheet would run as a formula, as it begins with =, +, - or @, has ./
    in front: it is a path to the same file."""
    text = str(path)
    return f"./{text}" if text.startswith(FORMULA) else text


def find_problem(path: Path) -> str | None:
    """Why a file cannot be read, as far as that can be told without opening it; None if nothing is known."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return "it is a link to nothing" if os.path.islink(path) else "no such file"
    except OSError as error:
        return error.strerror
    except ValueError:
        return "its name holds a null byte"
    if stat.S_ISDIR(status.st_mode):
        return "it is a folder"
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for without end
        return "it is no regular file but a pipe, a socket or a device"
    return None if status.st_size else EMPTY


def data_files(
    root: Path,
    recursive: bool,
    wanted: Callable[[Path], bool],
    refused: Callable[[OSError], None] = warn_of_folder,
) -> list[Path]:
    """Files of a folder for which `wanted` returns True, sorted by path; links to nothing and pipes too, so that reading them
    says what is wrong. `refused` is as of `paths_below`.

    Left out are hidden files and folders, `__MACOSX` (which macOS puts into archives), and training runs below the folder, whose
    pictures are not data.
    """
    found_here = (path for path in root.glob("*") if not os.path.isdir(path))
    paths = list(paths_below(root, refused) if recursive else found_here)
    caches = (path for path in paths if path.name == "images.arrow" and path.parent != root)
    runs = {path.parent for path in caches if path.with_name("run.json").is_file()}
    found = [
        path
        for path in paths
        if not any(part.startswith((".", "__MACOSX")) for part in path.relative_to(root).parts)
        and runs.isdisjoint(path.parents)
        and wanted(path)
    ]
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def find_images(
    folder: str | os.PathLike, recursive: bool = False, refused: Callable[[OSError], None] = warn_of_folder
) -> list[Path]:
    """Image files of a folder and, if `recursive`, of its subfolders: by suffix, as `data_files` lists them."""
    return data_files(Path(folder), recursive, lambda path: path.suffix.lower() in IMAGE_SUFFIXES, refused)


def _from_sixteen_bit(values: np.ndarray) -> Image.Image:
    # Pillow opens 16-bit files in mode "I;16" or, like PGM and some TIFF, in "I".
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError(
            f"integer image must lie in 0..65535, got values from {values.min()} to {values.max()}; "
            "convert it to 16 bits with one scale for all images"
        )
    if 0 < values.max(initial=0) < 4096:
        _warn_of_few_bits()
    return Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))


@cache
def _warn_of_few_bits() -> None:
    logger.warning(
        "a 16-bit image has no value above 4095, perhaps as its camera has 12 bits or fewer: it is read with 16 grey levels or "
        "fewer, as 16 bits are scaled from 0..65535. Multiply such images by one number for all (16 for 12 bits)"
    )
