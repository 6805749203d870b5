"""Objectives of plain functions, for tests of the loop."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from iltm_anomaly.training import fit as loop


@dataclass
class Hooks:
    """What a stage does beside the step itself, see `Objective`."""

    before_step: Callable[[int, int], None] | None = None
    before_forward: Callable[[bool], None] | None = None
    loss_terms: Callable[[Any, int], Any] | None = None


class FunctionObjective(loop.Objective):
    """An objective whose inputs are a function of indices and step."""

    def __init__(self, model, make_inputs, hooks=None):
        super().__init__(model)
        self.inputs = make_inputs
        for name, hook in vars(hooks or Hooks()).items():
            if hook is not None:
                setattr(self, name, hook)


def fit(accelerator, model, stage, num_samples, make_inputs, settings, hooks=None):
    """`training.fit.fit` of a `FunctionObjective`."""
    return loop.fit(accelerator, FunctionObjective(model, make_inputs, hooks), stage, num_samples, settings)
