"""What one process does for all of them, and what they share out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor

Value = TypeVar("Value")


@contextmanager
def own_accelerator() -> Iterator[None]:
    """Lets go of precision and device of an `Accelerator` made inside: accelerate keeps one of each per process, and the next one
    may have others. What was there before stays, and so do the connections of several processes."""
    taken = bool(AcceleratorState._shared_state or PartialState._shared_state)
    try:
        yield
    finally:
        if not taken and PartialState._shared_state and PartialState().num_processes == 1:
            AcceleratorState._reset_state(reset_partial_state=True)


class MainProcessError(RuntimeError):
    """The main process failed, so the others end too."""


def on_main(accelerator: Accelerator | PartialState, function: Callable[[], Value]) -> Value:
    """What `function` returns in the main process, in all of them; returns everywhere once it is done.

    Raises:
        MainProcessError: in the other processes, if it raised in the main one: none is left waiting for an answer.
    """
    if accelerator.num_processes == 1:
        return function()
    answer: list[Any] = [None, None]
    error: Exception | None = None
    if accelerator.is_main_process:
        try:
            answer[0] = function()
        except Exception as caught:  # told to the others, whatever it is, and raised again
            error = caught
            answer[1] = f"{type(caught).__name__}: {caught}"
    broadcast_object_list(answer)
    if error is not None:
        raise error
    if answer[1] is not None:
        raise MainProcessError(f"process {accelerator.process_index} ends, because the main one failed: {answer[1]}")
    return answer[0]


def over_processes(accelerator: Accelerator, count: int, block: int, compute: Callable[[range], Tensor]) -> Tensor:
    """`compute(rows)` for all `count` rows, shared out over the processes in whole blocks: the same bits for any number."""
    share = -(-count // (block * accelerator.num_processes)) * block
    first = min(accelerator.process_index * share, count)
    rows = range(first, min(first + share, count))
    part = compute(rows if len(rows) else range(1))
    if accelerator.num_processes == 1:
        return part
    padded = part.new_zeros(share, *part.shape[1:])
    padded[: len(rows)] = part[: len(rows)]
    return accelerator.gather(padded.to(accelerator.device)).cpu()[:count]


def describe(accelerator: Accelerator) -> str:
    """How many processes, of what kind, and in which precision, in words."""
    count, device = accelerator.num_processes, accelerator.device.type
    precision = {"no": "float32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    threads = f", {torch.get_num_threads()} threads each" if device == "cpu" else ""
    return f"{count} process{'es' if count > 1 else ''} ({device}{threads}), {precision}"
