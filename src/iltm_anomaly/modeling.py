"""What all models of the package share."""

from typing import Any

from transformers import PreTrainedModel


class SafetensorsModel(PreTrainedModel):
    """A model that is never read from a pickle, which may run code: repositories come from strangers."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As any model of transformers, with `use_safetensors=True`."""
        return super().from_pretrained(*args, **kwargs | {"use_safetensors": True})

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As any model of transformers, under the names that its weights have here: of some backbones it would write those of
        former versions, which `hub.checks` would not know."""
        super().save_pretrained(*args, **kwargs | {"save_original_format": False})
