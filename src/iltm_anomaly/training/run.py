"""A whole training run: tokenizer, rounds of the prior, calibration, pipeline folder. Every part can be resumed."""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from iltm_anomaly.calibration import calibration_images, explained_share
from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.feature_map import looks_good
from iltm_anomaly.hub.folders import SECOND_VIEW
from iltm_anomaly.hub.parts import read_folder_settings
from iltm_anomaly.pipeline import ILTMAnomalyPipeline
from iltm_anomaly.proportions import KEY, Watched, is_far
from iltm_anomaly.provenance import provenance
from iltm_anomaly.recipes.feature_recipe import FeatureRecipe
from iltm_anomaly.recipes.pixel_recipe import Recipe
from iltm_anomaly.recipes.place_recipe import PlaceRecipe
from iltm_anomaly.recipes.uptake_recipe import UptakeRecipe
from iltm_anomaly.second_view import EFFORT, calibrate, map_of_pixels, shrunk
from iltm_anomaly.settings import InferenceSettings, chosen_and_measured
from iltm_anomaly.training.checkpoint import check_writable, fill_folder, remove_checkpoint
from iltm_anomaly.training.context import RunContext
from iltm_anomaly.training.features import IMAGES_AT_ONCE, fit_features
from iltm_anomaly.training.fit_tokenizer import fit_tokenizer
from iltm_anomaly.training.pixels import load_pixels
from iltm_anomaly.training.places import fit_places
from iltm_anomaly.training.processes import on_main
from iltm_anomaly.training.rounds import fit_rounds
from iltm_anomaly.training.run_folder import flat
from iltm_anomaly.training.suspects import names_of, report_masked, weights_of
from iltm_anomaly.training.tracking import RunLog
from iltm_anomaly.training.uptake import fit_uptake

logger = logging.getLogger(__name__)

LEAST_EXPLAINED = 0.1  # share of what training images differ by, below which a tokenizer is junk


class TrainingRun(RunContext):
    """One run in one folder; arguments are those of `RunContext`."""

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
            InUseError: if another process trains in the folder.
            MainProcessError: in the other processes, if the main one failed.
        """
        with self.folder.held():
            return self._train(images, data_record, resume, source)

    def _train(
        self,
        images: Iterable[Any],
        data_record: Callable[[], dict[str, Any]],
        resume: bool,
        source: Callable[[], str | None] | None,
    ) -> Path:
        """As `train`, in a folder that no other process trains in."""
        kinds: Any = {FeatureRecipe: fit_features, UptakeRecipe: fit_uptake, PlaceRecipe: fit_places}
        fit_calibrated = kinds.get(type(self.recipe))
        if fit_calibrated is None:
            _check_batches(self.recipe, self.accelerator)
        expected = self.folder.claim(self.recipe, self.seed, resume)
        model_folder = self.output / "model"
        if expected is not None and model_folder.exists():
            if self._is_calibrated(model_folder):
                logger.info("the run in %s is complete: nothing is left to do", self.output)
                return model_folder
            logger.warning("settings of inference have changed: the run in %s is calibrated again", self.output)
        check_writable(self.output)
        watched = Watched(images)
        pixels, processor = load_pixels(self, watched, source, expected)
        _check_images(len(pixels), self.accelerator)
        _tell_of_stretching(watched, self.recipe)

        def record() -> dict[str, Any]:
            return data_record() | watched.report()

        data = self.folder.record(self.recipe, self.seed, len(pixels), pixels.digest, record)
        self._start_log()

        about = {
            "recipe": self.recipe.to_dict(),
            "seed": self.seed,
            "data": data,
            "num_training_images": len(pixels),
        }
        if fit_calibrated is not None:
            pipeline, rounds = fit_calibrated(self, pixels, processor)
            seconds = rounds
            if getattr(self.recipe, "pixels", None) is not None:
                view = self._second_view(pixels, rounds[-1]["round"], data)
                on_main(self.accelerator, lambda: self._combine(pipeline, view, pixels))
                seconds = [*rounds, {"seconds": view.training_report["training_seconds"]}]
        else:
            tokenizer, stage1 = fit_tokenizer(self, pixels)
            prior, rounds = fit_rounds(self, tokenizer, pixels, follows=stage1["weights_sha256"])
            pipeline = ILTMAnomalyPipeline(tokenizer, prior, processor, InferenceSettings(**self.recipe.inference))
            pipeline.settings.tile = self.recipe.tile
            about["stage1"], seconds = stage1, [stage1, *rounds]
        # of all stages, over all sittings of a resumed run
        total = round(sum(entry["seconds"] for entry in seconds), 1)
        pipeline.training_report |= about | {"rounds": rounds, "training_seconds": total}
        on_main(self.accelerator, lambda: self._finish(pipeline, pixels, model_folder))
        return model_folder

    def _second_view(self, pixels: PixelCache, last: int, data: dict[str, Any]) -> ILTMAnomalyPipeline:
        """A pipeline on pixels, trained in a run of its own within the folder, on the images in which round `last` rejected
        nothing (all, where it did so in most)."""
        weights = weights_of(self.output / "rounds" / f"round_{last}")
        assert weights is not None  # of every round on features
        kept = looks_good((weights > 0.5).flatten(1).all(1)).nonzero().flatten().tolist()
        recipe, names = self.recipe.pixels, names_of(pixels)

        def images() -> Iterator[Image.Image]:
            for number in kept:
                small = shrunk(pixels[number].float()[None], (recipe.image_size,) * 2)[0].round().byte()
                image = Image.fromarray(small.permute(1, 2, 0).squeeze(2).numpy())
                image.filename = names[number]  # type: ignore[attr-defined]
                yield image

        logger.info("second view: %d of %d images, in which nothing was rejected", len(kept), len(pixels))
        run = TrainingRun(
            recipe, self.output / SECOND_VIEW, self.seed, self.accelerator, self.show_progress, self.checkpoint_seconds
        )
        source, is_begun = f"{pixels.digest} {kept}", (run.output / "run.json").exists()
        folder = run.train(images(), lambda: data, resume=is_begun, source=lambda: source)
        return ILTMAnomalyPipeline.from_pretrained(folder, device=self.device)

    def _combine(self, pipeline: ILTMAnomalyPipeline, view: ILTMAnomalyPipeline, pixels: PixelCache) -> None:
        """Gives a pipeline on features its second view, on the scale of the first."""
        pipeline.to(self.device)
        own, theirs = [], []
        for batch in calibration_images(pixels, self.seed).split(IMAGES_AT_ONCE):
            own += pipeline.score_batch(batch, pipeline.settings.at(EFFORT), 0)[0]
            theirs.append(map_of_pixels(view, batch.to(self.device)))
        calibrate(torch.stack(own), torch.cat(theirs), pipeline.settings)
        pipeline.pixels = view

    def _finish(self, pipeline: ILTMAnomalyPipeline, pixels: PixelCache, folder: Path) -> None:
        """Calibrates the pipeline on the training images and saves it."""
        if pipeline.draws_codes:  # the others are calibrated in every round
            pipeline.to(self.device)
            codes, chosen = pipeline.encode(pixels), calibration_images(pixels, self.seed)
            pipeline.calibrate(chosen, codes, show_progress=self.show_progress)
            warn_of_junk(pipeline, chosen)
            last = pipeline.training_report["rounds"][-1]["round"]
            report_masked(self.output, pixels, self.output / "rounds" / f"round_{last}")
        pipeline.training_report |= provenance(self.device)
        fill_folder(folder, pipeline.save_pretrained)
        remove_checkpoint(self.output / "checkpoint.bin")

    def _is_calibrated(self, model_folder: Path) -> bool:
        """Whether a finished pipeline has the recipe's settings of inference, whatever calibration has added to them."""
        if not isinstance(self.recipe, Recipe):
            return True  # by the run itself
        try:
            found = read_folder_settings(model_folder)
        except ValueError:
            return False
        expected = InferenceSettings(**self.recipe.inference, tile=self.recipe.tile)
        if not isinstance(found, InferenceSettings) or found.threshold_at_score is None:  # of version 0.1
            return False
        return chosen_and_measured(found)[0] == chosen_and_measured(expected)[0]

    def _start_log(self) -> None:
        """Starts the run's own log, and the trackers that `make_accelerator` was asked for."""
        values = flat(self.recipe.to_dict()) | {"seed": self.seed}
        simple = {key: value for key, value in values.items() if isinstance(value, bool | int | float | str)}
        self.accelerator.init_trackers("trackers", config=simple)
        self.log = RunLog(self.output, self.accelerator.is_main_process, self.accelerator)


