"""The optimisation loop that both stages share.

Nothing in it has a random state of its own: which images a step sees, how they are augmented and what dropout drops are
functions of the seed, the stage, the step and, for dropout, the process. A resumed run therefore continues bit for bit.
"""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from iltm_anomaly.data.augmentation import sample_seed
from iltm_anomaly.training.checkpoint import load_checkpoint, save_checkpoint
from iltm_anomaly.training.recipe import StageRecipe

logger = logging.getLogger(__name__)

LOG_EVERY = 20  # steps: reading the loss waits for the device


class NonFiniteLossError(RuntimeError):
    """The loss, or the weights, became NaN or infinite."""


class RunLog:
    """One JSON object per line in `training_log.jsonl`, written by the main process only."""

    def __init__(self, path: Path, is_main_process: bool):
        self.path, self.enabled = path, is_main_process

    def write(self, **values: Any) -> None:
        if self.enabled:
            with open(self.path, "a") as file:
                file.write(json.dumps({"time": round(time.time(), 1), **values}) + "\n")


@dataclass
class LoopSettings:
    """What `fit` needs beside model and data.

    Args:
        name: of the stage, as in logs and checkpoints: "vqvae", "prior round 2".
        seed: of the run.
        checkpoint_path: file of the run's newest checkpoint; None writes none.
        checkpoint_seconds: time between checkpoints.
        log: of the run.
        show_progress: a progress bar on the main process.
    """

    name: str
    seed: int
    log: RunLog
    checkpoint_path: Path | None = None
    checkpoint_seconds: float = 120.0
    show_progress: bool = True


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Whole batches only: with a shuffle every epoch, what one leaves out the next one sees."""
    return max(1, num_samples // batch_size)


def batch_indices(num_samples: int, batch_size: int, step: int, seed: int) -> Tensor:
    """Samples of the 0-based `step`, over all processes: the epoch's shuffle is drawn from seed and epoch."""
    epoch, position = divmod(step, steps_per_epoch(num_samples, batch_size))
    generator = torch.Generator().manual_seed(sample_seed(seed, 1, epoch))
    order = torch.randperm(num_samples, generator=generator)
    return order[position * batch_size : (position + 1) * batch_size]


def _share_of_process(indices: Tensor, accelerator: Accelerator) -> Tensor:
    if len(indices) % accelerator.num_processes:
        raise ValueError(
            f"a batch of {len(indices)} images cannot be split evenly over {accelerator.num_processes} processes: "
            "choose a batch_size that is a multiple"
        )
    return indices.chunk(accelerator.num_processes)[accelerator.process_index]


