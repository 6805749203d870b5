"""What rounds have in common whose pipelines are calibrated and saved in each: those on features, tissues and places."""

import logging
import time
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from iltm_anomaly import masking
from iltm_anomaly.modeling import share_tensors
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.training.checkpoint import fill_folder
from iltm_anomaly.training.context import RunContext
from iltm_anomaly.training.suspects import WEIGHTS_FILE

logger = logging.getLogger(__name__)

SETTLED = 0.95  # overlap (IoU) of what two rounds reject, from where on another one changes nothing


class CalibratedRounds:
    """The rounds of a run, one after the other: fit, `finish`, judge, `settle`, and from the beginning.

    Args:
        run: with a recipe that has `rounds` and `stop_early`.
        seconds: spent before this was made, for round 0.
        words: what becomes of suspicious tokens, and what a round does to them, for the log.

    Attributes:
        number: of the round that is being fitted.
        reports: of the rounds that are finished.
    """

    def __init__(self, run: RunContext, seconds: float = 0.0, words: tuple[str, str] = ("given up", "give up")):
        self.run, self.words = run, words
        self.number, self.reports = 0, list[dict[str, Any]]()
        self._started = time.monotonic() - seconds
        self._verdict: dict[str, Any] = {"masked_fraction": 0.0}

    def finish(self, pipeline: ILTMAnomalyPipeline, weights: Tensor) -> bool:
        """Saves the pipeline of a round, and beside it the weights (N, *grid) of the training tokens that it was fitted with, and
        reports it; returns whether it was the last that the recipe allows."""
        seconds = round(time.monotonic() - self._started, 1)
        self.reports.append({"round": self.number, **self._verdict, "seconds": seconds})
        pipeline.training_report |= {"rounds": list(self.reports), "seed": self.run.seed}

        def save(folder: Path) -> None:
            pipeline.save_pretrained(folder)
            save_file({"weights": weights}, folder / WEIGHTS_FILE)
            share_tensors(folder)

        folder = self.run.output / "rounds" / f"round_{self.number}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        fill_folder(folder, save)
        self.run.log.write(step=self.number, **self.reports[-1])
        share = 100 * self._verdict["masked_fraction"]
        logger.info("round %d: %.2f %% of tokens %s", self.number, share, self.words[0])
        self._started = time.monotonic()
        return self.number == self.run.recipe.rounds.rounds

    def settle(self, before: Tensor, now: Tensor, **about: Any) -> bool:
        """Takes note of what the next round keeps; returns whether it need not be fitted, since it would change next to nothing.

        Args:
            before, now: bool, of one shape, which tokens the last round and the next one keep.
            about: more for the report of the next round.
        """
        overlap = masking.mask_iou(before, now)
        self._verdict = {"masked_fraction": masking.masked_fraction(now), **about, "mask_iou": overlap}
        self.number += 1
        is_settled = self.run.recipe.rounds.stop_early and overlap > SETTLED
        if is_settled:
            self.reports[-1]["stopped"] = f"round {self.number} would {self.words[1]} nearly the same tokens"
        return is_settled
