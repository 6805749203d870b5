"""Measures the cells of a plan, one after the other; what is finished stays, whatever happens to the others."""

import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict

from iltm_anomaly.comparison.baselines.methods import METHODS
from iltm_anomaly.comparison.baselines.round_zero import from_run, load_round_zero
from iltm_anomaly.comparison.baselines.training import train_baseline
from iltm_anomaly.comparison.benchmark.cells import is_finished, save_cell
from iltm_anomaly.comparison.benchmark.oracle import oracle_pipeline
from iltm_anomaly.comparison.benchmark.plan import OWN_SCHEDULE, BenchmarkArguments, Group, Plan, digest_of
from iltm_anomaly.comparison.benchmark.statistics import ImageStatistics, image_statistics, packed_draws
from iltm_anomaly.data.cache import CacheDamagedError, PixelCache, build_cache
from iltm_anomaly.evaluation.evaluate import evaluate_run, score_dataset
from iltm_anomaly.evaluation.ground_truth import ground_truth_masks
from iltm_anomaly.locks import InUseError, locked
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.provenance import provenance, training_commit
from iltm_anomaly.training.arguments import TrainArguments
from iltm_anomaly.training.checkpoint import load_json
from iltm_anomaly.training.train import train

logger = logging.getLogger(__name__)


@dataclass
class Measured:
    """What scoring a method gives.

    Args:
        results: one entry per round; the last is the method's own.
        statistics: of the last entry.
        about: more fields of the cell's document: how the method was trained.
    """

    results: list[dict[str, Any]]
    statistics: ImageStatistics
    about: dict[str, Any] = field(default_factory=dict)


def run_plan(plan: Plan) -> tuple[dict[str, str], list[str]]:
    """Measures every cell that is not finished. Several processes may share a plan: each leaves the groups alone that another one
    works on.

    Returns:
        The errors of cells that failed, by name, and the groups left to other processes.
    """
    failures: dict[str, str] = {}
    left: list[str] = []
    cells = [group.cell(method) for group in plan.groups for method in group.methods]
    numbers = {cell: f"{number} of {len(cells)}" for number, cell in enumerate(cells, 1)}
    for group in plan.groups:
        if group.error is not None:
            failures |= {group.cell(method): group.error for method in group.methods}
            continue
        try:
            with locked(plan.arguments.output / "runs" / f"{group.name}.lock"):
                failures |= _run_group(plan, group, numbers)
        except InUseError as error:
            logger.warning("%s: %s works on it; left to that", group.name, error.holder)
            left.append(group.name)
    return failures, left


def _run_group(plan: Plan, group: Group, numbers: dict[str, str]) -> dict[str, str]:
    folder = plan.arguments.output / "cells"
    failures: dict[str, str] = {}
    work: GroupRun | None = None
    for method in group.methods:
        name, settings = group.cell(method), plan.settings(group, method)
        if is_finished(folder, name, settings):
            logger.info("cell %s, %s: finished before", numbers[name], name)
            continue
        logger.info("cell %s, %s", numbers[name], name)
        work = work or GroupRun(plan, group)
        try:
            measured = work.measure(method)
            save_cell(
                folder, name, document(plan.arguments, group, settings, measured, work.device), measured.statistics
            )
        except Exception as error:  # of one cell of many: whatever it is, the others are still worth having
            failures[name] = f"{type(error).__name__}: {error}"
            logger.exception("cell %s failed", name)
    return failures


def document(
    arguments: BenchmarkArguments, group: Group, settings: dict[str, Any], measured: Measured, device: str
) -> dict[str, Any]:
    """What the JSON file of a cell holds."""
    assert group.record is not None  # else it has an error, and is not measured
    counts = group.counts()
    return {
        "results": measured.results,
        "test_images": counts["test"],
        "defective_test_images": int(measured.statistics.labels.sum()),
        "training_images": counts["training"],
        "contaminated_training_images": counts["contaminated"],
        "data": arguments.data,
        "preset": arguments.preset,
        "settings": settings,
        **measured.about,
        "draws": packed_draws(measured.statistics, group.record["test_indices"], group.category.name)
        | {"test_sha256": group.test_digest},
        **provenance(device),
    }


