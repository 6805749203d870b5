"""`ILTMAnomalyPipeline`: images in, anomaly maps out."""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from iltm_anomaly import feature_map, hub, masking, pixel_map, place_map, second_view, uptake_map
from iltm_anomaly.calibration import surprise_limit, usual_error
from iltm_anomaly.data.cache import PixelCache
from iltm_anomaly.hub.folders import NOISE_FILE, SECOND_VIEW
from iltm_anomaly.hub.parts import (
    FORMER_TOKENIZER,
    SETTINGS_OF,
    check_fit,
    check_views,
    expected_classes,
    needs_noise,
    read_folder_settings,
    read_noise,
)
from iltm_anomaly.modeling import share_tensors
from iltm_anomaly.output import ILTMAnomalyOutput, collected
from iltm_anomaly.prior import PerformerPriorModel, PlacePriorModel, PositionPriorModel, TissuePriorModel
from iltm_anomaly.processing.image_processing import ILTMImageProcessor
from iltm_anomaly.progress import progress
from iltm_anomaly.saved_pipeline import SavedPipeline
from iltm_anomaly.seeds import check_seed
from iltm_anomaly.settings import (
    EFFORTS,
    FeatureSettings,
    InferenceSettings,
    PlaceSettings,
    Settings,
    UptakeSettings,
    lowest_value,
)
from iltm_anomaly.thresholds import TrainingScores
from iltm_anomaly.tiles import ScoredImage, check_tile, decoded_images, list_of_batches, put_together
from iltm_anomaly.tokenizers.base import TokenizerModel, images_at_once
from iltm_anomaly.tokenizers.vqvae import VQVAEModel

logger = logging.getLogger(__name__)

FEW_IMAGES = 8  # from so few no threshold is told without a warning

TASK_MODEL_TYPE = "iltm"  # of the whole pipeline, for `transformers.pipeline`


