"""What all models of the package share."""

from typing import Any

from transformers import PreTrainedModel


class SafetensorsModel(PreTrainedModel):
    """A model that is never read from a pickle, which may run code: repositories come from strangers."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As any model of transformers, with `use_safetensors=True`."""
        return super().from_pretrained(*args, **kwargs | {"use_safetensors": True})
