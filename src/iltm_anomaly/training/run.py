"""A whole training run: VQ-VAE, codes, round 0, masked rounds, calibration, pipeline folder. Every part can be resumed."""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from iltm_anomaly import masking
from iltm_anomaly.data.augmentation import AugmentationConfig, augment, sample_seed
from iltm_anomaly.image_processing import ILTMImageProcessor
from iltm_anomaly.pipeline import ILTMAnomalyPipeline, InferenceSettings, images_at_once
from iltm_anomaly.prior import PerformerPriorConfig, PerformerPriorModel
from iltm_anomaly.provenance import provenance
from iltm_anomaly.training.checkpoint import load_json, write_json
from iltm_anomaly.training.loop import LoopSettings, RunLog, fit
from iltm_anomaly.training.recipe import Recipe
from iltm_anomaly.vqvae import VQVAEConfig, VQVAEModel

logger = logging.getLogger(__name__)

# First counters of every random stream of a run, so that no two parts of it share one.
STREAM_STAGE1, STREAM_STAGE2, STREAM_CODES, STREAM_WEIGHTS, STREAM_FEATURES = range(10, 15)
CODEBOOK_IMAGES = 128  # images whose encoder outputs the codebook starts from
CALIBRATION_IMAGES = 96  # images scored to set the threshold; more change it little


class RunFolderError(RuntimeError):
    """The output folder holds a run that cannot be continued, or is not meant to be."""


