"""Ways to spoil a valid file, drawn from a `random.Random`: bits, lengths, numbers, types, names."""

import copy
import gzip
import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import nibabel as nib
import numpy as np

NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    7,
    255,
    2**15,
    2**20,
    2**31 - 1,
    2**31,
    2**63,
    10**30,
    0.5,
    -0.5,
    1e-30,
    1e-300,
    1e30,
    1e308,
)
ODD: tuple[Any, ...] = (
    *NUMBERS,
    *(float("nan"), float("inf"), -float("inf"), None, True, False),
    *("", "x", "../x", "/etc/passwd", "nan", "1e400", "ä" * 300, "a\x00b", "\ud800", "{{ 7 * 7 }}", "=1+1", "a\nb"),
    *([], {}, [[]], [None], [0] * 1000, [-1, 2**40], {"a": 1}, {"": None}, {"x": [{"y": {}}]}),
)


def spoil_bytes(data: bytes, draw: Random) -> bytes:
    """One to three of: flipped bits, an end cut off, a piece cut out, doubled, emptied or moved, a number out of all bounds."""
    content = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        start, length = draw.randrange(len(content) + 1), draw.choice([1, 2, 4, 8, 64, 1000])
        match draw.randrange(7):
            case 0 | 1:
                for _ in range(draw.choice([1, 1, 3, 20])):
                    if content:
                        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            case 2:
                del content[start:]
            case 3:
                del content[start : start + length]
            case 4:
                content[start:start] = content[start : start + length]
            case 5:
                content[start : start + length] = bytes([draw.choice([0, 255])]) * len(content[start : start + length])
            case _:
                at = min(start, draw.choice([64, 512, len(content)]))
                width = draw.choice([1, 2, 4, 8])
                content[at : at + width] = draw.choice([b"\x00", b"\xff", b"\x7f", b"\x80"]) * width
    return bytes(content)


def spoil_png(data: bytes, draw: Random) -> bytes:
    """Spoils one chunk of a PNG and mends its checksum, so that what is in it is believed."""
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    number = draw.randrange(len(chunks))
    kind, content = chunks[number]
    if kind == b"IHDR" and draw.random() < 0.7:
        sides = [draw.choice([0, 1, 7, 24, 9000, 12_000, 2**20, 2**31 - 1]) for _ in "WH"]
        content = struct.pack(">II", *sides) + content[8:]
    elif content:
        content = spoil_bytes(content, draw)
    chunks[number] = (draw.choice([kind, kind, kind, b"tRNS", b"PLTE", b"acTL", b"eXIf"]), content)
    if draw.random() < 0.3:
        draw.shuffle(chunks)
    packed = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    ]
    return data[:8] + b"".join(packed)


def spoil_nifti(data: bytes, draw: Random) -> bytes:
    """Gives one or two fields of the header of a NIfTI file, packed or not, values that its author never saw."""
    packed = data[:2] == b"\x1f\x8b"
    content = bytearray(gzip.decompress(data) if packed else data)
    kind: Any = nib.Nifti2Header if content[4:6] == b"n+" else nib.Nifti1Header
    if draw.random() < 0.75:
        header = np.frombuffer(bytes(content[: kind.sizeof_hdr]), kind.template_dtype).copy()
        numeric = [name for name in header.dtype.names if header.dtype[name].base.kind in "iuf"]
        for _ in range(draw.randint(1, 2)):
            name = draw.choice(numeric)
            base = header.dtype[name].base
            whole = draw.choice([0, -1, 1, 2, 3, 5, 100, 1000, 32_767, -32_768, 2**31 - 1, 2**62])
            broken = draw.choice([0.0, -1.0, 1e-30, 1e30, 1e-7, 0.002, np.nan, np.inf, -np.inf])
            with np.errstate(all="ignore"):
                number = np.array(whole if base.kind in "iu" else broken).astype(base)
            target = header[name].reshape(-1)  # a view
            target[draw.randrange(target.size)] = number
        content[: kind.sizeof_hdr] = header.tobytes()
    else:
        content = bytearray(spoil_bytes(bytes(content), draw))
    found = gzip.compress(bytes(content), 1) if packed else bytes(content)
    return spoil_bytes(found, draw) if draw.random() < 0.1 else found


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every item of a document, as what holds it and its key or index there."""
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += [(value, key), *places(item)]
    return found


def spoil_value(value: Any, draw: Random) -> Any:
    """A document from JSON or YAML with one to three items of another value, gone, new, exchanged or nested deeply."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        found = places(value)
        if not found or draw.random() < 0.02:
            return draw.choice(ODD)
        holder, key = draw.choice(found)
        match draw.randrange(8):
            case 0:
                del holder[key]
            case 1:
                other, elsewhere = draw.choice(found)
                holder[key] = copy.deepcopy(other[elsewhere])
            case 2:
                if isinstance(holder, dict):
                    holder[draw.choice(["x", "", "auto_map", "seed", str(key) + "s"])] = draw.choice(ODD)
                else:
                    holder.append(draw.choice(ODD))
            case 3 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                factor = draw.choice([-1, 0, 0.5, 2, 10, 1000, 10**9])
                holder[key] = type(holder[key])(min(holder[key] * factor, 1e300))
            case 4 if draw.random() < 0.1:
                for _ in range(5000):
                    holder[key] = [holder[key]]
                return value
            case _:
                holder[key] = copy.deepcopy(draw.choice(ODD))
    return value


