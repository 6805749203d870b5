"""One checkpoint file, replaced atomically: whoever reads it sees the old one or the new one, never a part."""

import contextlib
import hashlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or none of those found can be read."""


def write_atomically(path: Path, data: bytes, keep_as: Path | None = None) -> None:
    """Writes, flushes to the disk and renames; what `path` held before is kept as `keep_as`, if given.

    Raises:
        CheckpointError: if the disk is full or the folder cannot be written; what `path` held before is untouched.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep_as is not None and path.exists():  # not before the new file is safe: it may be the only good one
            keep_as.unlink(missing_ok=True)
            _link(path, keep_as)
        os.replace(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # the rename itself must survive a power cut
        os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}. The last good file is untouched."
        ) from error


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
    """Reads what `write_json` wrote."""
    return json.loads(path.read_text())


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Saves tensors and plain values behind a checksum; the file before it stays beside it as `<name>.previous`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    write_atomically(path, hashlib.sha256(data).digest() + bytes(data), keep_as=_previous(path))


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def load_checkpoint(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest valid checkpoint and what was found wrong with newer ones; None if there is none at all.

    Raises:
        CheckpointError: if there are checkpoints and all are damaged.
    """
    problems: list[str] = []
    for candidate in (path, _previous(path)):
        if not candidate.exists():
            continue
        content = candidate.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            return torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True), problems
        problems.append(f"{candidate} is damaged ({len(content)} bytes, checksum differs)")
    if problems:
        raise CheckpointError("; ".join(problems) + ": remove the run folder and start again")
    return None, problems
