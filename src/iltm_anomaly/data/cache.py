"""Decoded, resized images in one Arrow file: decoded once, mapped into memory by all processes, never read as a whole."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

BATCH_BYTES = 16 << 20
"""Bytes that are collected before they are written as one record batch."""


class CacheDamagedError(RuntimeError):
    """A cache file is cut off, or its content does not fit its checksums."""


class CacheWriteError(RuntimeError):
    """A cache file cannot be written: the disk is full, or the folder is read-only."""


class PixelCache:
    """Rows of one shape and type, read like the first axis of a tensor.

    `cache[3]`, `cache[2:9]` and `cache[tensor_of_indices]` are copies, as tensors of the stored type. The file has the columns
    `pixels`, `sha256`, their digest, and `name`; its metadata hold shape, type and `source`.

    Attributes:
        names: path that each image was read from, empty where it has none or an earlier version has written the file.

    Raises:
        CacheDamagedError: if the file is no complete cache.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            about = json.loads(reader.schema.metadata[b"iltm"])
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise CacheDamagedError(f"{path} is damaged: {error}") from error
        self.source: str | None = about["source"]
        self._item_shape, self._dtype = tuple(about["shape"]), np.dtype(about["dtype"])
        pixels = [np.frombuffer(batch.column("pixels").buffers()[1], self._dtype) for batch in batches]
        self._parts = [p.reshape(-1, *self._item_shape)[: len(b)] for p, b in zip(pixels, batches, strict=True)]
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])
        self.digests: list[str] = [digest for batch in batches for digest in batch.column("sha256").to_pylist()]
        named = "name" in reader.schema.names
        columns = (batch.column("name").to_pylist() if named else [""] * len(batch) for batch in batches)
        self.names: list[str] = [name for column in columns for name in column]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, *spatial), like the shape of a tensor."""
        return (len(self), *self._item_shape)

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of all images, as text."""
        return hashlib.sha256("".join(self.digests).encode()).hexdigest()

    def _row(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index %= len(self)
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[part][index - self._starts[part]]

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        if isinstance(index, int):
            return torch.from_numpy(self._row(index).copy())
        rows = range(*index.indices(len(self))) if isinstance(index, slice) else index.tolist()
        found = np.empty((len(rows), *self._item_shape), self._dtype)
        for position, row in enumerate(rows):
            found[position] = self._row(row)
        return torch.from_numpy(found)

    def verify(self) -> None:
        """Reads every image once and compares it with its checksum.

        Raises:
            CacheDamagedError: if an image does not fit.
        """
        for number, expected in enumerate(self.digests):
            if digest_of_pixels(self._row(number)) != expected:
                raise CacheDamagedError(f"{self.path} is damaged: image {number} does not fit its checksum")


def build_cache(
    path: Path, images: Iterable[Any], prepare: Callable[[Any], np.ndarray], source: str | None = None
) -> PixelCache:
    """Prepares images one by one and writes them to a new cache. Until it is complete, the file has another name.

    Args:
        path: of the file.
        images: anything that `prepare` takes; may be a stream.
        prepare: image -> array, all of one shape and type.
        source: text that identifies the images; callers compare it before they use the cache again.

    Raises:
        ValueError: if there is no image, or one has another shape.
        CacheWriteError: if the disk is full or the folder cannot be written; nothing is left behind. Errors of reading an
            image are passed on as they are.
    """
    partial = path.with_name(path.name + ".partial")
    writer = None
    try:
        for image in images:
            array = np.ascontiguousarray(prepare(image))
            with _writing(path):
                if writer is None:  # only now there is something to write: a stream may turn out to be empty
                    path.parent.mkdir(parents=True, exist_ok=True)
                    writer = _Writer(partial, array, source)
                writer.add(_image_name(image), array)
        if writer is None:
            raise ValueError("no training image: the data set or stream is empty, or none of its images can be read")
        with _writing(path):
            writer.finish()
            os.replace(partial, path)
    finally:
        if writer is not None:
            with contextlib.suppress(OSError):  # if the disk is full, an error has been raised already
                writer.file.close()
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    return PixelCache(path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheWriteError(f"cannot write {path}: {error.strerror or error}") from error


class _Writer:
    """Appends rows to a new file, all of the shape and type of the first; nothing is safe on disk before `finish`."""

    def __init__(self, path: Path, first: np.ndarray, source: str | None):
        self.file = open(path, "wb")  # noqa: SIM115 - closed by `build_cache`, whatever happens
        self.kind = (first.shape, first.dtype)
        about = {"shape": first.shape, "dtype": first.dtype.str, "source": source}
        columns = [("sha256", pa.string()), ("name", pa.string()), ("pixels", pa.binary(first.nbytes))]
        self.schema = pa.schema(columns, metadata={"iltm": json.dumps(about)})
        self.rows = pa.ipc.new_file(self.file, self.schema)
        self.arrays: list[np.ndarray] = []
        self.names: list[str] = []

    def add(self, name: str, array: np.ndarray) -> None:
        if (array.shape, array.dtype) != self.kind:
            raise ValueError(f"{name or 'an image'} has shape {array.shape}, the first image {self.kind[0]}")
        self.arrays.append(array)
        self.names.append(name.encode("utf-8", "backslashreplace").decode())  # a path may hold bytes that are no text
        if len(self.arrays) * array.nbytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        pixels = pa.FixedSizeBinaryArray.from_buffers(
            self.schema.field("pixels").type, len(self.arrays), [None, pa.py_buffer(np.stack(self.arrays).tobytes())]
        )
        digests = pa.array([digest_of_pixels(array) for array in self.arrays])
        self.rows.write_batch(pa.record_batch([digests, pa.array(self.names, pa.string()), pixels], self.schema))
        self.arrays, self.names = [], []

    def finish(self) -> None:
        if self.arrays:
            self._flush()
        self.rows.close()
        self.file.flush()
        os.fsync(self.file.fileno())


def _image_name(image: Any) -> str:
    """Path of an image, or the path that it was opened from; empty if it has none."""
    return str(image) if isinstance(image, str | os.PathLike) else str(getattr(image, "filename", "") or "")


def difference(cache: PixelCache, images: Iterable[Any], prepare: Callable[[Any], np.ndarray]) -> str | None:
    """Says in words how images, each prepared by `prepare`, differ from a cache; None if they are the same in the same order."""
    count, changed = 0, []
    for count, image in enumerate(images, 1):
        if count > len(cache) or digest_of_pixels(np.ascontiguousarray(prepare(image))) != cache.digests[count - 1]:
            changed.append((count - 1, _image_name(image)))
    if count == len(cache) and not changed:
        return None
    words = f"{len(cache)} images then, {count} now"
    if changed:
        number, name = changed[0]
        words += f"; {len(changed)} differ, the first is number {number}" + (f" ({name})" if name else "")
    return words


def digest_of_pixels(array: np.ndarray) -> str:
    """The checksum that a cache keeps of an image."""
    return hashlib.sha256(array.data).hexdigest()