def warn_of_junk(pipeline: ILTMAnomalyPipeline, images: Tensor) -> None:
    """Says so if the tokenizer does not draw its own training images (N, C, *spatial) in [0, 1]."""
    share = explained_share(pipeline.tokenizer, images, pipeline.encode(images))
    if len(images) > 1 and share < LEAST_EXPLAINED:
        logger.warning(
            "the tokenizer draws its own training images hardly better than their mean does (it explains %.0f %% of what they "
            "differ by): the model is of no use. Train its stage1 longer (--set stage1.epochs=...), or take --preset features",
            100 * share,
        )


def _tell_of_stretching(watched: Watched, recipe: Any) -> None:
    """Says so if the images are far from square, as those of the model are."""
    ratio = watched.report().get(KEY)
    if ratio is not None and recipe.tile is None and is_far(ratio, 1.0):
        logger.info(
            "the training images are %.2f times as wide as high, and are stretched to %d x %d pixels: give later ones of these "
            "proportions too, or cut all to the part or, with --tile, into squares",
            ratio,
            recipe.image_size,
            recipe.image_size,
        )


def _check_images(number: int, accelerator: Accelerator) -> None:
    if number < accelerator.num_processes:
        raise ValueError(
            f"{number} training image(s) are too few for {accelerator.num_processes} processes: start {number} at most"
        )


def _check_batches(recipe: Recipe, accelerator: Accelerator) -> None:
    """Says which batches cannot be shared out, before days of training rather than after."""
    processes = accelerator.num_processes
    if recipe.stage1.batch_size < processes:
        raise ValueError(
            f"recipe.stage1.batch_size is {recipe.stage1.batch_size} images over all processes, too few for {processes} of them: "
            f"raise it to {processes} at least, or start fewer processes"
        )
    if recipe.stage2.batch_size < processes and accelerator.is_main_process:
        logger.warning(
            "recipe.stage2.batch_size is %d: %d of %d processes will have nothing to do in stage 2",
            recipe.stage2.batch_size,
            processes - recipe.stage2.batch_size,
            processes,
        )
