"""Which samples a step sees, how processes and micro-batches share them, and who prepares them.

All of it is a function of seed and step, so that a resumed run sees what an uninterrupted one would have seen.
"""

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from iltm_anomaly.recipes.pixel_recipe import StageRecipe
from iltm_anomaly.seeds import sample_seed


@dataclass
class StepInputs:
    """One process's part of a step: micro-batches with the weights of their losses, and the terms of the global batch."""

    micro_batches: list[dict[str, Tensor]]
    weights: list[float]
    terms: int


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Whole batches only: as samples are shuffled every epoch, the next one sees what this one leaves out."""
    return max(1, num_samples // batch_size)


def total_steps(stage: StageRecipe, num_samples: int) -> int:
    """Optimisation steps of a stage."""
    return stage.total_steps(steps_per_epoch(num_samples, stage.batch_size))


def batch_indices(num_samples: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Samples of the 0-based `step`, over all processes: the epoch's shuffle is drawn from seed and epoch."""
    epoch, position = divmod(step, steps_per_epoch(num_samples, batch_size))
    generator = torch.Generator().manual_seed(sample_seed(seed, 1, epoch))
    order = torch.randperm(num_samples, generator=generator)
    return order[position * batch_size : (position + 1) * batch_size]


def split_step(
    indices: Tensor, terms: Tensor, processes: int, process: int, micro_batch_size: int | None
) -> list[tuple[Tensor, float]]:
    """Micro-batches of one process and the weights of their losses.

    Args:
        indices: samples of the step over all processes, (B,).
        terms: terms of the loss of each, (B,).
        processes, process: how many share the step, and which one this is.
        micro_batch_size: most samples at once, None for no limit.

    Returns:
        (indices, weight) pairs. The sum over all processes of weight x mean loss, divided by `processes` as gradients are
        when they are averaged, is the mean over all terms. A process with no sample takes one with weight 0, because every
        process must take part in reducing gradients.
    """
    total = int(terms.sum())
    positions = torch.arange(len(indices)).tensor_split(processes)[process]
    if not len(positions):
        return [(indices[:1], 0.0)]
    parts = positions.split(micro_batch_size or len(positions))
    return [(indices[part], processes * int(terms[part].sum()) / max(1, total)) for part in parts]


class Loader:
    """Prepares the inputs of the next steps in threads while the model is at work, and counts how long it was waited for.

    Args:
        load: step -> its inputs.
        threads: how many prepare; 0 prepares each step when its turn comes.
    """

    def __init__(self, load: Callable[[int], StepInputs], threads: int):
        self.load, self.threads, self.seconds_waited = load, threads, 0.0
        self.pool = ThreadPoolExecutor(threads) if threads else None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def batches(self, steps: range) -> Iterator[tuple[int, StepInputs]]:
        """(step, inputs) of each of `steps`."""
        ahead: deque = deque()
        upcoming = iter(steps)
        for step in steps:
            started = time.monotonic()
            if self.pool is None:
                batch = self.load(step)
            else:
                for later in itertools.islice(upcoming, self.threads + 1 - len(ahead)):
                    ahead.append(self.pool.submit(self.load, later))
                batch = ahead.popleft().result()
            self.seconds_waited += time.monotonic() - started
            yield step, batch


def loading_threads(accelerator: Accelerator) -> int:
    """Threads that prepare data in each process: 1 to 4 of the cores that the processes of this machine leave free, where an
    accelerator trains. None where the CPU itself does: a second thread's work is shared out over more threads than there are
    cores, and waiting for each other made a step of the prior take twice as long on two cores."""
    if accelerator.device.type == "cpu":
        return 0
    local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    return max(1, min(4, (os.cpu_count() or 1) // max(1, local) - 1))
