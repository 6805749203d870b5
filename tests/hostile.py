"""Ways to spoil a folder that somebody else has uploaded."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file


def edit(path: Path, **changes) -> None:
    """Changes fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil(path: Path, name: str, change) -> None:
    """Changes one tensor of a safetensors file."""
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


class Bomb:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
