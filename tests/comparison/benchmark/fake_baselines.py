"""Stands in for `iltm_anomaly.comparison.baselines`: the same calls, models that need no training."""

import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from iltm_anomaly.comparison.baselines.modeling import BaselineRecipe
from iltm_anomaly.recipes.recipe import StageRecipe

NAMES = ("mean_image", "autoencoder", "vae", "cutpaste", "nsa", "patchcore")


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


class FakeBaseline:
    """A method: what its settings say about its training."""

    class model_class:
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


class FakeMeanImage(FakeBaseline):
    """One that is not trained."""

    class model_class(FakeBaseline.model_class):
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

    def from_run(self, run_folder, map="kde", device=None):
        """Round 0 of a real run, as ILTM scores it."""
        from iltm_anomaly.pipeline import ILTMAnomalyPipeline
        from iltm_anomaly.prior import PerformerPriorModel

        pipeline = ILTMAnomalyPipeline.from_pretrained(Path(run_folder) / "model", device=device)
        pipeline.prior = PerformerPriorModel.from_pretrained(Path(run_folder) / "rounds" / "round_0").eval()
        if map == "residual":
            pipeline.settings.likelihood_share = 0.0
            return pipeline
        model = types.SimpleNamespace(as_iltm=lambda processor: pipeline)
        return types.SimpleNamespace(model=model, image_processor=pipeline.image_processor)


def install(monkeypatch) -> FakeBaselines:
    """Puts the fake in place of the package."""
    fake = FakeBaselines()
    package, transformer = types.ModuleType("iltm_anomaly.comparison.baselines"), types.ModuleType("vqvae_transformer")
    package.BASELINES, package.train_baseline = dict.fromkeys(NAMES, FakeBaseline), fake.train_baseline
    package.BASELINES["mean_image"] = FakeMeanImage
    transformer.from_run, transformer.residual_settings = fake.from_run, lambda: {"num_samples": 5}
    monkeypatch.setitem(sys.modules, "iltm_anomaly.comparison.baselines", package)
    monkeypatch.setitem(sys.modules, "iltm_anomaly.comparison.baselines.vqvae_transformer", transformer)
    return fake
