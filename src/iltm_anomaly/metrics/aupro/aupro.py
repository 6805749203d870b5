"""AUPRO as a Hugging Face `evaluate` metric. The maths is in `iltm_anomaly.metrics`; this is a wrapper without Arrow.

The base class would write every map to an Arrow file and hand it back as lists of Python floats: 26 bytes per value,
of one rank only. Here batches go straight to numpy, and processes exchange pooled scores or streaming states by files.
"""

# One module per import line: `evaluate.load` finds the dependencies of this file by pattern.
import glob
import os
import time
import uuid
from typing import Any

import datasets
import evaluate
import numpy as np

from iltm_anomaly.metrics import ProCurve, StreamingAUPRO, plot_pro_curve
from iltm_anomaly.metrics._inputs import check_limit
from iltm_anomaly.metrics.region_overlap import RegionPool, pool_pixels

_DESCRIPTION = """
AUPRO: area under the per-region-overlap curve up to a false positive rate, divided by it, for anomaly localisation.
Every ground-truth region weighs the same, whatever its size. Exact by the official definition of MVTec AD; the
configuration "streaming" needs constant memory and reports a bound of its error.
"""

_CITATION = """
@article{bergmann2021mvtec,
  title   = {The {MVTec} Anomaly Detection Dataset:
             A Comprehensive Real-World Dataset for Unsupervised Anomaly Detection},
  author  = {Bergmann, Paul and Batzner, Kilian and Fauser, Michael and Sattlegger, David and Steger, Carsten},
  journal = {International Journal of Computer Vision},
  volume  = {129},
  pages   = {1038--1059},
  year    = {2021}
}
"""

_INPUTS = """
Args:
    predictions: anomaly maps, higher is more anomalous: list of maps of any sizes, array or tensor, 2-D or 3-D.
    references: masks of the same shapes, bool or 0 and 1; None for a good image in a list.
    limit (float): upper end of the false-positive-rate axis, default 0.3. In `compute` only.
    return_curve (bool): also return the curve. In `compute` only.
    spatial_dims (int): 2 or 3, where the rank of an array leaves it open.
Returns:
    aupro (float), n_images (int), n_regions (int); error_bound (float) for the configuration "streaming";
    limit (float), fpr, pro, thresholds (lists of floats) with return_curve.
Examples:
    >>> metric = evaluate.load("src/iltm_anomaly/metrics/aupro")
    >>> metric.add_batch(predictions=[[[0.1, 0.2], [0.9, 0.3]]], references=[[[0, 0], [1, 0]]])
    >>> metric.compute()["aupro"]
    1.0
"""

CURVE_POINTS = 1000


class AUPRO(evaluate.Metric):
    """Configurations: "default" (exact; keeps 4 bytes per pixel) and "streaming" (constant memory)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.config_name not in ("default", "streaming"):
            raise ValueError(f'unknown configuration {self.config_name!r}; there are "default" and "streaming"')
        self._reset()
        self._computed = 0  # calls of compute()
        if self.num_process > 1:
            for path in glob.glob(self._state_file(self.process_id, "*")):
                os.remove(path)  # left by a run that died before process 0 read it

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": maps, "references": maps}),
            reference_urls=["https://www.mvtec.com/company/research/datasets/mvtec-ad"],
        )

    def _reset(self) -> None:
        self._state: RegionPool | StreamingAUPRO = (
            StreamingAUPRO() if self.config_name == "streaming" else RegionPool()
        )

    def __len__(self) -> int:
        return self._state.images

    def add_batch(
        self, *, predictions: Any = None, references: Any = None, spatial_dims: int | None = None, **kwargs: Any
    ) -> None:
        """Add a batch of maps and masks; nothing of the caller's memory is kept, and an invalid batch adds nothing."""
        if kwargs:
            raise ValueError(f"unexpected inputs {sorted(kwargs)}; expected predictions, references, spatial_dims")
        self._state.update(predictions, references, spatial_dims=spatial_dims)

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one map and its mask (None for a good image)."""
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def compute(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        limit: float = 0.3,
        return_curve: bool = False,
        spatial_dims: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any] | None:
        """Compute AUPRO of everything added since the last call, by all processes; None on processes other than 0."""
        if kwargs:
            raise ValueError(f"unexpected arguments {sorted(kwargs)}")
        check_limit(limit)  # before anything is handed over or forgotten
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references, spatial_dims=spatial_dims)
        state = self._state
        self._reset()
        self._computed += 1
        if self.process_id > 0:
            self._publish(state)
            return None
        for process_id in range(1, self.num_process):
            self._collect(state, process_id)
        if not state.images:
            raise ValueError("no images: call `add` or `add_batch` before `compute`")
        return _result(state, limit, return_curve)

    def _compute(
        self, predictions: Any, references: Any, limit: float = 0.3, return_curve: bool = False
    ) -> dict[str, Any]:
        return _result(pool_pixels(predictions, references), limit, return_curve)

    def plot(self, results: dict[str, Any], ax: Any = None, label: str | None = None) -> Any:
        """Draw PRO against FPR from the results of `compute(return_curve=True)`; returns matplotlib axes."""
        fpr, pro, thresholds = (np.asarray(results[name]) for name in ("fpr", "pro", "thresholds"))
        return plot_pro_curve(ProCurve(fpr, pro, thresholds, results["limit"], results["aupro"]), ax=ax, label=label)

    def _state_file(self, process_id: int, call: int | str) -> str:
        # numbered: a process may call compute() again before process 0 has read what it left the first time
        return os.path.join(self.data_dir, f"{self.experiment_id}-{self.num_process}-{process_id}-{call}.npz")

    def _publish(self, state: RegionPool | StreamingAUPRO) -> None:
        """Leave the state where process 0 finds it, whole or not at all."""
        path = self._state_file(self.process_id, self._computed)
        temporary = f"{path}.{uuid.uuid4().hex}"
        with open(temporary, "wb") as file:
            np.savez(file, **state.state_dict())
        os.replace(temporary, path)

    def _collect(self, state: RegionPool | StreamingAUPRO, process_id: int) -> None:
        """Wait for the state of another process, merge it into this one's and remove its file."""
        path = self._state_file(process_id, self._computed)
        deadline = time.monotonic() + self.timeout
        while not os.path.exists(path):
            if time.monotonic() > deadline:
                raise ValueError(f"process {process_id} did not call compute() within {self.timeout} s: no {path}")
            time.sleep(0.02)
        with np.load(path) as arrays:
            state.merge(type(state).from_state_dict(arrays))  # type: ignore[arg-type]
        os.remove(path)


def _result(state: RegionPool | StreamingAUPRO, limit: float, return_curve: bool) -> dict[str, Any]:
    if isinstance(state, StreamingAUPRO):
        state.limit = limit
        value: Any = state.compute(return_curve=return_curve)
    else:
        value = state.curve(limit) if return_curve else state.aupro(limit)
    result = {"aupro": value.aupro if return_curve else value, "n_images": state.images, "n_regions": state.regions}
    if isinstance(state, StreamingAUPRO):
        result["error_bound"] = state.error_bound
    if return_curve:
        curve = value.thin(CURVE_POINTS)
        result |= {"limit": limit, **{name: getattr(curve, name).tolist() for name in ("fpr", "pro", "thresholds")}}
    return result
