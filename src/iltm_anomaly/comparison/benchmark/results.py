"""What cells say together: means over seeds and categories, paired differences and drops, each with its interval.

All of these are linear in the cells. So a metric is one vector, its measured value followed by its values in all bootstrap draws,
and a difference of two such vectors is the paired difference, with the draws that give its interval.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iltm_anomaly.comparison.baselines.methods import METHODS
from iltm_anomaly.comparison.benchmark.cells import load_cells
from iltm_anomaly.comparison.benchmark.published import load_published
from iltm_anomaly.comparison.benchmark.statistics import interval, unpack
from iltm_anomaly.data.contamination import DISJOINT, PROTOCOLS
from iltm_anomaly.headings import METRICS

REFERENCE, FEATURES, TRIVIAL = "iltm", "features", "mean_image"


class NoCellsError(ValueError):
    """There is no finished cell to report on."""


@dataclass(frozen=True)
class Estimate:
    """A measured value and the bounds of its bootstrap interval, in per cent."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, vector: np.ndarray) -> "Estimate":
        """The estimate of a vector (1 + draws,), as above."""
        low, high = interval(vector[1:])
        return cls(100 * float(vector[0]), 100 * low, 100 * high)


class Results:
    """The cells of a benchmark with one protocol, by method, category, contamination and seed.

    Args:
        documents: as of `cells.load_cells`.
        problems: what was wrong with other cells, for the report.
        protocol: that of the cells with contamination.

    Raises:
        ValueError: if cells that are compared were measured on different images.
    """

    def __init__(self, documents: list[dict[str, Any]], problems: Sequence[str] = (), protocol: str = DISJOINT):
        self.protocol = protocol
        self.documents = {self._key(document): document for document in documents}
        self.problems = [*problems, *self._mixtures(), *self._other_time_limits(), *self._other_runs()]
        self._check_images()
        self.vectors = {
            (*key, metric): np.concatenate([[document["results"][-1][metric]], unpack(document["draws"][metric])])
            for key, document in self.documents.items()
            for metric in METRICS
            if metric in document["draws"]
        }

    @classmethod
    def load(cls, source: Path) -> list["Results"]:
        """Those in the folder `source`/cells, or in the JSON Lines file `source`: of each protocol that there are cells of.

        Raises:
            NoCellsError: if there is none.
            ValueError: if cells that are compared were measured on different images.
        """
        cells = source if source.is_file() else source / "cells"
        documents, problems = load_cells(cells)
        if not documents:
            raise NoCellsError(f"no finished cell in {cells}" + "".join(f"\n{p}" for p in problems))
        settings = [document["settings"] for document in documents]
        used = {s["protocol"] for s in settings if s["contamination"] > 0} or {DISJOINT}
        return [
            # without contamination all protocols are the same
            cls(
                [
                    d
                    for d, s in zip(documents, settings, strict=True)
                    if s["protocol"] == protocol or not s["contamination"]
                ],
                problems,
                protocol,
            )
            for protocol in PROTOCOLS
            if protocol in used
        ]

    @staticmethod
    def _key(document: dict[str, Any]) -> tuple[str, str, float, int]:
        settings = document["settings"]
        return settings["method"], settings["category"], float(settings["contamination"]), settings["seed"]

    def _check_images(self) -> None:
        """Raises ValueError if two cells that are compared were not trained, or not tested, on the same images."""
        seen: dict[tuple[Any, ...], tuple[Any, Any]] = {}
        for key, document in self.documents.items():
            _, category, level, seed = key
            draws, size = document["draws"], document["settings"]["recipe"].get("image_size")
            for images, found in (
                (("tested", category, seed), (draws["test_sha256"], draws["count"], draws["kind"])),
                (("trained", category, level, seed, size), (document["images_sha256"], document["training_images"])),
            ):
                expected, other = seen.setdefault(images, (found, key))
                if found != expected:
                    counts = expected[1], found[1]
                    reason = (
                        f"they have {counts[0]} and {counts[1]} training images. Measure all methods with the same levels, or "
                        "with --train-size"
                        if images[0] == "trained" and counts[0] != counts[1]
                        else "the data changed between them. Delete the older one and run the benchmark again"
                    )
                    raise ValueError(f"cells {other} and {key} were not {images[0]} on the same images: {reason}")

    def _mixtures(self) -> list[str]:
        """Conditions that differ between cells that a table sets side by side, in words."""
        found: dict[str, dict[str, list[str]]] = {}
        for document in self.documents.values():
            settings = document["settings"]
            method, category = settings["method"], settings["category"]
            conditions = [("presets", document["preset"]), ("image sizes", settings["recipe"].get("image_size"))]
            if METHODS[method].of_run:
                conditions.append(("recipes of ILTM", settings["recipe"]))
            elif (settings["baseline"] or {}).get("stage") is not None:  # else nothing is trained
                conditions.append(("--baseline-seconds", settings["baseline_seconds"]))
            for what, value in (
                *conditions,
                (f"numbers of training images of {category}", document["training_images"]),
                (f"settings of {METHODS[method].title} on {category}", (settings["baseline"], settings["inference"])),
            ):
                cell = "{category} at {contamination:g}, seed {seed}".format(**settings)
                found.setdefault(what, {}).setdefault(str(value), []).append(cell)
        return [
            f"cells of different {what}: " + " / ".join(", ".join(sorted(set(cells))) for cells in values.values())
            for what, values in found.items()
            if len(values) > 1
        ]

    def _other_time_limits(self) -> list[str]:
        """Cells whose method had the time of a round of the prior, by another recipe than that of the ILTM run beside them."""
        found: dict[str, list[str]] = {}
        for (method, category, level, seed), document in self.documents.items():
            recipe, beside = document["settings"]["recipe"], self.documents.get((REFERENCE, category, level, seed))
            # the recipe of a cell that had no such time holds the size of images alone
            timed = "stage2" in recipe and not METHODS[method].of_run
            if timed and beside is not None and recipe != beside["settings"]["recipe"]:
                found.setdefault(f"{category} at {level:g}, seed {seed}", []).append(METHODS[method].title)
        return [
            f"time limits from a round of another recipe than ILTM's beside them: {', '.join(methods)} on {cell}"
            for cell, methods in found.items()
        ]

    def _other_runs(self) -> list[str]:
        """Images on which ILTM and its round 0 come from different runs, and so differ by more than masks."""
        found: dict[str, set[str]] = {}
        for (_, category, level, seed), document in self.documents.items():
            if "vqvae_sha256" in document:  # not known of cells of earlier versions
                found.setdefault(f"{category} at {level:g}, seed {seed}", set()).add(document["vqvae_sha256"])
        return [f"ILTM and round 0 of different trainings: {cell}" for cell, runs in found.items() if len(runs) > 1]

    def differs_between(self, method: str, categories: Sequence[str], levels: Sequence[float]) -> bool:
        """Whether, in one of `categories`, a method was trained or scored with other settings at one of `levels` than at the
        next."""
        names = ("recipe", "baseline", "baseline_seconds", "inference")
        found: dict[tuple[str, int], list[list[Any]]] = {}
        for (name, category, level, seed), document in self.documents.items():
            if name == method and category in categories and level in levels:
                settings = [document["settings"][field] for field in names]
                found.setdefault((category, seed), []).append(settings)
        return any(settings != group[0] for group in found.values() for settings in group)

    # Which cells there are

    @property
    def levels(self) -> list[float]:
        return sorted({key[2] for key in self.documents})

    def methods(self, level: float | None = None) -> list[str]:
        """Methods with a cell, at `level` if given, in the order of the table."""
        found = {key[0] for key in self.documents if level in (None, key[2])}
        return [method for method in METHODS if method in found]

    def categories(self, level: float | None = None) -> list[str]:
        """Categories with a cell, at `level` if given: those of the paper in its order, then others by name."""
        found = {key[1] for key in self.documents if level in (None, key[2])}
        official = list(load_published()["categories"])
        return sorted(found, key=lambda name: (official.index(name) if name in official else len(official), name))

    def seeds(self, method: str, category: str, level: float) -> list[int]:
        return sorted(key[3] for key in self.documents if key[:3] == (method, category, level))

    def complete(self, level: float) -> list[str]:
        """Categories in which every method of the level has a cell. Means over categories are over these."""
        methods = self.methods(level)
        return [c for c in self.categories(level) if all(self.seeds(method, c, level) for method in methods)]

    def missing(self) -> list[str]:
        """Names of the cells that a method lacks and another method of the same level has."""
        return [
            f"{category} at {level:g}, seed {seed}: {METHODS[method].title}"
            for level in self.levels
            for category in self.categories(level)
            for seed in sorted({s for m in self.methods(level) for s in self.seeds(m, category, level)})
            for method in self.methods(level)
            if (method, category, level, seed) not in self.documents
        ]

    # What follows from them: None if a cell or its metric is missing

    def vector(
        self, method: str, category: str, level: float, metric: str, seeds: Sequence[int] | None = None
    ) -> np.ndarray | None:
        """Vector (1 + draws,) of the mean over `seeds`, by default all that there are."""
        seeds = self.seeds(method, category, level) if seeds is None else seeds
        return _mean([self.vectors.get((method, category, level, seed, metric)) for seed in seeds])

    def field(self, method: str, category: str, level: float, name: str) -> float | None:
        """Mean over seeds of a field of the results that has no draws, such as `per_image_auroc_mean`."""
        keys = [(method, category, level, seed) for seed in self.seeds(method, category, level)]
        values = [self.documents[key]["results"][-1].get(name) for key in keys]
        return None if not values or None in values else float(np.mean(values))

    def mean(self, method: str, level: float, metric: str) -> np.ndarray | None:
        """Vector of the mean over the `complete` categories of means over seeds."""
        return _mean([self.vector(method, category, level, metric) for category in self.complete(level)])

    def curve(self, method: str, metric: str, categories: Sequence[str]) -> list[tuple[float, float]]:
        """Pairs (level, value) of a method. A value is the mean over categories of means over the seeds that the method has at
        all of its levels, since another seed is another test set. If its levels have no seed in common there is no curve."""
        levels = [level for level in self.levels if all(self.seeds(method, c, level) for c in categories)]
        seeds = {c: self.common_seeds([method], c, levels) for c in categories} if levels else {}
        if not all(seeds.values()):
            return []
        means = {
            level: _mean([self.vector(method, c, level, metric, seeds[c]) for c in categories]) for level in levels
        }
        return [(level, float(mean[0])) for level, mean in means.items() if mean is not None]

    def common_seeds(self, methods: Sequence[str], category: str, levels: Sequence[float]) -> list[int]:
        """Seeds that all of these methods have at all of these levels."""
        found = [{*self.seeds(method, category, level)} for method in methods for level in levels]
        return sorted(set.intersection(*found))

    def difference(
        self, first: str, second: str, category: str, level: float, metric: str, seed: int | None = None
    ) -> Estimate | None:
        """One method minus another, for one seed, or for the mean over the seeds that both have."""
        seeds = [seed] if seed is not None else self.common_seeds((first, second), category, [level])
        return self._minus(*(self.vector(name, category, level, metric, seeds) for name in (first, second)))

    def mean_difference(self, first: str, second: str, level: float, metric: str) -> Estimate | None:
        """One method minus another, for the mean over the `complete` categories of means over common seeds."""
        per_category = [
            [
                self.vector(name, category, level, metric, self.common_seeds((first, second), category, [level]))
                for category in self.complete(level)
            ]
            for name in (first, second)
        ]
        return self._minus(*map(_mean, per_category))

    def drop_range(self) -> tuple[float, list[str], list[str]] | None:
        """What drops are measured on: the highest level that all `complete` categories of level 0 have, the methods with cells at
        0 and at that level, and these categories. None if there is no such level."""
        if 0.0 not in self.levels:
            return None
        shared = [
            level
            for level in self.levels
            if level > 0 and self.complete(0.0) and {*self.complete(0.0)} <= {*self.complete(level)}
        ]
        if not shared:
            return None
        methods = [m for m in self.methods(0.0) if m in self.methods(shared[-1])]
        return shared[-1], methods, self.complete(0.0)

    def drop(self, method: str, metric: str, against: str | None = None) -> Estimate | None:
        """What a method loses from contamination 0 to the level of `drop_range`, mean over its categories; if `against` is given,
        minus the loss of that method."""
        found = self.drop_range()
        assert found is not None
        level, _, categories = found
        names = (method, against) if against else (method,)
        losses = []
        for name in names:
            per_category = []
            for category in categories:
                seeds = self.common_seeds(names, category, (0.0, level))
                clean, dirty = (self.vector(name, category, at, metric, seeds) for at in (0.0, level))
                per_category.append(None if clean is None or dirty is None else clean - dirty)
            losses.append(_mean(per_category))
        if against:
            return self._minus(*losses)
        return None if losses[0] is None else Estimate.of(losses[0])

    @staticmethod
    def _minus(first: np.ndarray | None, second: np.ndarray | None) -> Estimate | None:
        return None if first is None or second is None else Estimate.of(first - second)


def _mean(vectors: Sequence[np.ndarray | None]) -> np.ndarray | None:
    found = [vector for vector in vectors if vector is not None]
    return np.mean(found, axis=0) if found and len(found) == len(vectors) else None
