"""What all models of the package share."""

from pathlib import Path
from typing import Any, NoReturn

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging


def share_tensors(folder: Path) -> None:
    """Gives the safetensors files in a folder the mode of the config.json beside them, which is as the umask has it: safetensors
    writes files that nobody else can read."""
    mode = (folder / "config.json").stat().st_mode & 0o666
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)


class ILTMConfig(PreTrainedConfig):
    """Marks the folder of a whole pipeline; its parts have configurations of their own."""

    model_type = "iltm"


class WholePipeline(PreTrainedModel):
    """What `AutoModel` finds in the folder of a whole pipeline, which is no single model."""

    config_class = ILTMConfig

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> NoReturn:  # type: ignore[override]
        """Raises ValueError, which says what to write."""
        raise ValueError(
            f"{name} is a whole pipeline: load it with iltm_anomaly.ILTMAnomalyPipeline.from_pretrained({str(name)!r}), or one "
            f'of its models with AutoModel.from_pretrained({str(name)!r}, subfolder="tokenizer") or subfolder="prior"'
        )


class SafetensorsModel(PreTrainedModel):
    """A model that is never read from a pickle, which may run code: repositories come from strangers."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As any model of transformers, with `use_safetensors=True`, and without its progress bar, which is over at once."""
        shown = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        try:
            return super().from_pretrained(*args, **kwargs | {"use_safetensors": True})
        finally:
            if shown:
                transformers_logging.enable_progress_bar()

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As any model of transformers, under the names that its weights have here: of some backbones it would write those of
        former versions, which `hub.checks` would not know."""
        super().save_pretrained(save_directory, *args, **kwargs | {"save_original_format": False})
        if (Path(save_directory) / "config.json").exists():  # only the main process of several writes
            share_tensors(Path(save_directory))