@dataclass
class TrainingRun:
    """One run in one folder.

    Args:
        recipe: every number of it.
        output: run folder; `model` in it becomes the pipeline folder.
        seed: of everything random.
        accelerator: device, processes and precision.
        show_progress: bars on the main process.
        checkpoint_seconds: time between checkpoints.
    """

    recipe: Recipe
    output: Path
    seed: int
    accelerator: Accelerator
    show_progress: bool = True
    checkpoint_seconds: float = 120.0

    def __post_init__(self):
        self.log = RunLog(self.output / "training_log.jsonl", self.accelerator.is_main_process)
        self.augmentation = AugmentationConfig(**self.recipe.augmentation)

    def train(self, images: list, data_record: dict[str, Any], resume: bool = False) -> Path:
        """Trains on images (paths, PIL images or anything `ILTMImageProcessor` takes); labels are neither needed nor read.

        Args:
            images: the training images.
            data_record: where they come from, kept in the report.
            resume: continue what the folder holds.

        Returns:
            The pipeline folder.

        Raises:
            RunFolderError: if the folder holds a run and `resume` is False, or one of another recipe, seed or data.
        """
        processor = self._make_processor(images)
        pixels = self._load(images, processor)
        self._open_folder(pixels, resume)
        vqvae, stage1 = self._train_vqvae(pixels)
        codes = self._extract_codes(vqvae, pixels)
        prior, rounds = self._train_rounds(codes, vqvae.grid_shape(tuple(pixels.shape[2:])))
        pipeline = ILTMAnomalyPipeline(vqvae, prior, processor, InferenceSettings(**self.recipe.inference))
        pipeline.to(self.accelerator.device)
        if self.accelerator.is_main_process:
            pipeline.calibrate(self._calibration_images(pixels), show_progress=self.show_progress)
            report = {
                "recipe": self.recipe.to_dict(),
                "seed": self.seed,
                "data": data_record,
                "num_training_images": len(pixels),
                "stage1": stage1,
                "rounds": rounds,
                # of both stages, over all sittings of a resumed run
                "training_seconds": round(stage1["seconds"] + sum(entry["seconds"] for entry in rounds), 1),
                **provenance(),
            }
            pipeline.training_report = report
            self._finish(pipeline.save_pretrained, self.output / "model")
        self.accelerator.wait_for_everyone()
        return self.output / "model"

    # The folder

    def _make_processor(self, images: list) -> ILTMImageProcessor:
        if self.recipe.volume is not None:
            divisor = VQVAEConfig(**self.recipe.vqvae).downsampling
            return ILTMImageProcessor.for_volumes(images, size_divisor=divisor, **self.recipe.volume)
        return ILTMImageProcessor(size=self.recipe.image_size, num_channels=self.recipe.num_channels)

    def _load(self, images: list, processor: ILTMImageProcessor) -> Tensor:
        """Decodes every image once: (N, C, H, W) uint8, an eighth of what float32 copies would take with their gradients."""
        bar = tqdm(images, desc="loading images", unit="image", disable=not self._shows_bars)
        return torch.cat([(processor.preprocess(i)["pixel_values"] * 255).round().to(torch.uint8) for i in bar])

    @property
    def _shows_bars(self) -> bool:
        return self.show_progress and self.accelerator.is_main_process

    def _open_folder(self, pixels: Tensor, resume: bool) -> None:
        identity = {
            "recipe": self.recipe.to_dict(),
            "seed": self.seed,
            "images": len(pixels),
            "images_sha256": hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
        }
        path = self.output / "run.json"
        existed = path.exists()
        self.accelerator.wait_for_everyone()  # every process has looked before the first one writes
        if existed:
            if not resume:
                raise RunFolderError(
                    f"{self.output} already holds a run: pass --resume to continue it, or another --output"
                )
            found = load_json(path)
            if different := [key for key, value in identity.items() if found.get(key) != value]:
                raise RunFolderError(
                    f"cannot resume {self.output}: {', '.join(different)} differ from the run that it holds. "
                    "Give the same data, recipe and seed, or another --output"
                )
        elif self.accelerator.is_main_process:
            write_json(path, identity)
        self.accelerator.wait_for_everyone()

    def _finish(self, save: Callable[[Path], Any], folder: Path) -> None:
        """Fills a folder under another name, then renames it: a folder that is there is complete."""
        if not self.accelerator.is_main_process:
            return
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save(partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)

    def _finish_stage(self, model: PreTrainedModel, summary: dict[str, Any], folder: Path) -> None:
        def save(target: Path) -> None:
            model.save_pretrained(target)
            write_json(target / "stage.json", summary)

        self._finish(save, folder)
        self.accelerator.wait_for_everyone()

    def _set_checkpointing(self, model: PreTrainedModel) -> None:
        if self.recipe.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})

    def _loop_settings(self, name: str, *stream: int) -> LoopSettings:
        return LoopSettings(
            name=name,
            seed=sample_seed(self.seed, *stream),
            log=self.log,
            checkpoint_path=self.output / "checkpoint.bin",
            checkpoint_seconds=self.checkpoint_seconds,
            show_progress=self.show_progress,
        )

    # Stage 1

    def _augmented(self, pixels: Tensor, seeds: list[int]) -> Tensor:
        return augment(pixels.to(self.accelerator.device).float() / 255, self.augmentation, seeds)

    def _train_vqvae(self, pixels: Tensor) -> tuple[VQVAEModel, dict[str, Any]]:
        folder = self.output / "vqvae"
        if folder.exists():
            return VQVAEModel.from_pretrained(folder).eval().to(self.accelerator.device), load_json(
                folder / "stage.json"
            )
        stage = self.recipe.stage1
        torch.manual_seed(sample_seed(self.seed, STREAM_WEIGHTS, 0))
        model = VQVAEModel(VQVAEConfig(in_channels=self.recipe.num_channels, **self.recipe.vqvae))
        self._set_checkpointing(model)
        model = model.to(self.accelerator.device)
        if not self.recipe.is_volumetric:
            model = model.to(memory_format=torch.channels_last)
        settings = self._loop_settings("vqvae", STREAM_STAGE1)

        def make_inputs(indices: Tensor, step: int) -> dict[str, Tensor]:
            # seeded by step and image, not by process: the same batch whatever the number of processes
            seeds = [sample_seed(settings.seed, 3, step, int(i)) for i in indices]
            batch = self._augmented(pixels[indices], seeds)
            return {"pixel_values": batch.contiguous(memory_format=torch.channels_last) if batch.dim() == 4 else batch}

        def before_step(step: int, epoch: int) -> None:
            start = self.recipe.codebook_start
            if start is not None and step <= start:
                model.quantizer.bypass = step < start
                if step == start:
                    sample = pixels[:: max(1, len(pixels) // CODEBOOK_IMAGES)][:CODEBOOK_IMAGES]
                    if self.recipe.is_volumetric:
                        sample = sample[: images_at_once(pixels)]  # one holds more codes than many images
                    model.initialize_codebook(sample.to(self.accelerator.device).float() / 255)
            decay = stage.ema_decay_at(epoch)
            if decay is not None:
                model.quantizer.decay = decay

        summary = fit(self.accelerator, model, stage, len(pixels), make_inputs, settings, before_step)
        summary |= self._reconstruction_report(model, pixels)
        model = model.to(memory_format=torch.contiguous_format)
        self._finish_stage(model, summary, folder)
        return model, summary

    @torch.no_grad()
    def _reconstruction_report(self, model: VQVAEModel, pixels: Tensor) -> dict[str, float]:
        """Squared error and codes in use over (at most 256 of) the training images, without augmentation or dropout."""
        model.eval()
        errors, used = [], set()
        for batch in pixels[:256].split(images_at_once(pixels, 16)):
            batch = batch.to(self.accelerator.device).float() / 255
            output = model(batch)
            errors.append((output.reconstruction - batch).square().mean().item())
            used.update(output.codes.unique().tolist())
        return {"mse": float(np.mean(errors)), "codes_in_use": len(used)}

    # Stage 2

    @torch.no_grad()
    def _extract_codes(self, vqvae: VQVAEModel, pixels: Tensor) -> Tensor:
        """Codes of `code_copies` augmented copies of every image, (N, copies, tokens) int16: extracted once, as the authors
        did, so that the masks of a round can be computed once too."""
        copies = self.recipe.rounds.code_copies
        codes = []
        bar = tqdm(range(len(pixels)), desc="extracting codes", unit="image", disable=not self._shows_bars)
        for index in bar:
            seeds = [sample_seed(self.seed, STREAM_CODES, index, copy) for copy in range(copies)]
            count = images_at_once(pixels, copies)
            parts = [
                vqvae.encode(self._augmented(pixels[index].expand(len(part), *pixels.shape[1:]), part))
                for part in (seeds[start : start + count] for start in range(0, copies, count))
            ]
            codes.append(torch.cat(parts).flatten(1).to(torch.int16).cpu())
        return torch.stack(codes)

    @torch.no_grad()
    def _score(self, prior: PerformerPriorModel, codes: Tensor) -> Tensor:
        """Log-likelihoods (N, copies, tokens) with the full, unmasked context, as the authors' masks are computed."""
        sequences = codes.flatten(0, 1).to(self.accelerator.device).long()
        return prior.log_likelihood(sequences).view(codes.shape).cpu()

    def _judge(
        self, teacher: PerformerPriorModel, codes: Tensor, grid: tuple[int, ...]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Keep-masks (N, copies, tokens) by the recipe's rule, and how they came about."""
        rule = self.recipe.rounds.rule
        surprise = rule.surprise(self._score(teacher, codes).flatten(0, 1).unflatten(1, grid))
        limit = rule.limit(surprise)
        keep = masking.keep_mask(surprise, limit).view(codes.shape)
        fraction = masking.check_masked_fraction(keep, limit, self.recipe.rounds.max_masked_fraction)
        return keep, {"masked_fraction": fraction, "surprise_limit": limit}

    def _train_rounds(self, codes: Tensor, grid: tuple[int, ...]) -> tuple[PerformerPriorModel, list[dict[str, Any]]]:
        rule = self.recipe.rounds
        reports: list[dict[str, Any]] = []
        teacher: PerformerPriorModel | None = None
        previous_keep: Tensor | None = None
        for number in range(rule.rounds + 1):
            keep, report = None, {"round": number, "masked_fraction": 0.0}
            if teacher is not None:
                keep, judged = self._judge(teacher, codes, grid)
                report |= judged
                if previous_keep is not None:
                    report["mask_iou"] = masking.mask_iou(previous_keep, keep)
                    if masking.has_converged(previous_keep, keep, rule.convergence_iou, rule.convergence_change):
                        reports[-1]["stopped"] = f"the masks of round {number} are those of round {number - 1}"
                        logger.info("stopping: %s (IoU %.3f)", reports[-1]["stopped"], report["mask_iou"])
                        break
            teacher, summary = self._train_round(number, codes, keep, grid, teacher)
            reports.append({**report, **summary})
            logger.info("round %d: masked %.2f %% of tokens", number, 100 * report["masked_fraction"])
            previous_keep = keep
        assert teacher is not None  # round 0 always runs
        return teacher, reports

    def _train_round(
        self,
        number: int,
        codes: Tensor,
        keep: Tensor | None,
        grid: tuple[int, ...],
        teacher: PerformerPriorModel | None,
    ) -> tuple[PerformerPriorModel, dict[str, Any]]:
        folder = self.output / "rounds" / f"round_{number}"
        if folder.exists():
            prior = PerformerPriorModel.from_pretrained(folder).eval().to(self.accelerator.device)
            return prior, load_json(folder / "stage.json")
        # the same start, batches and dropout in every round: rounds differ by their masks alone
        torch.manual_seed(sample_seed(self.seed, STREAM_WEIGHTS, 1))
        vocab_size = self.recipe.vqvae.get("vocab_size", 256)
        prior = PerformerPriorModel(PerformerPriorConfig(vocab_size=vocab_size, grid_shape=grid, **self.recipe.prior))
        self._set_checkpointing(prior)
        if self.recipe.rounds.initialization == "continue" and teacher is not None:
            prior.load_state_dict(teacher.state_dict())
        settings = self._loop_settings(f"prior round {number}", STREAM_STAGE2)
        generator = torch.Generator()

        def make_inputs(indices: Tensor, step: int) -> dict[str, Tensor]:
            copy = torch.tensor([sample_seed(settings.seed, 4, step, int(i)) % codes.shape[1] for i in indices])
            inputs = {"input_ids": codes[indices, copy].long()}
            return inputs if keep is None else inputs | {"token_mask": keep[indices, copy]}

        def before_step(step: int, epoch: int) -> None:
            interval = prior.config.feature_redraw_interval
            if interval and step and step % interval == 0:
                # the same draw in every process
                prior.redraw_projections(generator.manual_seed(sample_seed(settings.seed, STREAM_FEATURES, step)))

        prior = prior.to(self.accelerator.device)
        summary = fit(self.accelerator, prior, self.recipe.stage2, len(codes), make_inputs, settings, before_step)
        self._finish_stage(prior, summary, folder)
        return prior, summary

    def _calibration_images(self, pixels: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(sample_seed(self.seed, STREAM_CODES))
        chosen = torch.randperm(len(pixels), generator=generator)[:CALIBRATION_IMAGES]
        return pixels[chosen.sort().values].float() / 255
