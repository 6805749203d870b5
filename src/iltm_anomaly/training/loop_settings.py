"""What the optimisation loop needs to know of the run that a stage belongs to."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iltm_anomaly.training.tracking import RunLog

LOG_EVERY = 20  # steps: reading the loss waits for the device


@dataclass
class LoopSettings:
    """What `fit` needs beside what it trains and how.

    Args:
        name: of the stage, as in logs and checkpoints: "tokenizer", "prior round 2".
        seed: of the stage.
        log: of the run.
        checkpoint_path: file of the run's newest checkpoint; None writes none.
        checkpoint_seconds: time between checkpoints.
        show_progress: a progress bar on the main process.
        log_every: steps between lines of the log.
        loading_threads: threads that prepare the next steps; 0 prepares each when its turn comes.
        tokens_per_sample: for the speed in tokens.
        steps_before: of the run's earlier stages, for trackers.
        about: constants of the stage, in every line of the log.
        budget_seconds: end the stage after this time even if steps are left, with the learning rate moved along its schedule in
            proportion to the time spent. One process only; such a run cannot be repeated to the bit.
        follows: what the stage rests on, such as the checksum of the tokenizer: a checkpoint that rests on something else is not
            continued.
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