class ILTMAnomalyPipeline(SavedPipeline):
    """Finds what an image has that the training images, taken together, do not.

    Args:
        tokenizer, prior, image_processor: the trained parts: a `VQVAEModel` and a `PerformerPriorModel`, a
            `FeatureTokenizerModel` and a `PositionPriorModel`, or a tokenizer and a prior both of tissues or both of places.
        settings: how maps are made, `InferenceSettings`, of features `FeatureSettings`, of tissues `UptakeSettings`, of
            places `PlaceSettings`; `calibrate` sets the threshold in it.
        training_report: how the parts came about, saved along.
        noise: float32, the usual error of what is expected, (*observed) of each pixel for a VQ-VAE, (2, *grid) of both looks at
            each token for features; `calibrate` measures it.
        pixels: of a pipeline on features, one on pixels, whose map is added to its own (`second_view`).

    Raises:
        ValueError: if the parts do not fit each other.

    Example:
        >>> pipe = ILTMAnomalyPipeline.from_pretrained("runs/bottle/model")
        >>> out = pipe("part.png")
        >>> out.scores, out.masks[0].any()
    """

    part_names = ("tokenizer", "prior", "image_processor")
    older_names: ClassVar[dict[str, str]] = {FORMER_TOKENIZER: "tokenizer"}

    def __init__(
        self,
        tokenizer: TokenizerModel,
        prior: PerformerPriorModel | PositionPriorModel | TissuePriorModel | PlacePriorModel,
        image_processor: ILTMImageProcessor,
        settings: Settings | None = None,
        training_report: dict[str, Any] | None = None,
        noise: Tensor | None = None,
        pixels: "ILTMAnomalyPipeline | None" = None,
    ):
        check_fit(tokenizer, prior, image_processor)
        self.tokenizer: Any = tokenizer.eval()
        self.prior: Any = prior.eval()
        self.image_processor = image_processor
        self.settings: Any = settings or SETTINGS_OF.get(type(prior), InferenceSettings)()
        self.training_report = training_report or {}
        if noise is not None and tuple(noise.shape) != self._noise_shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, not {self._noise_shape}")
        self.noise = noise
        self.pixels = pixels

    @property
    def pixels(self) -> "ILTMAnomalyPipeline | None":
        """The second view. One that does not fit cannot be set: ValueError."""
        return self._pixels

    @pixels.setter
    def pixels(self, pixels: "ILTMAnomalyPipeline | None") -> None:
        if pixels is not None:
            check_views(self.image_processor, self.prior, pixels.image_processor, pixels.prior)
        self._pixels = pixels

    @property
    def models(self) -> list[Any]:
        return super().models + ([] if self.pixels is None else self.pixels.models)

    @property
    def has_features(self) -> bool:
        """Whether tokens are judged by their features at their position, not by codes and pixels."""
        return isinstance(self.prior, PositionPriorModel)

    @property
    def draws_codes(self) -> bool:
        """Whether unlikely codes are drawn again, by a prior that knows what precedes them; the other kinds of pipelines are
        calibrated in training, in every round."""
        return isinstance(self.prior, PerformerPriorModel)

    @property
    def _noise_shape(self) -> tuple[int, ...]:
        observed = self.tokenizer.observed_shape(self.image_processor.padded_size)
        return (feature_map.LOOKS, *observed) if self.has_features else observed

    @property
    def vqvae(self) -> VQVAEModel:
        """The tokenizer under the name that it had in version 0.1.

        Raises:
            AttributeError: if the tokenizer is not a VQ-VAE.
        """
        if not isinstance(self.tokenizer, VQVAEModel):
            raise AttributeError(f"the tokenizer is a {type(self.tokenizer).__name__}, not a VQ-VAE: use `tokenizer`")
        return self.tokenizer

    @torch.no_grad()
    def __call__(
        self,
        images: Any,
        num_samples: int | None = None,
        num_dropout_passes: int | None = None,
        token_threshold: float | None = None,
        generator: int | torch.Generator | None = None,
        batch_size: int = 8,
        show_progress: bool = False,
        tile: int | None = None,
        effort: str = "full",
        **settings: Any,
    ) -> ILTMAnomalyOutput:
        """Scores one image or many.

        Args:
            images: a path, PIL image, array or tensor, a list of these, or a column of a `datasets.Dataset`.
            num_samples, num_dropout_passes, token_threshold: in place of the pipeline's settings, as is any other one of them by
                name, such as `score_threshold`. Those that change the map change the scale of scores too, which the threshold
                was set on.
            generator: a seed, or a generator to draw one from. By default every image is healed with seed 0, so that
                its result is always the same, alone or among others.
            batch_size: images, or tiles of one, that go through the models together.
            show_progress: a progress bar over images.
            tile: side in pixels of overlapping tiles that each image is cut into, every one of which becomes an image of the
                model's size. None takes that of the training, 0 the image as a whole. See `docs/efforts.md`.
            effort: "full", "fast" or "score", see `settings.EFFORTS`; the two lower ones take a fraction of the time of a
                pipeline on pixels.

        Raises:
            ImageReadError: if an image cannot be read.
            NonFiniteScoreError: if the score of an image is NaN or infinite.
            ValueError: if `images` is empty, values or a shape are none of an image, or `generator`, `batch_size`,
                `tile`, `effort` or a setting is none, or the pipeline has no threshold for that effort.
            TypeError: if something is no image.
        """
        if isinstance(generator, torch.Generator):
            generator = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        seed = check_seed(0 if generator is None else generator)
        settings |= {"num_samples": num_samples, "num_dropout_passes": num_dropout_passes}
        chosen = self._chosen(effort, settings | {"token_threshold": token_threshold})
        images, tile = self.image_processor.as_list(images), chosen.tile if tile is None else tile
        if tile:
            found = self._in_tiles(images, tile, chosen, seed, batch_size, show_progress)
        else:
            found = self._whole(self.batches(images, batch_size, show_progress), chosen, seed)
        return collected(found, images, chosen, bool(tile))

    def _chosen(self, effort: str, values: dict[str, Any]) -> Settings:
        """The settings at an effort, with the values that are not None in place of theirs."""
        given = {name: value for name, value in values.items() if value is not None}
        known = [field.name for field in fields(self.settings)]
        if unknown := sorted(set(given) - set(known)):
            why = (
                "nothing is drawn in such a pipeline"
                if unknown[0] in InferenceSettings.__dataclass_fields__
                else "unknown"
            )
            raise ValueError(f"{', '.join(unknown)}: {why}, leave it out; its settings are {', '.join(known)}")
        return replace(self.settings.at(effort), **given)

    def _whole(self, batches: Iterable[Any], settings: Settings, seed: int) -> Iterator[ScoredImage]:
        """Each image of the batches, as large as it is."""
        lowest, processor = lowest_value(settings), self.image_processor
        for batch in batches:
            scored = zip(*self.score_batch(batch["pixel_values"], settings, seed), strict=True)
            for (values, healed, likelihood, resampled, score), size in zip(
                scored, batch["original_sizes"], strict=True
            ):
                restored = processor.restore_map(values, size, lowest)
                picture = processor.restore_image(healed, size)
                score = float(restored.max()) if score is None else score
                yield ScoredImage(restored, score, picture, likelihood, resampled)

    def _in_tiles(
        self,
        images: list[Any],
        tile: int,
        settings: Settings,
        seed: int,
        batch_size: int,
        show_progress: bool,
    ) -> Iterator[ScoredImage]:
        """Each image, put together of its tiles."""
        if self.image_processor.is_volumetric:
            raise ValueError("volumes are not cut into tiles: leave out tile")
        check_tile(tile)
        for image, tiling in decoded_images(images, tile):
            parts = list_of_batches(tiling.cut(image), batch_size)
            shown = progress(parts, desc="scoring tiles", unit="batch", hidden=not show_progress)
            batches = (self.image_processor.preprocess(batch) for batch in shown)
            yield put_together(tiling, self._whole(batches, settings, seed))

    @torch.no_grad()
    def score_batch(
        self, pixel_values: Tensor, settings: Settings, seed: int
    ) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor, list[float] | list[None]]:
        """Images (B, C, *spatial) in [0, 1] -> maps (*spatial), healed images (C, *spatial), log-likelihoods and resampled tokens
        (B, *grid), all on the CPU, and scores of the images; None where the score is the largest value of the map."""
        pixel_values = pixel_values.to(self.device)
        if isinstance(settings, FeatureSettings):
            scored = feature_map.score_images(self.tokenizer, self.prior, pixel_values, settings, self.noise)
            return second_view.added(scored[0], self.pixels, pixel_values, settings), *scored[1:]
        if isinstance(settings, UptakeSettings | PlaceSettings):
            score: Any = (uptake_map if isinstance(settings, UptakeSettings) else place_map).score_volumes
            found = score(self.tokenizer, self.prior, pixel_values, settings, self.image_processor.in_units)
            return *found, [None] * len(pixel_values)
        noise = self.noise if settings.reconstruction_noise else None
        return pixel_map.score_images(self.tokenizer, self.prior, pixel_values, settings, noise, seed)

    def calibrate(self, pixel_values: Tensor, codes: Tensor | None = None, show_progress: bool = False) -> float:
        """Sets `surprise_limit`, `noise` if it is used, and the threshold of each effort (`masking.score_threshold`) from
        training images alone; no label is read.

        Args:
            pixel_values: (N, C, *spatial) in [0, 1]; scoring them takes most of the time.
            codes: (M, *grid) of all training images, if `pixel_values` are some of them: the limit is taken from these.
            show_progress: a progress bar.

        Returns:
            The score threshold of full effort.

        Raises:
            ValueError: of any other pipeline than one on codes of pixels: its images must be judged by models that have not seen
                them, see `training.features`, `training.uptake` and `training.places`.
        """
        if not self.draws_codes:
            raise ValueError("such a pipeline is calibrated in training, by models that have not seen the images")
        own = self.encode(pixel_values)
        self.calibrate_surprise_limit(own if codes is None else codes)
        if self.settings.reconstruction_noise:
            self.calibrate_noise(pixel_values, own)
        if len(pixel_values) < FEW_IMAGES:
            logger.warning(
                "the threshold comes from %d image(s) alone: choose your own by what you see", len(pixel_values)
            )
        settings, batches = self.settings, pixel_values.split(images_at_once(pixel_values))
        settings.score_threshold, thresholds = None, {}  # without one, lower efforts need none
        lowest = lowest_value(settings)
        for effort in EFFORTS:  # maps differ in scale
            chosen, scores = settings.at(effort), []
            for batch in progress(batches, desc=f"calibrating {effort}", unit="batch", hidden=not show_progress):
                scores += [float(values.max()) for values in self.score_batch(batch, chosen, 0)[0]]
            thresholds[effort] = masking.score_threshold(torch.tensor(scores), lowest)
            if effort == "full":
                self.training_report |= TrainingScores(np.array(scores), -lowest).to_report()
        settings.set_thresholds(thresholds)
        return thresholds["full"]

    def calibrate_surprise_limit(self, codes: Tensor) -> None:
        """Sets which tokens count as outliers from the codes of training images (N, *grid); a fixed `token_threshold` needs
        none."""
        rule = self.settings.rule
        if rule.token_threshold is None:
            self.settings.surprise_limit = surprise_limit(self.prior, codes, rule)

    def calibrate_noise(self, pixel_values: Tensor, codes: Tensor) -> None:
        """Measures `noise` (`calibration.usual_error`) on training images (N, C, *spatial) and their codes (N, *grid)."""
        self.noise = usual_error(self.tokenizer, pixel_values, codes)

    @torch.no_grad()
    def encode(self, images: Tensor | PixelCache) -> Tensor:
        """Codes (N, *grid) int64 of any number of images (N, C, *spatial), float in [0, 1] or uint8, a few at a time."""
        codes, step = [], images_at_once(images)
        for start in range(0, len(images), step):
            batch = images[start : start + step]
            if batch.dtype == torch.uint8:
                batch = batch.float() / 255
            codes.append(self.tokenizer.encode(batch.to(self.device, self.tokenizer.dtype)))
        return torch.cat(codes)

    # Saving and loading

    @classmethod
    def part_classes(cls, folder: Path) -> dict[str, Any]:
        return expected_classes(folder)

    @classmethod
    def read_settings(cls, folder: Path) -> Settings:
        return read_folder_settings(folder)

    def save_extra_files(self, folder: Path) -> None:
        """`noise`, and what makes `transformers.pipeline` take the folder. What another pipeline has left there goes.

        Raises:
            ValueError: if the settings need `noise` and there is none: the folder could not be loaded.
        """
        if self.noise is None and needs_noise(self.settings):
            raise ValueError(
                "the pipeline has a score_threshold but no noise, which its maps need: `calibrate` it before it is saved, "
                "or of a VQ-VAE set reconstruction_noise to False"
            )
        (folder / NOISE_FILE).unlink(missing_ok=True)
        for part in (FORMER_TOKENIZER, SECOND_VIEW):
            shutil.rmtree(folder / part, ignore_errors=True)
        if self.pixels is not None:
            self.pixels.save_pretrained(folder / SECOND_VIEW)
        (folder / "config.json").write_text(json.dumps({"model_type": TASK_MODEL_TYPE}, indent=2) + "\n")
        if self.noise is not None:
            save_file({"noise": self.noise.float().cpu().contiguous()}, folder / NOISE_FILE)
            share_tensors(folder)

    def load_extra_files(self, folder: Path) -> None:
        self.noise = read_noise(folder / NOISE_FILE, self._noise_shape)
        if (folder / SECOND_VIEW).is_dir():
            self.pixels = type(self).from_pretrained(folder / SECOND_VIEW)

    def save_pretrained(
        self, folder: str | Path, *, push_to_hub: bool = False, repo_id: str | None = None, **kwargs: Any
    ) -> None:
        """As `SavedPipeline.save_pretrained`; then, if asked for, `push_to_hub` to `repo_id` (by default the folder's name)."""
        super().save_pretrained(folder)
        if push_to_hub:
            self.push_to_hub(repo_id or Path(folder).name, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload ILTM pipeline",
        tags: Sequence[str] = (),
        results: Sequence[str | Path] = (),
        **kwargs: Any,
    ) -> str:
        """Uploads what `save_pretrained` writes as one commit; returns its address, or that of the pull request.

        Args:
            repo_id, commit_message: as of any model.
            tags: for the model card, beside its own.
            results: what `iltm-anomaly evaluate` has written, one file a seed, for the model card; without any it says that
                nothing was measured.
            kwargs: private, token, revision, commit_description and create_pr of `hub.upload.upload`.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            plan = hub.upload.plan_upload(folder, repo_id, [Path(path) for path in results], tags=tags)
            return hub.upload.upload(plan, commit_message=commit_message, **kwargs)
