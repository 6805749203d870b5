"""Colour at the beginning of errors and warnings on a terminal; none in a file, under `NO_COLOR` or where `TERM` is dumb."""

import logging
import os
from typing import TextIO

COLOURS = {logging.ERROR: "1;31", logging.WARNING: "1;33"}  # red and yellow, bold


def painted(text: str, level: int, stream: TextIO | None) -> str:
    """`text` in the colour of a level of `logging`, if `stream` shows colours."""
    colour = COLOURS.get(level)
    is_terminal = stream is not None and stream.isatty() and os.name != "nt"  # where older consoles show the codes
    if colour is None or not is_terminal or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


class PaintedLevels(logging.Formatter):
    """Level and message, the level painted if the handler's `stream` shows colours."""

    def __init__(self, stream: TextIO | None):
        super().__init__("%(message)s")
        self.stream = stream

    def format(self, record: logging.LogRecord) -> str:
        return f"{painted(record.levelname, record.levelno, self.stream)} {super().format(record)}"
