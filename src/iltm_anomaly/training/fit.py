"""The optimisation loop of every stage.

Nothing in it has a random state of its own: which images a step sees, how they are augmented and what dropout drops are
functions of the seed, the stage, the step and, for dropout, the process. A resumed run therefore continues bit for bit.

A step is the same on any number of processes: its loss is the mean over all loss terms of the global batch, however they are
spread over processes and micro-batches. Every process knows how many terms every other one has, so nothing is communicated
for it.
"""

import contextlib
import math
import time
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from iltm_anomaly.progress import progress
from iltm_anomaly.recipes.pixel_recipe import StageRecipe
from iltm_anomaly.seeds import sample_seed
from iltm_anomaly.training.batches import Loader, StepInputs, batch_indices, split_step, steps_per_epoch, total_steps
from iltm_anomaly.training.loop_settings import LoopSettings
from iltm_anomaly.training.stage_checkpoint import NonFiniteLossError, StageCheckpoint, diverged, is_finite

SGD_MOMENTUM = 0.9


class Objective:
    """What a stage trains, and what a step of it sees. Subclasses override what they need.

    Args:
        model: its forward returns an output with `loss`, a mean over terms, and `perplexity` if it has one.
    """

    def __init__(self, model: torch.nn.Module):
        self.model = model

    def inputs(self, indices: Tensor, step: int) -> dict[str, Tensor]:
        """Keyword arguments of the model's forward for some of a step's samples. It runs ahead of the steps, in threads: it is a
        function of its arguments alone, and leaves the global random state alone."""
        raise NotImplementedError

    def loss_terms(self, indices: Tensor, step: int) -> Tensor:
        """How many terms of the loss each sample has, (B,)."""
        return torch.ones(len(indices))

    def before_step(self, step: int, epoch: int) -> None:
        """Schedules that live inside the model."""

    def before_forward(self, is_last: bool) -> None:
        """Is told whether the micro-batch is the last one of its step."""

    def measure(self) -> dict[str, float]:
        """More values for the log, asked for when a line of it is due."""
        return {}


def fit(
    accelerator: Accelerator, objective: Objective, stage: StageRecipe, num_samples: int, settings: LoopSettings
) -> dict[str, float]:
    """Trains the objective's model in place for the steps of `stage`, from the newest checkpoint of this stage if there is one.

    Args:
        num_samples: images to draw from.

    Returns:
        Of the last logged step: loss, perplexity, steps, seconds (of the stage, over all sittings) and speeds.

    Raises:
        NonFiniteLossError: if the loss is not finite; the last checkpoint stays, and its weights are finite.
        ValueError: for a time budget with several processes, which would end at different steps.
    """
    if settings.budget_seconds is not None and accelerator.num_processes > 1:
        raise ValueError(
            f"{settings.name}: a time budget needs one process, got {accelerator.num_processes}: give steps instead"
        )
    model = objective.model
    per_epoch, total = steps_per_epoch(num_samples, stage.batch_size), total_steps(stage, num_samples)
    optimizer = _make_optimizer(model, stage)
    checkpoint = StageCheckpoint(accelerator, model, optimizer, stage.micro_batch_size, settings)
    first, elapsed, summary = checkpoint.resume()
    trained, optimizer = accelerator.prepare(model, optimizer)
    trained.train()
    meter = _Meter(first, elapsed, min(stage.batch_size, num_samples), settings.tokens_per_sample)
    loader = Loader(
        lambda step: _load(accelerator, objective, stage, num_samples, settings.seed, step), settings.loading_threads
    )
    hidden = not (settings.show_progress and accelerator.is_main_process)
    bar = progress(total=total, initial=first, desc=settings.name, unit="step", hidden=hidden, mininterval=0.5)
    with loader, bar:
        for step, batch in loader.batches(range(first, total)):
            epoch = step // per_epoch
            rate = stage.learning_rate_at(settings.scheduled_step(step, total, meter.seconds), per_epoch)
            objective.before_step(step, epoch)
            torch.manual_seed(sample_seed(settings.seed, 2, step, accelerator.process_index))  # dropout
            loss, output = _step(accelerator, trained, optimizer, objective, batch, rate, stage.max_grad_norm)
            bar.update()
            is_last = settings.is_last(step + 1, total, meter.seconds)
            if (step + 1) % settings.log_every == 0 or is_last:
                summary = _summarise(accelerator, loss, output, step + 1, settings)
                summary |= objective.measure() | meter.read(step + 1, loader.seconds_waited)
                bar.set_postfix(
                    {k: f"{v:.4g}" for k, v in summary.items() if k in ("loss", "perplexity")}, refresh=False
                )
                about = {"stage": settings.name, "epoch": epoch, "lr": rate, **settings.about}
                settings.log.write(step=settings.steps_before + step + 1, **about, **summary)
            checkpoint.save_if_due(step + 1, meter.seconds, summary)
            if is_last:
                break
    if not is_finite(model):  # the loss of the last step was read before it moved the weights
        raise NonFiniteLossError(diverged("weights are not finite", int(summary["steps"]), settings))
    # takes the autocast off the model: what it computes from now on is what it computes when it is loaded again
    accelerator.unwrap_model(trained, keep_fp32_wrapper=False)
    model.eval()
    accelerator.free_memory()
    return summary


