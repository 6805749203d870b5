"""The iterative part: fit a prior, judge the training tokens by it, mask the suspicious ones, fit again, until masks settle."""

import logging
import math
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from iltm_anomaly import masking
from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.prior import PerformerPriorConfig, PerformerPriorModel
from iltm_anomaly.seeds import sample_seed
from iltm_anomaly.tokenizers.base import TokenizerModel
from iltm_anomaly.training.batches import steps_per_epoch
from iltm_anomaly.training.codes import encode_copies, log_likelihood
from iltm_anomaly.training.context import STREAM_FEATURES, STREAM_STAGE2, RunContext
from iltm_anomaly.training.fit import Objective, fit
from iltm_anomaly.training.pictures import picture_surprise
from iltm_anomaly.training.stage import Stage

logger = logging.getLogger(__name__)

MUCH_MASKED = 0.25  # of all tokens: said, not refused


@dataclass
class Verdict:
    """What a round makes of the training tokens.

    Args:
        keep: (N, copies, tokens) bool, False where a token is masked; None keeps all.
        report: how the masks came about.
    """

    keep: Tensor | None = None
    report: dict[str, Any] = field(default_factory=lambda: {"masked_fraction": 0.0})


def fit_rounds(
    run: RunContext, tokenizer: TokenizerModel, pixels: PixelCache, follows: str
) -> tuple[PerformerPriorModel, list[dict[str, Any]]]:
    """The prior of the last round, and a report of each round. Finished rounds are loaded; the one under way is continued.

    Args:
        follows: checksum of the tokenizer's weights.

    Raises:
        TokenThresholdError: if a round would mask more tokens than the recipe allows.
    """
    grid, tokenizer_digest = tokenizer.grid_shape(pixels.shape[2:]), follows
    reports: list[dict[str, Any]] = []
    prior: PerformerPriorModel | None = None
    stage: Stage | None = None

    @cache
    def codes() -> Tensor:  # made when the first round needs them: a run whose rounds are all done needs none
        return run.folder.cached("codes.bin", tokenizer_digest, lambda: encode_copies(run, tokenizer, pixels))

    for number in range(run.recipe.rounds.rounds + 1):
        before, stage = stage, run.folder.stage(f"rounds/round_{number}", follows)
        finished = stage.load(PerformerPriorModel)
        if finished is None:
            verdict = Verdict() if prior is None else judge(run, prior, codes(), grid)
            if before is not None and (reason := settled(run, before, verdict, reports[-1])) is not None:
                logger.info("stopping: %s", reason)
                reports[-1]["stopped"] = reason
                before.amend(stopped=reason)
                break
            finished = fit_prior(run, number, stage, tokenizer.vocab_size, grid, codes(), verdict)
            picture_surprise(run, number, tokenizer, finished[0], pixels)
            logger.info("round %d: masked %.2f %% of tokens", number, 100 * finished[1]["masked_fraction"])
        prior, report = finished
        reports.append(report)
        follows = report["weights_sha256"]
        if "stopped" in report:
            break
    assert prior is not None  # round 0 always runs
    return prior, reports


def judge(run: RunContext, prior: PerformerPriorModel, codes: Tensor, grid: tuple[int, ...]) -> Verdict:
    """Masks the codes (N, copies, tokens) that the recipe's rule calls suspicious, by the prior of the round before."""
    rule = run.recipe.rounds.rule
    likelihood = log_likelihood(run, prior, codes).flatten(0, 1).unflatten(1, grid)
    surprise = rule.surprise(likelihood)
    limit = rule.limit(surprise)
    keep = masking.keep_mask(surprise, limit).view(codes.shape)
    fraction = masking.check_masked_fraction(keep, limit, rule)
    if fraction > MUCH_MASKED and run.accelerator.is_main_process:
        logger.warning(
            "%.0f %% of all tokens are masked, beyond a limit of %.2f nats: more than defects usually cover. If images are "
            "mostly plain background, crop to the object, or set rounds.token_threshold",
            100 * fraction,
            limit,
        )
    return Verdict(keep, {"masked_fraction": fraction, "surprise_limit": limit})


