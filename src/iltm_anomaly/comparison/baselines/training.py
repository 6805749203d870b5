"""Trains a baseline in one folder: gradient descent if it has any, statistics, threshold, pipeline folder."""

import hashlib
import json
import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iltm_anomaly.calibration import calibration_images
from iltm_anomaly.comparison.baselines.methods import BASELINES, Method
from iltm_anomaly.comparison.baselines.modeling import IMAGES_AT_ONCE, BaselineModel, BaselineRecipe
from iltm_anomaly.comparison.baselines.pipeline import BaselinePipeline
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.provenance import provenance
from iltm_anomaly.recipes.retired import without_retired_of_stage
from iltm_anomaly.seeds import sample_seed
from iltm_anomaly.training.accelerator import make_accelerator
from iltm_anomaly.training.batches import loading_threads, total_steps
from iltm_anomaly.training.checkpoint import fill_folder, load_json, remove_checkpoint, write_json
from iltm_anomaly.training.fit import Objective, fit
from iltm_anomaly.training.loop_settings import LoopSettings
from iltm_anomaly.training.processes import own_accelerator
from iltm_anomaly.training.run_folder import RunFolderError, changes_between, refuse
from iltm_anomaly.training.tracking import RunLog

logger = logging.getLogger(__name__)

# First counters of the random streams, which are other ones than those of ILTM's stages.
STREAM_WEIGHTS, STREAM_BATCHES, STREAM_STATISTICS = range(20, 23)


def train_baseline(
    name: str,
    images: Any,
    processor: ILTMImageProcessor,
    output: str | Path,
    *,
    seed: int = 0,
    budget_seconds: float | None = None,
    steps: int | None = None,
    device: str = "cpu",
    preset: str = "cpu",
    category: str | None = None,
    resume: bool = True,
    show_progress: bool = True,
    config: dict[str, Any] | None = None,
) -> BaselinePipeline:
    """Trains the baseline `name` on images without labels, contaminated or not.

    Args:
        name: one of `BASELINES`.
        images: (N, C, H, W) uint8 as `processor` prepares them, a tensor or a `PixelCache`.
        processor: fixes size and channels of the images; a part of the pipeline.
        output: folder of the run; the pipeline is saved in `output`/model.
        seed: of everything random.
        budget_seconds: end gradient descent after this time, if the steps are not done before.
        steps: in place of the recipe's.
        device: "cpu", or another name such as "cuda" for an accelerator.
        preset: "paper" (the source's settings), "cpu" or "tiny".
        category: of MVTec AD. With the preset "paper", NSA has settings of its own for each.
        resume: continue what `output` holds; a finished run is loaded.
        show_progress: progress bars.
        config: fields of the model's configuration, in place of the preset's.

    Returns:
        The pipeline, calibrated, on `device`. Its `training_report` says how long it was trained, and why training ended.

    Raises:
        ValueError: for an unknown name, preset or field of the configuration.
        MissingExtraError: if a package that the method needs is not installed.
        RunFolderError: if `output` holds another run, or any and `resume` is False.
        NonFiniteLossError: if the loss is not finite.
    """
    output, method = Path(output), _method(name)
    recipe = method.recipe_for(preset, category, config)
    if steps is not None and recipe.stage is not None:
        recipe = replace(recipe, stage=replace(recipe.stage, steps=steps, epochs=None))
    run = {"method": name, "preset": preset, "recipe": asdict(recipe), "seed": seed, "budget_seconds": budget_seconds}
    run |= {"images": len(images), "images_sha256": images_digest(images)}
    _claim(output, run, resume)
    if (output / "model").exists():
        logger.info("the run in %s is complete: nothing is left to do", output)
        return BaselinePipeline.from_pretrained(output / "model", device=device)
    torch.manual_seed(sample_seed(seed, STREAM_WEIGHTS))
    model = method.model_class(method.model_class.configure(processor, len(images), recipe.config))
    model.load_pretrained_parts()
    descent = _descend(model, images, recipe, run, output, device, show_progress)
    pipeline = _calibrated(model, processor, images, run | {"title": method.title} | descent, show_progress)
    fill_folder(output / "model", pipeline.save_pretrained)
    remove_checkpoint(output / "checkpoint.bin")
    return pipeline