def fit(
    accelerator: Accelerator,
    model: torch.nn.Module,
    stage: StageRecipe,
    num_samples: int,
    make_inputs: Callable[[Tensor, int], dict[str, Tensor]],
    settings: LoopSettings,
    before_step: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Trains `model` in place for `stage.epochs`, from the newest checkpoint of this stage if there is one.

    Args:
        model: returns an output with `loss`, and `perplexity` if it has one.
        num_samples: images to draw from.
        make_inputs: (indices, step) -> keyword arguments of the model's forward.
        before_step: (step, epoch), called before each step: schedules that live inside the model.

    Returns:
        Averages over the last logged steps, steps, and seconds: {"loss", "perplexity", "steps", "seconds"}.

    Raises:
        NonFiniteLossError: if the loss is not finite; the last checkpoint stays, and its weights are finite.
    """
    per_epoch = steps_per_epoch(num_samples, stage.batch_size)
    total = per_epoch * stage.epochs
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.learning_rate, weight_decay=stage.weight_decay, fused=True
    )
    checkpoint = _Checkpointer(accelerator, model, optimizer, settings)
    first, elapsed = checkpoint.resume()
    trained, optimizer = accelerator.prepare(model, optimizer)
    trained.train()

    summary: dict[str, float] = {}
    started = time.monotonic() - elapsed
    hidden = not (settings.show_progress and accelerator.is_main_process)
    with tqdm(total=total, initial=first, desc=settings.name, unit="step", disable=hidden, mininterval=0.5) as bar:
        for step in range(first, total):
            epoch = step // per_epoch
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate_at(step, per_epoch)
            if before_step is not None:
                before_step(step, epoch)
            indices = _share_of_process(batch_indices(num_samples, stage.batch_size, step, settings.seed), accelerator)
            inputs = {key: value.to(accelerator.device) for key, value in make_inputs(indices, step).items()}
            torch.manual_seed(sample_seed(settings.seed, 2, step, accelerator.process_index))  # dropout
            output = trained(**inputs)
            accelerator.backward(output.loss)
            if stage.max_grad_norm:
                accelerator.clip_grad_norm_(trained.parameters(), stage.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bar.update()

            if (step + 1) % LOG_EVERY == 0 or step + 1 == total:
                summary = _summarise(output, step + 1, time.monotonic() - started, settings)
                bar.set_postfix({k: f"{v:.4g}" for k, v in summary.items() if k in ("loss", "perplexity")})
                settings.log.write(
                    stage=settings.name, epoch=epoch, lr=stage.learning_rate_at(step, per_epoch), **summary
                )
            checkpoint.save_if_due(step + 1, time.monotonic() - started)
    model.eval()
    accelerator.free_memory()
    return summary


def _diverged(what: str, step: int, settings: LoopSettings) -> str:
    return (
        f"{settings.name}: {what} at step {step}. Lower the learning rate or train in float32; "
        f"the last good checkpoint is {settings.checkpoint_path}"
    )


def _summarise(output: Any, steps: int, seconds: float, settings: LoopSettings) -> dict[str, float]:
    loss = output.loss.item()
    if not math.isfinite(loss):
        raise NonFiniteLossError(_diverged(f"the loss is {loss}", steps, settings))
    values = {"loss": loss, "steps": steps, "seconds": round(seconds, 1)}
    if getattr(output, "perplexity", None) is not None:
        values["perplexity"] = output.perplexity.item()
    return values


class _Checkpointer:
    """Saves the stage under way at a time interval, and finds the place where to go on."""

    def __init__(self, accelerator: Accelerator, model, optimizer, settings: LoopSettings):
        self.accelerator, self.model, self.optimizer, self.settings = accelerator, model, optimizer, settings
        self.saved_at = time.monotonic()

    def resume(self) -> tuple[int, float]:
        """Loads what was saved of this stage; returns the first step left to do, and the seconds spent so far."""
        path = self.settings.checkpoint_path
        if path is None:
            return 0, 0.0
        state, problems = load_checkpoint(path)
        for problem in problems:
            logger.warning("%s: falling back on the one before", problem)
        if state is None or state["stage"] != self.settings.name:
            return 0, 0.0
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["num_processes"] != self.accelerator.num_processes:
            logger.warning(
                "resuming on %d processes a run of %d: it goes on, but no longer bit for bit",
                self.accelerator.num_processes,
                state["num_processes"],
            )
        logger.info("%s: resumed at step %d", self.settings.name, state["step"])
        return state["step"], state["seconds"]

    def save_if_due(self, step: int, seconds: float) -> None:
        due = time.monotonic() - self.saved_at >= self.settings.checkpoint_seconds
        if self.settings.checkpoint_path is None or not due:
            return
        self.saved_at = time.monotonic()
        if self.accelerator.is_main_process:
            # The loss is only read now and then: without this look the last good checkpoint could be overwritten meanwhile.
            if not all(bool(tensor.isfinite().all()) for tensor in self.model.state_dict().values()):
                raise NonFiniteLossError(_diverged("weights are not finite", step, self.settings))
            state = {
                "stage": self.settings.name,
                "step": step,
                "seconds": seconds,
                "num_processes": self.accelerator.num_processes,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
            save_checkpoint(self.settings.checkpoint_path, state)
