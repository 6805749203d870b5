"""The optimisation loop that both stages share.

Nothing in it has a random state of its own: which images a step sees, how they are augmented and what dropout drops are
functions of the seed, the stage, the step and, for dropout, the process. A resumed run therefore continues bit for bit.

A step is the same on any number of processes: its loss is the mean over all loss terms of the global batch, however they are
spread over processes and micro-batches. Every process knows how many terms every other one has, so nothing is communicated
for it.
"""

import contextlib
import itertools
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from iltm_anomaly.data.augmentation import sample_seed
from iltm_anomaly.recipes.recipe import StageRecipe
from iltm_anomaly.training.checkpoint import load_checkpoint, save_checkpoint
from iltm_anomaly.training.tracking import RunLog

logger = logging.getLogger(__name__)

LOG_EVERY = 20  # steps: reading the loss waits for the device


class NonFiniteLossError(RuntimeError):
    """The loss, or the weights, became NaN or infinite."""


@dataclass
class LoopSettings:
    """What `fit` needs beside model and data.

    Args:
        name: of the stage, as in logs and checkpoints: "vqvae", "prior round 2".
        seed: of the run.
        follows: what the stage rests on, such as the checksum of its teacher: a checkpoint that rests on something else is not
            continued.
        checkpoint_path: file of the run's newest checkpoint; None writes none.
        checkpoint_seconds: time between checkpoints.
        log: of the run.
        show_progress: a progress bar on the main process.
        log_every: steps between lines of the log.
        loading_threads: threads that prepare the next steps; 0 prepares each when its turn comes.
        tokens_per_sample: for the speed in tokens.
        steps_before: of the run's earlier stages, for trackers.
        about: constants of the stage, in every line of the log.
        budget_seconds: end the stage after this time even if steps are left, with the learning rate moved along its schedule in
            proportion to the time spent. One process only; such a run cannot be repeated to the bit.
    """

    name: str
    seed: int
    log: RunLog
    checkpoint_path: Path | None = None
    checkpoint_seconds: float = 120.0
    show_progress: bool = True
    log_every: int = LOG_EVERY
    loading_threads: int = 1
    tokens_per_sample: int = 0
    steps_before: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    budget_seconds: float | None = None
    follows: str = ""

    def scheduled_step(self, step: int, total: int, seconds: float) -> int:
        """The step of the learning rate's schedule: the real one, or a later one where more of the time than of the steps is
        spent."""
        if self.budget_seconds is None:
            return step
        return max(step, min(total - 1, int(total * seconds / self.budget_seconds)))

    def is_last(self, steps: int, total: int, seconds: float) -> bool:
        """Whether the stage ends after `steps`."""
        return steps >= total or (self.budget_seconds is not None and seconds >= self.budget_seconds)


@dataclass
class Hooks:
    """What a stage does beside the step itself; each may be None.

    Args:
        before_epoch: (epoch), in every process. Nothing of the epoch is prepared before it has run.
        before_step: (step, epoch): schedules that live inside the model.
        before_forward: (last), whether this is the last micro-batch of its step.
        measure: () -> values for the log, asked for when a line of it is due.
        loss_terms: (indices, step) -> (B,) how many terms of the loss each sample has; None is one each.
    """

    before_epoch: Callable[[int], None] | None = None
    before_step: Callable[[int, int], None] | None = None
    before_forward: Callable[[bool], None] | None = None
    measure: Callable[[], dict[str, float]] | None = None
    loss_terms: Callable[[Tensor, int], Tensor] | None = None


