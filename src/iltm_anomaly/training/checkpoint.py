"""One checkpoint file, replaced atomically: whoever reads it sees the old one or the new one, never a part."""

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

WINDOWS = os.name == "nt"  # which opens no folder, and flushes no file that is open for reading alone


class CheckpointError(RuntimeError):
    """A checkpoint, or another file of a run, cannot be written."""


def write_atomically(path: Path, *parts: bytes | memoryview, keep_as: Path | None = None) -> None:
    """Writes the parts one after the other, flushes to the disk and renames; what `path` held before is kept as `keep_as`, if
    given.

    Raises:
        CheckpointError: if the disk is full or the folder cannot be written; what `path` held before is untouched.
    """
    partial = path.with_name(path.name + ".partial")
    kept = None if keep_as is None else keep_as.with_name(keep_as.name + ".partial")
    try:
        if path.exists() and not path.is_file():  # a rename would take the place of /dev/null itself
            raise OSError("it is no file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        if kept is not None:
            kept.unlink(missing_ok=True)
            if path.exists():
                _link(path, kept)
        os.replace(partial, path)
        if keep_as is not None and kept is not None and kept.exists():  # not before: either may be the only good one
            os.replace(kept, keep_as)
        _sync(path.parent)  # the renames themselves must survive a power cut
    except OSError as error:
        for leftover in filter(None, (partial, kept)):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}. The last good file is untouched."
        ) from error


def check_writable(folder: Path) -> None:
    """Whether a folder, which need not be there yet, can be written to: asked before long work rather than after.

    Raises:
        CheckpointError: if it cannot.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise CheckpointError(f"cannot write {folder}: {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise CheckpointError(f"cannot write {folder}: {nearest} is read-only")


def _sync(path: Path) -> None:
    if WINDOWS and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network file systems sync no folder
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def fill_folder(folder: Path, fill: Callable[[Path], Any]) -> None:
    """Fills a folder under another name, flushes it to the disk and renames it: a folder that is there is complete.

    Raises:
        CheckpointError: if the disk is full or the folder cannot be written; what `folder` held before is untouched.
    """
    partial, before = (folder.with_name(folder.name + suffix) for suffix in (".partial", ".before"))

    def put_back() -> None:
        if before.exists() and not folder.exists():
            os.replace(before, folder)

    try:
        put_back()  # killed between the two renames below
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        for file in [*partial.rglob("*"), partial]:
            _sync(file)
        shutil.rmtree(before, ignore_errors=True)
        if folder.exists():
            os.replace(folder, before)
        os.replace(partial, folder)
        _sync(folder.parent)
        shutil.rmtree(before, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            put_back()
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _link(path: Path, target: Path) -> None:
    # a hard link costs nothing and, unlike renaming, never leaves the folder without the file
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, indented."""
    write_atomically(path, (json.dumps(value, indent=2, sort_keys=False) + "\n").encode())


def load_json(path: Path) -> Any:
    """Reads what `write_json` wrote; raises ValueError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is no JSON ({error})") from None


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Saves tensors and plain values behind a checksum; the file before it stays beside it as `<name>.previous`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    write_atomically(path, hashlib.sha256(data).digest(), data, keep_as=_previous(path))


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def load_checkpoint(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest valid checkpoint, None if there is none, and what was found wrong with newer ones."""
    problems: list[str] = []
    for candidate in (path, _previous(path)):
        if not candidate.exists():
            continue
        content = memoryview(candidate.read_bytes())
        if hashlib.sha256(content[32:]).digest() == bytes(content[:32]):
            return torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True), problems
        problems.append(f"{candidate} is damaged ({len(content)} bytes, checksum differs)")
    return None, problems


def remove_checkpoint(path: Path) -> None:
    """Removes a checkpoint and the one before it, if they are there."""
    for file in (path, _previous(path)):
        file.unlink(missing_ok=True)
