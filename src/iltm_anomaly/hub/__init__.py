"""To the Hub and back: loading what strangers made, uploading, model cards."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """`upload` with its first use: cards know recipes and data sets, which whoever loads a pipeline need not wait for."""
    if name != "upload":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