def _method(name: str) -> Method:
    if name not in BASELINES:
        raise ValueError(f"no baseline {name!r}; there are {', '.join(BASELINES)}")
    return BASELINES[name]


def _claim(output: Path, run: dict[str, Any], resume: bool) -> None:
    """Writes run.json with what identifies the run; if there is one, raises RunFolderError unless it is of the same run."""
    path = output / "run.json"
    if not path.exists():
        output.mkdir(parents=True, exist_ok=True)
        write_json(path, run)
        return
    if not resume:
        raise RunFolderError(f"{output} already holds a run: resume it, or give another output")
    found = load_json(path)
    found["recipe"]["stage"] = without_retired_of_stage(found["recipe"]["stage"])
    changes = changes_between(found, json.loads(json.dumps(run)))  # tuples become lists
    refuse(output, changes, "Give the same, or another output")


class BaselineObjective(Objective):
    """Trains a baseline on images (N, C, H, W) uint8; `seed` is that of what `training_batch` draws."""

    model: BaselineModel

    def __init__(self, model: BaselineModel, images: Any, seed: int):
        super().__init__(model)
        self.images, self.seed = images, seed

    def inputs(self, indices: Tensor, step: int) -> dict[str, Tensor]:
        return self.model.training_batch(self.images, indices, sample_seed(self.seed, 3, step))


def _descend(
    model: BaselineModel,
    images: Any,
    recipe: BaselineRecipe,
    run: dict[str, Any],
    output: Path,
    device: str,
    show_progress: bool,
) -> dict[str, Any]:
    """Moves the model to the device and trains it by gradient descent, if its recipe has any; returns what the report says of
    it."""
    described: Any = recipe  # of which `make_accelerator` reads the precision and the compilation alone
    with own_accelerator():
        accelerator = make_accelerator(described, output, [], cpu=device == "cpu")
        model.to(accelerator.device)  # type: ignore[arg-type]
        stage = recipe.stage
        if stage is None:
            return {"steps": 0, "planned_steps": 0, "descent_seconds": 0.0, "ended_by": "recipe", "loss": None}
        seed = sample_seed(run["seed"], STREAM_BATCHES)
        settings = LoopSettings(
            name=run["method"],
            seed=seed,
            log=RunLog(output, accelerator.is_main_process, accelerator),
            checkpoint_path=output / "checkpoint.bin",
            show_progress=show_progress,
            loading_threads=loading_threads(accelerator),
            budget_seconds=run["budget_seconds"],
        )
        network: torch.nn.Module = model
        # convolutions are faster so, on CPUs above all
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        summary = fit(accelerator, BaselineObjective(model, images, seed), stage, len(images), settings)
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    planned = total_steps(stage, len(images))
    return {
        "steps": int(summary["steps"]),
        "planned_steps": planned,
        "descent_seconds": summary["seconds"],
        "ended_by": "recipe" if summary["steps"] >= planned else "budget",
        "loss": summary["loss"],
    }


def _calibrated(
    model: BaselineModel, processor: ILTMImageProcessor, images: Any, report: dict[str, Any], show_progress: bool
) -> BaselinePipeline:
    """The pipeline of a model after gradient descent: with its statistics, its threshold and the whole training report."""
    started = time.monotonic()
    model.eval().fit_statistics(images, sample_seed(report["seed"], STREAM_STATISTICS))
    report["statistics_seconds"] = round(time.monotonic() - started, 1)
    pipeline = BaselinePipeline(model, processor)
    pipeline.calibrate(calibration_images(images, report["seed"]), show_progress)
    report["training_seconds"] = round(report["descent_seconds"] + report["statistics_seconds"], 1)
    pipeline.training_report = report | {"parameters": model.num_parameters()} | provenance(model.device)
    return pipeline


def images_digest(images: Any) -> str:
    """SHA-256 over all pixels of the images, see `train_baseline`."""
    if hasattr(images, "digest"):
        return images.digest
    digest = hashlib.sha256(str(tuple(images.shape)).encode())
    for start in range(0, len(images), IMAGES_AT_ONCE):
        digest.update(images[start : start + IMAGES_AT_ONCE].contiguous().numpy().tobytes())
    return digest.hexdigest()
