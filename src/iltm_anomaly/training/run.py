"""A whole training run: VQ-VAE, codes, round 0, masked rounds, calibration, pipeline folder. Every part can be resumed."""

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
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
from iltm_anomaly.data.cache import CacheDamagedError, CacheWriteError, PixelCache, build_cache, difference
from iltm_anomaly.pipeline import ILTMAnomalyPipeline, images_at_once
from iltm_anomaly.prior import PerformerPriorConfig, PerformerPriorModel
from iltm_anomaly.prior.modeling_performer_prior import SCORING_BATCH
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.provenance import provenance
from iltm_anomaly.recipes.recipe import Recipe
from iltm_anomaly.settings import InferenceSettings
from iltm_anomaly.tokenizers.vqvae import VQVAEConfig, VQVAEModel
from iltm_anomaly.training.checkpoint import CheckpointError, check_writable, fill_folder, load_json, remove_checkpoint
from iltm_anomaly.training.fit import Hooks, LoopSettings, fit, loading_threads, steps_per_epoch, total_steps
from iltm_anomaly.training.processes import on_main, over_processes
from iltm_anomaly.training.run_folder import RunFolder, RunFolderError, flat
from iltm_anomaly.training.tracking import RunLog, panel

logger = logging.getLogger(__name__)

# First counters of every random stream of a run, so that no two parts of it share one.
STREAM_STAGE1, STREAM_STAGE2, STREAM_CODES, STREAM_WEIGHTS, STREAM_FEATURES = range(10, 15)
CODEBOOK_IMAGES = 128  # images whose encoder outputs the codebook starts from
PICTURED = 4  # images shown in the pictures of a run
PICTURES_PER_STAGE = 10
MUCH_MASKED = 0.25  # of all tokens: said, not refused
CALIBRATION_IMAGES = 96  # images scored to set the threshold; more change it little


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
        self.folder = RunFolder(self.output, self.accelerator)
        self.augmentation = AugmentationConfig(**self.recipe.augmentation)
        self.steps_done = 0  # of finished stages

    def train(
        self,
        images: Iterable[Any],
        data_record: Callable[[], dict[str, Any]],
        resume: bool = False,
        source: Callable[[], str | None] | None = None,
    ) -> Path:
        """Trains on images (paths, PIL images or anything `ILTMImageProcessor` takes); labels are neither needed nor read.

        Args:
            images: the training images; a stream will do, they are read once, in order, by the main process.
            data_record: () -> where they come from, kept in the report; asked once, by the main process, when a run begins.
            resume: continue what the folder holds; a finished run whose settings of inference have changed is calibrated again.
            source: () -> what changes when the images do, such as the fingerprint of a data set, or None; asked by the main
                process. With it a resumed run knows without reading them that the images are those it has in its cache.

        Returns:
            The pipeline folder.

        Raises:
            RunFolderError: if the folder holds a run and `resume` is False, or one of another recipe, seed or data.
            CheckpointError: if the folder cannot be written.
            NonFiniteLossError: if the loss is not finite.
            MainProcessError: in the other processes, if the main one failed.
        """
        _check_batches(self.recipe, self.accelerator)
        expected = self.folder.claim(self.recipe, self.seed, resume)
        model_folder = self.output / "model"
        if expected is not None and model_folder.exists():
            if self._is_calibrated(model_folder):
                logger.info("the run in %s is complete: nothing is left to do", self.output)
                return model_folder
            logger.warning("settings of inference have changed: the run in %s is calibrated again", self.output)
        check_writable(self.output)
        pixels, processor = self._load(images, source, expected)
        _check_images(len(pixels), self.accelerator)
        data = self.folder.record(self.recipe, self.seed, len(pixels), pixels.digest, data_record)
        self._start_trackers()
        self.log = RunLog(self.output, self.accelerator.is_main_process, self.accelerator)
        vqvae, stage1 = self._train_vqvae(pixels)
        prior, rounds = self._train_rounds(vqvae, pixels, stage1["weights_sha256"])
        pipeline = ILTMAnomalyPipeline(vqvae, prior, processor, InferenceSettings(**self.recipe.inference))
        pipeline.to(self.accelerator.device)

        def finish() -> None:
            codes = pipeline.encode(pixels)
            pipeline.calibrate(calibration_images(pixels, self.seed), codes, show_progress=self.show_progress)
            pipeline.training_report = {
                "recipe": self.recipe.to_dict(),
                "seed": self.seed,
                "data": data,
                "num_training_images": len(pixels),
                "stage1": stage1,
                "rounds": rounds,
                # of both stages, over all sittings of a resumed run
                "training_seconds": round(stage1["seconds"] + sum(entry["seconds"] for entry in rounds), 1),
                **provenance(self.accelerator.device),
            }
            fill_folder(model_folder, pipeline.save_pretrained)
            remove_checkpoint(self.output / "checkpoint.bin")

        on_main(self.accelerator, finish)
        return model_folder

    def _is_calibrated(self, model_folder: Path) -> bool:
        """Whether a finished pipeline has the recipe's settings of inference, whatever calibration has added to them."""
        measured: dict[str, Any] = {"surprise_limit": None, "score_threshold": None}
        try:
            found = InferenceSettings.from_dict(load_json(model_folder / "calibration.json"))
        except (OSError, ValueError, TypeError):
            return False
        return replace(found, **measured) == replace(InferenceSettings(**self.recipe.inference), **measured)

    def _start_trackers(self) -> None:
        values = flat(self.recipe.to_dict()) | {"seed": self.seed}
        simple = {key: value for key, value in values.items() if isinstance(value, bool | int | float | str)}
        self.accelerator.init_trackers(
            "trackers", config=simple
        )  # of `make_accelerator`; none, unless some were asked for

    # The images

    def _make_processor(self, images: Iterable[Any]) -> ILTMImageProcessor:
        if self.recipe.volume is not None:
            divisor = VQVAEConfig(**self.recipe.vqvae).downsampling
            return ILTMImageProcessor.for_volumes(images, size_divisor=divisor, **self.recipe.volume)
        return ILTMImageProcessor(size=self.recipe.image_size, num_channels=self.recipe.num_channels)

    def _load(
        self, images: Iterable[Any], source: Callable[[], str | None] | None, expected: str | None
    ) -> tuple[PixelCache, ILTMImageProcessor]:
        """Decodes every image once, into a file that all processes map into memory: (N, C, H, W) uint8."""
        path = self.output / "images.arrow"

        def fill() -> ILTMImageProcessor:
            processor = self._make_processor(images)
            known = None if source is None else source()
            if known is not None:
                settings = json.dumps(processor.to_dict(), sort_keys=True, default=str)
                known = hashlib.sha256(f"{known} {settings}".encode()).hexdigest()
            try:
                self._fill_cache(path, images, processor.to_uint8, known, expected)
            except CacheWriteError as error:
                raise CheckpointError(str(error)) from error
            return processor

        processor = on_main(self.accelerator, fill)
        return PixelCache(path), processor

    def _fill_cache(
        self,
        path: Path,
        images: Iterable[Any],
        prepare: Callable[[Any], np.ndarray],
        source: str | None,
        expected: str | None,
    ) -> None:
        cache = None
        try:
            if path.exists():
                cache = PixelCache(path)
                cache.verify()
        except CacheDamagedError as error:
            logger.warning("%s: decoding the images again", error)
            cache = None
        if cache is not None and expected is None and (source is None or cache.source != source):
            cache = None  # left over from a run that had not begun

        def shown() -> Iterable[
            Any
        ]:  # made when needed: a bar asks for the length, for which the images must be known
            return tqdm(images, desc="loading images", unit="image", disable=not self._shows_bars)

        changes = None
        if cache is None:
            cache = build_cache(path, shown(), prepare, source)
        elif source is None or cache.source != source:  # moved to another machine, perhaps: the pixels decide
            changes = difference(cache, shown(), prepare)
        if changes is None and expected not in (None, cache.digest):  # of another attempt, that was killed
            path.unlink()
            changes = "other pixels"
        if changes is not None:
            raise RunFolderError(
                f"cannot resume {self.output}: the training images are not those that it was started with ({changes}). "
                "Give the same images, or another --output"
            )

    @property
    def _shows_bars(self) -> bool:
        return self.show_progress and self.accelerator.is_main_process

    def _set_checkpointing(self, model: PreTrainedModel) -> None:
        if self.recipe.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})

    def _loop_settings(self, name: str, *stream: int, **more: Any) -> LoopSettings:
        return LoopSettings(
            name=name,
            seed=sample_seed(self.seed, *stream),
            log=self.log,
            checkpoint_path=self.output / "checkpoint.bin",
            checkpoint_seconds=self.checkpoint_seconds,
            show_progress=self.show_progress,
            loading_threads=loading_threads(self.accelerator),
            steps_before=self.steps_done,
            **more,
        )

    # Stage 1

    def _augmented(self, pixels: Tensor, seeds: list[int]) -> Tensor:
        return augment(pixels.to(self.accelerator.device).float() / 255, self.augmentation, seeds)

    def _train_vqvae(self, pixels: PixelCache) -> tuple[VQVAEModel, dict[str, Any]]:
        stage = self.recipe.stage1
        found = self.folder.load_stage("vqvae", VQVAEModel, pixels.digest)
        self.steps_done = total_steps(stage, len(pixels))
        if found is not None:
            return found
        torch.manual_seed(sample_seed(self.seed, STREAM_WEIGHTS, 0))
        model = VQVAEModel(VQVAEConfig(in_channels=self.recipe.num_channels, **self.recipe.vqvae))
        self._set_checkpointing(model)
        model = model.to(self.accelerator.device)
        if not self.recipe.is_volumetric:
            model = model.to(memory_format=torch.channels_last)
        grid = model.grid_shape(pixels.shape[2:])
        settings = self._loop_settings("vqvae", STREAM_STAGE1, tokens_per_sample=math.prod(grid))
        settings.steps_before, settings.follows = 0, pixels.digest
        start = self.recipe.codebook_start
        if start is not None and start >= self.steps_done:
            logger.warning(
                "stage 1 has %d steps, fewer than codebook_start: the codebook starts half-way. Train it longer, or lower "
                "codebook_start",
                self.steps_done,
            )
            start = self.steps_done // 2

        def make_inputs(indices: Tensor, step: int) -> dict[str, Tensor]:
            # seeded by step and image, not by process: the same batch whatever the number of processes
            seeds = [sample_seed(settings.seed, 3, step, int(i)) for i in indices]
            batch = self._augmented(pixels[indices], seeds)
            return {"pixel_values": batch.contiguous(memory_format=torch.channels_last) if batch.dim() == 4 else batch}

        def before_step(step: int, epoch: int) -> None:
            if start is not None and step <= start:
                model.quantizer.bypass = step < start
                if step == start:
                    sample = pixels[:: max(1, len(pixels) // CODEBOOK_IMAGES)][:CODEBOOK_IMAGES]
                    if self.recipe.is_volumetric:
                        sample = sample[: images_at_once(pixels[:1])]  # one holds more codes than many images
                    model.initialize_codebook(sample.to(self.accelerator.device).float() / 255)
            decay = stage.ema_decay_at(epoch)
            if decay is not None:
                model.quantizer.decay = decay
            if step and step % max(1, self.steps_done // PICTURES_PER_STAGE) == 0:
                self._picture_reconstructions(model, pixels, step)

        def before_forward(last: bool) -> None:
            model.quantizer.defer = not last

        def measure() -> dict[str, float]:
            count = model.quantizer.code_count
            return {"codebook_use": round((count > 0.01 * count.mean()).float().mean().item(), 4)}

        hooks = Hooks(before_step=before_step, before_forward=before_forward, measure=measure)
        summary: dict[str, Any] = fit(self.accelerator, model, stage, len(pixels), make_inputs, settings, hooks)
        summary |= self._reconstruction_report(model, pixels)
        self._picture_reconstructions(model, pixels, self.steps_done)
        model = model.to(memory_format=torch.contiguous_format)
        summary = self.folder.save_stage("vqvae", model, summary, follows=pixels.digest)
        return model, summary

    @torch.no_grad()
    def _picture_reconstructions(self, model: VQVAEModel, pixels: PixelCache, step: int) -> None:
        """Input and reconstruction of the first images, side by side; the model is left in the mode it was in."""
        if not self.accelerator.is_main_process:
            return
        was_training = model.training
        model.eval()
        batch = pixels[: images_at_once(pixels[:1], PICTURED)].to(self.accelerator.device).float() / 255
        reconstruction = model(batch).reconstruction
        model.train(was_training)
        rows = [[_displayed(a), _displayed(b)] for a, b in zip(batch, reconstruction, strict=True)]
        self.log.picture("reconstructions", panel(rows), step)

    @torch.no_grad()
    def _reconstruction_report(self, model: VQVAEModel, pixels: PixelCache) -> dict[str, float]:
        """Squared error and codes in use over (at most 256 of) the training images, without augmentation or dropout."""
        model.eval()
        errors, used = [], set()
        for batch in pixels[:256].split(images_at_once(pixels[:1], 16)):
            batch = batch.to(self.accelerator.device).float() / 255
            output = model(batch)
            errors.append((output.reconstruction - batch).square().mean().item())
            used.update(output.codes.unique().tolist())
        return {"mse": float(np.mean(errors)), "codes_in_use": len(used)}

    # Stage 2

    @torch.no_grad()
    def _encode_copies(self, vqvae: VQVAEModel, pixels: PixelCache, copies: Iterable[int], show: bool) -> Tensor:
        """Codes of the augmented copies with these numbers of every image, (N, copies, tokens) int32."""
        copies = list(copies)
        count = images_at_once(pixels[:1], len(copies))

        def encode(rows: range) -> Tensor:
            codes = []
            for index in tqdm(rows, desc="extracting codes", unit="image", disable=not (show and self._shows_bars)):
                seeds = [sample_seed(self.seed, STREAM_CODES, index, copy) for copy in copies]
                parts = [
                    vqvae.encode(self._augmented(pixels[index].expand(len(part), *pixels.shape[1:]), part))
                    for part in (seeds[start : start + count] for start in range(0, len(seeds), count))
                ]
                codes.append(torch.cat(parts).flatten(1).to(torch.int32).cpu())
            return torch.stack(codes)

        return over_processes(self.accelerator, len(pixels), 1, encode)

    def _extract_codes(self, vqvae: VQVAEModel, pixels: PixelCache) -> Tensor:
        """Codes of the augmented copies of every image, (N, copies, tokens): extracted once, as the authors did, so that
        the masks of a round can be computed once too."""
        kind = torch.int16 if vqvae.config.vocab_size <= 1 << 15 else torch.int32
        return self._encode_copies(vqvae, pixels, range(self._code_copies(len(pixels))), show=True).to(kind)

    def _code_copies(self, images: int) -> int:
        stage = self.recipe.stage2
        epochs = -(-total_steps(stage, images) // steps_per_epoch(images, stage.batch_size))
        return min(self.recipe.rounds.code_copies or epochs, epochs)

    @torch.no_grad()
    def _score(self, prior: PerformerPriorModel, codes: Tensor) -> Tensor:
        """Log-likelihoods (N, copies, tokens) with the full, unmasked context, as the authors' masks are computed."""
        sequences = codes.flatten(0, 1)

        def score(rows: range) -> Tensor:
            part = sequences[rows.start : rows.stop].to(self.accelerator.device)
            return prior.log_likelihood(part.long()).cpu()

        return over_processes(self.accelerator, len(sequences), SCORING_BATCH, score).view(codes.shape)

    def _surprise(self, teacher: PerformerPriorModel, codes: Tensor, grid: tuple[int, ...]) -> Tensor:
        """What the recipe's rule judges, of codes (N, copies, tokens): (N x copies, *grid)."""
        return self.recipe.rounds.rule.surprise(self._score(teacher, codes).flatten(0, 1).unflatten(1, grid))

    def _judge(
        self, teacher: PerformerPriorModel, codes: Tensor, grid: tuple[int, ...]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Keep-masks (N, copies, tokens) by the recipe's rule, and how they came about."""
        rounds, surprise = self.recipe.rounds, self._surprise(teacher, codes, grid)
        limit = rounds.rule.limit(surprise)
        keep = masking.keep_mask(surprise, limit).view(codes.shape)
        fraction = masking.check_masked_fraction(keep, limit, rounds.rule, rounds.max_masked_fraction)
        if fraction > MUCH_MASKED and self.accelerator.is_main_process:
            logger.warning(
                "%.0f %% of all tokens are masked, beyond a limit of %.2f nats: more than defects usually cover. If images are "
                "mostly plain background, crop to the object, or set rounds.token_threshold",
                100 * fraction,
                limit,
            )
        return keep, {"masked_fraction": fraction, "surprise_limit": limit}

    def _train_rounds(
        self, vqvae: VQVAEModel, pixels: PixelCache, vqvae_digest: str
    ) -> tuple[PerformerPriorModel, list[dict[str, Any]]]:
        rule = self.recipe.rounds
        grid = vqvae.grid_shape(pixels.shape[2:])
        reports: list[dict[str, Any]] = []
        teacher: PerformerPriorModel | None = None
        codes: Tensor | None = None
        keep: Tensor | None = None
        follows = vqvae_digest
        for number in range(rule.rounds + 1):
            found = self.folder.load_stage(_round_name(number), PerformerPriorModel, follows)
            if found is not None:
                teacher, report = found
                keep = None  # read when the next round is judged
            else:
                if codes is None:  # not before a round needs them: a run whose rounds are all done extracts none
                    codes = self.folder.cached("codes.bin", vqvae_digest, lambda: self._extract_codes(vqvae, pixels))
                report = {"round": number, "masked_fraction": 0.0}
                previous_keep, keep = keep, None
                if teacher is not None:
                    keep, judged = self._judge(teacher, codes, grid)
                    report |= judged
                    if number > 1:
                        if previous_keep is None:
                            previous_keep = self.folder.stage_tensor(_round_name(number - 1), "keep")
                        assert previous_keep is not None
                        report["mask_iou"] = masking.mask_iou(previous_keep, keep)
                        if masking.has_converged(previous_keep, keep, rule.convergence_iou, rule.convergence_change):
                            reason = (
                                f"round {number} would mask {report['masked_fraction']:.2%} of tokens, round {number - 1} "
                                f"masks {reports[-1]['masked_fraction']:.2%} (IoU {report['mask_iou']:.3f})"
                            )
                            logger.info("stopping: %s", reason)
                            reports[-1]["stopped"] = reason
                            self.folder.update_stage(_round_name(number - 1), stopped=reason)
                            break
                teacher, report = self._train_round(number, vqvae, pixels, codes, keep, report, teacher, follows)
                self._picture_surprise(number, vqvae, teacher, pixels, grid)
                logger.info("round %d: masked %.2f %% of tokens", number, 100 * report["masked_fraction"])
            reports.append(report)
            follows = report["weights_sha256"]
            if "stopped" in report:
                break
        assert teacher is not None  # round 0 always runs
        return teacher, reports

    def _train_round(
        self,
        number: int,
        vqvae: VQVAEModel,
        pixels: PixelCache,
        codes: Tensor,
        keep: Tensor | None,
        report: dict[str, Any],
        teacher: PerformerPriorModel | None,
        follows: str,
    ) -> tuple[PerformerPriorModel, dict[str, Any]]:
        stage, live = self.recipe.stage2, self.recipe.rounds.codes == "live"
        grid = vqvae.grid_shape(pixels.shape[2:])
        # the same start, batches and dropout in every round: rounds differ by their masks alone
        torch.manual_seed(sample_seed(self.seed, STREAM_WEIGHTS, 1))
        config = PerformerPriorConfig(vocab_size=vqvae.config.vocab_size, grid_shape=grid, **self.recipe.prior)
        prior = PerformerPriorModel(config)
        self._set_checkpointing(prior)
        if self.recipe.rounds.initialization == "continue" and teacher is not None:
            prior.load_state_dict(teacher.state_dict())
        about = {"round": number, "masked_fraction": round(report["masked_fraction"], 4)}
        settings = self._loop_settings(
            f"prior round {number}", STREAM_STAGE2, tokens_per_sample=math.prod(grid), about=about
        )
        settings.steps_before += number * total_steps(stage, len(codes))
        settings.follows = follows
        generator = torch.Generator()
        shown, shown_keep = codes, keep  # what the steps of an epoch draw from

        def before_epoch(epoch: int) -> None:
            nonlocal shown, shown_keep
            # copies beyond those that masks are judged by, and another one in every epoch
            shown = self._encode_copies(vqvae, pixels, [codes.shape[1] + epoch], show=False)
            if teacher is not None:
                surprise = self._surprise(teacher, shown, grid)
                shown_keep = masking.keep_mask(surprise, report["surprise_limit"]).view(shown.shape)

        def copy_at(step: int) -> int:
            return step // steps_per_epoch(len(codes), stage.batch_size) % shown.shape[1]

        def make_inputs(indices: Tensor, step: int) -> dict[str, Tensor]:
            inputs = {"input_ids": shown[indices, copy_at(step)].long()}
            return inputs if shown_keep is None else inputs | {"token_mask": shown_keep[indices, copy_at(step)]}

        def loss_terms(indices: Tensor, step: int) -> Tensor:
            if shown_keep is None:
                return torch.full((len(indices),), math.prod(grid))
            return shown_keep[indices, copy_at(step)].sum(1)

        def before_step(step: int, epoch: int) -> None:
            interval = prior.config.feature_redraw_interval
            if interval and step and step % interval == 0:
                # the same draw in every process
                prior.redraw_projections(generator.manual_seed(sample_seed(settings.seed, STREAM_FEATURES, step)))

        prior = prior.to(self.accelerator.device)
        hooks = Hooks(before_epoch=before_epoch if live else None, before_step=before_step, loss_terms=loss_terms)
        summary = fit(self.accelerator, prior, stage, len(codes), make_inputs, settings, hooks)
        report = {**report, **summary}
        tensors = {} if keep is None else {"keep": keep}
        report = self.folder.save_stage(_round_name(number), prior, report, follows, **tensors)
        return prior, report

    @torch.no_grad()
    def _picture_surprise(
        self,
        number: int,
        vqvae: VQVAEModel,
        prior: PerformerPriorModel,
        pixels: PixelCache,
        grid: tuple[int, ...],
    ) -> None:
        """Of the first images: input, decoded codes, and how surprising the prior of this round finds each token."""
        if not self.accelerator.is_main_process:
            return
        batch = pixels[: images_at_once(pixels[:1], PICTURED)].to(self.accelerator.device).float() / 255
        codes = vqvae.encode(batch)
        surprise = -prior.log_likelihood(codes.flatten(1)).unflatten(1, grid)
        strength = surprise / math.log(prior.config.vocab_size)  # white is as surprising as chance
        for axis in range(1, strength.dim()):
            strength = strength.repeat_interleave(vqvae.config.downsampling, axis)
        rows = [
            [_displayed(a), _displayed(b), _displayed(c.unsqueeze(0))]
            for a, b, c in zip(batch, vqvae.decode(codes), strength, strict=True)
        ]
        steps = self.steps_done + (number + 1) * total_steps(self.recipe.stage2, len(pixels))
        self.log.picture(f"surprise_round_{number}", panel(rows), steps)


def calibration_images(images: PixelCache | Tensor, seed: int) -> Tensor:
    """The training images that thresholds are set by, of any method: (M, C, *spatial) in [0, 1], drawn by the seed."""
    generator = torch.Generator().manual_seed(sample_seed(seed, STREAM_CODES))
    chosen = torch.randperm(len(images), generator=generator)[:CALIBRATION_IMAGES]
    return images[chosen.sort().values].float() / 255


def _round_name(number: int) -> str:
    return f"rounds/round_{number}"


def _displayed(values: Tensor) -> np.ndarray:
    """(C, H, W) or (C, D, H, W), of which the middle slice is taken -> (H, W, C)."""
    if values.dim() == 4:
        values = values[:, values.shape[1] // 2]
    return values.permute(1, 2, 0).float().cpu().numpy()


def _check_images(number: int, accelerator: Accelerator) -> None:
    if number < accelerator.num_processes:
        raise ValueError(
            f"{number} training image(s) are too few for {accelerator.num_processes} processes: start {number} at most"
        )


def _check_batches(recipe: Recipe, accelerator: Accelerator) -> None:
    """Before days of training rather than after: says which batches cannot be shared out."""
    processes = accelerator.num_processes
    if recipe.stage1.batch_size < processes:
        raise ValueError(
            f"recipe.stage1.batch_size is {recipe.stage1.batch_size} images over all processes, too few for {processes} of them: "
            f"raise it to {processes} at least, or start fewer processes"
        )
    if recipe.stage2.batch_size < processes and accelerator.is_main_process:
        idle = processes - recipe.stage2.batch_size
        logger.warning(
            "recipe.stage2.batch_size is %d: %d of %d processes will have nothing to do in stage 2",
            recipe.stage2.batch_size,
            idle,
            processes,
        )