@dataclass
class StepInputs:
    """One process's part of a step: micro-batches with the weights of their losses, and the terms of the global batch."""

    micro_batches: list[dict[str, Tensor]]
    weights: list[float]
    terms: int


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Whole batches only: with a shuffle every epoch, what one leaves out the next one sees."""
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


def fit(
    accelerator: Accelerator,
    model: torch.nn.Module,
    stage: StageRecipe,
    num_samples: int,
    make_inputs: Callable[[Tensor, int], dict[str, Tensor]],
    settings: LoopSettings,
    hooks: Hooks | None = None,
) -> dict[str, float]:
    """Trains `model` in place for the steps of `stage`, from the newest checkpoint of this stage if there is one.

    Args:
        model: returns an output with `loss`, a mean over terms, and `perplexity` if it has one.
        num_samples: images to draw from.
        make_inputs: (indices, step) -> keyword arguments of the model's forward. Runs ahead of the steps, in threads: a function
            of its arguments alone, which leaves the global random state alone.

    Returns:
        Of the last logged step: loss, perplexity, steps, seconds (of the stage, over all sittings) and speeds.

    Raises:
        NonFiniteLossError: if the loss is not finite; the last checkpoint stays, and its weights are finite.
        ValueError: for a time budget with several processes, which would end at different steps.
    """
    hooks = hooks or Hooks()
    if settings.budget_seconds is not None and accelerator.num_processes > 1:
        raise ValueError(
            f"{settings.name}: a time budget needs one process, got {accelerator.num_processes}: give steps instead"
        )
    per_epoch = steps_per_epoch(num_samples, stage.batch_size)
    total = total_steps(stage, num_samples)
    optimizer = _make_optimizer(model, stage)
    checkpoint = _Checkpointer(accelerator, model, optimizer, stage, settings)
    first, elapsed, summary = checkpoint.resume()
    trained, optimizer = accelerator.prepare(model, optimizer)
    trained.train()

    def load(step: int) -> StepInputs:
        indices = batch_indices(num_samples, stage.batch_size, step, settings.seed)
        terms = torch.ones(len(indices)) if hooks.loss_terms is None else hooks.loss_terms(indices, step)
        parts = split_step(
            indices, terms, accelerator.num_processes, accelerator.process_index, stage.micro_batch_size
        )
        inputs = [
            {k: v.to(accelerator.device, non_blocking=True) for k, v in make_inputs(part, step).items()}
            for part, _ in parts
        ]
        return StepInputs(inputs, [weight for _, weight in parts], int(terms.sum()))

    meter = _Meter(first, elapsed, min(stage.batch_size, num_samples), settings.tokens_per_sample)
    hidden = not (settings.show_progress and accelerator.is_main_process)
    loader = _Loader(load, settings.loading_threads)
    with (
        loader,
        tqdm(total=total, initial=first, desc=settings.name, unit="step", disable=hidden, mininterval=0.5) as bar,
    ):
        for step, batch in loader.batches(first, total, per_epoch, hooks.before_epoch):
            epoch = step // per_epoch
            rate = stage.learning_rate_at(settings.scheduled_step(step, total, meter.seconds), per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            if hooks.before_step is not None:
                hooks.before_step(step, epoch)
            torch.manual_seed(sample_seed(settings.seed, 2, step, accelerator.process_index))  # dropout
            loss, output = _accumulate_gradients(accelerator, trained, batch, hooks.before_forward)
            if (
                batch.terms
            ):  # else nothing was learned: without this, momentum and weight decay would still move the weights
                if stage.max_grad_norm:
                    accelerator.clip_grad_norm_(trained.parameters(), stage.max_grad_norm)
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bar.update()

            is_last = settings.is_last(step + 1, total, meter.seconds)
            if (step + 1) % settings.log_every == 0 or is_last:
                summary = _summarise(accelerator, loss, output, step + 1, settings)
                summary |= {} if hooks.measure is None else hooks.measure()
                summary |= meter.read(step + 1, loader.seconds_waited)
                bar.set_postfix({k: f"{v:.4g}" for k, v in summary.items() if k in ("loss", "perplexity")})
                settings.log.write(
                    step=settings.steps_before + step + 1,
                    stage=settings.name,
                    epoch=epoch,
                    lr=rate,
                    **settings.about,
                    **summary,
                )
            checkpoint.save_if_due(step + 1, meter.seconds, summary)
            if is_last:
                break
    if not _is_finite(model):  # the loss of the last step was read before it moved the weights
        raise NonFiniteLossError(_diverged("weights are not finite", int(summary["steps"]), settings))
    # Takes the autocast off the model: what it computes from now on is what it computes when it is loaded again.
    accelerator.unwrap_model(trained, keep_fp32_wrapper=False)
    model.eval()
    accelerator.free_memory()
    return summary


def _is_finite(model: torch.nn.Module) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def _make_optimizer(model: torch.nn.Module, stage: StageRecipe) -> torch.optim.Optimizer:
    if stage.optimizer == "sgd":
        # decoupled for Adam only: here it is the L2 penalty that papers with momentum mean
        return torch.optim.SGD(
            model.parameters(), lr=stage.learning_rate, momentum=stage.momentum, weight_decay=stage.weight_decay
        )
    return torch.optim.AdamW(model.parameters(), lr=stage.learning_rate, weight_decay=stage.weight_decay, fused=True)


def _accumulate_gradients(
    accelerator: Accelerator,
    trained: torch.nn.Module,
    batch: StepInputs,
    before_forward: Callable[[bool], None] | None,
) -> tuple[Tensor, Any]:
    """Backward through every micro-batch, gradients reduced over processes with the last; returns this process's part of the
    loss, as a tensor that nobody has waited for, and the last output."""
    losses = []
    for number, (inputs, weight) in enumerate(zip(batch.micro_batches, batch.weights, strict=True), 1):
        last = number == len(batch.micro_batches)
        if before_forward is not None:
            before_forward(last)
        with contextlib.nullcontext() if last else accelerator.no_sync(trained):
            output = trained(**inputs)
            loss = output.loss if weight == 1 else output.loss * weight
            accelerator.backward(loss)
        losses.append(loss.detach())
    return torch.stack(losses).sum(), output


class _Loader:
    """Prepares the inputs of the next steps in threads while the model is at work, and counts how long it was waited for."""

    def __init__(self, load: Callable[[int], StepInputs], threads: int):
        self.load, self.threads, self.seconds_waited = load, threads, 0.0
        self.pool = ThreadPoolExecutor(threads) if threads else None

    def __enter__(self) -> "_Loader":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def batches(
        self, first: int, total: int, per_epoch: int, before_epoch: Callable[[int], None] | None
    ) -> Iterator[tuple[int, StepInputs]]:
        """(step, inputs) from `first` on; only an epoch that has begun is prepared."""
        if before_epoch is None:
            yield from self._run(range(first, total))
            return
        for epoch in range(first // per_epoch, -(-total // per_epoch)):
            before_epoch(epoch)
            yield from self._run(range(max(first, epoch * per_epoch), min(total, (epoch + 1) * per_epoch)))

    def _run(self, steps: range) -> Iterator[tuple[int, StepInputs]]:
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
    """Threads that prepare data in each process: 1 to 4 of what the processes of this machine leave of its cores, where an
    accelerator trains. None where the CPU itself does: what a second thread computes is computed by more threads than there are
    cores, and waiting for each other made a step of the prior take twice as long on two cores."""
    if accelerator.device.type == "cpu":
        return 0
    local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    return max(1, min(4, (os.cpu_count() or 1) // max(1, local) - 1))


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


def _diverged(what: str, step: int, settings: LoopSettings) -> str:
    return (
        f"{settings.name}: {what} at step {step}. Lower the learning rate or train in float32; "
        f"the last good checkpoint is {settings.checkpoint_path}"
    )


def _summarise(
    accelerator: Accelerator, part: Tensor, output: Any, steps: int, settings: LoopSettings
) -> dict[str, float]:
    # the mean over processes of weighted parts is the loss of the global batch; all processes see it, and stop together
    loss = accelerator.reduce(part.float(), "mean").item()
    if not math.isfinite(loss):
        raise NonFiniteLossError(_diverged(f"the loss is {loss}", steps, settings))
    values = {"loss": loss, "steps": steps}
    if getattr(output, "perplexity", None) is not None:
        values["perplexity"] = output.perplexity.item()
    return values


class _Checkpointer:
    """Saves the stage under way at a time interval, and finds the place where to go on."""

    def __init__(self, accelerator: Accelerator, model, optimizer, stage: StageRecipe, settings: LoopSettings):
        self.accelerator, self.model, self.optimizer, self.settings = accelerator, model, optimizer, settings
        self.saved_at = time.monotonic()
        # what the bits of a step depend on beside recipe, seed and data
        self.environment = {
            "processes": accelerator.num_processes,
            "micro-batch size": stage.micro_batch_size,
            "device": accelerator.device.type,
            "precision": str(accelerator.mixed_precision),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }

    def resume(self) -> tuple[int, float, dict[str, float]]:
        """Loads what was saved of this stage; returns the first step left to do, the seconds spent so far, and the last summary:
        if no step is left, it is that of the stage."""
        path, name = self.settings.checkpoint_path, self.settings.name
        if path is None:
            return 0, 0.0, {}
        state, problems = load_checkpoint(path)
        speaks = self.accelerator.is_main_process
        for problem in problems if speaks else []:
            logger.warning("%s: skipped", problem)
        if state is None or state["stage"] != name:
            if problems and speaks:
                logger.warning("%s: no checkpoint of it is left, starting it from its first step", name)
            return 0, 0.0, {}
        if state.get("follows", self.settings.follows) != self.settings.follows:
            if speaks:
                logger.warning(
                    "%s: %s rests on another run of the stage before it, starting from the first step", name, path
                )
            return 0, 0.0, {}
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state.get("scaler") is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        then, now = state.get("environment", {}), self.environment
        changes = [f"{key} {then.get(key)} then, {now[key]} now" for key in now if then.get(key) != now[key]]
        if changes and speaks:
            logger.warning("%s: %s. The run goes on, but no longer bit for bit", name, "; ".join(changes))
        if speaks:
            logger.info("%s: resumed at step %d, from %s", name, state["step"], path)
        return state["step"], state["seconds"], state["summary"]

    def save_if_due(self, step: int, seconds: float, summary: dict[str, float]) -> None:
        due = time.monotonic() - self.saved_at >= self.settings.checkpoint_seconds
        if self.settings.checkpoint_path is None or not due:
            return
        self.saved_at = time.monotonic()
        if self.accelerator.is_main_process:
            # The loss is only read now and then: without this look the last good checkpoint could be overwritten meanwhile.
            if not _is_finite(self.model):
                raise NonFiniteLossError(_diverged("weights are not finite", step, self.settings))
            scaler = self.accelerator.scaler
            state = {
                "stage": self.settings.name,
                "follows": self.settings.follows,
                "step": step,
                "seconds": seconds,
                "summary": summary,
                "environment": self.environment,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
            }
            save_checkpoint(self.settings.checkpoint_path, state)
