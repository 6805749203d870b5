"""How far a long task is: a bar on a terminal or in a notebook; elsewhere, as in a log file, a line every half a minute."""

import sys
from collections.abc import Callable
from typing import Any

import tqdm
import tqdm.auto
import tqdm.autonotebook

SECONDS = 30  # between two lines


class ProgressLines(tqdm.tqdm):
    """A bar of tqdm that is written as lines, each to its end; what takes less than `SECONDS` has none."""

    monitor_interval = 0  # no thread that says the same a second time

    def __init__(self, *arguments: Any, **options: Any):
        options |= {"mininterval": SECONDS, "delay": SECONDS, "miniters": 1}
        form = "{desc}: {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} left{postfix}"
        super().__init__(*arguments, bar_format=form, **options)

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        return lambda text: print(text, file=file, flush=True)

    def close(self) -> None:
        """Says no more: tqdm would clear or end the line of a bar."""
        self.disable = True


def progress(iterable: Any = None, *, hidden: bool = False, **options: Any) -> Any:
    """An iterable that shows how far it is, or with `total` a bar that is moved by `update`; `options` are those of tqdm."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    is_notebook = tqdm.autonotebook.tqdm is not tqdm.std.tqdm
    kind = tqdm.auto.tqdm if is_terminal or is_notebook else ProgressLines
    return kind(iterable, disable=hidden, **options)
