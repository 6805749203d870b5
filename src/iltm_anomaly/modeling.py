"""What all models of the package share."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel


def share_tensors(folder: Path) -> None:
    """Gives the safetensors files in a folder the mode of the config.json beside them, which is as the umask has it: safetensors
    writes files that nobody else can read."""
    mode = (folder / "config.json").stat().st_mode & 0o666
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)


class SafetensorsModel(PreTrainedModel):
    """A model that is never read from a pickle, which may run code: repositories come from strangers."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As any model of transformers, with `use_safetensors=True`."""
        return super().from_pretrained(*args, **kwargs | {"use_safetensors": True})

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As any model of transformers, under the names that its weights have here: of some backbones it would write those of
        former versions, which `hub.checks` would not know."""
        super().save_pretrained(save_directory, *args, **kwargs | {"save_original_format": False})
        if (Path(save_directory) / "config.json").exists():  # only the main process of several writes
            share_tensors(Path(save_directory))
