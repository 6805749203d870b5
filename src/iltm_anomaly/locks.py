"""One process at a time: a lock file, and beside it who holds it."""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE = ".lock"  # of a folder that one process at a time writes to


class InUseError(RuntimeError):
    """Another process holds a lock.

    Args:
        path: the lock file.
        holder: who holds it and since when, in words.
    """

    def __init__(self, path: Path, holder: str):
        super().__init__(f"{path.parent} is in use by {holder}: wait until it ends, or give another --output")
        self.holder = holder


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds a lock file while the block runs. The system lets go of it when a process dies, in whatever way; the file stays.

    Args:
        path: the lock file; its folder is made if it is not there.
        wait: until another process lets go of it.

    Raises:
        InUseError: if another process holds it and `wait` is False.
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = path.with_name(f"{path.name}.holder")  # in the lock file itself Windows would let nobody else read it
    lock = FileLock(path, blocking=wait)
    try:
        lock.acquire()
    except Timeout:
        found = holder.read_text(encoding="utf-8") if holder.is_file() else ""
        raise InUseError(path, found or "another process") from None
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder.write_text(f"process {os.getpid()} on {platform.node()} since {since}", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):  # what the block has raised says more
            holder.unlink(missing_ok=True)
        lock.release()
