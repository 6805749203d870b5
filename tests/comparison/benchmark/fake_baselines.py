"""Stands in for the other methods: the same calls, models that need no training."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from iltm_anomaly.comparison.baselines.methods import BASELINES, METHODS
from iltm_anomaly.comparison.baselines.modeling import BaselineRecipe
from iltm_anomaly.comparison.baselines.round_zero import load_round_zero
from iltm_anomaly.comparison.benchmark import dry_run, runner
from iltm_anomaly.recipes.pixel_recipe import StageRecipe

NAMES = ("mean_image", "autoencoder", "vae", "cutpaste", "nsa", "patchcore", "patchcore_coreset", "softpatch")


@dataclass
class Output:
    scores: torch.Tensor
    anomaly_maps: list[np.ndarray]
    masks: list[np.ndarray]


class FakePipeline:
    """Distance to the mean training image, with noise that differs from method to method."""

    def __init__(self, mean: torch.Tensor, processor, noise: float, report: dict):
        self.mean, self.processor, self.noise, self.training_report = mean, processor, noise, report

    def __call__(self, images, batch_size: int = 8, show_progress: bool = False) -> Output:
        batch = self.processor.preprocess(list(images))
        distances = (batch["pixel_values"] - self.mean).abs().mean(1)
        distances += self.noise * torch.rand(distances.shape, generator=torch.Generator().manual_seed(0))
        maps = [self.processor.restore_map(d, s) for d, s in zip(distances, batch["original_sizes"], strict=True)]
        return Output(torch.tensor([float(m.max()) for m in maps]), maps, [m > 0.5 for m in maps])


class FakeModel:
    """A model class: what its settings say about its training."""

    stage: StageRecipe | None = StageRecipe(epochs=10, batch_size=4)
    version = 1

    @classmethod
    def recipe_for(cls, preset, category=None, config=None) -> BaselineRecipe:
        return BaselineRecipe(cls.stage, config or {})

    @staticmethod
    def config_defaults() -> dict:
        return {"smoothing": 0.5}

    @staticmethod
    def configure(processor, num_images, settings) -> None:
        pass


class FakeMeanImage(FakeModel):
    """One that is not trained."""

    stage = None


class FakeBaselines:
    """What was asked for, and which methods are to fail."""

    def __init__(self):
        self.calls: list[dict] = []
        self.failing: set[str] = set()

    def train_baseline(self, name, images, processor, output, **options) -> FakePipeline:
        self.calls.append({"name": name, "images": len(images), "output": Path(output), **options})
        if name in self.failing:
            raise RuntimeError(f"{name} cannot be trained here")
        (Path(output) / "model").mkdir(parents=True, exist_ok=True)
        mean = images[:].float().mean(0) / 255
        report = {"training_seconds": 1.5, "steps": 7, "planned_steps": 10, "ended_by": "budget"}
        (Path(output) / "model" / "training_report.json").write_text(json.dumps(report))
        return FakePipeline(mean, processor, 0.05 * NAMES.index(name), report)

    def from_run(self, run_folder, map, device=None):
        """Another map of round 0 of a real run."""
        assert map == "residual"
        pipeline = load_round_zero(run_folder, device)
        pipeline.settings.likelihood_share = 0.0
        return pipeline


def install(monkeypatch) -> FakeBaselines:
    """Puts the fakes in place of the methods' models and of what trains and loads them."""
    fake = FakeBaselines()
    for name in NAMES:
        model_class = FakeMeanImage if name == "mean_image" else FakeModel
        for methods in (METHODS, BASELINES):
            monkeypatch.setitem(methods, name, replace(methods[name], model_class=model_class))
    for module in (runner, dry_run):
        monkeypatch.setattr(module, "train_baseline", fake.train_baseline)
    monkeypatch.setattr(runner, "from_run", fake.from_run)
    return fake