def _make_optimizer(model: torch.nn.Module, stage: StageRecipe) -> torch.optim.Optimizer:
    if stage.optimizer == "sgd":
        # decoupled for Adam only: here it is the L2 penalty that papers with momentum mean
        return torch.optim.SGD(
            model.parameters(), lr=stage.learning_rate, momentum=SGD_MOMENTUM, weight_decay=stage.weight_decay
        )
    return torch.optim.AdamW(model.parameters(), lr=stage.learning_rate, weight_decay=stage.weight_decay, fused=True)


def _load(
    accelerator: Accelerator, objective: Objective, stage: StageRecipe, num_samples: int, seed: int, step: int
) -> StepInputs:
    indices = batch_indices(num_samples, stage.batch_size, step, seed)
    terms = objective.loss_terms(indices, step)
    parts = split_step(indices, terms, accelerator.num_processes, accelerator.process_index, stage.micro_batch_size)
    inputs = [
        {name: value.to(accelerator.device, non_blocking=True) for name, value in objective.inputs(part, step).items()}
        for part, _ in parts
    ]
    return StepInputs(inputs, [weight for _, weight in parts], int(terms.sum()))


def _step(
    accelerator: Accelerator,
    trained: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    batch: StepInputs,
    rate: float,
    max_grad_norm: float,
) -> tuple[Tensor, Any]:
    """One optimisation step; returns this process's part of the loss, which nobody has waited for, and the last output."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss, output = _accumulate_gradients(accelerator, trained, objective, batch)
    if batch.terms:  # else nothing was learned: without this, momentum and weight decay would still move the weights
        if max_grad_norm:
            accelerator.clip_grad_norm_(trained.parameters(), max_grad_norm)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, output


def _accumulate_gradients(
    accelerator: Accelerator, trained: torch.nn.Module, objective: Objective, batch: StepInputs
) -> tuple[Tensor, Any]:
    """Backward through every micro-batch; gradients are reduced over processes with the last."""
    losses = []
    for number, (inputs, weight) in enumerate(zip(batch.micro_batches, batch.weights, strict=True), 1):
        is_last = number == len(batch.micro_batches)
        objective.before_forward(is_last)
        with contextlib.nullcontext() if is_last else accelerator.no_sync(trained):
            output = trained(**inputs)
            loss = output.loss if weight == 1 else output.loss * weight
            accelerator.backward(loss)
        losses.append(loss.detach())
    return torch.stack(losses).sum(), output


def _summarise(
    accelerator: Accelerator, part: Tensor, output: Any, steps: int, settings: LoopSettings
) -> dict[str, float]:
    # the mean over processes of weighted parts is the loss of the global batch; all processes see it, and stop together
    loss = accelerator.reduce(part.float(), "mean").item()
    if not math.isfinite(loss):
        raise NonFiniteLossError(diverged(f"the loss is {loss}", steps, settings))
    values = {"loss": loss, "steps": steps}
    if getattr(output, "perplexity", None) is not None:
        values["perplexity"] = output.perplexity.item()
    return values


class _Meter:
    """Time spent on a stage, speeds since the last reading, and the share of that time spent waiting for data."""

    def __init__(self, step: int, elapsed: float, batch_size: int, tokens_per_sample: int):
        self.started = time.monotonic() - elapsed
        self.batch_size, self.tokens_per_sample = batch_size, tokens_per_sample
        self.step, self.waited, self.read_at = step, 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def read(self, step: int, waited: float) -> dict[str, float]:
        now = time.monotonic()
        passed = max(now - self.read_at, 1e-9)
        speed = self.batch_size * (step - self.step) / passed
        values = {
            "seconds": round(now - self.started, 1),
            "images_per_second": float(f"{speed:.4g}"),
            "waiting_for_data": round((waited - self.waited) / passed, 4),
        }
        if self.tokens_per_sample:
            values["tokens_per_second"] = float(f"{speed * self.tokens_per_sample:.4g}")
        self.step, self.waited, self.read_at = step, waited, now
        return values