class GroupRun:
    """The methods of one group: one ILTM run, and the others on its images.

    Args:
        plan: the recipe of the ILTM run, and what the user chose.
        group: category, level and seed, with their images.
    """

    def __init__(self, plan: Plan, group: Group):
        self.plan, self.recipe, self.arguments = plan, plan.recipe, plan.arguments
        self.group = group
        # the same split of other files, and an edited recipe of the same name, are other runs
        self.folder = self.arguments.output / "runs" / f"{group.name}_{self.recipe.name}_{plan.run_digest(group)[:12]}"
        self.device = "cuda" if torch.cuda.is_available() and not self.arguments.cpu else "cpu"
        self.failure: Exception | None = None  # of the ILTM run
        self.round_zero: Measured | None = None  # known once ILTM, of which it is a round, was scored

    def measure(self, method: str) -> Measured:
        """Scores one method, trained before if need be."""
        if method == "iltm":
            measured = self._measure_iltm()
        elif METHODS[method].preset is not None:
            return self._measure_features(method)
        elif METHODS[method].of_run:
            measured = self._measure_round_zero(method)
        else:
            measured = self._measure_baseline(method)
        measured.about["images_sha256"] = self.training_images.digest
        return measured

    # The ILTM run

    @property
    def iltm(self) -> Path:
        """Folder of the ILTM run, trained or continued on first use.

        Raises:
            RuntimeError: if it failed for a method before.
        """
        if self.failure is not None:
            raise RuntimeError(f"the ILTM run that it rests on failed: {self.failure}")
        try:
            return self._trained
        except Exception as error:
            self.failure = error
            raise

    @cached_property
    def _trained(self) -> Path:
        folder = self.folder / "iltm"
        train(self._train_arguments(folder, self.recipe))
        return folder

    def _train_arguments(self, folder: Path, recipe: Any) -> TrainArguments:
        return TrainArguments(
            data=self.group.category.source,
            category=self.group.category.folder,
            output=folder,
            contamination=self.group.contamination,
            protocol=self.group.protocol,
            train_size=self.group.train_size,
            preset=recipe,  # not read again: the file may have been edited since
            seed=self.group.seed,
            resume=True,
            cpu=self.arguments.cpu,
        )

    @staticmethod
    def report(folder: Path) -> dict[str, Any]:
        """Training report of a finished run."""
        return load_json(folder / "model" / "training_report.json")

    def _measure_iltm(self) -> Measured:
        evaluated, statistics = self._evaluated(self.iltm)
        results, last = evaluated["results"], max(statistics)
        self.round_zero = Measured(results[:1], statistics[0])
        report = self.report(self.iltm)
        return Measured(results, statistics[last], self._about_run(report, report["training_seconds"], number=-1))

    @staticmethod
    def _about_run(report: dict[str, Any], seconds: float, number: int) -> dict[str, Any]:
        return {
            "training_seconds": round(seconds, 1),
            "training_commit": training_commit(report, number),
            "vqvae_sha256": report["stage1"]["weights_sha256"],
        }

    def _measure_round_zero(self, method: str) -> Measured:
        report, has_kde = self.report(self.iltm), METHODS[method].has_kde
        about = self._about_run(report, report["stage1"]["seconds"] + report["rounds"][0]["seconds"], number=0)
        if has_kde and self.round_zero is not None:  # the same maps
            return Measured([self.round_zero.results[0] | {"method": method}], self.round_zero.statistics, about)
        if has_kde:
            return self._score(method, load_round_zero(self.iltm, self.device), about, number=0)
        return self._score(method, from_run(self.iltm, "residual", self.device), about, number=0)

    # The run on features

    def _measure_features(self, method: str) -> Measured:
        folder = self.folder / "features"
        train(self._train_arguments(folder, self.plan.recipe_of(method)))
        report = self.report(folder)
        about = {
            "training_seconds": report["training_seconds"],
            "training_commit": training_commit(report),
            "images_sha256": PixelCache(folder / "images.arrow").digest,
        }
        if method == "features_oracle":
            return self._score(method, oracle_pipeline(folder, self.dataset["train"]), about, number=0)
        evaluated, statistics = self._features_evaluated
        results = [entry | {"method": method} for entry in evaluated["results"]]
        if method == "features_round_0":
            return Measured(results[:1], statistics[0], about)
        about["at_threshold"] = evaluated["at_threshold"]
        return Measured(results, statistics[max(statistics)], about)

    @cached_property
    def _features_evaluated(self) -> tuple[dict[str, Any], dict[int, ImageStatistics]]:
        """All rounds of the run on features, measured once for the methods that are rounds of it."""
        return self._evaluated(self.folder / "features")

    def _evaluated(self, folder: Path) -> tuple[dict[str, Any], dict[int, ImageStatistics]]:
        """What `evaluate_run` tells of a run, and the statistics of each round."""
        statistics: dict[int, ImageStatistics] = {}

        def observe(number: int, output: Any) -> None:
            statistics[number] = image_statistics(output.anomaly_maps, self.masks, output.scores.numpy())

        category = self.group.category
        evaluated = evaluate_run(
            folder,
            category.source,
            category.folder,
            folder / "evaluation",
            device=self.device,
            show_progress=self.arguments.show_progress,
            observe=observe,
        )
        return evaluated, statistics

    # The others

    def budget(self, method: str, folder: Path) -> tuple[float | None, str]:
        """Seconds that a baseline may train for, None without a limit, and in words where the limit comes from.

        Args:
            method: the baseline.
            folder: of its run. A run that has begun keeps the time that it was given.
        """
        if not self.plan.is_trained(self.group, method):
            return None, "nothing is trained"
        if self.arguments.baseline_seconds is not None:
            return self.arguments.baseline_seconds, "--baseline-seconds"
        if self.recipe.name == OWN_SCHEDULE:
            return None, "the schedule of the method's own paper"
        if (folder / "run.json").exists():
            return load_json(folder / "run.json")["budget_seconds"], "the round of the prior that it began with"
        rounds = self.report(self.iltm)["rounds"]
        longest = max(rounds, key=lambda entry: entry["seconds"])
        return longest["seconds"], f"round {longest['round']} of the prior in the ILTM run, the longest"

    def _measure_baseline(self, method: str) -> Measured:
        preset, config = self.plan.baseline_preset, self.arguments.baseline_config.get(method)
        given = self.plan.given_seconds(self.group, method)
        described = digest_of(self.plan.baseline(self.group, method))
        name = f"{method}_{described[:8]}" + (f"_{given:g}s" if given is not None else "")
        budget, source = self.budget(method, self.folder / name)
        pipeline = train_baseline(
            method,
            self.training_images,
            self.processor,
            self.folder / name,
            seed=self.group.seed,
            budget_seconds=budget,
            device=self.device,
            preset=preset,
            category=self.group.category.name,
            config=config,
            resume=True,
            show_progress=self.arguments.show_progress,
        )
        report = pipeline.training_report
        about = {
            "training_seconds": report["training_seconds"],
            "training_commit": report.get("commit"),
            "budget": {"seconds": budget, "from": source, "used": report["training_seconds"]}
            | {key: report[key] for key in ("steps", "planned_steps", "ended_by")},
            "baseline_preset": preset,
        }
        return self._score(method, pipeline, about, number=None)

    # What all share

    @cached_property
    def dataset(self) -> DatasetDict:
        """Train and test images."""
        return self.group.dataset

    @cached_property
    def processor(self) -> ILTMImageProcessor:
        """That of the run: the same resolution for all."""
        return ILTMImageProcessor(size=self.recipe.image_size, num_channels=self.recipe.num_channels)

    @cached_property
    def training_images(self) -> PixelCache:
        """Those of the run, if it was needed; else the same images from a cache of the group's own."""
        path = self.folder / "iltm" / "images.arrow"
        if "_trained" in self.__dict__:
            return PixelCache(path)
        path, source = self.folder / "images.arrow", self.dataset["train"]._fingerprint  # of the files, too
        try:
            cache = PixelCache(path)
            cache.verify()
            if cache.source == source:
                return cache
        except CacheDamagedError:  # or there is none yet
            pass
        return build_cache(path, self.dataset["train"]["image"], self.processor.to_uint8, source)

    @cached_property
    def masks(self) -> list[np.ndarray]:
        """Ground truth of the test images, (H, W) bool each."""
        return ground_truth_masks(self.dataset["test"], volumes=False)

    def _score(self, method: str, pipeline: Any, about: dict[str, Any], number: int | None) -> Measured:
        """Scores the test images; `number` is that of the round, None for a method without rounds."""
        test = self.dataset["test"]
        output, metrics, seconds = score_dataset(pipeline, test, self.masks, self.arguments.show_progress)
        result = {
            "method": method,
            "category": self.group.category.name,
            "contamination": self.group.contamination,
            "protocol": self.group.protocol,
            "seed": self.group.seed,
            "round": number,
            **metrics,
            "masked_fraction": None if number is None else 0.0,
            "seconds_per_image": round(seconds / len(test), 4),
        }
        return Measured([result], image_statistics(output.anomaly_maps, self.masks, output.scores.numpy()), about)