def spoil_json(data: bytes, draw: Random) -> bytes:
    """A JSON file with other values or, less often, other bytes."""
    if draw.random() < 0.2:
        return spoil_bytes(data, draw)
    value = spoil_value(json.loads(data), draw)
    try:
        return json.dumps(value, ensure_ascii=draw.random() < 0.9).encode(errors="replace")
    except RecursionError:
        return b"[" * 100_000


def spoil_safetensors(data: bytes, draw: Random) -> bytes:
    """Another header, whose length fits it, or other numbers in the tensors."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    match draw.randrange(4):
        case 0 | 1:
            header = spoil_json(header, draw)
            return struct.pack("<Q", len(header)) + header + body
        case 2:
            numbers = bytearray(body)
            for _ in range(draw.choice([1, 5, 100])):
                at = 4 * draw.randrange(len(numbers) // 4)
                numbers[at : at + 4] = struct.pack(
                    "<f", draw.choice([np.nan, np.inf, 3e38, -3e38, 1e-40, 1e10, 0.0, -1])
                )
            return data[: 8 + length] + bytes(numbers)
        case _:
            return spoil_bytes(data, draw)


def spoil_text(data: bytes, draw: Random) -> bytes:
    """Lines of a table or of YAML with other words or numbers, or gone, doubled or moved."""
    if draw.random() < 0.25:
        return spoil_bytes(data, draw)
    lines = data.decode(errors="replace").splitlines(keepends=True)
    for _ in range(draw.randint(1, 3)):
        if not lines:
            break
        number = draw.randrange(len(lines))
        match draw.randrange(6):
            case 0:
                del lines[number]
            case 1:
                lines.insert(draw.randrange(len(lines) + 1), lines[number])
            case _:
                words = re.split(r"([,:\s\[\]{}\"])", lines[number])
                odd = (
                    str(draw.choice(ODD))
                    if draw.random() < 0.8
                    else draw.choice(["*a", "&a", "!!python/object:x", '"'])
                )
                words[draw.randrange(len(words))] = odd
                lines[number] = "".join(words)
    return "".join(lines).encode(errors="replace")


SPOILERS: dict[str, Callable[[bytes, Random], bytes]] = {
    ".png": spoil_png,
    ".nii": spoil_nifti,
    ".gz": spoil_nifti,
    ".json": spoil_json,
    ".safetensors": spoil_safetensors,
    ".csv": spoil_text,
    ".jsonl": spoil_text,
    ".yaml": spoil_text,
}


def spoil_file(path: Path, draw: Random) -> None:
    """Replaces a file by a spoiled copy, in the way of its kind; or, rarely, by nothing, a folder or a link to itself."""
    data = path.read_bytes()
    path.unlink()
    match draw.randrange(40):
        case 0:
            return
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(path)
        case 3:
            path.touch()
        case _:
            change = spoil_bytes if draw.random() < 0.2 else SPOILERS.get(path.suffix, spoil_bytes)
            path.write_bytes(change(data, draw))
