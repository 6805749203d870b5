"""The checkpoint of the stage under way: where it is continued, and when it is saved."""

import logging
import time
from typing import Any

import torch
from accelerate import Accelerator

from iltm_anomaly.training.checkpoint import load_checkpoint, save_checkpoint
from iltm_anomaly.training.loop_settings import LoopSettings

logger = logging.getLogger(__name__)

FORMER_NAMES = {"vqvae": "tokenizer"}  # of stages, in checkpoints of version 0.1


class NonFiniteLossError(RuntimeError):
    """The loss, or the weights, became NaN or infinite."""


class StageCheckpoint:
    """Saves the stage under way at a time interval, and finds the place where to go on.

    Args:
        micro_batch_size: of the stage; like processes and precision it changes the bits of a step.
        settings: of the stage.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        micro_batch_size: int | None,
        settings: LoopSettings,
    ):
        self.accelerator, self.model, self.optimizer, self.settings = accelerator, model, optimizer, settings
        self.saved_at = time.monotonic()
        # what the bits of a step depend on beside recipe, seed and data
        self.environment = {
            "processes": accelerator.num_processes,
            "micro-batch size": micro_batch_size,
            "device": accelerator.device.type,
            "precision": str(accelerator.mixed_precision),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }

    def resume(self) -> tuple[int, float, dict[str, float]]:
        """Loads what was saved of this stage; returns the first step left to do, the seconds spent so far, and the last summary:
        if no step is left, it is that of the stage."""
        state = self._find()
        if state is None:
            return 0, 0.0, {}
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state.get("scaler") is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        name, then, now = self.settings.name, state.get("environment", {}), self.environment
        changes = [f"{key} {then.get(key)} then, {now[key]} now" for key in now if then.get(key) != now[key]]
        if changes:
            self._warn("%s: %s. The run goes on, but no longer bit for bit", name, "; ".join(changes))
        if self.accelerator.is_main_process:
            logger.info("%s: resumed at step %d, from %s", name, state["step"], self.settings.checkpoint_path)
        return state["step"], state["seconds"], state["summary"]

    def _find(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, if it is of this stage and rests on the same as the stage does now."""
        path, name = self.settings.checkpoint_path, self.settings.name
        if path is None:
            return None
        state, problems = load_checkpoint(path)
        for problem in problems:
            self._warn("%s: skipped", problem)
        if state is None or name not in (state["stage"], FORMER_NAMES.get(state["stage"])):
            if problems:
                self._warn("%s: no checkpoint of it is left, starting it from its first step", name)
            return None
        if state.get("follows", self.settings.follows) != self.settings.follows:
            self._warn("%s: %s rests on another run of the stage before it, starting from the first step", name, path)
            return None
        return state

    def _warn(self, message: str, *values: Any) -> None:
        if self.accelerator.is_main_process:
            logger.warning(message, *values)

    def save_if_due(self, step: int, seconds: float, summary: dict[str, float]) -> None:
        """Saves, on the main process, if the time between checkpoints has passed.

        Raises:
            NonFiniteLossError: if weights are not finite. The loss is only read now and then: without this look the last good
                checkpoint could be overwritten meanwhile.
        """
        due = time.monotonic() - self.saved_at >= self.settings.checkpoint_seconds
        if self.settings.checkpoint_path is None or not due:
            return
        self.saved_at = time.monotonic()
        if self.accelerator.is_main_process:
            if not is_finite(self.model):
                raise NonFiniteLossError(diverged("weights are not finite", step, self.settings))
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


def is_finite(model: torch.nn.Module) -> bool:
    """Whether all weights and buffers are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


def diverged(what: str, step: int, settings: LoopSettings) -> str:
    """The message of a `NonFiniteLossError`."""
    return (
        f"{settings.name}: {what} at step {step}. Lower the learning rate or train in float32; "
        f"the last good checkpoint is {settings.checkpoint_path}"
    )