def settled(run: RunContext, before: Stage, verdict: Verdict, last: dict[str, Any]) -> str | None:
    """Why no further round is needed, None if its masks differ from those of the round before; notes in the verdict how far they
    overlap.

    Args:
        before, last: stage and report of the round before. Round 0 has no masks to compare with.
    """
    if last["round"] == 0:
        return None
    previous = before.tensor("keep")
    assert previous is not None and verdict.keep is not None  # every round but the first masks
    overlap = verdict.report["mask_iou"] = masking.mask_iou(previous, verdict.keep)
    if not (run.recipe.rounds.stop_early and masking.has_converged(previous, verdict.keep)):
        return None
    return (
        f"round {last['round'] + 1} would mask {verdict.report['masked_fraction']:.2%} of tokens, round {last['round']} "
        f"masks {last['masked_fraction']:.2%} (IoU {overlap:.3f})"
    )


def fit_prior(
    run: RunContext,
    number: int,
    stage: Stage,
    vocab_size: int,
    grid: tuple[int, ...],
    codes: Tensor,
    verdict: Verdict,
) -> tuple[PerformerPriorModel, dict[str, Any]]:
    """Trains the prior of one round on the tokens that are kept, from the stage's checkpoint or from the start (appendix B).

    Every round starts from the same weights and sees the same batches and dropout: rounds differ by their masks alone.
    """
    run.start_weights(1)
    config = PerformerPriorConfig(vocab_size=vocab_size, grid_shape=grid, **run.recipe.prior)
    prior = run.placed(PerformerPriorModel(config))
    settings = run.loop_settings(
        f"prior round {number}",
        STREAM_STAGE2,
        stage.follows,
        tokens_per_sample=math.prod(grid),
        steps_before=run.steps_before_round(number, len(codes)),
        about={"round": number, "masked_fraction": round(verdict.report["masked_fraction"], 4)},
    )
    objective = PriorObjective(prior, codes, verdict.keep, run.recipe.stage2.batch_size, settings.seed)
    summary = fit(run.accelerator, objective, run.recipe.stage2, len(codes), settings)
    tensors = {} if verdict.keep is None else {"keep": verdict.keep}
    return prior, stage.save(prior, {"round": number, **verdict.report, **summary}, **tensors)


class PriorObjective(Objective):
    """Likelihood of the kept tokens of codes (N, copies, tokens); epochs take the copies in turn.

    Args:
        keep: as of `Verdict`.
        batch_size: of the stage, over all processes.
        seed: of the stage.
    """

    model: PerformerPriorModel

    def __init__(self, model: PerformerPriorModel, codes: Tensor, keep: Tensor | None, batch_size: int, seed: int):
        super().__init__(model)
        self.codes, self.keep, self.seed = codes, keep, seed
        self.per_epoch = steps_per_epoch(len(codes), batch_size)
        self.generator = torch.Generator()

    def inputs(self, indices: Tensor, step: int) -> dict[str, Tensor]:
        copy = self._copy(step)
        inputs = {"input_ids": self.codes[indices, copy].long()}
        return inputs if self.keep is None else inputs | {"token_mask": self.keep[indices, copy]}

    def loss_terms(self, indices: Tensor, step: int) -> Tensor:
        if self.keep is None:
            return torch.full((len(indices),), self.codes.shape[2])
        return self.keep[indices, self._copy(step)].sum(1)

    def before_step(self, step: int, epoch: int) -> None:
        interval = self.model.config.feature_redraw_interval
        if interval and step and step % interval == 0:
            # the same draw in every process
            seed = sample_seed(self.seed, STREAM_FEATURES, step)
            self.model.redraw_projections(self.generator.manual_seed(seed))

    def _copy(self, step: int) -> int:
        return step // self.per_epoch % self.codes.shape[1]
